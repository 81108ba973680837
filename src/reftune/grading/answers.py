"""Judge an answer against the ground truth, and tell whether a ground truth can be judged against."""

from collections.abc import Sequence
from string import ascii_lowercase

from reftune.grading.choices import extract_choice
from reftune.grading.equality import Judgement, compare
from reftune.grading.extraction import MAX_ANSWER_CHARS
from reftune.grading.quantities import parse_number, plain_number, same_number
from reftune.grading.wording import normalise
from reftune.problem import Answer, Cot, Problem

LETTERS = tuple("abcde")  # as answers they name options, rather than unknowns


def judge_answer(answer: Answer, truth: str, choices: Sequence[str] | None = None) -> Judgement:
    """Compare an extracted answer with the ground truth; of `choices` both must name the same."""
    if choices is None:
        return compare(answer, truth)
    letter = extract_choice(answer, choices)
    if letter is None:
        return Judgement(False, "names no one option")
    return judge_letter(letter, truth, choices)


def judge_letter(letter: Answer, truth: str, choices: Sequence[str]) -> Judgement:
    """Compare the letter of an option with the one that the ground truth names."""
    equal = letter == extract_choice(truth, choices)
    return Judgement(equal, "the right option" if equal else "another option")


def answers_equal(answer: Answer, truth: str, choices: Sequence[str] | None = None) -> bool:
    """Tell whether an extracted answer equals the ground truth; see docs/grading.md."""
    return judge_answer(answer, truth, choices).equal


def same_answer(a: Answer, b: Answer) -> bool:
    """Tell whether two extracted answers are one, as votes count them."""
    if isinstance(a, str) and isinstance(b, str):
        return a == b or compare(a, b).equal
    return not (isinstance(a, str) or isinstance(b, str)) and same_number(a, b)


def check_answer(problem: Problem, cot: Cot = "natural") -> str | None:
    """Return a sentence on what is wrong with a problem's ground truth, or None if it can be graded.

    Programs return numbers, so there (cot "program") a text is no answer unless it names an option.
    """
    if problem.choices is None and plain_number(problem.answer) is not None:
        return None
    where = f"problem {problem.id}: answer {problem.answer[:50]!r}"
    if problem.choices is not None:
        if not 2 <= len(problem.choices) <= len(ascii_lowercase):
            return f"problem {problem.id}: has {len(problem.choices)} choices; give 2 to 26"
        if not all(problem.choices):
            return f"problem {problem.id}: one of its choices is empty; give a text for each"
        if extract_choice(problem.answer, problem.choices) is None:
            last = ascii_lowercase[len(problem.choices) - 1]
            return f"{where} names none of its choices; give a letter from a to {last}"
    elif len(problem.answer) > MAX_ANSWER_CHARS:
        return f"{where}... is longer than {MAX_ANSWER_CHARS} characters; give the final answer alone"
    elif not normalise(problem.answer):
        return f"{where} is empty; give the final answer"
    elif parse_number(problem.answer) is None:
        if normalise(problem.answer).lstrip("+-") in ("nan", "inf", "infinity"):
            return f"{where} is not a finite number; correct it or drop the problem"
        if normalise(problem.answer) in LETTERS:
            return f"{where} is a letter, but the question has no choices; add them to the problem"
        if cot == "program":
            return f'{where} is not a number, which programs must return; use cot = "natural" or choices'
    return None
