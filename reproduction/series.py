"""Runs of many configs with several seeds, one after the other, each resumed where it was broken off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from reftune.files import read_json, write_json
from reftune.problem import UserError

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs"
TIMES = "seconds.json"


@dataclass(frozen=True)
class Cell:
    """One run: a config and a seed of training.

    Args:
        config: name of a file in `configs/SERIES`.
        seed: of training.
        series: name of the folder below `configs/` and `runs/`.
        start: config whose run with the same seed this one starts from.
        over: name of a file in `configs/SERIES/ppo` that is laid over the config.
    """

    config: str
    seed: int
    series: str = "mini"
    start: str | None = None
    over: str | None = None

    @property
    def kind(self) -> str:
        """Return what runs have in common that differ in their seed alone."""
        return f"{self.config}-{self.over}" if self.over else self.config

    @property
    def run_dir(self) -> Path:
        """Return where the run lies."""
        return RUNS / self.series / f"{self.kind}-{self.seed}"

    @property
    def command(self) -> list[str]:
        """Return the command of the run; the same one resumes it."""
        config = Path("configs") / self.series / f"{self.config}.toml"
        command = [sys.executable, "-m", "reftune", "run", str(config), "--name", self.run_dir.name]
        command += ["--set", f"seed={self.seed}"]
        if self.over is not None:
            command += ["--set", f"extends={config.parent / 'ppo' / self.over}.toml"]
            command += ["--set", 'methods=["reft"]']
        if self.start is not None:
            start = os.path.relpath(Cell(self.start, self.seed, self.series).run_dir, ROOT)
            command += ["--set", f"start_from={start}"]
        return command

    @property
    def is_finished(self) -> bool:
        """Tell whether there is nothing left to run."""
        return (self.run_dir / "evaluation" / "result.json").exists()


def run_all(cells: Sequence[Cell], finish: Callable[[Cell], None] = lambda cell: None) -> None:
    """Run what is not finished, one after the other, and say how long the rest will take.

    Args:
        finish: is told of each run that is finished, also of one that was before.

    Raises UserError where a run fails; whatever was done before stays.
    """
    for number, cell in enumerate(cells, start=1):
        if cell.is_finished:
            finish(cell)
            continue
        left = _time_left(cells[number - 1 :])
        print(f"[{number}/{len(cells)}] {cell.run_dir.name}{left}", flush=True)
        started = time.monotonic()
        resumed = cell.run_dir.exists()
        code = subprocess.run(cell.command, cwd=ROOT, check=False).returncode
        if code:
            raise UserError(f"{cell.run_dir.name} ended with exit code {code}; start the same again")
        if not resumed:  # the time of a part says nothing about the whole
            _remember(cell, time.monotonic() - started)
        finish(cell)


def seconds_of(kind: str, series: str = "mini") -> list[float]:
    """Return how long the whole runs of a kind took, by what was remembered."""
    known = _times(RUNS / series / TIMES)
    return [seconds for name, seconds in known.items() if name.rpartition("-")[0] == kind]


def put_between(path: Path, begin: str, end: str, make: Callable[[], str]) -> None:
    """Put a text, made once they are found, between two marks of a document; the rest of it stays.

    Raises ValueError where a mark is missing.
    """
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{path}: the marks {begin!r} and {end!r} are missing")
    path.write_text(f"{before}{begin}\n{make()}\n\n{end}{after}", encoding="utf-8")


def _times(path: Path) -> dict[str, float]:
    return read_json(path) if path.exists() else {}


def _remember(cell: Cell, seconds: float) -> None:
    path = cell.run_dir.parent / TIMES
    write_json(path, {**_times(path), cell.run_dir.name: round(seconds, 1)})


def _time_left(rest: Sequence[Cell]) -> str:
    """Guess from the runs of the same config; where there is none, from those of all."""
    left = [cell for cell in rest if not cell.is_finished]
    every = [s for kind, series in {(c.kind, c.series) for c in rest}
             for s in seconds_of(kind, series)]  # fmt: skip
    if not every:
        return f", {len(left)} to go"
    guesses = [median(seconds_of(cell.kind, cell.series) or every) for cell in left]
    return f", {len(left)} to go, about {sum(guesses) / 60:.0f} min left"
