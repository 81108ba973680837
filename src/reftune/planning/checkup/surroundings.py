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
from reftune.grading.sandbox import Sandbox
from reftune.planning.checkup.finding import Finding, fails, note, ok
from reftune.planning.memory import gib
from reftune.problem import UserError

LITTLE_DISK = 5 * 2**30  # a model of 0.5B parameters with its optimizer
SLOW_SYNC = 1.0  # seconds for a megabyte
RIGHT = "def solution():\n    return 6 * 7"
# A program must not see the machine: where one could, its answer would be "ok".
SPY = "def solution():\n    return len(open('/etc/passwd').read())"
NUMPY = "import numpy\n"  # which the first executor does not know


def executor(config: Config | None) -> Iterator[Finding]:
    """Run a program whose answer is known, and one that must not succeed."""
    limits = config.reward if config is not None else Reward()
    fix = "pip install --force-reinstall pydantic-monty"
    try:
        with make_sandbox(limits, 1, text=False) as sandbox:
            wrong = _mistake(sandbox, "")
            began = time.perf_counter()
            sandbox.run([f"{RIGHT} + {i}" for i in range(100)])
            pace = 100 / (time.perf_counter() - began)
    except UserError as error:
        yield fails("executor", str(error), fix)
        return
    if wrong:
        yield fails("executor", wrong, fix)
    else:
        yield ok("executor", f"programs run, {pace:,.0f} a second in a process, and see no files")


def full_python(config: Config | None) -> Iterator[Finding]:
    """Do the same with CPython behind the kernel's locks."""
    limits = config.reward if config is not None else Reward()
    found = fails if limits.full_python else note
    try:
        with make_sandbox(limits.model_copy(update={"full_python": True}), 1, text=False) as sandbox:
            wrong, lacks = _mistake(sandbox, NUMPY), sandbox.lacks
    except UserError as error:
        yield found("full Python", str(error), "leave reward.full_python at false")
        return
    if wrong:
        yield found("full Python", wrong, "leave reward.full_python at false, and report it")
    else:
        without = f", without {' and '.join(lacks)}" if lacks else ""
        yield ok("full Python", f"reward.full_python can be set: the kernel locks CPython in{without}")


def _mistake(sandbox: Sandbox, before: str) -> str:
    """Say what an executor does that it must not, nothing if all is well.

    Args:
        before: stands in front of each program, to choose who runs it.
    """
    right, spy = sandbox.run([before + RIGHT, before + SPY])
    if right.value != 42:
        return f"6 * 7 came out as {right.value} ({right.status} {right.message})"
    return "a program could read a file" if spy.status.startswith("ok") else ""


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
