"""Chains from worked solutions in text (GSM8K) and from equations (SVAMP).

docs/data.md says how: the program reasons as the text does, with variables named as the text names.
"""

import ast
import re
from collections.abc import Iterator
from fractions import Fraction

from reftune.data.derive.arithmetic import names_in, number_of, parse, write
from reftune.data.derive.equations import read_equations
from reftune.data.derive.programs import UnderivableError, free_name, variable_name, write_program
from reftune.grading.quantities import same_number

# Words by which a question states numbers, without the s of the plural.
_NUMBER_WORDS = {
    1: "one once",
    2: "two twice double doubled both couple pair half",
    3: "three thrice triple tripled third",
    4: "four fourth quarter",
    5: "five fifth",
    6: "six sixth",
    7: "seven week weekly daily",
    8: "eight",
    9: "nine",
    10: "ten tenth",
    12: "twelve dozen year month monthly foot feet inch inche",
    15: "fifteen",
    20: "twenty",
    24: "day hour",
    30: "thirty month",
    50: "fifty",
    52: "year week weekly",
    60: "sixty minute hour second hourly",
    100: "hundred percent percentage cent dollar century",
    365: "year day",
    1000: "thousand",
}
_NUMBER = re.compile(r"(?<![\w.])(?:\d+|(?=\.\d))(?:\.\d+)?")

_SIGNS: dict[type[ast.operator], tuple[str, str]] = {  # and what to call the result
    ast.Add: ("+", "total"),
    ast.Sub: ("-", "difference"),
    ast.Mult: ("*", "product"),
    ast.Div: ("/", "quotient"),
}

_RESULT = re.compile(r"[-\s]*[\d./ ]*%?")


def program_from_solution(question: str, solution: str, answer: float) -> str:
    """Return a program that computes the answer by the equations of a worked solution.

    It ends with the last equation that gives the answer. A number becomes the variable of an earlier
    result that equals it, if that has not been used yet or is not stated by the question as well.

    Raises UnderivableError if no equation of the text gives the answer.
    """
    equations = read_equations(solution)
    hits = [n for n, equation in enumerate(equations) if same_number(float(equation.result), answer)]
    if not hits:
        raise UnderivableError("no equation of the solution gives the answer")
    linker = _Linker(stated_numbers(question))
    steps: dict[str, str] = {}
    for equation in equations[: hits[-1] + 1]:
        wish = variable_name(equation.before, _RESULT.sub("", equation.after, count=1))
        name = free_name(wish or equation.unknown or "value", steps)
        steps[name] = ast.unparse(linker.visit(equation.calculation))
        linker.given.append((name, equation.result))
    return write_program(steps)


def program_from_equation(equation: str) -> str:
    """Return the program that computes an equation such as `( ( 23.0 + 4.0 ) - 2.0 )`, sign by sign.

    Raises UnderivableError if it cannot be read.
    """
    names: dict[ast.expr, str] = {}
    steps: dict[str, str] = {}
    for node in _calculations(equation):
        sign, word = _SIGNS[type(node.op)]
        left, right = (names.get(side) or _literal(side) for side in (node.left, node.right))
        names[node] = free_name(word, steps)
        steps[names[node]] = f"{left} {sign} {right}"
    return write_program(steps)


def chain_from_equation(equation: str, answer: float) -> str:
    """Return the same as text: `23 + 4 = 27` and, on the next line, `27 - 2 = 25`.

    Raises UnderivableError if it cannot be read or does not give the answer.
    """
    calculations = _calculations(equation)
    result = number_of(calculations[-1])
    if result is None or not same_number(float(result), answer):
        raise UnderivableError("the equation gives another answer")
    return "\n".join(
        f"{_literal(node.left)} {_SIGNS[type(node.op)][0]} {_literal(node.right)} = {_literal(node)}"
        for node in calculations
    )


def stated_numbers(question: str) -> set[Fraction]:
    """Return the numbers that a question states or implies: digits, `twice`, the 7 of a `week`."""
    text = question.replace(",", "")
    numbers = {Fraction(match) for match in _NUMBER.findall(text)}
    numbers |= {number / 100 for number in numbers} if "%" in text else set()
    words = {word.removesuffix("s") for word in re.findall("[a-z]+", text.lower())}
    return numbers | {Fraction(n) for n, stated in _NUMBER_WORDS.items() if words & {*stated.split()}}


class _Linker(ast.NodeTransformer):
    """Writes numbers as the variables of earlier steps that they come from."""

    def __init__(self, stated: set[Fraction]) -> None:
        self.given: list[tuple[str, Fraction]] = []
        self._stated = stated
        self._used: set[str] = set()

    def visit_BinOp(self, node: ast.BinOp) -> ast.BinOp:
        """Leave the 100 of a percentage alone."""
        node.left = self.visit(node.left)
        hundredths = isinstance(node.op, ast.Div) and ast.unparse(node.right) == "100"
        if not hundredths:
            node.right = self.visit(node.right)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        number = number_of(node)
        sources = [name for name, result in reversed(self.given) if result == number]
        source = next((name for name in sources if name not in self._used), None)
        if source is None and sources and number not in self._stated:
            source = sources[0]
        if source is None:
            return node
        self._used.add(source)
        return ast.Name(source)


def _calculations(equation: str) -> list[ast.BinOp]:
    """Return the operations of an equation, inner ones first."""
    tree = parse(equation)
    found = [] if tree is None or names_in(tree) else list(_inner_first(tree))
    if not found or any(type(node.op) not in _SIGNS for node in found):
        raise UnderivableError("the equation cannot be read")
    return found


def _inner_first(tree: ast.expr) -> Iterator[ast.BinOp]:
    if isinstance(tree, ast.BinOp):
        yield from _inner_first(tree.left)
        yield from _inner_first(tree.right)
        yield tree


def _literal(tree: ast.expr) -> str:
    """Return the number that an expression comes to, with two decimals where they do not end."""
    number = number_of(tree)
    assert number is not None
    text = write(number)
    return f"{float(number):.2f}" if "/" in text else text
