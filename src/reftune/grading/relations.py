"""Equations and inequalities: compared as what they say, never by what stands at their right."""

import re
from typing import NamedTuple

from reftune.grading.expressions import constant_factor
from reftune.grading.notation import plain
from reftune.grading.quantities import before_reason
from reftune.grading.structures import Parts, SamePart, both_signs, bracketed, listed, same_parts, split

_RELATION = re.compile(r"(=|<|>|\\(?:le|ge|ne)(?![A-Za-z]))")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_UNKNOWN = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'?(?:\(\\?[A-Za-z]+\))?")
_SEPARATOR = re.compile(r"\s*(?:[,;]\s*(?:and|or)\b|[,;]|\b(?:and|or)\b)\s*", re.IGNORECASE)


class Statement(NamedTuple):
    """The sides of one equation, inequality or chain of them, and the relations between them."""

    sides: tuple[str, ...]
    relations: tuple[str, ...]

    @property
    def unknown(self) -> str:
        """Return the unknown of `x = value`, or an empty text."""
        return self.sides[0] if self.relations == ("=",) and _UNKNOWN.fullmatch(self.sides[0]) else ""


def same_relation(answer: str, truth: str, same: SamePart) -> bool | None:
    """Tell whether two texts state the same equations or inequalities; None if the truth states none."""
    theirs = _statements(truth)
    if not theirs or any(s.unknown and bracketed(s.sides[1]) for s in theirs):
        return None
    answer = before_reason(answer)
    ours = _statements(answer)
    if not ours:
        interval = as_interval(truth)
        if interval is not None:
            return any(same_parts(parts, interval, same) for parts in bracketed(plain(answer)))
        return _same_values(answer, theirs, same)
    if len(ours) != len(theirs):
        return False
    left = list(ours)
    for statement in theirs:
        match = next((other for other in left if _same_statement(other, statement, same)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def solution_of(text: str) -> str:
    """Return the value of `y = value`, and any other text in the plain notation."""
    statements = _statements(text)
    return statements[0].sides[1] if len(statements) == 1 and statements[0].unknown else plain(text)


def as_interval(text: str) -> Parts | None:
    r"""Return `2 < x \le 5` or `x > 2` as an interval, or None."""
    statements = _statements(text)
    if len(statements) != 1:
        return None
    sides, relations = statements[0]
    if relations[0] in (">", r"\ge"):
        sides, relations = _turned(statements[0])
    if not set(relations) <= {"<", r"\le"}:
        return None
    if len(sides) == 2:
        if _UNKNOWN.fullmatch(sides[0]):
            sides, relations = (r"-\infty", *sides), ("<", *relations)
        else:
            sides, relations = (*sides, r"\infty"), (*relations, "<")
    if len(sides) != 3 or not _UNKNOWN.fullmatch(sides[1]):
        return None
    brackets = ("(" if relations[0] == "<" else "[") + (")" if relations[1] == "<" else "]")
    return Parts((sides[0], sides[2]), brackets)


def _statements(text: str) -> list[Statement]:
    """Return what a text states, one for each solution; empty if any part states nothing."""
    found: list[Statement] = []
    for piece in split(plain(text).strip(" $."), _SEPARATOR):
        if not _RELATION.search(piece):
            if not (found and found[-1].unknown and piece):
                return []
            piece = f"{found[-1].unknown} = {piece}"  # x = 2 or -3
        found += [_statement(version) for version in both_signs(piece)]
    return found if all(all(side for side in s.sides) for s in found) else []


def _statement(text: str) -> Statement:
    parts = [part.strip() for part in _RELATION.split(text)]
    sides, relations = tuple(parts[::2]), tuple(parts[1::2])
    if set(relations) == {"="}:
        if len(sides) > 2 and _UNKNOWN.fullmatch(sides[0]):  # x = 4/2 = 2
            sides, relations = (sides[0], sides[-1]), ("=",)
        if len(sides) == 2 and _UNKNOWN.fullmatch(sides[1]) and not _UNKNOWN.fullmatch(sides[0]):
            sides = (sides[1], sides[0])
    return Statement(sides, relations)


def _turned(statement: Statement) -> Statement:
    relations = tuple(_FLIPPED.get(relation, relation) for relation in reversed(statement.relations))
    return Statement(tuple(reversed(statement.sides)), relations)


def _same_statement(ours: Statement, theirs: Statement, same: SamePart) -> bool:
    if ours.unknown and ours.unknown == theirs.unknown and same(ours.sides[1], theirs.sides[1]):
        return True
    if len(theirs.sides) > 2:
        return any(
            form.relations == theirs.relations and all(map(same, form.sides, theirs.sides))
            for form in (ours, _turned(ours))
        )
    if len(ours.sides) != 2:
        return False
    factor = constant_factor((ours.sides[0], ours.sides[1]), (theirs.sides[0], theirs.sides[1]))
    if factor is None:
        return False
    relation = ours.relations[0] if factor > 0 else _FLIPPED.get(ours.relations[0], ours.relations[0])
    return relation == theirs.relations[0]


def _same_values(answer: str, theirs: list[Statement], same: SamePart) -> bool:
    """Compare values alone with the solutions of the one unknown that they can be of."""
    unknowns = {statement.unknown for statement in theirs}
    if len(unknowns) != 1 or "" in unknowns:
        return False
    values = Parts(tuple(statement.sides[1] for statement in theirs))
    if len(theirs) == 1:
        return same(answer, values.parts[0])
    return any(same_parts(parts, values, same) for parts in listed(plain(answer)))
