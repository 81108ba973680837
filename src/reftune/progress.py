"""How far the work at hand is: those who do it count, and whoever has a screen looks.

Counts stand inside each other, as the rows of an update stand inside of its minibatches.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from reftune.interrupts import is_aside


@dataclass
class Count:
    """Work of which `done` of `total` parts are done; without a total it just has a name.

    `note` says what came of it so far.
    """

    label: str
    total: int = 0
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    note: str = ""

    def advance(self, parts: int = 1) -> None:
        """Note that so many parts more are done."""
        self.done += parts

    def __str__(self) -> str:
        counted = f"{self.label} {self.done}/{self.total}" if self.total else self.label
        return f"{counted} {self.note}".rstrip()


_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))


def duration(seconds: float | None, digits: int = 3) -> str:
    """Return a time in the largest unit of which there is one, to so many digits."""
    if seconds is None:
        return "unknown"
    unit, name = next((unit for unit in _UNITS if seconds >= unit[0]), (1.0, "s"))
    rounded = float(f"{seconds / unit:.{digits}g}")  # whose own text may be 5.6e+02
    return f"{rounded:g} {name}"


_counts: list[Count] = []  # the outermost first
_spent: dict[str, float] = {}  # seconds of what is over, by label


@contextmanager
def counting(label: str, total: int = 0, done: int = 0) -> Iterator[Count]:
    """Yield a count for the work of the block; nobody sees that of a thread that works aside."""
    count, shown = Count(label, total, done, time.monotonic()), not is_aside()
    if shown:
        _counts.append(count)
    try:
        yield count
    finally:
        if shown:
            _counts.remove(count)
        _spent[label] = _spent.get(label, 0.0) + time.monotonic() - count.started


def seconds_spent() -> dict[str, float]:
    """Return by label what counted work has taken since the last call."""
    spent = dict(_spent)
    _spent.clear()
    return spent


def advance(parts: int = 1) -> None:
    """Note that so many parts more of the innermost count are done; without any this does nothing."""
    if _counts and not is_aside():
        _counts[-1].advance(parts)


def at_work() -> list[Count]:
    """Return what is being counted now, the outermost first; from any thread."""
    return list(_counts)
