"""Which runs the comparison is made of, and running what is not finished of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from reftune.files import read_json, write_json
from reftune.problem import UserError

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "mini"
RUNS = ROOT / "runs" / "mini"
TIMES = "seconds.json"

MAIN = ("program", "natural")  # with all methods, each named after its kind of chain
ABLATIONS = ("no_partial_reward", "no_kl", "separate_value_model")  # from the main run's warm-up
WARMUPS = ("warmup_4", "warmup_8")  # each with a warm-up of its own
CHOICES = ("choices",)  # multiple choice: another test set
CONFIG_NAMES = (*MAIN, *ABLATIONS, *CHOICES, *WARMUPS)


@dataclass(frozen=True)
class Cell:
    """One run: a config of configs/mini and a seed of training."""

    config: str
    seed: int

    @property
    def run_dir(self) -> Path:
        """Return where the run lies."""
        return RUNS / f"{self.config}-{self.seed}"

    @property
    def command(self) -> list[str]:
        """Return the command of the run; the same one resumes it."""
        config = os.path.relpath(CONFIGS / f"{self.config}.toml", ROOT)
        command = [sys.executable, "-m", "reftune", "run", config, "--name", self.run_dir.name]
        command += ["--set", f"seed={self.seed}"]
        if self.config in ABLATIONS:
            main = os.path.relpath(Cell("program", self.seed).run_dir, ROOT)
            command += ["--set", f"start_from={main}"]
        return command

    @property
    def is_finished(self) -> bool:
        """Tell whether there is nothing left to run."""
        return (self.run_dir / "evaluation" / "result.json").exists()


def cells(seeds: Sequence[int], ablation_seeds: Sequence[int]) -> list[Cell]:
    """Return all runs in order: what the claims need most comes first."""
    main = [Cell(config, seed) for seed in seeds for config in MAIN]
    others = [Cell(c, seed) for seed in ablation_seeds for c in (*ABLATIONS, *CHOICES, *WARMUPS)]
    return main + others


def run_all(plan: Sequence[Cell]) -> None:
    """Run what is not finished, one after the other, and say how long the rest will take.

    Raises UserError where a run fails; whatever was done before stays.
    """
    RUNS.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(plan, start=1):
        if cell.is_finished:
            continue
        print(f"[{number}/{len(plan)}] {cell.run_dir.name}{_time_left(plan[number - 1 :])}", flush=True)
        started = time.monotonic()
        resumed = cell.run_dir.exists()
        code = subprocess.run(cell.command, cwd=ROOT, check=False).returncode
        if code:
            raise UserError(f"{cell.run_dir.name} ended with exit code {code}; start the same again")
        if not resumed:  # the time of a part says nothing about the whole
            _remember(cell, time.monotonic() - started)


def seconds_of(config: str) -> list[float]:
    """Return how long the whole runs of a config took, by what was remembered."""
    path = RUNS / TIMES
    known: dict[str, float] = read_json(path) if path.exists() else {}
    return [seconds for name, seconds in known.items() if name.rpartition("-")[0] == config]


def _remember(cell: Cell, seconds: float) -> None:
    path = RUNS / TIMES
    known = read_json(path) if path.exists() else {}
    write_json(path, {**known, cell.run_dir.name: round(seconds, 1)})


def _time_left(rest: Sequence[Cell]) -> str:
    """Guess from the runs of the same config; where there is none, from those of all."""
    every = [s for config in {cell.config for cell in rest} for s in seconds_of(config)]
    left = [cell for cell in rest if not cell.is_finished]
    if not every:
        return f", {len(left)} to go"
    guesses = [median(seconds_of(cell.config) or every) for cell in left]
    return f", {len(left)} to go, about {sum(guesses) / 60:.0f} min left"
