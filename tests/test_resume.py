"""`kill -9` at any moment, and the same command again ends with the same weights, bit for bit."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import tiny_run
from child import Child

STAGES = (
    "sft", "warmup_samples", "offline_st", "online_st", "ppo", "reranker/sft", "reranker/reft",
)  # fmt: skip
KILLED_IN = ("sft", "warmup_samples", "online_st", "ppo", "reranker/reft")  # each kind of stage
FILES = ("warmup_samples/samples.jsonl", "evaluation/reft.jsonl", "evaluation/result.json")


def test_a_run_killed_in_every_kind_of_stage_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    config, rng = str(tiny_run.write_all_methods(tmp_path)), random.Random(0)
    Child("reftune", "run", config, "--name", "whole").finish()
    whole, killed = (tmp_path / "runs" / name for name in ("whole", "killed"))
    for stage in KILLED_IN:
        line = rng.randrange(1, _lines(whole / stage / "metrics.jsonl"))
        process = Child("reftune", "run", config, "--name", "killed")
        _kill_at(process, killed / stage / "metrics.jsonl", line, rng.random() / 10)
    Child("reftune", "run", config, "--name", "killed").finish()
    for stage in STAGES:
        logged = [_lines(run / stage / "metrics.jsonl") for run in (whole, killed)]
        assert logged[0] == logged[1], "no step is missing, none is there twice"
    for stage in ("warmup", *STAGES):
        assert _weights(whole / stage) == _weights(killed / stage), stage
    for name in FILES:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert _weights(whole / "warmup")[0] != _weights(whole / "ppo")[0], "PPO did something"


def _weights(stage: Path) -> list[bytes]:
    """Return the weights of a stage's model, and those of its critic if there is one."""
    paths = sorted((stage / "model").glob("*.safetensors"))
    assert paths or stage.name == "warmup_samples"
    return [path.read_bytes() for path in paths]


def _kill_at(process: Child, metrics: Path, line: int, delay: float) -> None:
    """Kill the process a moment after it has written this many lines of metrics."""
    deadline = time.monotonic() + 120
    while _lines(metrics) < line:
        assert process.running(), process.finish()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    process.send(signal.SIGKILL)
    process.finish(expected=-signal.SIGKILL)


def _lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n") if path.exists() else 0
