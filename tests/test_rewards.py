"""The user's own reward: how it is called, what it may return, and what happens where it fails."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reftune.grading.rewards as rewards_module
from reftune.config import Reward
from reftune.grading.reward_calls import RewardSample
from reftune.grading.reward_lines import ProcessLine, ThreadLine
from reftune.grading.rewards import OwnReward, Scored, own_reward
from reftune.problem import UserError

REWARDS = """
from dataclasses import dataclass
import os, sys, time

@dataclass
class Unused:
    field: int

def length(question, completion, answer):
    print("to the terminal")
    return len(completion)

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

def by_text(question, completion, answer):
    if completion == "hang":
        time.sleep(1000)
    if completion == "end":
        os._exit(9)
    if completion == "fail":
        raise ValueError("no")
    return len(completion)

def all_by_text(completions):
    return [by_text("", completion, "") for completion in completions]

constant = 1
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(REWARDS, encoding="utf-8")
    return str(path)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add nothing to time limits."""
    monkeypatch.setattr(rewards_module, "GRACE", 0.0)


def sample(completion: str, tokens: int = 3, truncated: bool = False, **columns: Any) -> RewardSample:
    return {
        "question": f"{completion}?", "completion": completion, "answer": "7", "tokens": tokens,
        "truncated": truncated, "stated_answer": f"{completion}!", "columns": columns,
    }  # fmt: skip


def ask(own: OwnReward, *samples: RewardSample) -> list[Scored]:
    return own(samples, [f"p{i}" for i in range(len(samples))])


def values(function: Callable[..., Any], *samples: RewardSample) -> list[float]:
    return [scored.value for scored in ask(OwnReward([function], max_failed=0.0), *samples)]


# How it is called.


def test_by_position_whatever_the_names() -> None:
    assert values(lambda q, c, a: 100 * len(q) + 10 * len(c) + len(a), sample("ab"), sample("c")) == [
        321.0, 211.0,
    ]  # fmt: skip


def test_by_name_with_tokens_cut_off_and_columns() -> None:
    def reward(
        completion: str, level: int, *, tokens: int, truncated: bool, bonus: float = 0.5
    ) -> float:
        return len(completion) + 10 * level + 100 * tokens + 1000 * truncated + bonus

    found = values(reward, sample("ab", 3, level=4), sample("abc", 2, truncated=True, level=5, bonus=0))
    assert found == [342.5, 1253.0]


def test_by_position_and_columns_by_name() -> None:
    def reward(q: str, c: str, a: str, level: int, **others: Any) -> float:
        assert set(others) == {"tokens", "truncated", "stated_answer", "unit"}
        return level

    assert values(reward, sample("x", level=4, unit="cm")) == [4.0]


def test_all_at_once() -> None:
    def reward(
        completions: Sequence[str], answers: Sequence[str], level: Sequence[int], **others: Any
    ) -> Any:
        assert others["prompts"] == others["questions"] == ["ab?", "abc?"]
        assert others["unit"] == [None, "cm"]
        assert others["stated_answers"] == ["ab!", "abc!"]
        assert (others["token_counts"], others["truncated"]) == ([3, 3], [False, False])
        lengths = [len(c) + len(a) for c, a in zip(completions, answers, strict=True)]
        return np.array(lengths) * np.array(level)

    assert values(reward, sample("ab", level=2), sample("abc", level=1, unit="cm")) == [6.0, 4.0]


def test_async_for_one_runs_for_all_side_by_side() -> None:
    import asyncio

    async def reward(question: str, completion: str, answer: str) -> float:
        await asyncio.sleep(0.3)
        return len(completion)

    begin = time.monotonic()
    assert values(reward, *(sample("x" * n) for n in range(10))) == [float(n) for n in range(10)]
    assert time.monotonic() - begin < 2.0  # one after the other: 3 s


def test_async_for_all() -> None:
    async def reward(completions: Sequence[str]) -> list[int]:
        return [len(completion) for completion in completions]

    assert values(reward, sample("ab"), sample("c")) == [2.0, 1.0]


def test_a_class_that_can_be_called() -> None:
    class Longer:
        def __init__(self, than: int) -> None:
            self.than = than

        def __call__(self, completions: Sequence[str]) -> list[bool]:
            return [len(completion) > self.than for completion in completions]

    assert values(Longer(1), sample("ab"), sample("c")) == [1.0, 0.0]


# What it may return.


def test_one_or_more_is_right_and_parts_are_added() -> None:
    own = OwnReward([lambda q, c, a: {"right": len(c) / 2, "brief": 0.25}])
    assert ask(own, sample("x"), sample("xx")) == [
        Scored(0.75, False, {"right": 0.5, "brief": 0.25}),
        Scored(1.25, True, {"right": 1.0, "brief": 0.25}),
    ]


def test_a_part_may_say_what_is_right() -> None:
    own = OwnReward([lambda q, c, a: {"points": 5.0, "correct": c == "x"}])
    assert ask(own, sample("x"), sample("y")) == [
        Scored(5.0, True, {"points": 5.0}), Scored(5.0, False, {"points": 5.0}),
    ]  # fmt: skip


def test_a_dictionary_of_lists_is_one_of_parts() -> None:
    def reward(completions: Sequence[str]) -> dict[str, Any]:
        return {"long": [len(c) for c in completions], "correct": [True, False]}

    assert ask(OwnReward([reward]), sample("x"), sample("yy")) == [
        Scored(1.0, True, {"long": 1.0}), Scored(2.0, False, {"long": 2.0}),
    ]  # fmt: skip


def test_several_functions_are_weighed_and_named() -> None:
    def right(question: str, completion: str, answer: str) -> bool:
        return answer == completion

    def brief(completions: Sequence[str]) -> list[dict[str, float]]:
        return [{"words": 1.0, "letters": len(c)} for c in completions]

    own = OwnReward([right, brief], [1.0, -0.5])
    assert ask(own, sample("7"), sample("88")) == [
        Scored(0.0, False, {"right": 1.0, "brief": 2.0, "brief/words": 1.0, "brief/letters": 1.0}),
        Scored(-1.5, False, {"right": 0.0, "brief": 3.0, "brief/words": 1.0, "brief/letters": 2.0}),
    ]


def test_as_many_weights_as_functions() -> None:
    with pytest.raises(UserError, match=r"reward\.weights: 2 for 1 functions; give one for each"):
        OwnReward([len], [1.0, 2.0])


# A process of its own.


def test_a_file_runs_in_a_process_of_its_own_and_may_print(mine: str) -> None:
    own = OwnReward([f"{mine}:length"])
    assert [s.value for s in ask(own, sample("ab"), sample("ü€"))] == [2.0, 2.0]
    assert [s.value for s in ask(own, sample("abc"))] == [3.0]  # the same process again


def test_a_module_may_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper.py").write_text("def f(q, c, a): return 4", encoding="utf-8")
    (tmp_path / "file.py").write_text("from helper import f", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert ask(OwnReward(["helper:f"]), sample("x"))[0].value == 4.0
    monkeypatch.undo()
    assert ask(OwnReward([f"{tmp_path}/file.py:f"]), sample("x"))[0].value == 4.0  # finds its neighbour


def test_the_process_ends_with_the_reward(mine: str) -> None:
    own = OwnReward([f"{mine}:length"])
    [line] = own._lines
    assert isinstance(line, ProcessLine)
    assert line._process is not None
    process = line._process
    assert process.poll() is None
    del own, line
    gc.collect()
    assert process.poll() is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", "failed (KeyError: 'oops')"),
        ("infinite", "failed (returned inf; return a finite number)"),
        ("silent", "failed (returned None; return a finite number)"),
        ("leaves", "failed (SystemExit: 5)"),
        ("odd", "failed (Odd)"),
        ("shy", "failed (returned a Shy that cannot be written; return a finite number)"),
    ],
)
def test_one_that_fails_is_named(mine: str, name: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        ask(OwnReward([f"{mine}:{name}"]), sample("x"))
    assert str(error.value) == (
        f"reward {mine}:{name} {words}, first on problem p0, and on 1 of 1 completions;"
        " mend it, or raise reward.max_failed"
    )


@pytest.mark.parametrize("name", ["vast", "talks"])
def test_a_reason_is_short(mine: str, name: str) -> None:
    with pytest.raises(UserError) as error:
        ask(OwnReward([f"{mine}:{name}"]), sample("x"))
    assert len(str(error.value)) < 600 + len(mine)


@pytest.mark.parametrize("name", ["by_text", "all_by_text"])
def test_a_failure_costs_its_sample_alone(mine: str, name: str) -> None:
    own = OwnReward([f"{mine}:{name}"], max_failed=0.4)
    found = ask(own, sample("a"), sample("fail"), sample("abc"))
    assert [s.value for s in found] == [1.0, 0.0, 3.0]
    assert [s.failure for s in found] == [None, "reward_error", None]
    assert found[1].reason == f"reward {mine}:{name} failed (ValueError: no)"


def test_too_many_failures_end_the_run_and_a_share_is_allowed(mine: str) -> None:
    own = OwnReward([f"{mine}:by_text"], max_failed=0.5)
    assert [s.failure for s in ask(own, sample("fail"), sample("a"))] == ["reward_error", None]
    with pytest.raises(UserError, match=r"first on problem p1, and on 2 of 3 completions"):
        ask(own, sample("a"), sample("fail"), sample("fail"))


def test_one_that_hangs_or_ends_its_process_costs_its_sample_alone(mine: str, hasty: None) -> None:
    own = OwnReward([f"{mine}:by_text"], seconds=1.0, max_failed=0.5)
    found = ask(own, sample("a"), sample("hang"), sample("abc"), sample("end"), sample("abcde"))
    assert [s.value for s in found] == [1.0, 0.0, 3.0, 0.0, 5.0]
    assert [s.failure for s in found] == [None, "reward_timeout", None, "reward_error", None]
    assert [s.reason for s in found if s.failure] == [
        f"reward {mine}:by_text failed (took more than 1 s)",
        f"reward {mine}:by_text failed (its process ended with code 9)",
    ]


def test_a_batch_that_hangs_is_lost_at_once(mine: str, hasty: None) -> None:
    own = OwnReward([f"{mine}:all_by_text"], seconds=1.0, max_failed=1.0)
    begin = time.monotonic()
    found = ask(own, *[sample("hang")] * 20)
    assert [s.failure for s in found] == ["reward_timeout"] * 20
    assert time.monotonic() - begin < 10.0  # not 20 time limits
    assert [s.value for s in ask(own, sample("ab"))] == [2.0]


def test_a_function_that_hangs_is_left_behind(hasty: None) -> None:
    def reward(q: str, c: str, a: str) -> float:
        if c == "hang":
            time.sleep(3.0)
        return len(c)

    own = OwnReward([reward], seconds=0.3, max_failed=0.5)
    found = ask(own, sample("a"), sample("hang"), sample("abc"))
    assert [(s.value, s.failure) for s in found] == [(1.0, None), (0.0, "reward_timeout"), (3.0, None)]


def test_an_async_call_has_its_own_time_limit() -> None:
    async def reward(question: str, completion: str, answer: str) -> float:
        import asyncio

        await asyncio.sleep(100 if completion == "hang" else 0)
        return 1.0

    found = ask(OwnReward([reward], seconds=0.3, max_failed=0.5), sample("a"), sample("hang"))
    assert [s.failure for s in found] == [None, "reward_timeout"]


def test_after_an_interruption_no_old_outcome_is_taken(
    mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnReward([f"{mine}:length"])
    with monkeypatch.context() as patch:

        def interrupt(self: ProcessLine, seconds: float) -> Any:
            raise KeyboardInterrupt

        patch.setattr(ProcessLine, "next", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask(own, sample("abcdef"))
    assert [s.value for s in ask(own, sample("ab"))] == [2.0]


@pytest.mark.parametrize("given", ["file", "function"])
def test_a_column_that_is_not_there_is_named(tmp_path: Path, given: str) -> None:
    (tmp_path / "mine.py").write_text("def f(completions, level): ...", encoding="utf-8")

    def f(question: str, completion: str, answer: str, level: int) -> float:
        return 0.0

    own = OwnReward([f"{tmp_path}/mine.py:f" if given == "file" else f])
    with pytest.raises(UserError) as error:
        ask(own, sample("x", unit="cm"))
    assert str(error.value).endswith(
        "f asks for 'level', which the data do not have; correct the name of the parameter, or name that"
        " column in data.keep_columns"
    )


def test_one_that_cannot_be_loaded_is_named(mine: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name", encoding="utf-8")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)", encoding="utf-8")
    (tmp_path / "ends.py").write_text("import os; os._exit(4)", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no code at all", encoding="utf-8")
    for spec, words in [
        ("length", "write path.py:function"),
        (f"{tmp_path}/missing.py:f", "no such file"),
        (f"{tmp_path}/leaves.py:f", r"cannot be imported .SystemExit: 3\); mend it$"),
        (f"{tmp_path}/ends.py:f", "its process ended with code 4 while it was imported; mend it$"),
        ("no\0where.py:f", "no such file"),
        (f"{tmp_path}:f", "no such file"),
        (f"{tmp_path}/broken.py:f", "cannot be imported .ModuleNotFoundError"),
        ("nothing_of_this_name:f", "cannot be imported .ModuleNotFoundError"),
        (f"{tmp_path}/notes.txt:f", "cannot be imported .SyntaxError"),
        (f"{mine}:lengthy", "defines no function lengthy"),
        (f"{mine}:constant", "defines no function constant"),
    ]:
        with pytest.raises(UserError, match=words):
            OwnReward([spec])


def test_an_import_that_takes_long_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "slow.py"
    path.write_text("import time\ntime.sleep(2)\ndef f(q, c, a): return 1", encoding="utf-8")
    monkeypatch.setattr("reftune.grading.reward_lines.PATIENCE", 0.1)
    own = OwnReward([f"{path}:f"])
    told = f"reftune: reward {path}:f is still being imported after 0 s; Ctrl-C ends the run\n"
    assert capsys.readouterr().err == told
    assert ask(own, sample("x"))[0].value == 1.0


def test_a_section_of_the_configuration_says_it_all(mine: str) -> None:
    assert own_reward(Reward()) is None
    section = Reward(
        function=[f"{mine}:length", f"{mine}:by_text"], weights=[2, 1], seconds=3, max_failed=0
    )
    own = own_reward(section)
    assert own is not None
    assert (own.seconds, own.max_failed) == (3.0, 0.0)
    assert ask(own, sample("abc"))[0].value == 9.0
    single = own_reward(Reward(function=f"{mine}:length"))
    assert single is not None
    assert ask(single, sample("abc"))[0].value == 3.0


def test_functions_stay_in_this_process() -> None:
    assert [type(line) for line in OwnReward([len, "json:dumps"])._lines] == [ThreadLine, ProcessLine]
