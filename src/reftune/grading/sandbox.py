"""Run model-written programs in processes that can be killed, and name what came of each.

A program defines `solution()`, and the value of the call is its answer. It runs in pydantic-monty, a
Python interpreter in Rust (`sandbox_worker.py`); what that does not know can be run by CPython behind
locks of the Linux kernel (`jail/`). What holds there and what does not: docs/architecture.md.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from reftune.grading.jail.kernel import seccomp_missing
from reftune.grading.jail.preload import PACKAGES
from reftune.grading.worker_pool import Executor, WorkerPool
from reftune.problem import Execution, UserError

WORKER = Path(__file__).with_name("sandbox_worker.py")
JAIL = Path(__file__).with_name("jail") / "__main__.py"
# What the interpreter and monty need to find themselves; tokens and keys stay out.
INHERITED_VARIABLES = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "MONTY_BIN")
# One order of sets, for equal answers, and one thread, because a fork keeps no other.
JAIL_VARIABLES = {
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
# A worker gives a program `seconds`, and on a busy machine once more ten times as much; then we kill it.
WALL_FACTOR, GRACE_SECONDS = 11.0, 1.0


class Sandbox:
    """Execute programs in worker processes that start at the first run and stay warm.

    There is one worker per available core, shared among the processes of a launcher, unless `workers`
    says otherwise. A program may use `seconds` of CPU time, `memory_mb` megabytes of heap and
    `max_chars` characters of source; with `text`, strings count as answers too. With `full_python` what
    would be `unsupported` is run by CPython; raises UserError where this machine cannot lock it in.
    Close the sandbox, or use it as a context manager; no worker outlives this process.
    """

    def __init__(
        self,
        workers: int | None = None,
        seconds: float = 2.0,
        memory_mb: int = 256,
        max_chars: int = 20_000,
        text: bool = False,
        full_python: bool = False,
    ) -> None:
        self._max_chars = max_chars
        limits = (str(seconds), str(memory_mb), str(text))
        patience = WALL_FACTOR * seconds + GRACE_SECONDS
        self._monty = WorkerPool(monty(limits, patience), workers)
        self._jails: dict[str, WorkerPool] = {}
        if full_python:
            check_seccomp()
            for kind in PACKAGES:
                self._jails[kind] = WorkerPool(cpython(limits, patience, kind), workers)

    def run(self, programs: Sequence[str]) -> list[Execution]:
        """Execute the programs, equal ones once, in order; raise UserError if no worker ever starts."""
        different = dict.fromkeys(programs)
        long = [program for program in different if len(program) > self._max_chars]
        results = dict.fromkeys(long, Execution("too_long", None, f"over {self._max_chars} chars"))
        results |= self._monty.run(program for program in different if program not in results)
        for kind, jail in self._jails.items():
            left = [p for p, result in results.items() if result.status == "unsupported"]
            results |= jail.run(program for program in left if kind_of(program) == kind)
        return [results[program] for program in programs]

    @property
    def lacks(self) -> list[str]:
        """Return the locks around CPython that this machine does not have, as far as one was started."""
        return list(dict.fromkeys(name for jail in self._jails.values() for name in jail.lacks))

    def close(self) -> None:
        """Stop the workers; a later run would start new ones."""
        for pool in (self._monty, *self._jails.values()):
            pool.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def kind_of(program: str) -> str:
    """Return which of `preload.PACKAGES` a program may need, by the words in it."""
    return next((kind for kind in ("sympy", "numpy") if kind in program), "plain")


def check_seccomp() -> None:
    """Raise UserError where CPython cannot be locked in."""
    if reason := seccomp_missing():
        raise UserError(
            f"reward.full_python: programs would not be locked in, as {reason}; set it to false, or run"
            " where seccomp filters are to be had"
        )


def monty(limits: tuple[str, ...], patience: float) -> Executor:
    """Return how monty's workers are started."""
    fix = "unset MONTY_BIN" if "MONTY_BIN" in os.environ else "reinstall pydantic-monty"
    inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    # -P: beside the worker's file lies types.py, which must not stand in for Python's own
    command = (sys.executable, "-P", "-B", str(WORKER))
    return Executor(command, limits, inherited, patience, fix)


def cpython(limits: tuple[str, ...], patience: float, kind: str) -> Executor:
    """Return how workers with a locked-in CPython are started, for one of `preload.PACKAGES`."""
    found = [importlib.util.find_spec(name) for name in ("numpy", "sympy", "mpmath")]
    folders = {str(Path(spec.origin).parents[1]): None for spec in found if spec and spec.origin}
    inherited = {
        name: value for name, value in os.environ.items()
        if name == "LD_LIBRARY_PATH" or name.startswith("OPENBLAS_")
    }  # fmt: skip
    # No site-packages, no bytecode written, nothing of the user's: the folders come as arguments.
    command = (sys.executable, "-s", "-S", "-B", "-P", str(JAIL))
    fix = "set reward.full_python = false"
    return Executor(command, (*limits, kind, *folders), inherited | JAIL_VARIABLES, patience, fix)
