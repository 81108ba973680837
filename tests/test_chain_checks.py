"""Chains of generated questions: the annotated ones are right, altered ones wrong unless still true."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from reftune.config import Synthetic
from reftune.data.synthetic.chain_checks import MAX_CHAIN_CHARS, chain_is_right
from reftune.data.synthetic.generator import generate
from reftune.problem import Problem
from story_reader import read_story

HARD = {"min_events": 4, "max_events": 8, "people": 5, "max_number": 50, "distractors": 1.0}
STORY = "Ann has 7 coins. Bob has 5. Ann finds 3 coins. Bob doubles the coins. How many coins "
ANN, BOTH = f"{STORY}does Ann have now?", f"{STORY}do Ann and Bob have together?"


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("choices", [0, 5])
@pytest.mark.parametrize("settings", [{}, HARD, {"min_events": 0, "max_events": 1}, {"people": 8}])
@pytest.mark.parametrize("retold", [False, True])
def test_annotated_chains_are_right(
    settings: dict[str, float], retold: bool, choices: int, seed: int
) -> None:
    options = Synthetic.model_validate(settings | {"choices": choices, "retold": retold})
    for problem in generate(options, 60, seed, "natural"):
        assert chain_is_right(problem.question, problem.chain or "") is True, problem


@pytest.mark.parametrize(
    ("question", "chain"),
    [
        (ANN, "7 + 3 = 10. So Ann has 10 coins now."),
        (ANN, "3 + 7 = 10. So Ann has 10 coins now."),
        (ANN, "Ann: 7\nAnn: 7 + 3 = 10\nSo Ann has 10 coins now."),
        (ANN, "Ann has 7. Bob has 5. Ann has 7 + 3 = 10. Bob has 5 * 2 = 10. So Ann has 10 coins now."),
        (ANN, "Ann has 7 coins. Ann has 7 + 3 = 10 coins."),  # as far as it is needed
        (ANN, "Ann has 7. Ann has 7. Ann has 7 + 3 = 10. Ann has 10. So Ann has 10 coins now."),
        (ANN, "Bob has 5. Ann has 7. Ann has 7 + 3 = 10.\n\nThe answer is 10."),
        (ANN, "So it is 7 + 3 = 10."),
        (ANN, "Ann has 7.0 + 3 = 10.00. So Ann has 10 coins now."),
        (BOTH, "7 + 3 = 10. 5 * 2 = 10. The answer is 10 + 10 = 20."),
        (BOTH, "Ann has 7 + 3 = 10. Bob has 5 + 5 = 10. 10 + 10 = 20."),
        # What the story says, said again.
        (ANN, "Ann has 7. Ann finds 3 coins. Ann has 7 + 3 = 10. So Ann has 10 coins now."),
        (ANN, "Ann: 7\nAnn finds 3 coins.\nAnn: 7 + 3 = 10\nSo Ann has 10 coins now."),
        (ANN, "Ann finds 3 coins. 7 + 3 = 10. Bob doubles the coins. So Ann has 10 coins now."),
        (BOTH, "Bob doubles the coins. 7 + 3 = 10. 5 * 2 = 10. The answer is 10 + 10 = 20."),
    ],
)
def test_right_chains_by_hand(question: str, chain: str) -> None:
    assert chain_is_right(question, chain) is True


@pytest.mark.parametrize(
    ("question", "chain"),
    [
        (ANN, ""),
        (ANN, " \n "),
        (ANN, "Ann has 7."),
        (ANN, "So Ann has 10 coins now."),  # no calculation
        (ANN, "Ann has 10. So Ann has 10 coins now."),
        (ANN, "7 + 3 = 11. So Ann has 11 coins now."),
        (ANN, "7 + 3 = 11. So Ann has 10 coins now."),
        (ANN, "7 + 3 = 10. So Ann has 11 coins now."),
        (ANN, "7 + 3 = 10. So Bob has 10 coins now."),
        (ANN, "7 + 3 = 10. Bob has 5 * 2 = 10. So Bob has 10 coins now."),
        (ANN, "7 + 3 = 10. So Ann has 10 shells now."),
        (ANN, "4 + 6 = 10. So Ann has 10 coins now."),
        (ANN, "5 * 2 = 10. So Ann has 10 coins now."),  # Bob's ten
        (ANN, "Ann has 5. Ann has 7 + 3 = 10. So Ann has 10 coins now."),
        (ANN, "Bob has 7. Ann has 7 + 3 = 10. So Ann has 10 coins now."),
        (ANN, "Ann has 10. Ann has 7 + 3 = 10. So Ann has 10 coins now."),  # not yet
        (ANN, "Ann has 7 + 3 = 10. Ann has 7. So Ann has 10 coins now."),  # not any more
        (ANN, "Ann has 7 + 3 = 10. So Ann has 10 coins now. Bob has 5."),  # the end is another number
        (ANN, "7 + 3 = 10. 10 / 0 = 3. So Ann has 10 coins now."),
        (ANN, "7 + 3 = 10. -7 + 3 = -4. So Ann has 10 coins now."),
        (ANN, "7 + 3 = 10. 10 - 7 - 3 = 1. So Ann has 10 coins now."),  # false, in whatever form
        (BOTH, "7 + 3 = 10. 5 * 2 = 10. So Ann has 10 coins now."),
        (BOTH, "7 + 3 = 10. The answer is 10 + 10 = 20."),
        (BOTH, "7 + 3 = 10. 5 * 2 = 10. The answer is 7 + 13 = 20."),
        (BOTH, "7 + 3 = 10. 5 * 2 = 10. The answer is 20."),
        (BOTH, "5 * 2 = 10. 7 + 3 = 10. The answer is 10 + 10 = 20."),  # not the story's order
        (BOTH, "Ann gets more. Bob doubles. The answer is 10 + 10 = 20."),  # nowhere worked out
        (BOTH, "Therefore, the answer is: 13."),
        # What the story does not say, although all calculations are right.
        (ANN, "Ann finds 4 coins. 7 + 3 = 10. So Ann has 10 coins now."),
        (ANN, "Bob finds 3 coins. 7 + 3 = 10. So Ann has 10 coins now."),
        (ANN, "Ann finds 3 shells. 7 + 3 = 10. So Ann has 10 coins now."),
        (ANN, "Ann gets 3 more. 7 + 3 = 10. So Ann has 10 coins now."),
        (ANN, "7 + 3 = 10. Ann is 9 years old. So Ann has 10 coins now."),
        # What it says, and a calculation that is wrong, left out or not the last word.
        (ANN, "Ann finds 3 coins. 7 + 4 = 11. So Ann has 11 coins now."),
        (ANN, "Ann finds 3 coins. So Ann has 10 coins now."),
        (ANN, "7 + 3 = 10. Ann finds 3 coins."),
    ],
)
def test_wrong_chains_by_hand(question: str, chain: str) -> None:
    assert chain_is_right(question, chain) is False


@pytest.mark.parametrize(
    ("question", "chain"),
    [
        (ANN, "Ann starts with 7 and finds 3, which makes 10."),
        (ANN, "Therefore 10."),  # who knows
        (ANN, "Ann starts with 7. She finds 3 more, so she has 10. So Ann has 10 coins now."),
        (BOTH, "First Ann gets 7 + 3 = 10! Bob has 5 * 2 = 10. The answer is 10 + 10 = 20."),
        (ANN, "7 + 3 = 10. So Ann has 10 coins now." + " " * MAX_CHAIN_CHARS),
        ("Ann has 7 pens and finds 3. How many pens has she?", "7 + 3 = 10. So Ann has 10 pens now."),
        ("", ""),
    ],
)
def test_what_cannot_be_told(question: str, chain: str) -> None:
    assert chain_is_right(question, chain) is None


def test_options_change_nothing() -> None:
    question = f"{ANN}\na ) 10 , b ) 11"
    assert chain_is_right(question, "7 + 3 = 10. So Ann has 10 coins now.") is True
    assert chain_is_right(question, "7 + 3 = 11. So Ann has 11 coins now.") is False


def annotated() -> Iterator[tuple[Problem, list[str], str]]:
    """Yield problems with the sentences of their chains and what stands between these."""
    for settings in ({}, HARD):
        for problem in generate(Synthetic.model_validate(settings), 25, 9, "natural"):
            chain = problem.chain or ""
            gap = "\n" if "\n" in chain else " "
            yield problem, re.split(r"\n|(?<=\.) ", chain), gap


def judge(problem: Problem, sentences: list[str], gap: str, place: int, *new: str) -> bool | None:
    """Judge a chain with the sentence at `place` replaced by `new`."""
    return chain_is_right(
        problem.question, gap.join((*sentences[:place], *new, *sentences[place + 1 :]))
    )


def test_one_altered_number_is_always_found() -> None:
    verdicts: Counter[bool | None] = Counter()
    for problem, sentences, gap in annotated():
        known = [int(n) for n in re.findall(r"\d+", problem.question)]
        for place, sentence in enumerate(sentences):
            for number in re.finditer(r"\d+", sentence):
                old = int(number[0])
                for new in {old + 1, known[old % len(known)]} - {old}:
                    altered = f"{sentence[: number.start()]}{new}{sentence[number.end() :]}"
                    verdicts[judge(problem, sentences, gap, place, altered)] += 1
    assert verdicts.keys() == {False}
    assert verdicts[False] > 1500


def test_a_sentence_about_somebody_else_is_found_unless_it_is_true() -> None:
    passed, total = 0, 0
    for problem, sentences, gap in annotated():
        history, _ = read_story(problem.question)
        for place, sentence in enumerate(sentences):
            for name in re.findall(r"^(?:So )?([A-Z][a-z]+)(?: has|:)", sentence):
                amount = int(re.findall(r"\d+", sentence)[-1])
                for other in history[-1].keys() - {name}:
                    total += 1
                    if judge(problem, sentences, gap, place, sentence.replace(name, other)):
                        passed += 1
                        assert any(amounts.get(other) == amount for amounts in history)
                        assert place < len(sentences) - 1
    assert total > 500
    assert passed < 0.02 * total


def test_a_calculation_left_out_is_found_if_the_answer_depends_on_it() -> None:
    found: Counter[tuple[bool, bool | None]] = Counter()
    for problem, sentences, gap in annotated():
        history, answer = read_story(problem.question)
        if len(sentences) != len(history) + 1 or " - " in sentences[-1]:
            continue  # everybody's steps, so that sentences and changes go in pairs; no slip cancels
        for place, sentence in enumerate(sentences[:-1]):
            depends = read_story(problem.question, slip=place)[1] != answer
            if "=" in sentence:
                found[depends, judge(problem, sentences, gap, place)] += 1
            else:  # the question says it
                assert judge(problem, sentences, gap, place) is True
    assert found.keys() == {(True, False), (False, True)}
    assert found[True, False] > 50


def test_work_on_hostile_text_is_bounded() -> None:
    people = ("Bob", "Cal", "Dan", "Eve", "Fay", "Gus", "Ida")
    starts = " ".join(["Ann has 5 coins.", *(f"{person} has 3." for person in people)])
    story = f"{starts}{' Ann gets 3 more. Ann loses 3.' * 50}"
    question = f"{story} How many coins do they all have together?"
    assert chain_is_right(question, "hm") is False
    start = time.perf_counter()
    for piece in (
        "Ann: 5\n",
        "5 + 3 = 8. ",
        "a. ",
        "9",
        "9 + ",
        "1 + 1 = ",
        "So Ann has ",
        "-",
        "1.",
        "8 ",
    ):
        chain = piece * (MAX_CHAIN_CHARS // len(piece))
        assert not chain_is_right(question, chain)
        assert chain_is_right(question, chain * 1000) is None
    assert time.perf_counter() - start < 5
