"""Verdicts of completions, with real programs in the real sandbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reftune.grading.judge import Judge, make_extractor, make_judge
from reftune.grading.rewards import OwnReward
from reftune.grading.sandbox import Sandbox
from reftune.problem import Answer, Problem, Status, UserError, Verdict

TRIGGER = "\nTherefore, the answer is: "
NUMERIC = Problem("n", "How many?", "1,000")
CHOICE = Problem("c", "Which?", "b", choices=("38", "27.675", "30", "none of these"))
TEXT = Problem("t", "Which day?", "Tuesday")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1, seconds=0.5, text=True) as made:
        yield made


@pytest.fixture(scope="module")
def natural() -> Judge:
    return make_judge("natural", trigger=TRIGGER, partial_reward=0.1)


@pytest.fixture(scope="module")
def program(sandbox: Sandbox) -> Judge:
    return make_judge("program", trigger=TRIGGER, partial_reward=0.1, sandbox=sandbox)


def returning(expression: str) -> str:
    return f"def solution():\n    return {expression}\n"


@pytest.mark.parametrize(
    ("problem", "answer", "expected"),
    [
        (NUMERIC, "$1,000.", Verdict("ok", 1000.0, True, 1.0)),
        (NUMERIC, "1000.01", Verdict("ok", 1000.01, True, 1.0)),
        (NUMERIC, "999", Verdict("ok", 999.0, False, 0.1)),
        (NUMERIC, "many", Verdict("not_a_number", None, False, 0.0)),
        (NUMERIC, "1000 or 1001", Verdict("not_a_number", None, False, 0.0)),
        (NUMERIC, "", Verdict("no_result", None, False, 0.0)),
        (CHOICE, "B", Verdict("ok_text", "b", True, 1.0)),
        (CHOICE, "27.675", Verdict("ok_text", "b", True, 1.0)),
        (CHOICE, "(c) 30", Verdict("ok_text", "c", False, 0.0)),  # no partial reward for letters
        (CHOICE, "a ) 38 , b ) 27.675 , c ) 30", Verdict("no_result", None, False, 0.0)),
        (TEXT, "tuesday.", Verdict("ok_text", "tuesday", True, 1.0)),
        (TEXT, "Monday", Verdict("ok_text", "Monday", False, 0.0)),
    ],
)
def test_natural(natural: Judge, problem: Problem, answer: str, expected: Verdict) -> None:
    assert natural([problem], [f"We count.{TRIGGER}{answer}"], [True]) == [expected]


def test_natural_without_trigger_has_no_result(natural: Judge) -> None:
    assert natural([NUMERIC], ["It is 1000."], [True]) == [Verdict("no_result", None, False, 0.0)]


@pytest.mark.parametrize(
    ("problem", "completion", "expected"),
    [
        (NUMERIC, returning("10 ** 3"), Verdict("ok", 1000.0, True, 1.0)),
        (NUMERIC, returning("7"), Verdict("ok", 7.0, False, 0.1)),
        (NUMERIC, returning("'1000'"), Verdict("not_a_number", None, False, 0.0)),
        (NUMERIC, returning("None"), Verdict("no_result", None, False, 0.0)),
        (NUMERIC, returning("1 / 0"), Verdict("exception", None, False, 0.0)),
        (NUMERIC, "def solution(:", Verdict("syntax_error", None, False, 0.0)),
        (NUMERIC, "answer = 1000", Verdict("no_solution", None, False, 0.0)),
        (CHOICE, returning("'b'"), Verdict("ok_text", "b", True, 1.0)),
        (CHOICE, returning("'27.675'"), Verdict("ok_text", "b", True, 1.0)),
        (CHOICE, returning("27.67"), Verdict("ok_text", "b", True, 1.0)),
        (CHOICE, returning("30"), Verdict("ok_text", "c", False, 0.0)),
        (CHOICE, returning("31"), Verdict("no_result", None, False, 0.0)),
        (CHOICE, returning("'none of these'"), Verdict("ok_text", "d", False, 0.0)),
    ],
)
def test_program(program: Judge, problem: Problem, completion: str, expected: Verdict) -> None:
    assert program([problem], [completion], [True]) == [expected]


def test_unfinished_completions_are_not_looked_at(natural: Judge, program: Judge) -> None:
    truncated, right = Verdict("truncated", None, False, 0.0), Verdict("ok", 1000.0, True, 1.0)
    endless = "def solution():\n    while True:\n        pass\n"
    texts = [endless, returning("1000"), endless]
    assert program([NUMERIC] * 3, texts, [False, True, False]) == [truncated, right, truncated]
    chain = f"{TRIGGER}1000"
    assert natural([NUMERIC] * 2, [chain, chain], [False, True]) == [truncated, right]


def test_verdicts_keep_the_order_of_their_problems(program: Judge) -> None:
    problems = [Problem(f"{n}", "?", f"{n}") for n in range(40)]
    texts = [returning(f"{n - n % 3}") for n in range(40)]  # right for every third, many texts equal
    verdicts = program(problems, texts, [True] * 40)
    assert [v.correct for v in verdicts] == [n % 3 == 0 for n in range(40)]


def test_partial_reward_is_a_setting() -> None:
    judge = make_judge("natural", trigger=TRIGGER, partial_reward=0.0)
    assert judge([NUMERIC], [f"{TRIGGER}7"], [True])[0].reward == 0.0


def test_a_truth_that_cannot_be_graded_is_named(natural: Judge, program: Judge) -> None:
    with pytest.raises(UserError, match=r"problem x: answer 'inf'"):
        natural([NUMERIC, Problem("x", "?", "inf")], ["", ""], [True, True])
    with pytest.raises(UserError, match="problem t: answer 'Tuesday' is not a number"):
        program([TEXT], [returning("1")], [True])


@pytest.mark.parametrize(
    ("answer", "status", "value"),
    [
        ("$1,000.", "ok", 1000.0),
        ("B", "ok_text", "B"),
        ("27.675 kg", "ok", 27.675),
        ("on Tuesday", "ok_text", "on Tuesday"),
        ("", "no_result", None),
    ],
)
def test_without_a_truth_any_natural_answer_is_shown(
    answer: str, status: Status, value: Answer | None
) -> None:
    extract = make_extractor("natural", trigger=TRIGGER)
    unknown = Problem("q", "?", "")
    texts = [f"We count.{TRIGGER}{answer}"] * 2
    assert extract([unknown] * 2, texts, [True, False]) == [
        Verdict(status, value, False, 0.0),
        Verdict("truncated", None, False, 0.0),
    ]


def test_without_a_truth_any_answer_of_a_program_is_shown(sandbox: Sandbox) -> None:
    extract = make_extractor("program", trigger="", sandbox=sandbox)
    programs = [returning(text) for text in ("7 * 3", "'c'", "None")]
    verdicts = extract([Problem("q", "?", "")] * 3, programs, [True] * 3)
    shown = [(verdict.status, verdict.answer) for verdict in verdicts]
    assert shown == [("ok", 21.0), ("ok_text", "c"), ("no_result", None)]


def test_programs_need_a_sandbox() -> None:
    with pytest.raises(ValueError, match="sandbox"):
        make_judge("program", trigger=TRIGGER, partial_reward=0.1)


def shortness(question: str, completion: str, answer: str) -> float:
    return len(answer) / len(completion) + (question == "Which day?")


def says_it(question: str, completion: str, answer: str) -> bool:
    return answer in completion


def judge_with(reward: Callable[..., Any], max_failed: float = 0.0) -> Judge:
    own = OwnReward([reward], max_failed=max_failed)
    return make_judge("natural", trigger=TRIGGER, partial_reward=0.1, reward=own)


def test_own_reward_replaces_the_score() -> None:
    wrong = f"{TRIGGER}1"
    assert judge_with(shortness)([NUMERIC], [wrong], [True]) == [
        Verdict("ok", 1.0, False, 5 / len(wrong))
    ]
    assert judge_with(shortness)([TEXT], ["x"], [True]) == [Verdict("no_result", None, True, 8.0)]


def test_own_reward_may_be_a_bool_and_skips_the_unfinished() -> None:
    verdicts = judge_with(says_it)([TEXT] * 3, ["Tuesday", "Monday", "Tuesday"], [True, True, False])
    assert [(v.status, v.correct, v.reward) for v in verdicts] == [
        ("no_result", True, 1.0),
        ("no_result", False, 0.0),
        ("truncated", False, 0.0),
    ]


def test_own_reward_scores_programs_too(sandbox: Sandbox) -> None:
    own = OwnReward([says_it])
    judge = make_judge("program", trigger=TRIGGER, partial_reward=0.1, sandbox=sandbox, reward=own)
    text = returning("'Tuesday'")
    assert judge([TEXT], [text], [True]) == [Verdict("ok_text", "Tuesday", True, 1.0)]


def test_own_reward_sees_the_unfinished_if_it_asks(sandbox: Sandbox) -> None:
    def at_length(completions: list[str], truncated: list[bool], token_counts: list[int]) -> list[float]:
        return [count - 100.0 * cut for count, cut in zip(token_counts, truncated, strict=True)]

    verdicts = judge_with(at_length)([TEXT] * 2, ["Tuesday", "Tues"], [True, False], [7, 9])
    assert [(v.status, v.reward) for v in verdicts] == [("no_result", 7.0), ("truncated", -91.0)]


def test_what_an_own_reward_fails_on_is_judged_by_nobody() -> None:
    def fails_on_8(question: str, completion: str, answer: str) -> dict[str, float]:
        return {"inverse": 1 / (8 - len(completion)), "rest": 0.5}

    judge = judge_with(fails_on_8, max_failed=0.5)
    whole, failed = judge([TEXT] * 2, ["Tuesday", "Thursday"], [True, True])
    assert (whole.reward, whole.parts, whole.judged) == (1.5, {"inverse": 1.0, "rest": 0.5}, True)
    assert (failed.status, failed.answer, failed.judged) == ("reward_error", None, False)
    assert failed.reason == "reward fails_on_8 failed (ZeroDivisionError: division by zero)"


def test_an_own_reward_gets_the_columns_of_its_problem() -> None:
    def hard(question: str, completion: str, answer: str, *, level: int) -> int:
        return level

    problems = [
        Problem("a", "?", "1", columns={"level": 3}),
        Problem("b", "?", "1", columns={"level": 5}),
    ]
    assert [v.reward for v in judge_with(hard)(problems, ["x", "x"], [True, True])] == [3.0, 5.0]


def test_an_own_reward_gets_what_the_completion_states(sandbox: Sandbox) -> None:
    heard: list[str | None] = []

    def listens(completion: str, stated_answer: str | None) -> float:
        heard.append(stated_answer)
        return 1.0

    judge_with(listens)([TEXT] * 2, [f"So.{TRIGGER}Tuesday", "Who knows?"], [True, True])
    own = OwnReward([listens])
    judge = make_judge("program", trigger=TRIGGER, partial_reward=0.1, sandbox=sandbox, reward=own)
    judge([TEXT], [returning("14 / 2")], [True])
    assert heard == ["Tuesday", None, "7"]
