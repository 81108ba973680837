"""Where a stop string ends a completion, and the sampling of it."""

from __future__ import annotations

import pytest

from reftune.config import Prompt
from reftune.model.prompts import Prompter, make_prompter
from reftune.model.scratch import train_tokenizer
from reftune.problem import Problem
from reftune.sampling.sampler import Sample
from reftune.training.stop_strings import before, completion, stopped

SAID = "It is 5.\n\nQuestion"


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("It is 5.\n\nQuestion: and?", ["\nQuestion:"], "It is 5.\n"),
        ("a b c", ["c", "b"], "a "),
        ("a b c", [], "a b c"),
        ("a b c", ["d"], "a b c"),
        ("def solution():\n    return 5\ndef more():", ["def "], "def solution():\n    return 5\n"),
    ],
)  # fmt: skip
def test_of_several_stop_strings_the_first_in_the_text_cuts(
    text: str, stop: list[str], left: str
) -> None:
    assert before(text, stop) == left


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    return make_prompter(train_tokenizer([SAID], 300), Prompt(), "natural")


def ids(prompter: Prompter, text: str) -> list[int]:
    return list(prompter.tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(
    ("text", "ends", "finished", "stop", "expected"),
    [
        # The sampler has ended it where the stop string's last token was drawn.
        (SAID, False, True, ("\n\nQuestion",), ("It is 5.", True)),
        (SAID + ":", False, False, ("\n\nQuestion",), ("It is 5.", True)),
        (SAID, True, True, ("\n\nQuestion",), ("It is 5.", True)),
        (SAID, True, True, ("###",), (SAID, True)),
        (SAID, False, False, ("###",), (SAID, False)),
        (SAID, True, True, (), (SAID, True)),
    ],
)  # fmt: skip
def test_a_completion_ends_before_the_first_stop_string(
    prompter: Prompter, text: str, ends: bool, finished: bool, stop: tuple[str, ...],
    expected: tuple[str, bool],
) -> None:  # fmt: skip
    tokens = ids(prompter, text) + [prompter.eos] * ends
    sample = Sample([1], tokens, [0.0] * len(tokens), finished)
    assert completion(prompter, Problem("q", "?", "5"), sample, stop) == expected


def test_a_sampler_is_told_which_responses_hold_one(prompter: Prompter) -> None:
    tell = stopped(prompter, ("\n\nQ",))
    assert tell is not None
    assert tell([ids(prompter, SAID), ids(prompter, "It is 5.\n\n"), []]) == [True, False, False]
    assert stopped(prompter, ()) is None
