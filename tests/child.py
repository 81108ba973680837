"""Child processes that start at once: they fork from a server which has imported all that they need.

A fresh Python that imports torch and transformers costs six seconds of work before it does anything.
What a child inherits is modules only: the server runs nothing, and it is not pytest's own process.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from reftune.launcher import free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["reftune.pipeline"])


class Child:
    """`python -m MODULE ARGUMENTS` in a forked process.

    Args:
        module: what to run as the main program.
        arguments: its command line.
        float64: compute in float64 (see `precision`).
        environment: what else stands there.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        float64: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        handle, name = tempfile.mkstemp(prefix="output-")
        os.close(handle)
        self._output = Path(name)
        command = (module, arguments, name, float64, dict(environment or {}))
        self._process = CONTEXT.Process(target=_run, args=command)
        self._process.start()

    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def finish(self, expected: int | None = 0, seconds: float = 240) -> str:
        """Wait for its end, which must have this exit code; return what it printed."""
        self._process.join(seconds)
        output = self._output.read_text(encoding="utf-8")
        self._output.unlink()
        assert self._process.exitcode == expected, output
        return output


def start_together(count: int, module: str, *arguments: str, float64: bool = False) -> list[Child]:
    """Start a command in several processes that work together, and that no launcher looks after."""
    told = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }  # fmt: skip
    return [
        Child(
            module, *arguments, float64=float64,
            environment={**told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip


def _run(
    module: str, arguments: tuple[str, ...], output: str, float64: bool, environment: dict[str, str]
) -> None:
    with open(output, "wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even if pytest ignores Ctrl-C
    warnings.simplefilter("ignore")
    sys.argv = [module, *arguments]
    if float64:
        import precision

        with precision.float64():
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
