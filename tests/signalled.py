"""The command line, which gets a signal at a chosen moment: `signalled.py MOMENT run tiny.toml`.

MOMENT is STAGE:WORK:COUNT:SIGNALS[:RANK]. WORK names what is at work, as the screen says, such as
`update rows`; the signals, such as `INT` or `INT+INT`, come when that has advanced so many times. `FAIL`
is no signal, but a fault of ours, and `WRONG` one of the user's.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from typing import Any

import precision
from reftune import cli, pipeline, progress
from reftune.launcher import rank
from reftune.problem import UserError

ERRORS = {"FAIL": ValueError("ours"), "WRONG": UserError("my.toml: wrong; mend it")}


def send_at(stage: str, work: str, count: str, signals: str, process: str = "0") -> None:
    """Let this process send itself signals when `work` has advanced `count` times in a stage."""
    seen: list[str] = []
    start, advance = pipeline._start, progress.Count.advance

    def noted(run: Any, name: str) -> None:
        seen.clear()
        seen.append(name)
        start(run, name)

    def counted(self: progress.Count, parts: int = 1) -> None:
        advance(self, parts)
        now = " ".join(count.label for count in progress.at_work())
        if rank() == int(process) and seen[:1] == [stage] and now == work:
            seen.append(now)
            if len(seen) == int(count) + 1:
                for name in signals.split("+"):
                    if name in ERRORS:
                        raise ERRORS[name]
                    os.kill(os.getpid(), signal.Signals[f"SIG{name}"])

    pipeline._start = noted
    progress.Count.advance = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    send_at(*sys.argv.pop(1).split(":"))
    with precision.float64() if os.environ.get("FLOAT64") else nullcontext():
        cli.main()
