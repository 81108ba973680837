"""Whole runs with vLLM on CPUs, here and behind a server, in one process and in two."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from reftune.config.files import load_config
from reftune.model.lora import plain_weights
from reftune.pipeline import run_stages
from reftune.sampling.vllm.client import RemoteEngine
from reftune.sampling.vllm.sampler import VllmSampler
from reftune.training.samplers import tied_names
from test_vllm import llama
from test_vllm_sampler import gap, settings_of

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # other people's warnings

HEADS = "model.scratch_overrides={hidden_size=64, intermediate_size=128, num_hidden_layers=2,"
HEADS += " num_attention_heads=2, num_key_value_heads=1}"  # of 32 numbers, the fewest that vLLM takes
VLLM = "compute.sampler=vllm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where one SFT is, from which the runs below start."""
    folder = tmp_path_factory.mktemp("runs")
    run_stages(load_config(tiny_run.write_config(folder), [HEADS], "start"), ("sft",))
    return folder


def arguments(folder: Path, name: str, *changes: str) -> list[str]:
    """Return the command line of a run of PPO that the SFT is ready for, unless the model is another."""
    other = any(change.startswith("model.") for change in changes)
    start = () if other else (f"start_from={folder / 'runs/start'}",)
    given = (HEADS, "ppo.steps=10", *start, *changes)
    sets = [part for change in given for part in ("--set", change)]
    return ["run", str(folder / "tiny.toml"), "--name", name, *sets]


@cache
def metrics(folder: Path, name: str, *changes: str, processes: int = 1) -> list[dict[str, Any]]:
    """Run reftune in processes of its own; return the rows of its PPO."""
    tiny_run.finish(tiny_run.start(arguments(folder, name, *changes), processes=processes))
    text = (folder / "runs" / name / "ppo/metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def test_a_run_with_vllm_learns_as_one_with_the_built_in_sampler(folder: Path) -> None:
    """320 samples of a rate around 0.5: 0.028 each, and what small differences lead to."""
    ours, theirs = metrics(folder, "ours"), metrics(folder, "theirs", VLLM)
    assert mean(theirs, "reward") == pytest.approx(mean(ours, "reward"), abs=0.12)
    assert mean(theirs[-3:], "reward") > theirs[0]["reward"] + 0.1
    for row in theirs:
        assert row["logprob_gap"] < 1e-4
        assert row["sampler_weight"] == pytest.approx(1, abs=1e-3)
    result = json.loads((folder / "runs/theirs/evaluation/result.json").read_text(encoding="utf-8"))
    assert result["models"]["reft"]["greedy"]["accuracy"] > 0.9


def test_in_16_bits_what_differs_is_weighed(folder: Path) -> None:
    rows = metrics(folder, "half", VLLM, "model.dtype=bfloat16", "ppo.steps=3")
    assert all(0 < row["logprob_gap"] < 0.1 for row in rows)
    assert all(0.8 < row["sampler_weight"] < 1.2 for row in rows)
    assert any(row["sampler_weight"] != 1 for row in rows)


def test_two_processes_with_an_engine_each_draw_what_one_does(folder: Path) -> None:
    one, two = metrics(folder, "theirs", VLLM), metrics(folder, "two", VLLM, processes=2)
    assert [row["reward"] for row in two[:3]] == [row["reward"] for row in one[:3]]


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Yield the address of a server of samples in a process of its own."""
    command = [sys.executable, "-m", "reftune", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"samples at (\S+);", line):
                yield found[1]
                return
        raise AssertionError("the server has ended")
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_server_draws_what_an_engine_here_does(folder: Path, processes: int) -> None:
    here = metrics(folder, "theirs", VLLM)
    with serving() as address:
        changes = (VLLM, f"compute.vllm_server={address}")
        there = metrics(folder, f"served{processes}", *changes, processes=processes)
    assert [row["reward"] for row in there[:3]] == [row["reward"] for row in here[:3]]


def test_a_server_that_dies_ends_the_run_with_one_sentence(folder: Path) -> None:
    with serving() as address:
        changes = (VLLM, f"compute.vllm_server={address}", "ppo.steps=1000", "ppo.learning_rate=1e-9")
        process = tiny_run.start(arguments(folder, "cut", *changes))
        log = folder / "runs/cut/ppo/metrics.jsonl"
        for _ in range(600):
            if log.exists() and log.read_text():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 2
    assert f"the server at {address} " in output.splitlines()[-1]
    assert "Traceback" not in output


def test_a_policy_in_parts_sends_whole_weights(folder: Path) -> None:
    """Two processes with a part of the model each, and an engine each."""
    whole = metrics(folder, "theirs", VLLM)
    parts = metrics(folder, "parts", VLLM, "compute.sharding=fsdp2", processes=2)
    assert [row["reward"] for row in parts[:3]] == [row["reward"] for row in whole[:3]]
    assert all(row["logprob_gap"] < 1e-4 for row in parts)


def test_samples_are_drawn_while_the_policy_learns(folder: Path) -> None:
    rows = metrics(folder, "ahead", VLLM, "ppo.async_rollouts=true")
    assert mean(rows[-3:], "reward") > rows[0]["reward"] + 0.1
    assert rows[0]["logprob_gap"] < 1e-4 < max(row["logprob_gap"] for row in rows), "one step behind"


def test_a_server_may_spread_a_model_over_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that hold half of every matrix; what they read of the weights comes from files."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    models = [llama(), llama(seed=1)]
    with serving("--gpus", "2") as address:
        engine = RemoteEngine(address, settings_of(models[0], longest=64), sends=True)
        sampler = VllmSampler(engine, [1, 2], tied_names(models[0]))
        for model in models:
            sampler.update_weights(plain_weights(model))
            samples = sampler.sample([[3, 4, 5], [9]], [1, 2], max_new_tokens=9, temperature=0.7)
            assert gap(model, samples) < 1e-3
