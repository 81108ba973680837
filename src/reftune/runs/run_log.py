"""What a stage tells while it works: metrics.jsonl, samples.jsonl, trackers, progress on the screen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from reftune.files import (
    RUN_AGAIN,
    make_directory,
    parse_json,
    read_jsonl,
    reading_from,
    require_object,
    require_shape,
    writing_to,
)
from reftune.problem import Row
from reftune.runs.display import Display
from reftune.runs.listener import Listener
from reftune.runs.records import Logged
from reftune.runs.tracking import track_metrics, track_samples

# key in metrics -> (label, format) on the screen, in this order; a narrow one leaves the last out
SHOWN = {
    "reward": ("reward", ".3f"),
    "accuracy": ("accuracy", ".1%"),
    "loss": ("loss", ".3f"),
    "validation_accuracy": ("validation", ".1%"),
    "kl": ("KL", ".3f"),
    "response_length": ("length", ".0f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
}


class RunLog:
    """Writes the files of one stage and shows its progress (main process only).

    Use it as a context manager; `metrics` advances the progress.

    Args:
        directory: of the stage.
        accelerator: its trackers get the metrics, too.
        title: what the stage is called on the screen.
        total: steps of the whole stage.
        done: steps done before (rows beyond them, left by an interrupted run, are removed).
        listener: hears of every step, too.
        watch: gets each row, and returns what is to be said of the steps so far.
    """

    def __init__(
        self,
        directory: Path,
        accelerator: Accelerator,
        title: str,
        total: int,
        done: int = 0,
        listener: Listener | None = None,
        watch: Callable[[Row], Iterable[object]] | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.listener = listener
        self.watch = watch
        self.directory = directory
        self.title = title
        self.numbers: dict[str, str] = {}
        self.display = Display(title, total, done, shown=accelerator.is_main_process)
        if accelerator.is_main_process:
            make_directory(directory)
            for name in ("metrics.jsonl", "samples.jsonl"):
                _rewind(directory / name, done)

    def __enter__(self) -> RunLog:
        self.display.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.display.__exit__(kind, *error)
        if kind is None and self.accelerator.trackers and self.accelerator.is_main_process:
            track_samples(self.accelerator, self.title, _rows(self.directory / "samples.jsonl"))

    def metrics(self, step: int, row: Mapping[str, Any]) -> None:
        """Record the metrics of one finished step and move the progress there."""
        if not self.accelerator.is_main_process:
            return
        _append(self.directory / "metrics.jsonl", [{"step": step, **row}])
        track_metrics(self.accelerator, self.title, step, row)
        for key, (label, form) in SHOWN.items():
            if key in row:
                self.numbers[key] = f"{label} {row[key]:{form}}"
        self.display.update(step, [self.numbers[key] for key in SHOWN if key in self.numbers])
        for told in self.watch({"step": step, **row}) if self.watch else ():
            self.say(f"{self.title}: {told}")
        if self.listener is not None:
            self.listener.hear(self.title, step, {"step": step, **row})

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record some samples of one step."""
        if self.accelerator.is_main_process:
            _append(self.directory / "samples.jsonl", [{"step": step, **row} for row in rows])

    def say(self, message: str) -> None:
        """Print one line beside the progress."""
        self.display.say(message)


def steps_done(directory: Path) -> int:
    """Return how many steps an interrupted stage has logged whole; only for one line per step."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return 0
    with reading_from(path, RUN_AGAIN):
        return sum(line.endswith(b"\n") for line in path.read_bytes().splitlines(keepends=True))


def _append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with writing_to(path), path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.exists() else []


def _rewind(path: Path, done: int) -> None:
    """Drop rows of steps beyond `done`, and a last line that was cut off.

    The file is cut in place: nothing is written that a crash or a full disk could leave half done.
    """
    if not path.exists():
        return
    with writing_to(path, RUN_AGAIN), path.open("rb+") as file:
        kept = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") or _step(line, path, number) > done:
                file.truncate(kept)
                return
            kept += len(line)


def _step(line: bytes, path: Path, number: int) -> float:
    text, fix = line.decode(errors="replace").rstrip("\n"), "delete that line"
    row = require_object(parse_json(text, path, fix, number), f"{path}:{number}", fix)
    step: float = require_shape(row, Logged, f"{path}:{number}", fix)["step"]
    return step
