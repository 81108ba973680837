"""The equations that a worked solution states in its text, each one checked.

A text can often be read in several ways (units, percentages, fractions; docs/data.md): a reading counts
only if what it computes on the left is what the text states on the right.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from reftune.data.derive.arithmetic import is_calculation, names_in, number_of, parse, solve, write

TOLERANCE = Fraction(1, 100)  # the text may have rounded; small numbers must agree in proportion
MAX_PIECES = 40  # a longer left side is no equation of a worked solution

_SIGNS = str.maketrans(  # times, middle dot, division, minus, dashes, apostrophe
    dict(zip("\u00d7\u00b7\u00f7\u2212\u2013\u2014\u2019", "**/---'", strict=True))
)
_WORD_SIGNS = {"of": "*", "times": "*", "plus": "+", "minus": "-", "by": "/"}
_UNIT_LETTERS = "gmlL"  # not unknowns where a number and a space stand before them

_CURRENCY = re.compile("[$€£]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d.]*\d)")
_PER = re.compile(r"(?<=[A-Za-z\d)])\s*/\s*(?=[A-Za-z])")  # minutes/hour, $4/pound
_EQUALS = re.compile(
    r"<<(?P<left>[^<>=]*)=(?P<right>[^<>=]*)>>|(?:=|\bequals\b)(?!\s*<<)", re.IGNORECASE
)
_TOKEN = re.compile(
    r"""(?P<number>(?:\d+[ ](?:and[ ])?)?\d+/\d+(?![\d.]*\d) | \d+(?:\.\d+)? | \.\d+)
    | (?P<word>[A-Za-z]{2,}(?:['-][A-Za-z]+)*)
    | (?P<letter>[A-Za-z])
    | (?P<sign>// | [-+*/()%])
    | (?P<space>\s+)
    | (?P<other>.)""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Equation:
    """A calculation that a text states, with the texts around the number that it gives."""

    calculation: ast.expr
    result: Fraction  # as the text states it; the calculation may give more digits
    before: str
    after: str
    unknown: str = ""  # the letter that it gives a value to


def read_equations(solution: str) -> list[Equation]:
    """Return the equations of a worked solution that hold, in the order of the text."""
    unknowns: dict[str, list[ast.expr]] = {}
    return [equation for line in _plain(solution).split("\n") for equation in _read_line(line, unknowns)]


def _plain(text: str) -> str:
    text = _CURRENCY.sub("", _THOUSANDS.sub("", text.translate(_SIGNS)))
    text = _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)
    return _PER.sub(" per ", text)


def _read_line(line: str, unknowns: dict[str, list[ast.expr]]) -> Iterator[Equation]:
    start = 0
    for sign in _EQUALS.finditer(line):
        before, after = line[start : sign.start()].rstrip(" ="), line[sign.end() :]
        start = sign.end()
        right = _segments(sign["right"] or after)[0][:MAX_PIECES]
        result = _number(right)
        for left in filter(None, (sign["left"], before)):  # <<156=156>> computes nothing: look before it
            tail = _segments(left)[-1][-MAX_PIECES:]
            stated = _calculation(tail, result, percent="%" in right[1:3])
            found = stated or _solution(tail, right, result, unknowns)
            if found is not None and result is not None:
                yield Equation(found, result, before, after, unknown="" if stated else tail[0])
                break


# From text to pieces: numbers, letters (unknowns) and signs


def _segments(text: str) -> list[list[str]]:
    """Return the pieces of a text, cut wherever anything else stands between them."""
    tokens = [match for match in _TOKEN.finditer(text) if match.lastgroup != "space"][::-1]
    segments: list[list[str]] = [[]]
    while tokens:
        word = ""
        while tokens and _is_word(tokens[-1], segments[-1]):
            word = tokens.pop()[0]
        if word:
            piece = _read_word(word, tokens[-1][0] if tokens else "", segments[-1])
        else:
            piece = _piece(tokens.pop(), tokens[-1:], segments[-1])
        if piece is None:
            segments.append([])
        elif piece:
            segments[-1].append(piece)
    return segments


def _is_word(token: re.Match[str], pieces: Sequence[str]) -> bool:
    if token.lastgroup == "letter":
        spaced = token.string[token.start() - 1 : token.start()] == " "
        return token[0] in _UNIT_LETTERS and spaced and _end_in_operand(pieces)
    return token.lastgroup == "word"


def _read_word(word: str, following: str, pieces: Sequence[str]) -> str | None:
    """Return what the last of some words stands for: a sign (`of`), nothing (a unit), None (a cut)."""
    if not _end_in_operand(pieces):
        return None
    if not following or following in "+-*/)":
        return ""
    sign = None if pieces[-1].isalpha() else _WORD_SIGNS.get(word.lower())
    return sign if following[0] in ".(0123456789" else None


def _piece(
    token: re.Match[str], following: Sequence[re.Match[str]], pieces: Sequence[str]
) -> str | None:
    if token.lastgroup == "letter":
        number_follows = following and (following[0].lastgroup == "number" or following[0][0] == "(")
        return (
            "*" if token[0] in "xX" and _end_in_operand(pieces) and number_follows else token[0].lower()
        )
    return None if token.lastgroup == "other" else token[0]


def _end_in_operand(pieces: Sequence[str]) -> bool:
    return bool(pieces) and (pieces[-1][-1].isalnum() or pieces[-1] in (")", "%"))


# From pieces to expressions


def _calculation(pieces: list[str], result: Fraction | None, percent: bool) -> ast.expr | None:
    """Return the longest expression at the end of the pieces, read so that it gives the result."""
    if result is None:
        return None
    for start in range(len(pieces)):
        trees = [tree for text in _readings(pieces[start:], percent) if (tree := parse(text))]
        for tree in trees:
            if is_calculation(tree) and _holds(tree, result):
                return tree
        if trees and pieces[start] != "-":  # which may be a dash
            return None
    return None


def _readings(pieces: list[str], percent: bool) -> Iterator[str]:
    """Yield the ways to read fractions and percentages; `percent` says that the result is one."""
    for tight in (False, True) if any("/" in piece[1:] for piece in pieces) else (False,):
        yield _spell(pieces, tight, hundredths=False)
        text = _spell(pieces, tight, hundredths=True)
        if "%" in pieces:
            yield text
        if percent:
            yield f"({text}) * 100"


def _spell(pieces: Sequence[str], tight: bool, hundredths: bool) -> str:
    """Write pieces in Python's notation, percentages as `hundredths` or as they stand.

    A `tight` fraction binds tighter than signs do: 2 / 1/4 is 8.
    """
    spelled: list[str] = []
    for piece in pieces:
        if piece == "%":
            if hundredths and spelled:
                spelled[-1] = f"({spelled[-1]} / 100)" if spelled[-1] != ")" else ") / 100"
            continue
        if _end_in_operand(spelled) and (piece == "(" or piece.isalpha()):
            spelled.append("*")  # 28(2), 3x
        spelled.append(_spell_number(piece, tight) if piece[-1].isdigit() else piece)
    return " ".join(spelled)


def _spell_number(piece: str, tight: bool) -> str:
    whole, _, fraction = piece.replace("and ", "").rpartition(" ")
    top, slash, bottom = fraction.partition("/")
    if not slash:
        return write(Fraction(top))  # 0.5 for .5, 16 for 16.00
    text = f"{write(Fraction(top))} / {write(Fraction(bottom))}"
    if whole:
        return f"({whole} + {text})"
    return f"({text})" if tight else text


def _number(pieces: Sequence[str]) -> Fraction | None:
    """Return the number that the pieces begin with."""
    negative = pieces[:1] == ["-"]
    first = "".join(pieces[negative : negative + 1])
    tree = parse("-" * negative + _spell_number(first, tight=True)) if first[-1:].isdigit() else None
    return number_of(tree) if tree else None


def _holds(tree: ast.expr, result: Fraction) -> bool:
    value = number_of(tree)
    return value is not None and abs(value - result) <= TOLERANCE * min(Fraction(1), abs(result))


# Unknowns: `5x + 7 = 52` says what x is, and `x = 9` that the solution means it


def _solution(
    left: list[str], right: list[str], result: Fraction | None, unknowns: dict[str, list[ast.expr]]
) -> ast.expr | None:
    """Return the calculation that gives an unknown the value which a statement says it has.

    Other equations are kept in `unknowns`, solved, until such a statement comes.
    """
    letters = {piece for piece in (*left, *right) if piece.isalpha()}
    if len(letters) != 1:
        return None
    [letter] = letters
    if left == [letter] and result is not None and letter not in right:
        for calculation in unknowns.get(letter, []):
            if _holds(calculation, result):
                return calculation
    one, other = _longest(left), parse(_spell(right, tight=False, hundredths=True))
    if one is not None and other is not None:
        solution = other if isinstance(one, ast.Name) else parse(solve(one, other) or "")
        if solution is not None and is_calculation(solution) and not names_in(solution):
            unknowns.setdefault(letter, []).append(solution)
    return None


def _longest(pieces: list[str]) -> ast.expr | None:
    texts = (_spell(pieces[start:], tight=False, hundredths=True) for start in range(len(pieces)))
    return next((tree for tree in map(parse, texts) if tree is not None), None)
