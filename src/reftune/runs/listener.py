"""The function of a Python program that hears of every step of a run."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reftune import interrupts
from reftune.interrupts import Stopped

OnStep = Callable[[str, int, dict[str, Any]], object]


class Listener:
    """Calls a function for every step; where it raises, the run saves and ends as at Ctrl-C.

    Args:
        on_step: gets the stage, the step, and the row of metrics.jsonl.
    """

    def __init__(self, on_step: OnStep) -> None:
        self.on_step = on_step
        self.error: BaseException | None = None

    def hear(self, stage: str, step: int, row: Mapping[str, Any]) -> None:
        """Tell of a step that is logged; once the function has raised, it is not called any more."""
        if self.error is not None:
            return
        try:
            self.on_step(stage, step, dict(row))
        except BaseException as error:  # KeyboardInterrupt included: it may be the kernel's stop button
            self.error = error
            interrupts.end_soon(signal.SIGINT)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Raise what the function has raised, where the block has stopped for it, or is done."""
        try:
            yield
        except Stopped:
            if self.error is None:
                raise
        finally:
            if self.error is not None:
                interrupts.forget()
        if self.error is not None:
            raise self.error
