"""Where a user's reward runs: in a process of its own, or in a thread if it is given as a function.

Both answer one sample after the other, are waited for with a time limit, and can be left at any time.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOBase
from typing import Any, cast

from reftune.grading.reward_calls import Outcome, RewardCall, RewardSample, check_place
from reftune.problem import UserError

LOAD_SECONDS = 600.0  # a reward may load a model of its own
PATIENCE = 30.0  # seconds after which a module that is still being imported is named


class Ended(Exception):
    """Say how a process with rewards has ended."""


class ProcessLine:
    """A function that is named by its place, in a process of its own.

    Args:
        spec: `path.py:function` or `package.module:function`.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._ready: dict[str, Any] = {}
        self._end: Callable[[], Any] = lambda: None

    def start(self) -> None:
        """Begin, unless it has; raise UserError where the function cannot be loaded."""
        if self._process is not None:
            return
        check_place(self.spec)
        places = [*filter(None, sys.path), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "reftune.grading.reward_worker", self.spec],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the run, which ends it
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},  # it finds what we find
        )  # fmt: skip
        self._end = weakref.finalize(self, _kill, process)
        self._lines = queue.Queue()
        out = cast(TextIOBase, process.stdout)
        threading.Thread(target=_read, args=(out, self._lines), daemon=True).start()
        try:
            self._ready = self._loaded()
        except BaseException:
            self.leave()
            raise

    @property
    def wants_truncated(self) -> bool:
        """Tell whether it asks for completions that were cut off, too."""
        return bool(self._ready["wants_truncated"])

    @property
    def batched(self) -> bool:
        """Tell whether it gets all samples at once."""
        return bool(self._ready["batched"])

    def ask(self, samples: Sequence[RewardSample], seconds: float) -> None:
        """Let it begin to judge samples."""
        assert self._process is not None
        assert self._process.stdin is not None
        request = {"samples": samples, "seconds": seconds}
        with suppress(BrokenPipeError):  # `next` says how it has ended
            self._process.stdin.write(json.dumps(request, default=str) + "\n")
            self._process.stdin.flush()

    def next(self, seconds: float) -> Outcome:
        """Return the next sample's outcome; raise TimeoutError or Ended where none comes."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            assert self._process is not None
            raise Ended(f"its process ended with code {self._process.wait()}")
        outcome: Outcome = json.loads(line)
        return outcome

    def leave(self) -> None:
        """Give up what is at work; the next `start` begins anew."""
        self._end()
        self._process = None

    def _loaded(self) -> dict[str, Any]:
        """Return what the process says first; raise UserError where that is no good."""
        try:
            ready = dict(self._first_line())
        except Ended as ended:
            raise UserError(f"reward {self.spec}: {ended} while it was imported; mend it") from ended
        if refusal := ready.get("refusal"):
            raise UserError(refusal)
        return ready

    def _first_line(self) -> Outcome:
        with suppress(TimeoutError):
            return self.next(PATIENCE)
        told = f"reward {self.spec} is still being imported after {PATIENCE:.0f} s"
        print(f"reftune: {told}; Ctrl-C ends the run", file=sys.stderr, flush=True)
        try:
            return self.next(LOAD_SECONDS)
        except TimeoutError:
            raise Ended(f"was not ready after {LOAD_SECONDS:.0f} s") from None


class ThreadLine:
    """A function that is given as such, in a thread: if it hangs, it is left behind there.

    Args:
        function: the user's; its code is trusted.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._call = RewardCall(function)
        self._found: queue.Queue[Outcome] = queue.Queue()

    def start(self) -> None:
        """See `ProcessLine`."""

    @property
    def wants_truncated(self) -> bool:
        """See `ProcessLine`."""
        return self._call.wants_truncated

    @property
    def batched(self) -> bool:
        """See `ProcessLine`."""
        return self._call.batched

    def ask(self, samples: Sequence[RewardSample], seconds: float) -> None:
        """See `ProcessLine`."""
        found: queue.Queue[Outcome] = queue.Queue()
        self._found = found

        def work() -> None:
            for outcome in self._call.outcomes(samples, seconds):
                found.put(outcome)

        threading.Thread(target=work, daemon=True).start()

    def next(self, seconds: float) -> Outcome:
        """See `ProcessLine`."""
        try:
            return self._found.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None

    def leave(self) -> None:
        """See `ProcessLine`."""


RewardLine = ProcessLine | ThreadLine


def _read(stream: TextIOBase, lines: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    with suppress(OSError):  # what it did not read is lost with it
        process.stdin.close()
