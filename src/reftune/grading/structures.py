r"""Answers of several parts: lists and sets in any order, tuples, intervals and matrices in theirs."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from reftune.grading.notation import plain
from reftune.grading.quantities import before_reason

MAX_PARTS = 50

SamePart = Callable[[str, str], bool]

_MATRIX = re.compile(r"\\begin\s*\{([bpvBV]?)matrix\*?\}(.*?)\\end\s*\{[bpvBV]?matrix\*?\}", re.DOTALL)
_NAMED = re.compile(
    r"^\s*(?:\([A-Za-z](?:,\s*[A-Za-z])+\)|\\?[A-Za-z]\w*(?:\([A-Za-z]\))?)\s*(?:=|:=|\\in(?![a-z]))\s*"
)
_UNION = re.compile(r"\\cup(?![A-Za-z])|\bU\b|\bunion\b")
_SEPARATORS = (
    re.compile(r"\s*(?:[,;]\s*(?:and|or)|[,;](?=\s)|\b(?:and|or)\b)\s*", re.IGNORECASE),
    re.compile(r"\s*(?:[,;]\s*(?:and|or)|[,;]|\b(?:and|or)\b)\s*", re.IGNORECASE),
)
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])|\+/-")
_BASE = re.compile(
    r"([0-9A-Za-z.]+?)\s*(?:_\s*\{?\s*([0-9]{1,2}|[a-z]+)\s*\}?|\s(?:in )?base[ -]([0-9]{1,2}|[a-z]+))"
)
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
          "nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an answer; brackets are empty where their order does not matter."""

    parts: tuple[str, ...]
    brackets: str = ""

    @property
    def ordered(self) -> bool:
        """Tell whether the parts stand in their order."""
        return self.brackets not in ("", "{}", "union")


def same_structure(answer: str, truth: str, same: SamePart) -> bool | None:
    """Tell whether two answers of several parts are the same; None if the truth is no such answer."""
    text = plain(before_reason(answer))
    for read, read_answer in _READERS:
        theirs = read(plain(truth))
        if theirs and theirs[0].parts:
            return any(same_parts(ours, their, same) for ours in read_answer(text) for their in theirs)
    return None


def as_based(text: str) -> tuple[str, str] | None:
    """Return digits and base of a number such as `1011_2`, or None."""
    found = _BASE.fullmatch(plain(text).strip(" .$()"))
    if not found:
        return None
    base = (found[2] or found[3]).lower()
    return (
        (found[1].upper().lstrip("0"), _BASES.get(base, base)) if re.search("[0-9]", found[1]) else None
    )


def same_parts(ours: Parts, theirs: Parts, same: SamePart) -> bool:
    """Tell whether two answers have the same parts, in their order where it matters."""
    if len(ours.parts) != len(theirs.parts) or len(theirs.parts) > MAX_PARTS:
        return False
    if theirs.ordered:
        return ours.brackets == theirs.brackets and all(map(same, ours.parts, theirs.parts))
    if ours.ordered and (len(theirs.parts) < 3 or theirs.brackets):
        return False  # two numbers in brackets are a point or an interval
    left = list(ours.parts)
    for part in theirs.parts:
        match = next((other for other in left if same(other, part)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _matrix(text: str) -> list[Parts]:
    found = _MATRIX.fullmatch(_NAMED.sub("", text).strip(" $."))
    if not found:
        return []
    rows = [
        row.split("&")
        for row in re.split(r"\\\\(?:\s*\[[^\]]*\])?|\\cr\b", found[2].strip().removesuffix("\\\\"))
    ]
    shape = "x".join(str(len(row)) for row in rows)
    kind = "||" if found[1] == "v" else ""  # a determinant is no matrix
    return [Parts(tuple(cell.strip() for row in rows for cell in row), f"matrix {shape}{kind}")]


def _union(text: str) -> list[Parts]:
    parts = [part.strip() for part in _UNION.split(_NAMED.sub("", text).strip(" $."))]
    return [Parts(tuple(parts), "union")] if len(parts) > 1 and all(bracketed(p) for p in parts) else []


def bracketed(text: str) -> list[Parts]:
    r"""Read `(1, 2)`, `[0, 1)` and `\{1, 2\}` with whatever separates their parts."""
    text = _NAMED.sub("", text).strip(" $.")
    opened, closed = (
        text[:2] if text[:2] == r"\{" else text[:1],
        text[-2:] if text[-2:] == r"\}" else text[-1:],
    )
    opening, closing = opened[-1:], closed[-1:]
    if (
        opening not in ("(", "[", "{")
        or closing not in (")", "]", "}")
        or (opening == "{") != (closing == "}")
    ):
        return []
    inner = text[len(opened) : -len(closed)]
    if not _balanced(inner):
        return []
    found = [Parts(tuple(split(inner, at)), opening + closing) for at in (re.compile(r"\s*[,;]\s*"),)]
    # One part in round or square brackets is that part.
    return [parts for parts in found if len(parts.parts) > 1 or opening == "{"]


def listed(text: str) -> list[Parts]:
    """Read `1, 2 and 4` in each way in which its commas can be read."""
    text = re.sub(r"^\s*[A-Za-z]\s*(?:=|\\in)\s*(?=[^=]*$)", "", text).strip(" $.")
    text = re.sub(r"^\s*both\b", "", text)
    found = []
    for separator in _SEPARATORS:
        parts = [version for part in split(text, separator) for version in both_signs(part)]
        if len(parts) > 1 and all(parts):
            found.append(Parts(tuple(parts)))
    return found


def _any_brackets(text: str) -> list[Parts]:
    return bracketed(text) + listed(text)


_READERS = (
    (_matrix, _matrix), (_union, _union), (bracketed, _any_brackets), (listed, _any_brackets)
)  # fmt: skip


def both_signs(part: str) -> list[str]:
    r"""Return both values of `\pm 3`, and anything else as it is."""
    if len(_PLUS_MINUS.findall(part)) != 1:
        return [part]
    return [_PLUS_MINUS.sub(sign, part, count=1).strip() for sign in ("+", "-")]


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split a text at the separators that stand in no brackets."""
    parts, begin = [], 0
    for found in separator.finditer(text):
        if _balanced(text[begin : found.start()]):
            parts.append(text[begin : found.start()].strip())
            begin = found.end()
    return [*parts, text[begin:].strip()]


def _balanced(text: str) -> bool:
    """Tell whether every bracket closes; either kind closes the other, as in half-open intervals."""
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return depth == 0
