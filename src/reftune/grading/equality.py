"""Are two answers equal? The truth decides of which kind the comparison is (docs/grading.md)."""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from reftune.grading.expressions import same_expression
from reftune.grading.extraction import MAX_ANSWER_CHARS
from reftune.grading.notation import plain
from reftune.grading.quantities import (
    Quantity,
    before_reason,
    parse_number,
    plain_number,
    read_quantity,
    same_number,
)
from reftune.grading.relations import as_interval, same_relation, solution_of
from reftune.grading.structures import as_based, bracketed, same_parts, same_structure
from reftune.grading.wording import as_ratio, decides, same_text, same_words
from reftune.problem import Answer

_FACTORIAL = re.compile(r"\$*\s*([0-9]{1,3})\s*!\s*\$*")


class Judgement(NamedTuple):
    """Whether an answer is right, and the reason in one phrase."""

    equal: bool
    reason: str


def compare(answer: Answer, truth: str) -> Judgement:
    """Compare an answer, a number or a text, with the true one."""
    if not isinstance(answer, str):
        return _compare_value(answer, truth)
    number, true_number = plain_number(answer), plain_number(truth)
    if number is not None and true_number is not None:
        return judge_numbers(number, true_number)
    if len(answer) > MAX_ANSWER_CHARS:
        answer = before_reason(answer)
    if max(len(answer), len(truth)) > MAX_ANSWER_CHARS:
        return Judgement(False, "too long for an answer")
    kinds = _KINDS if true_number is None else (_numbers,)  # a plain number is of no other kind
    for kind in kinds:
        judgement = kind(answer, truth)
        if judgement is not None:
            return judgement
    return Judgement(False, "another text")


def truth_number(truth: str) -> float | None:
    """Return the number with which answers to a truth are compared, None if they are not by number."""
    number = plain_number(truth)
    if number is not None:
        return number
    quantity = _truth_quantity(truth)
    return None if quantity is None else quantity.value


@functools.lru_cache(maxsize=8192)  # each question is answered many times
def _truth_quantity(truth: str) -> Quantity | None:
    if plain_number(truth) is not None:
        return read_quantity(truth)
    if as_ratio(truth) or decides(truth) or _FACTORIAL.fullmatch(truth):
        return None
    return read_quantity(truth)


def _compare_value(value: float, truth: str) -> Judgement:
    number = truth_number(truth)
    number = parse_number(truth) if number is None else number
    if number is None:
        return Judgement(False, "a number where the answer is none")
    return judge_numbers(value, number)


def judge_numbers(number: float, true_number: float) -> Judgement:
    """Compare two numbers."""
    return _EQUAL_NUMBERS if same_number(number, true_number) else _ANOTHER_NUMBER


_EQUAL_NUMBERS = Judgement(True, "equal as numbers")
_ANOTHER_NUMBER = Judgement(False, "another number")


def _judged(equal: bool, kind: str) -> Judgement:
    return Judgement(equal, f"{'equal as' if equal else 'different as'} {kind}")


def _numbers(answer: str, truth: str) -> Judgement | None:
    theirs = _truth_quantity(truth)
    if theirs is None:
        return None
    ours = read_quantity(answer)
    if ours is None:
        return Judgement(False, "not one number")
    if ours.contradicts(theirs):
        return Judgement(False, "another unit or unknown")
    return judge_numbers(ours.value, theirs.value)


def _factorials(answer: str, truth: str) -> Judgement | None:
    theirs = _FACTORIAL.fullmatch(plain(truth))
    if not theirs:
        return None
    ours, number = _FACTORIAL.fullmatch(plain(answer)), parse_number(answer)
    if ours:
        return _judged(ours[1] == theirs[1], "factorials")
    value = float(math.factorial(int(theirs[1]))) if int(theirs[1]) <= 20 else math.nan
    return _judged(number is not None and same_number(number, value), "factorials")


def _based(answer: str, truth: str) -> Judgement | None:
    theirs = as_based(truth)
    return _judged(as_based(answer) == theirs, "numerals of a base") if theirs else None


def _words(answer: str, truth: str) -> Judgement | None:
    if not decides(truth):
        return None
    return _judged(same_words(answer, truth), "texts whose words decide")


def _ratios(answer: str, truth: str) -> Judgement | None:
    theirs = as_ratio(truth)
    return _judged(as_ratio(answer) == theirs, "times or ratios") if theirs else None


def _relations(answer: str, truth: str) -> Judgement | None:
    equal = same_relation(answer, truth, _same_part)
    return None if equal is None else _judged(equal, "equations or inequalities")


def _structures(answer: str, truth: str) -> Judgement | None:
    equal = same_structure(answer, truth, _same_part)
    if equal is False and (interval := as_interval(answer)):
        equal = any(same_parts(interval, their, _same_part) for their in bracketed(plain(truth)))
    return None if equal is None else _judged(equal, "lists, sets, points, intervals or matrices")


def _texts(answer: str, truth: str) -> Judgement | None:
    return Judgement(True, "the same text") if same_text(answer, truth) else None


def _expressions(answer: str, truth: str) -> Judgement | None:
    equal = same_expression(solution_of(before_reason(answer)), plain(truth))
    return Judgement(True, "equal as expressions") if equal else None


def _same_part(answer: str, truth: str) -> bool:
    """Compare parts of an answer; they are numbers, expressions, texts, or have parts themselves."""
    return any((found := kind(answer, truth)) and found.equal for kind in _PART_KINDS)


_PART_KINDS = (_numbers, _texts, _expressions)

# The first kind that the truth is of decides; `_texts` and `_expressions` only ever agree.
_KINDS: tuple[Callable[[str, str], Judgement | None], ...] = (
    _factorials, _based, _words, _ratios, _numbers, _texts, _relations, _structures, _expressions
)  # fmt: skip
