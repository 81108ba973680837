"""Of several processes that work on a run one fails, dies or falls silent: no other waits for it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from child import Child, start_together
from precision import CLOSE

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
