"""Rewards that are known to be good or bad, tried on completions that are right, and on cheats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import start
from reftune.config import Prompt
from reftune.evaluation.reward_check import Tried, check_reward, verdict, wrong_answer
from reftune.grading.judge import Judge, make_judge
from reftune.grading.rewards import OwnReward
from reftune.grading.sandbox import Sandbox
from reftune.problem import Cot, Problem, UserError

NUMBERS = [Problem(str(n), f"What is {n} + 3000?", str(n + 3000)) for n in (5, 70)]
OPTIONS = [
    Problem("c", "Which?", "a", choices=("1", "2")),
    Problem("d", "Which?", "b", choices=("1", "2")),
]
TEXTS = [Problem("t", "Which day?", "Tuesday")]


def judging(reward: Callable[..., Any] | None, cot: Cot = "natural", sandbox: Any = None) -> Judge:
    own = None if reward is None else OwnReward([reward], max_failed=1.0)
    trigger = Prompt().trigger
    return make_judge(cot, trigger=trigger, partial_reward=0.0, sandbox=sandbox, reward=own)


def mistakes(found: list[Tried]) -> dict[str, int]:
    return {one.name: one.mistakes for one in found if one.mistakes}


@pytest.mark.parametrize("problems", [NUMBERS, OPTIONS, TEXTS], ids=["numbers", "options", "texts"])
def test_the_built_in_check_of_texts_makes_no_mistake(problems: list[Problem]) -> None:
    found = check_reward(judging(None), problems, "natural")
    assert mistakes(found) == {}
    assert all(one.count == len(problems) for one in found)
    notations = [one for one in found if one.name in ("right: in dollars", "right: with separators")]
    assert len(notations) == (2 if problems is NUMBERS else 0)
    assert verdict(found) == ["took everything as it should"]


@pytest.mark.parametrize("problems", [NUMBERS, OPTIONS], ids=["numbers", "options"])
def test_the_built_in_check_of_programs_makes_no_mistake(problems: list[Problem]) -> None:
    with Sandbox(workers=1, text=True) as sandbox:
        found = check_reward(judging(None, "program", sandbox), problems, "program")
    assert mistakes(found) == {}
    assert {one.right for one in found} == {True, False}


def test_a_reward_that_looks_for_the_answer_anywhere_is_found_out() -> None:
    found = check_reward(judging(lambda q, c, a: a in c), NUMBERS, "natural")
    assert mistakes(found) == {
        "right: with separators": 2, "the right one in passing": 2, "two answers": 2,
    }  # fmt: skip
    assert verdict(found)[0].startswith("accepts what is wrong (the right one in passing), such as ")
    assert verdict(found)[-1].startswith("refuses what is right (right: with separators), such as ")
    assert "3,005" in verdict(found)[-1]


def test_a_reward_that_takes_everything_is_found_out() -> None:
    found = check_reward(judging(lambda q, c, a: 1), NUMBERS, "natural")
    assert {one.name for one in found if one.mistakes} == {one.name for one in found if not one.right}
    assert found[-1].interval == pytest.approx((0.342, 1.0), abs=1e-3)  # Wilson's, 2 of 2


def test_what_the_reward_fails_on_is_not_counted() -> None:
    def fails_on_nothing(question: str, completion: str, answer: str) -> float:
        return completion[0] == "x"

    found = check_reward(judging(fails_on_nothing), NUMBERS, "natural")
    assert "nothing" not in [one.name for one in found]


def test_a_wrong_answer_is_not_the_right_one() -> None:
    assert [wrong_answer(problem) for problem in (*NUMBERS, *OPTIONS, *TEXTS)] == [
        "3006", "3071", "b", "a", "no Tuesday",
    ]  # fmt: skip
    assert wrong_answer(Problem("f", "?", "0.5")) == "1.5"


def test_without_questions_there_is_nothing_to_try() -> None:
    with pytest.raises(UserError, match="no questions to try the reward on"):
        check_reward(judging(None), [], "natural")


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    data, own = tmp_path / "data.jsonl", tmp_path / "own.py"
    rows = [{"question": p.question, "answer": p.answer, "level": 1} for p in NUMBERS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own.write_text("def f(completion, answer, level): return level * (answer in completion)", "utf-8")
    return str(data), f"{own}:f"


def test_the_command_shows_a_table_and_says_what_is_wrong(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, own = files
    command = ["reward", "check", own, "--data", data, "--keep", "level"]
    assert start(monkeypatch, *command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tried", "judged", "wrongly"]
    [row] = [line.split() for line in lines if line.startswith("two answers ")]
    assert row == ["two", "answers", "2", "100.0%", "[34.2%,", "100.0%]"]
    assert lines[-1].startswith(f"{own}: refuses what is right (right: with separators)")
    assert start(monkeypatch, *command, "--json", "--max", "1") == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["tried"]}
    assert found["two answers"]["mistakes"] == found["two answers"]["count"] == 1


def test_the_command_names_a_column_that_is_not_kept(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, own = files
    assert start(monkeypatch, "reward", "check", own, "--data", data) == 2
    assert "asks for 'level', which the data do not have" in capsys.readouterr().err
