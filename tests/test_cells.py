"""Fields as texts, the options that numbers name, and that all commands judge a file alike."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from reftune.config import Data
from reftune.data.checking import check_source
from reftune.data.problems import load_problems, load_test
from reftune.grading.cells import as_text, indexed
from reftune.grading.grade_file import grade_file
from reftune.problem import UserError

WORDS, DIGITS, NUMBERS = ["a hen", "a cow", "a bee"], ["1", "2", "3"], [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),  # an empty cell of a table
        (Decimal("NaN"), ""),
        ("None", "None"),
        ("nan", "nan"),
        ("01", "01"),
        (2**53 + 1, "9007199254740993"),
        (Decimal("9007199254740993.0"), "9007199254740993.0"),
        (Decimal("1E+3"), "1000"),
        (Decimal("2.50"), "2.50"),
        (1e16, "10000000000000000"),
        (0.1, "0.1"),
        (-0.5, "-0.5"),
        (float("inf"), "Infinity"),
        (Decimal("1E+999999999"), "1E+999999999"),  # a gigabyte of zeros
        (Fraction(1, 3), "1/3"),
        ("Zoë 🤖\u200d\t\r\n", "Zoë 🤖\u200d\t\r\n"),
    ],
)
def test_a_value_becomes_text_without_loss(value: object, text: str) -> None:
    assert as_text("here", "answer", value) == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "'answer' is true without quotes, a truth value; it must be a text or a number"),
        (False, "'answer' is false without quotes"),
        ([1], "'answer' is a list; it must be a text or a number"),
        (b"x", "'answer' is a bytes;"),
        pytest.param(10**5000, "'answer' is a number of thousands of digits; shorten it", id="long"),
        ("a\0b", "'answer' holds U+0000, which is no text; remove it"),
        ("x\ud83d", r"'answer' holds \ud83d, half of a character (an emoji that was cut?); remove it"),
    ],
)
def test_what_is_no_text_is_named(value: object, said: str) -> None:
    with pytest.raises(UserError) as caught:
        as_text("x.jsonl:3", "answer", value)
    assert str(caught.value).startswith(f"x.jsonl:3: {said}")


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        (2, WORDS, "c"),  # MMLU
        (2, DIGITS, "c"),  # MMLU again: the text would be "2"
        (Decimal("0.0"), WORDS, "a"),  # its column was one of floats
        (0, "a ) 5 , b ) 6", "a"),
        ("2", DIGITS, "2"),  # a text is a letter or an option
        ("b", DIGITS, "b"),
        (7, NUMBERS, 7),  # neither: refused later, with what it is none of
        (1, [5, 1], "b"),  # both readings agree
        (2, [5, 6, 7], "c"),  # no option is 2
        (7, [5, 6, 7], "c"),  # no index is 7
        (2.5, [1.5, 2.5], "b"),
        (12, None, 12),
        (12, "", 12),
        (None, WORDS, None),
    ],
)
def test_a_number_beside_choices_is_an_index(answer: object, choices: object, letter: object) -> None:
    assert indexed("here", answer, choices) == letter


@pytest.mark.parametrize(
    ("answer", "choices", "said"),
    [
        (3, WORDS, "x:1: answer 3 is a number, and so the index of one of 3 choices, counted from 0;"),
        (-1, DIGITS, "x:1: answer -1 is a number, and so the index"),
        (1.5, DIGITS, "x:1: answer 1.5 is a number, and so the index"),
        (2, NUMBERS, "x:1: answer 2 may be the index of a choice, counted from 0, or a choice itself;"),
    ],
)
def test_a_number_that_may_be_no_index_is_refused(answer: object, choices: object, said: str) -> None:
    with pytest.raises(UserError) as caught:
        indexed("x:1", answer, choices)
    assert str(caught.value).startswith(said)


SOUND = {"id": "1", "question": "Which?", "answer": "3", "completion": "The answer is 3."}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, None),
        ({"answer": 3.0}, None),
        ({"answer": "\n" * 300 + "3"}, None),
        ({"answer": 2, "choices": DIGITS, "completion": "The answer is C."}, None),
        ({"answer": "b", "choices": "a ) 5 , b ) 3"}, None),
        ({"answer": True}, "'answer' is true without quotes"),
        ({"answer": "3\0"}, "'answer' holds U+0000"),
        ({"question": "\ud83d"}, r"'question' holds \ud83d"),
        ({"question": "a\0b"}, "'question' holds U+0000"),
        ({"question": ["a"]}, "'question' is a list"),
        ({"id": False}, "'id' is false without quotes"),
        ({"answer": ["3"]}, "'answer' is a list"),
        ({"answer": "9" * 5000}, "is longer than 200 characters"),
        ({"answer": "inf"}, "is not a finite number"),
        ({"answer": 0, "choices": ["", "x"]}, "one of its choices is empty"),
        ({"answer": 0, "choices": [None, "x"]}, "one of its choices is empty"),
        ({"answer": 0, "choices": [["x"], "y"]}, "'choices' is a list"),
        ({"answer": 2, "choices": NUMBERS}, "may be the index of a choice"),
        ({"answer": 5, "choices": WORDS}, "is a number, and so the index of one of 3 choices"),
        ({"answer": "e", "choices": WORDS}, "names none of its choices; give a letter from a to c"),
        ({"answer": "a", "choices": {"text": WORDS}}, "cannot read the choices"),
        ('{"id": 1, "question": "q", "answer": 1, "answer": 2, "completion": "2"}', "'answer' comes 2"),
        ('{"id": 1, "question": "q", "answer": ' + "9" * 5000 + ', "completion": "2"}', "digits"),
        ('{"id": 1, "question": "q", "answer": 1e' + "9" * 30 + ', "completion": "2"}', "not JSON"),
        ('{"id": 1, "question": "q", "answer": ' + "[" * 10**5, "nested too deeply"),
    ],
)
def test_every_command_judges_a_line_alike(
    tmp_path: Path, fields: dict[str, Any] | str, said: str | None
) -> None:
    line = fields if isinstance(fields, str) else json.dumps(SOUND | fields)
    path = tmp_path / "x.jsonl"
    path.write_text(f"\n{line}\n")
    for use in (
        lambda: load_problems(str(path), cot="natural"),  # run
        lambda: load_test(Data(test=str(path), cot="natural"), 1),  # evaluate
        lambda: _first_fault(str(path)),  # data check
        lambda: _require_right(path),  # grade
    ):
        if said is None:
            use()
            continue
        with pytest.raises(UserError) as caught:
            use()
        assert str(caught.value).startswith(f"{path}:2: ")
        assert said in str(caught.value)


def _first_fault(source: str) -> None:
    if faults := check_source(source, cot="natural").faults:
        raise UserError(faults[0])


def _require_right(path: Path) -> None:
    assert grade_file(path, "natural").correct == 1


def test_json_numbers_keep_their_digits(tmp_path: Path) -> None:
    written = ["9007199254740993", "9007199254740993.0", "2.50", "1e3", "12345678901234567890", "-0.10"]
    path = tmp_path / "x.jsonl"
    lines = (f'{{"question": "{n}?", "answer": {text}}}\n' for n, text in enumerate(written))
    path.write_text("".join(lines))
    array = tmp_path / "x.json"
    array.write_text(f"[{','.join(path.read_text().splitlines())}]")
    for source in (path, array):
        assert [problem.answer for problem in load_problems(str(source), cot="natural")] == [
            "9007199254740993", "9007199254740993", "2.50", "1000", "12345678901234567890", "-0.10",
        ]  # fmt: skip
