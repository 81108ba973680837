"""Verdicts of completions, with real programs in the real sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import reftune.grading.rewards as rewards_module
from reftune.grading.judge import Judge, make_extractor, make_judge
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


REWARDS = """
from dataclasses import dataclass

@dataclass
class Unused:
    field: int

def shortness(question, completion, answer):
    return len(answer) / len(completion) + (question == "Which day?")

def says_it(question, completion, answer):
    return answer in completion

def fails(question, completion, answer):
    raise KeyError("oops")

def infinite(question, completion, answer):
    return float("inf")

def silent(question, completion, answer):
    pass

def vast(question, completion, answer):
    return 10**400

def talks(question, completion, answer):
    raise ValueError("x" * 10**6)

def leaves(question, completion, answer):
    import sys
    sys.exit(5)

class Odd(BaseException):
    def __str__(self):
        raise KeyError

def odd(question, completion, answer):
    raise Odd

class Shy:
    def __repr__(self):
        raise KeyError

def shy(question, completion, answer):
    return Shy()

def slow(question, completion, answer):
    import time
    time.sleep(0.5)
    return 1

constant = 1
"""


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(REWARDS, encoding="utf-8")
    return f"{path}"


def judge_with(reward: str) -> Judge:
    return make_judge("natural", trigger=TRIGGER, partial_reward=0.1, reward=reward)


def test_own_reward_replaces_the_score(rewards: str) -> None:
    wrong = f"{TRIGGER}1"
    assert judge_with(f"{rewards}:shortness")([NUMERIC], [wrong], [True]) == [
        Verdict("ok", 1.0, False, 5 / len(wrong))
    ]
    assert judge_with(f"{rewards}:shortness")([TEXT], ["x"], [True]) == [
        Verdict("no_result", None, True, 8.0)
    ]


def test_own_reward_may_be_a_bool_and_skips_the_unfinished(rewards: str) -> None:
    verdicts = judge_with(f"{rewards}:says_it")(
        [TEXT] * 3, ["Tuesday", "Monday", "Tuesday"], [True, True, False]
    )
    assert [(v.status, v.correct, v.reward) for v in verdicts] == [
        ("no_result", True, 1.0),
        ("no_result", False, 0.0),
        ("truncated", False, 0.0),
    ]


def test_own_reward_scores_programs_too(rewards: str, sandbox: Sandbox) -> None:
    judge = make_judge(
        "program", trigger=TRIGGER, partial_reward=0.1, sandbox=sandbox, reward=f"{rewards}:says_it"
    )
    text = returning("'Tuesday'")
    assert judge([TEXT], [text], [True]) == [Verdict("ok_text", "Tuesday", True, 1.0)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", "failed on problem n .KeyError: 'oops'"),
        ("infinite", "returned inf on problem n"),
        ("silent", "returned None on problem n"),
        ("vast", "failed on problem n .OverflowError: int too large"),
        ("talks", r"failed on problem n .ValueError: x{1,200} \[\.\.\.\] x{1,100}\); mend it$"),
        ("leaves", r"failed on problem n .SystemExit: 5\); mend it$"),
        ("odd", r"failed on problem n .Odd\); mend it$"),
        ("shy", "returned a Shy that cannot be written on problem n"),
    ],
)
def test_own_reward_that_fails_is_named(rewards: str, name: str, words: str) -> None:
    judge = judge_with(f"{rewards}:{name}")
    with pytest.raises(UserError, match=rf"mine\.py:{name} {words}"):
        judge([NUMERIC], ["1"], [True])


def test_own_reward_that_cannot_be_loaded_is_named(rewards: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name", encoding="utf-8")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no code at all", encoding="utf-8")
    for spec, words in [
        ("shortness", "write path.py:function"),
        (f"{tmp_path}/missing.py:f", "no such file"),
        (f"{tmp_path}/leaves.py:f", r"cannot be imported .SystemExit: 3\); mend it$"),
        ("no\0where.py:f", "no such file"),
        (f"{tmp_path}:f", "no such file"),
        (f"{tmp_path}/broken.py:f", "cannot be imported .ModuleNotFoundError"),
        (f"{tmp_path}/notes.txt:f", "cannot be imported .SyntaxError"),
        (f"{rewards}:shortnes", "defines no function shortnes"),
        (f"{rewards}:constant", "defines no function constant"),
    ]:
        with pytest.raises(UserError, match=words):
            judge_with(spec)


def test_own_reward_that_takes_long_is_named_once_while_it_works(
    rewards: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rewards_module, "PATIENCE", 0.1)
    monkeypatch.setattr(rewards_module, "_watch", rewards_module._Watch())
    [verdict] = judge_with(f"{rewards}:slow")([NUMERIC], ["1"], [True])
    assert verdict.reward == 1.0
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("mine.py:slow, on problem n, has not returned for 0 s; Ctrl-C ends the run")
