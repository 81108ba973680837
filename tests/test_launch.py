"""`reftune launch`: which processes it starts, how it has them cut the model, and with what it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file

import tiny_run
from command_line import start
from reftune.config.files import load_config
from reftune.launch import Start, write_configuration
from reftune.launcher import free_port
from tiny_run import heed_ctrl_c


def _launch(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "reftune", "launch", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip


def test_accelerate_reads_what_is_written_for_it(tmp_path: Path) -> None:
    config = load_config(tiny_run.write_config(tmp_path), [])
    second = Start(8, gpu=True, nodes=2, node=1, host="10.0.0.1", port=1234)
    found: Any = load_config_from_file(str(write_configuration(config, second)))
    assert (found.num_processes, found.num_machines, found.machine_rank) == (16, 2, 1)
    assert (found.main_process_ip, found.main_process_port) == ("10.0.0.1", 1234)
    assert (str(found.distributed_type.value), found.use_cpu) == ("MULTI_GPU", False)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--gpus", "2", "--processes", "2"], "give one of them"),
        (["--processes", "2", "--nodes", "2"], "--address"),
        (["--processes", "2", "--nodes", "2", "--node-rank", "2"], "numbered from 0 to 1"),
        (["--processes", "2", "--address", "here"], "HOST:PORT"),
        (["--processes", "2", "--set", "ppo.stepps=2"], "unknown key ppo.stepps"),
    ],
)
def test_what_cannot_be_started_is_told_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    told: str,
) -> None:
    assert start(monkeypatch, "launch", tiny_run.write_config(tmp_path), *given) == 2
    output = capsys.readouterr().err
    assert output.startswith("reftune: error: ")
    assert told in output


def test_the_exit_code_is_that_of_the_process_that_failed(tmp_path: Path) -> None:
    """torchrun's own is 1. Both processes get what is set."""
    config = str(tiny_run.write_config(tmp_path))
    missing = str(tmp_path / "missing.jsonl")
    output = tiny_run.finish(_launch(config, "--processes", "2", "--set", f"data.train={missing}"), 2)
    assert f"{missing}: no such file" in output
    assert "compute.sharding = none" in output


@pytest.mark.parametrize(
    ("processes", "gpu", "nodes", "expected"),
    [(1, True, 1, False), (2, True, 1, True), (1, True, 2, True), (2, False, 1, False)],
)
def test_accelerate_starts_several_processes_on_gpus_alone(
    processes: int, gpu: bool, nodes: int, expected: bool
) -> None:
    assert Start(processes, gpu, nodes).by_accelerate == expected


def test_one_gpu_has_the_exit_code_and_the_sentence_of_its_process(tmp_path: Path) -> None:
    """For one process accelerate's launcher would raise: a traceback, and the exit code 1."""
    config, missing = str(tiny_run.write_config(tmp_path)), str(tmp_path / "missing.jsonl")
    arguments = [config, "--gpus", "1", "--sharding", "none", "--set", f"data.train={missing}"]
    pretended = (
        "import sys, torch; torch.cuda.device_count = lambda: 1; from reftune.cli import main;"
        f" sys.argv = ['reftune', 'launch', *{arguments!r}]; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", pretended], capture_output=True, text=True, timeout=120, check=False
    )
    told = done.stdout + done.stderr
    assert (done.returncode, "Traceback" in told) == (2, False), told
    assert f"{missing}: no such file" in told


@pytest.mark.slow
def test_a_run_goes_through_in_parts_and_says_so(tmp_path: Path) -> None:
    config = str(tiny_run.write_config(tmp_path))
    few = ("sft.epochs=2", "sft.warmup_epochs=2", "ppo.steps=2", "evaluation.samples=0")
    changes = [word for change in few for word in ("--set", change)]
    tiny_run.finish(
        _launch(config, "--processes", "2", "--sharding", "fsdp2", "--name", "launched", *changes)
    )
    run = tmp_path / "runs/launched"
    assert json.loads((run / "run.json").read_text())["processes"] == 2
    assert 'sharding = "fsdp2"' in (run / "config.toml").read_text()
    assert (run / "report.html").exists()


@pytest.mark.slow
def test_a_signal_ends_all_processes_in_order(tmp_path: Path) -> None:
    config = str(tiny_run.write_config(tmp_path))
    started = _launch(config, "--processes", "2", "--set", "sft.epochs=4000")
    log = tmp_path / "runs/tiny/sft/metrics.jsonl"
    for _ in range(1200):
        if log.exists():
            break
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    output = tiny_run.finish(started, 128 + signal.SIGTERM)
    assert "the same command goes on with sft" in output


@pytest.mark.slow
def test_two_machines_work_on_one_run(tmp_path: Path) -> None:
    """Both at the address of this one, a process on each."""
    config = str(tiny_run.write_config(tmp_path))
    address = f"127.0.0.1:{free_port()}"
    few = ("sft.epochs=2", "sft.warmup_epochs=2", "ppo.steps=2", "evaluation.samples=0")
    changes = [word for change in few for word in ("--set", change)]
    machines = ["--processes", "1", "--nodes", "2", "--address", address]
    nodes = [_launch(config, *machines, "--node-rank", str(node), *changes) for node in (0, 1)]
    for node in nodes:
        tiny_run.finish(node)
    assert json.loads((tmp_path / "runs/tiny/run.json").read_text())["processes"] == 2
