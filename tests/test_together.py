"""Of several processes that work on a run one fails, dies or falls silent: no other waits for it."""

from __future__ import annotations

import json
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistNetworkError, HashStore, Store

import tiny_run
from child import Child, start_together
from precision import CLOSE
from reftune import interrupts
from reftune.launcher import free_port
from reftune.problem import ToldElsewhere, UserError
from reftune.runs import together
from reftune.runs.together import Ending, Others

SHORT = """
extends = "tiny.toml"
sft = {epochs = 6, validate_every_epochs = 6}
ppo = {steps = 4}
evaluation = {samples = 0}
"""
SECONDS = 60.0  # within which all are gone
BEHIND = "the same command goes on with ppo behind step {}, saved in {}/ppo/checkpoints/step-0000000{}"
GONE = (
    "reftune: error: one of the 2 processes is gone without a word, killed perhaps for want of memory; "
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of one process; the configuration is two folders above."""
    folder = tmp_path_factory.mktemp("together")
    tiny_run.write_config(folder)
    (folder / "short.toml").write_text(SHORT, encoding="utf-8")
    Child("reftune", "run", str(folder / "short.toml"), "--name", "whole", float64=True).finish()
    return folder / "runs/whole"


def arguments(whole: Path, name: str, *changes: str) -> list[str]:
    """Return the command line of a run that begins behind the SFT stage of the finished one."""
    sets = [x for change in (f"start_from={whole}", *changes) for x in ("--set", change)]
    return ["run", str(whole.parents[1] / "short.toml"), "--name", name, *sets]


def finish(processes: list[Child], *codes: int) -> list[str]:
    """Wait for the end of all, which must come soon after the first one's; return what each has told."""
    until = time.monotonic() + 240
    while all(process.running() for process in processes):
        assert time.monotonic() < until
        time.sleep(0.02)
    return [p.finish(code, SECONDS) for p, code in zip(processes, codes, strict=True)]


def errors(told: list[str]) -> list[str]:
    """Return the sentences on errors of all processes."""
    return [line for one in told for line in one.splitlines() if line.startswith("reftune: error:")]


def metrics(run: Path, stage: str) -> list[dict[str, Any]]:
    text = (run / stage / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("moment", "codes", "sentence"),
    [
        ("ppo:update rows:3:WRONG:1", (2, 2), "my.toml: wrong; mend it"),
        ("ppo:validation sampling:5:WRONG:0", (2, 2), "my.toml: wrong; mend it"),
        ("ppo:sampling:9:FAIL:1", (2, 1), None),
    ],
)
def test_an_error_of_one_process_is_told_once_and_ends_all(
    whole: Path, moment: str, codes: tuple[int, int], sentence: str | None
) -> None:
    told = finish(
        start_together(2, "signalled", moment, *arguments(whole, f"error{moment[4]}{moment[-1]}")),
        *codes,
    )
    assert errors(told) == ([] if sentence is None else [f"reftune: error: {sentence}"])
    tracebacks = [one.count("Traceback (most recent call last)") for one in told]
    assert tracebacks == ([0, 0] if sentence else [0, 1])
    assert sentence or told[1].endswith("ValueError: ours\n")


def test_a_reward_that_fails_in_one_process_is_told_once(whole: Path, tmp_path: Path) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text(
        "import os\n"
        "def reward(question, completion, answer):\n"
        "    return 1 / (os.environ['RANK'] == '0') * completion.count('7')\n"
    )
    command = ["run", str(whole.parents[1] / "short.toml"), "--name", "reward", "--set"]
    told = finish(start_together(2, "reftune", *command, f"reward.function={reward}:reward"), 2, 2)
    [sentence] = errors(told)
    assert f"reward {reward}:reward failed (ZeroDivisionError: " in sentence


@pytest.mark.parametrize("victim", [0, 1])
def test_of_a_killed_process_one_sentence_tells_and_any_number_of_processes_goes_on(
    whole: Path, victim: int
) -> None:
    """In float64: the losses of the way on are those of the uninterrupted run of one process."""
    name = f"killed{victim}"
    command, run = arguments(whole, name), whole.parent / name
    moment = f"ppo:update rows:9:KILL:{victim}"  # in the third step
    codes = [2, 2]
    codes[victim] = -signal.SIGKILL
    told = finish(start_together(2, "signalled", moment, *command, float64=True), *codes)
    assert errors(told) == [GONE + BEHIND.format(2, run, 2)]
    assert "Traceback" not in told[0] + told[1]
    if victim == 0:
        Child("reftune", *command, float64=True).finish()
    else:
        finish(start_together(3, "reftune", *command, float64=True), 0, 0, 0)
    for stage, keys in (("ppo", ("loss", "reward", "kl", "entropy")), ("evaluation", ("accuracy",))):
        pairs = list(zip(metrics(whole, stage), metrics(run, stage), strict=True))
        for a, b in pairs:
            for key in keys:
                assert b[key] == pytest.approx(a[key], abs=CLOSE, rel=CLOSE), (stage, a["step"], key)
        assert max(row.get("reward", 1) for row in metrics(whole, stage)) > 0.3, (
            "there is what to compare"
        )
        assert len(pairs) == (4 if stage == "ppo" else 3)


# What a process hears of the others, without any of them.


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Ending]:
    """Let all be a hundred times as quick; return what would have ended this process."""
    for name in ("BEAT", "GRACE", "SAVING"):
        monkeypatch.setattr(together, name, getattr(together, name) / 100)
    seen: list[Ending] = []

    monkeypatch.setattr(together, "_tell_and_exit", seen.append)
    return seen


def pair(store: Store) -> list[Others]:
    return [Others(store, rank, 2, lambda: "start again") for rank in (0, 1)]


def wait_for(told: list[Ending]) -> Ending:
    until = time.monotonic() + 30
    while not told:
        assert time.monotonic() < until
        time.sleep(0.01)
    return told[0]


def test_a_process_without_signs_of_life_is_taken_for_dead(told: list[Ending]) -> None:
    first, second = pair(HashStore())
    second.watch()
    first.watch()
    time.sleep(0.02 * 3 * together.MISSED)
    assert told == [], "both live"
    second.left.set()
    assert wait_for(told)[:2] == (
        2,
        f"process 1 of 2, on {socket.gethostname()}, gives no sign of life; start again",
    )
    first.left.set()


def test_a_process_that_has_ended_well_owes_no_signs(told: list[Ending]) -> None:
    first, second = pair(HashStore())
    first.watch()
    second.leave(Ending(0, "", 0))
    time.sleep(0.02 * 3 * together.MISSED)
    first.left.set()
    assert told == []


def test_what_another_process_has_told_ends_whoever_hangs_without_telling_it_again(
    told: list[Ending],
) -> None:
    first, second = pair(HashStore())
    first.watch()
    second.end(UserError("a.toml: wrong"))
    assert wait_for(told)[:2] == (2, "")
    first.left.set()


def test_an_interrupt_of_all_hurries_nobody(told: list[Ending]) -> None:
    """Who has more to do at the end, such as a tracker's upload, may do it."""
    first, second = pair(HashStore())
    first.watch()
    second.end(KeyboardInterrupt())
    time.sleep(0.02 * 20)
    first.left.set()
    assert told == []


class LostStore(HashStore):
    """A store whose machine is gone: it fails, or does not even answer."""

    lost = ""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        if self.lost == "fails":
            raise DistNetworkError("Connection reset by peer")
        while self.lost:
            time.sleep(0.01)
        return super().multi_get(keys)


@pytest.mark.parametrize("lost", ["fails", "does not answer"])
def test_a_launcher_that_is_gone_ends_all_which_can_save_before(told: list[Ending], lost: str) -> None:
    store = LostStore()
    first, _ = pair(store)
    try:
        first.watch()
        time.sleep(0.1)
        store.lost = lost
        assert wait_for(told)[:2] == (
            2,
            "the launcher of the 2 processes is gone, or its machine; start again",
        )
        assert interrupts.received() == (signal.SIGTERM if lost == "fails" else 0)
    finally:
        interrupts.forget()
        store.lost = ""
        first.left.set()


def test_the_same_sentence_of_all_is_told_once() -> None:
    first, second = pair(HashStore())
    first.end(UserError("all is wrong"))
    with pytest.raises(ToldElsewhere, match="all is wrong"):
        second.end(UserError("all is wrong"))
    second.end(UserError("this is, too"))


def test_a_store_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "MEETING", timedelta(seconds=1))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port := free_port()))
    with pytest.raises(UserError, match=rf"^the launcher does not answer at 127.0.0.1:{port}; start"):
        together._store()
