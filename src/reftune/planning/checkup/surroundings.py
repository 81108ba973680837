"""What a run works in: the executor of programs, the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from reftune.config import Config, Reward
from reftune.grading.judge import make_sandbox
from reftune.planning.checkup.finding import Finding, fails, note, ok
from reftune.planning.memory import gib
from reftune.problem import UserError

LITTLE_DISK = 5 * 2**30  # a model of 0.5B parameters with its optimizer
SLOW_SYNC = 1.0  # seconds for a megabyte
RIGHT = "def solution():\n    return 6 * 7"
# A program must not see the machine: where one could, its answer would be "ok".
SPY = "def solution():\n    return len(open('/etc/hostname').read())"


def executor(config: Config | None) -> Iterator[Finding]:
    """Run a program whose answer is known, and one that must not succeed."""
    limits = config.reward if config is not None else Reward()
    try:
        with make_sandbox(limits, 1, text=False) as sandbox:
            right, spy = sandbox.run([RIGHT, SPY])
            began = time.perf_counter()
            sandbox.run([f"{RIGHT} + {i}" for i in range(100)])
            pace = 100 / (time.perf_counter() - began)
    except UserError as error:
        yield fails("executor", str(error), "pip install --force-reinstall pydantic-monty")
        return
    if right.value != 42:
        told = f"6 * 7 came out as {right.value} ({right.status} {right.message})"
        yield fails("executor", told, "pip install --force-reinstall pydantic-monty")
    elif spy.status.startswith("ok"):
        fix = "do not run programs of models here, and report it"
        yield fails("executor", "a program could read a file", fix)
    else:
        yield ok("executor", f"programs run, {pace:,.0f} a second in a process, and see no files")


def disk(config: Config | None) -> Iterator[Finding]:
    """Write where runs will lie, and see how much room is left."""
    place = Path(config.output_dir) if config is not None else Path("runs")
    existing = next(path for path in (place, *place.absolute().parents) if path.exists())
    try:
        seconds = _seconds_to_sync(existing)
    except OSError as error:
        reason = f"{existing} cannot be written: {error.strerror or error}"
        yield fails("disk", reason, "set output_dir to a directory that can")
        return
    free = shutil.disk_usage(existing).free
    told = f"{gib(free)} GiB free at {place}"
    if free < LITTLE_DISK:
        fix = (
            "make room, or set output_dir: a checkpoint holds a model and both moments of its optimizer"
        )
        yield note("disk", told, fix)
    elif seconds > SLOW_SYNC:
        fix = "set output_dir to a local disk: each checkpoint waits for what it writes"
        yield note("disk", f"{told}, but a megabyte takes {seconds:.1f} s to be safe there", fix)
    else:
        yield ok("disk", told)


def _seconds_to_sync(directory: Path) -> float:
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(os.urandom(1 << 20))
        began = time.perf_counter()
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - began
