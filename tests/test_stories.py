"""Stories read back from their text: the inverse of telling them, and a refusal of all else."""

from __future__ import annotations

import time
from random import Random

import pytest

from reftune.config import Synthetic
from reftune.data.synthetic.stories import Equation, equations, read_story, tell
from story_reader import read_story as read_independently

STORY = "Ann has 7 coins. Bob has 2 times as many as Ann. Ann gives 3 to Bob. Bob is 9 years old. "


@pytest.mark.parametrize(
    "settings",
    [
        Synthetic(),
        Synthetic(min_events=4, max_events=8, people=5, max_number=50, distractors=1.0),
        Synthetic(min_events=0, max_events=0),
    ],
)
def test_reading_undoes_telling(settings: Synthetic) -> None:
    for seed in range(200):
        story = tell(settings, Random(seed))
        assert read_story(story.text) == story


def test_a_story_worked_out_by_hand() -> None:
    story = read_story(f"{STORY}Bob loses half the coins. How many more coins does Bob have than Ann?")
    assert story is None  # 17 has no half
    story = read_story(f"{STORY}Bob doubles the coins. How many more coins does Bob have than Ann?")
    assert story is not None
    assert equations(story.steps) == [
        Equation("Ann", 7, "", 0, 7),
        Equation("Bob", 7, "*", 2, 14),
        Equation("Ann", 7, "-", 3, 4),
        Equation("Bob", 14, "+", 3, 17),
        Equation("Bob", 17, "*", 2, 34),
    ]
    assert ([*story.amounts], story.things, story.answer) == (["Ann", "Bob"], "coins", 30)
    assert story.needed() == [True] * 5
    ann = read_story(f"{STORY}Bob doubles the coins. How many coins does Ann have now?")
    assert ann is not None
    assert ann.needed() == [True, False, True, False, False]


def test_a_step_is_needed_if_a_slip_in_it_changes_the_answer() -> None:
    cancelled = total = 0
    for seed in range(200):
        story = tell(Synthetic(max_events=6), Random(seed))
        _, answer = read_independently(story.text)
        for place, needed in enumerate(story.needed()):
            changes = read_independently(story.text, slip=place)[1] != answer
            # Nothing but a difference can lose a slip: both of its people may get the same of it.
            assert changes == needed or (needed and story.op == "-"), (story.text, place)
            cancelled += needed and not changes
            total += needed
    assert total > 1000
    assert cancelled < 0.05 * total


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Ann has 7 coins.",
        "How many coins does Ann have now?",
        "Ann has 7 pens. How many pens does Ann have now?",
        "Zed has 7 coins. How many coins does Zed have now?",
        "Ann has 7 coins. How many shells does Ann have now?",  # other things
        "Ann has 7 coins. Ann finds 2 shells. How many coins does Ann have now?",
        "Ann has 7 coins. Ann has 8. How many coins does Ann have now?",  # a second beginning
        "Ann has 7 coins. Bob gets 2 more. How many coins does Ann have now?",  # Bob has none
        "Ann has 7 coins. Bob has 2 more than Cal. How many coins does Ann have now?",
        "Ann has 7 coins. Bob has 2 more than Bob. How many coins does Ann have now?",
        "Ann has 7 coins. How many coins do Ann and Bob have together?",
        "Ann has 7 coins. Ann loses 8. How many coins does Ann have now?",
        "Ann has 7 coins. Ann loses half the coins. How many coins does Ann have now?",
        "Ann has 7 coins. Ann buys 2 more. How many coins does Ann have now?",
        "Ann has 7 coins. How many coins does Ann have now? Ann gets 2 more.",
        "Ann has 7 coins. Ann gets 2 more. How many coins does Ann have now? ",
        "Ann has 7 coins." + " Ann doubles the coins." * 60 + " How many coins does Ann have now?",
    ],
)
def test_what_nobody_would_tell_is_refused(text: str) -> None:
    assert read_story(text) is None


def test_a_long_text_costs_nothing() -> None:
    start = time.perf_counter()
    assert read_story("Ann has 7 coins. " * 10**6) is None
    assert time.perf_counter() - start < 1
