"""`kill -9` at any moment, and the same command again ends with the same weights, bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import tiny_run

WEIGHTS = ("warmup", "sft", "ppo")


def test_killed_runs_end_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    config = str(tiny_run.write_config(tmp_path))
    tiny_run.finish(tiny_run.start(["run", config, "--name", "whole"]))
    rng = random.Random(0)
    sft, ppo = (_lines(tmp_path / "runs/whole" / stage / "metrics.jsonl") for stage in ("sft", "ppo"))
    moments = [
        ("sft", rng.randrange(1, sft)),
        ("sft", rng.randrange(1, sft)),
        ("ppo", rng.randrange(1, ppo)),
    ]
    for stage, line in sorted(moments, key=lambda moment: (moment[0] == "ppo", moment[1])):
        process = tiny_run.start(["run", config, "--name", "killed"])
        _kill_at(process, tmp_path / "runs/killed" / stage / "metrics.jsonl", line, rng.random() / 10)
    tiny_run.finish(tiny_run.start(["run", config, "--name", "killed"]))
    for stage in WEIGHTS:
        whole, killed = (
            (tmp_path / "runs" / name / stage / "model" / "model.safetensors").read_bytes()
            for name in ("whole", "killed")
        )
        assert whole == killed, stage
    warmup, ppo_model = (
        (tmp_path / "runs/whole" / stage / "model/model.safetensors").read_bytes()
        for stage in ("warmup", "ppo")
    )
    assert warmup != ppo_model, "PPO did something"
    for name in ("sft", "ppo"):
        steps = [_lines(tmp_path / "runs" / run / name / "metrics.jsonl") for run in ("whole", "killed")]
        assert steps[0] == steps[1], "no step is missing, none is there twice"


def _kill_at(process: subprocess.Popen[str], metrics: Path, line: int, delay: float) -> None:
    """Kill the process a moment after it has written this many lines of metrics."""
    deadline = time.monotonic() + 120
    while _lines(metrics) < line:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n") if path.exists() else 0
