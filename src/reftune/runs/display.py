"""The progress of long work on the screen: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.table import Column
from rich.text import Text

from reftune.progress import at_work, duration

PLAIN_LINE_SECONDS = 10.0  # where there is no terminal, say something this often between steps
WITHIN_STEP_SECONDS = 30.0  # and at least this often within one
GAP = "  "  # between the parts of a line
SHOWN_AFTER_SECONDS = 1.0  # what takes less is not worth a look


class Display:
    """Shows how many of `total` steps are done, and how far the step at work is.

    Use it as a context manager.

    Args:
        title: what is at work.
        total: steps of the whole work.
        done: steps done before.
        shown: whether this process shows anything.
    """

    def __init__(self, title: str, total: int, done: int = 0, shown: bool = True) -> None:
        self.title, self.total, self.done, self.done_before, self.shown = title, total, done, done, shown
        self.status: Sequence[str] = ()
        self.console = Console(stderr=True)
        if self.console.is_jupyter:  # its streams call themselves terminals, but lines serve it better
            self.console = Console(stderr=True, force_jupyter=False, force_terminal=False)
        self.started = self.last_line = time.monotonic()
        self.live = shown and self.console.is_terminal
        alone = Column(no_wrap=True)  # a narrow terminal shortens the status, and nothing else
        self.progress = Progress(
            TextColumn("[bold]{task.description}", table_column=alone),
            BarColumn(bar_width=12, table_column=alone),
            MofNCompleteColumn(table_column=alone),
            _Status(),
            TimeLeft(table_column=alone),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.progress.add_task(title, total=total, completed=done, status=())
        self.ended = threading.Event()

    def __enter__(self) -> Display:
        self.progress.start()
        if self.shown and not self.live:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.progress.stop()

    def update(self, done: int, status: Sequence[str]) -> None:
        """Move to the step that is done now; `status` says what came of it, the most telling first."""
        self.done, self.status = done, status
        self.progress.update(self.task, completed=done, status=status)
        if self.shown and not self.live:
            waited = time.monotonic() - self.last_line
            if waited >= PLAIN_LINE_SECONDS or done >= self.total:
                self._plain_line("")

    def say(self, message: str) -> None:
        """Print one line beside the progress."""
        if self.shown:
            self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _watch(self) -> None:
        """Print a line now and then, however long a step takes."""
        while not self.ended.wait(WITHIN_STEP_SECONDS / 10):
            if time.monotonic() - self.last_line >= WITHIN_STEP_SECONDS:
                self._plain_line(within_step())

    def _plain_line(self, within: str) -> None:
        self.last_line = time.monotonic()
        now, place = time.strftime("%H:%M:%S"), f"{self.title} {self.done}/{self.total}"
        parts = [now, place, within, *self.status, self._time_left()]
        self.say(GAP.join(part for part in parts if part))

    def _time_left(self) -> str:
        taken = self.done - self.done_before
        if not taken and self.done < self.total:  # nobody knows how long a step takes
            return ""
        left = (time.monotonic() - self.started) / max(1, taken) * (self.total - self.done)
        return f"{duration(left, digits=2)} left"


class _Status(ProgressColumn):
    """What is at work, and what came of the last step, as far as there is room."""

    def render(self, task: Task) -> RenderableType:
        return WhatFits([part for part in (within_step(), *task.fields["status"]) if part])


@dataclass(frozen=True)
class WhatFits:
    """Words of which a narrow place shows the first ones whole, and the others not at all."""

    parts: Sequence[str]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, min(options.max_width, cell_len(GAP.join(self.parts))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = [GAP.join(self.parts[:count]) for count in range(1, len(self.parts) + 1)]
        fitting = [line for line in lines if cell_len(line) <= options.max_width]
        yield Text((fitting or lines[:1] or [""])[-1], no_wrap=True, overflow="ellipsis")


def within_step() -> str:
    """Say how far the work within a step is, such as `update 1/2  rows 64/128`."""
    counts = at_work()
    if not counts or time.monotonic() - counts[0].started < SHOWN_AFTER_SECONDS:
        return ""
    return "  ".join(map(str, counts))
