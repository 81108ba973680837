"""What a user should know of a data set's answers: where they were found, and how they are graded."""

import re
from collections.abc import Callable, Sequence

from reftune.data.formats import Fields
from reftune.grading.quantities import parse_number
from reftune.problem import Problem, shortened

ReadRow = tuple[str, Fields, Problem]  # the place of a row, its texts, and the problem that it became

_BESIDE = re.compile(r"[A-Za-z$€£¥₹%°]")
_NO_UNIT = re.compile(r"\\|^\$.*\$$|\d[eE][-+]?\d|^\D*$")  # LaTeX, numbers such as 1e6, words alone


def advice(source: str, rows: Sequence[ReadRow], *, graded: bool = True) -> list[str]:
    """Say of each kind of answer that is not just the answer how many there are, and what is done.

    Without `graded` nothing is said of the built-in check: a user's own reward goes its own ways.
    """
    told = []
    for is_one, what in (*_FOUND, *(_GRADED if graded else ())):
        if found := [row for row in rows if is_one(row)]:
            where, fields, problem = found[0]
            taken = f"{problem.answer!r} from {shortened(fields.taken_from, 60)!r}"
            first = taken if fields.taken_from else repr(problem.answer)
            told.append(
                f"{source}: {len(found):,} of {len(rows):,} answers {what} (the first, {where}: {first})"
            )
    return told


def _in_solution(row: ReadRow) -> bool:
    return bool(row[1].taken_from) and bool(row[1].chain)


def _in_mark(row: ReadRow) -> bool:
    return bool(row[1].taken_from) and not row[1].chain


def _in_boxes(row: ReadRow) -> bool:
    return row[2].answer.count("\\boxed") > 1


def _with_unit(row: ReadRow) -> bool:
    answer, choices = row[2].answer, row[2].choices
    if choices is not None or not _BESIDE.search(answer) or _NO_UNIT.search(answer):
        return False
    return parse_number(answer) is not None


_Kinds = tuple[tuple[Callable[[ReadRow], bool], str], ...]
_FOUND: _Kinds = (
    (_in_solution, "are taken from worked solutions"),
    (_in_mark, "are taken out of a box or another mark"),
)
_GRADED: _Kinds = (
    (_in_boxes, "have several boxes, and are graded as a text; give the final answer alone"),
    (_with_unit, "have a unit or words beside a number; the number is graded, with the unit or without"),
)
