"""How much CPU time does a program take? Part of `sandbox_worker.py`, which imports no reftune."""

import math
import resource
import sys
import time
from contextlib import suppress

GRACE_SECONDS = 0.5


class Meter:
    """The CPU time that programs take in monty's process and in ours: we take what they print.

    Where another's is not told, the wall clock's time. Looking at the clocks costs a tenth of what a
    program does, so the quick ones are not measured: the wall clock's time, which is more, is taken for
    theirs, until a twentieth of `seconds` has come together.
    """

    def __init__(self, seconds: float) -> None:
        self.wall = 0.0  # of the last program
        self._seconds = seconds
        self._process: int | None = None
        self._before: float | None = None
        self._ours = 0.0
        self._quick, self._begun = math.inf, math.inf

    def begin(self, process: int | None) -> None:
        """Start the clock of a program in a process of monty."""
        if process != self._process or self._quick > 0.05 * self._seconds:
            self._process, self._quick = process, 0.0
            self._before = self._now()
            self._limit()
        self._ours = time.process_time()  # what we did between two programs is nobody's
        self._begun = time.monotonic()

    def spent(self) -> float:
        """Return the CPU seconds that the program took, at least; 0 where they are few."""
        self.wall = max(0.0, time.monotonic() - self._begun)  # 0 where no program began
        self._begun = math.inf
        if self.wall < 0.05 * self._seconds:
            self._quick += self.wall
            return 0.0
        quick, self._quick = self._quick, math.inf
        if self._before is None:
            return self.wall
        before, ours = self._before, time.process_time() - self._ours
        spent = (self._now() or before) - before + ours - quick  # it may have ended with the program
        return min(spent, self.wall)  # also what monty did between the quick ones is not this one's

    def _now(self) -> float | None:
        with suppress(OSError, ValueError, OverflowError):
            return time.clock_gettime(cpu_clock(self._process))
        return None

    def _limit(self) -> None:
        """Let the kernel kill a process that takes too much CPU time, where monty cannot stop it."""
        with suppress(AttributeError, OSError, ValueError, OverflowError):
            now = time.clock_gettime(cpu_clock(self._process))
            end = math.ceil(now + 1.1 * self._seconds + GRACE_SECONDS)
            resource.prlimit(self._process or 0, resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))


def cpu_clock(process: int | None) -> int:
    """Return the clock of another process's CPU time, all threads together, as Linux numbers it."""
    if process is None or sys.platform != "linux":
        raise ValueError("no such clock")
    return (~process << 3) | 2
