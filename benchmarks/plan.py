"""(f) Plan: what `reftune plan` says of a run beside what the run then takes.

    python -m benchmarks.plan configs/smollm2_svamp.toml [--set ppo.steps=2 ...]

Each stage runs as a command of its own, in a process whose peak of resident memory the system tells. The
time is the command's less that of a second start, which finds the stage finished.
On a GPU the memory that counts is the card's, which `make gpu-check` compares.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from reftune.config.files import load_config
from reftune.planning.memory import total
from reftune.planning.plan import PlannedStage, plan_run

COMMANDS = {"sft": "sft", "ppo": "ppo", "evaluation": "run"}


@dataclass(frozen=True)
class Taken:
    """What a command has taken."""

    seconds: float
    peak: float  # bytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, run, and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args(arguments)
    options = [x for override in given.overrides for x in ("--set", override)]
    config = load_config(given.config, given.overrides, "plan-check")
    plan = plan_run(config)
    shutil.rmtree(config.run_dir, ignore_errors=True)
    print("| stage | peak, GiB: planned | measured | ratio | minutes: planned | measured | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for stage in plan.stages:
        if command := COMMANDS.get(stage.work.name):
            words = [command, given.config, *options, "--name", "plan-check"]
            print(_row(stage, plan.machine.program, _less(_run(words), _run(words))), flush=True)


def _row(stage: PlannedStage, program: float, taken: Taken) -> str:
    peak, seconds = total(stage.items) + program, stage.seconds or 0.0
    memory = f"{peak / 2**30:.2f} | {taken.peak / 2**30:.2f} | {peak / taken.peak:.2f}"
    pace = f"{seconds / 60:.1f} | {taken.seconds / 60:.1f} | {seconds / max(1e-9, taken.seconds):.2f}"
    return f"| {stage.work.name} | {memory} | {pace} |"


def _less(taken: Taken, again: Taken) -> Taken:
    """Return what a command takes beyond a second start, which finds nothing to do."""
    return Taken(taken.seconds - again.seconds, taken.peak)


def _run(words: Sequence[str]) -> Taken:
    started = time.perf_counter()
    command = [sys.executable, "-m", "reftune", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return Taken(time.perf_counter() - started, usage.ru_maxrss * 1024.0)


if __name__ == "__main__":
    main()
