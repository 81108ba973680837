"""Exact arithmetic on the plain expressions that worked solutions are made of.

Texts of data sets reach it unchecked: they are parsed by Python's parser, but never run, and only
numbers, one unknown, `+ - * / //`, signs and parentheses are looked at.
"""

import ast
import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 200  # a longer expression is no step of a worked solution
_WHOLE = re.compile(r"(?<=\d)\.0+(?![\d.eE])")  # 9007199254740993.0 is no float


@dataclass(frozen=True, slots=True)
class Linear:
    """The value `slope * x + constant` of an expression in an unknown x; numbers have slope 0."""

    slope: Fraction
    constant: Fraction


def parse(text: str) -> ast.expr | None:
    """Return the expression that a text spells in Python's notation, or None if it is none.

    Names are unknowns; an expression that is not linear in a single one has no value.
    """
    if len(text) > MAX_CHARS:
        return None
    try:
        tree = ast.parse(_WHOLE.sub("", text.strip()), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return tree if value_of(tree) is not None else None


def value_of(tree: ast.expr) -> Linear | None:
    """Return the exact value of an expression, None if it has none or is not linear."""
    if len(names_in(tree)) > 1:
        return None
    try:
        return _value(tree)
    except (ValueError, ZeroDivisionError, RecursionError):
        return None


def number_of(tree: ast.expr) -> Fraction | None:
    """Return the exact value of an expression without unknowns, else None."""
    value = value_of(tree)
    return value.constant if value is not None and not names_in(tree) else None


def names_in(tree: ast.AST) -> set[str]:
    """Return the names in an expression: its unknowns."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def is_calculation(tree: ast.expr) -> bool:
    """Tell whether an expression computes something: a number alone does not."""
    return any(isinstance(node, ast.BinOp) for node in ast.walk(tree))


def solve(left: ast.expr, right: ast.expr) -> str | None:
    """Return what the unknown of a linear equation is, as an expression: `(52 - 7) / 5`.

    None if the equation has no single solution, or is the solution already (`x = 5`).
    """
    sides = value_of(left), value_of(right)
    if sides[0] is None or sides[1] is None:
        return None
    factor = sides[0].slope - sides[1].slope
    minuend, subtrahend = sides[1].constant, sides[0].constant
    if factor < 0:  # the unknown is on the right: 21 = 3 * x + 6
        factor, minuend, subtrahend = -factor, subtrahend, minuend
    if not factor or (factor == 1 and not subtrahend):
        return None
    text = write(minuend)
    if subtrahend:
        text += f" {'-' if subtrahend > 0 else '+'} {write(abs(subtrahend))}"
    if factor == 1:
        return text
    return f"({text}) / {write(factor)}" if subtrahend else f"{text} / {write(factor)}"


def write(number: Fraction) -> str:
    """Write a number as Python does: `3`, `0.25`; as `(1 / 3)` where its decimals do not end."""
    if number.denominator == 1:
        return str(number.numerator)
    decimal = repr(float(number))
    if Fraction(decimal) == number and "e" not in decimal:
        return decimal
    return f"({number.numerator} / {number.denominator})"


def _value(tree: ast.expr) -> Linear:
    match tree:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Linear(Fraction(0), Fraction(str(number)))
        case ast.Name():
            return Linear(Fraction(1), Fraction(0))
        case ast.UnaryOp(op=ast.USub()):
            return _combined(ast.Sub(), Linear(Fraction(0), Fraction(0)), _value(tree.operand))
        case ast.BinOp():
            return _combined(tree.op, _value(tree.left), _value(tree.right))
    raise ValueError("not plain arithmetic")


def _combined(sign: ast.operator, left: Linear, right: Linear) -> Linear:
    match sign:
        case ast.Add():
            return Linear(left.slope + right.slope, left.constant + right.constant)
        case ast.Sub():
            return Linear(left.slope - right.slope, left.constant - right.constant)
        case ast.Mult() if not (left.slope and right.slope):
            slope = left.slope * right.constant + left.constant * right.slope
            return Linear(slope, left.constant * right.constant)
        case ast.Div() if not right.slope:
            return Linear(left.slope / right.constant, left.constant / right.constant)
        case ast.FloorDiv() if not (left.slope or right.slope):
            return Linear(Fraction(0), Fraction(left.constant // right.constant))
    raise ValueError("not linear")
