"""Verdicts do not depend on what else the machine does: right programs stay right, late ones late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from reftune.grading.sandbox import Sandbox
from reftune.problem import Execution
from test_sandbox import body, children_of, returning

# A few tenths of a second of CPU time, on slow machines and on fast ones.
LONG = body("x = 0", "for i in range(5_000_000):", "    x += 1", "return x")
RIGHT = Execution("ok", 5_000_000.0)


@contextmanager
def busy_loops(count: int, core: int) -> Iterator[None]:
    program = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_a_program_may_take_its_time_on_a_busy_core() -> None:
    with Sandbox(workers=1, seconds=1.5) as sandbox:
        assert sandbox.run([LONG]) == [RIGHT]
        with busy_loops(4, sandbox._monty._workers[0].core):
            begin = time.monotonic()
            assert sandbox.run([f"y = {i}\n{LONG}" for i in range(6)]) == [RIGHT] * 6
            assert time.monotonic() - begin > 1.5, "or the loops were in nobody's way"


def test_a_program_that_needs_too_much_is_late_on_a_busy_core_too() -> None:
    with Sandbox(workers=1, seconds=0.2) as sandbox, busy_loops(4, sandbox._monty.cores[0]):
        begin = time.monotonic()
        assert [r.status for r in sandbox.run([body("while True:", "    pass")])] == ["timeout"]
        assert time.monotonic() - begin > 0.4, "or the loops were in nobody's way"


@pytest.mark.parametrize("word", ["sandbox_worker", "monty\0subprocess"])
def test_a_process_that_is_stopped_for_three_seconds_changes_no_result(word: str) -> None:
    with Sandbox(workers=1, seconds=1.5) as sandbox:
        sandbox.run(["start = 1"])
        [process] = children_of(os.getpid(), word)

        def pause() -> None:
            time.sleep(0.05)
            os.kill(process, signal.SIGSTOP)
            time.sleep(3.0)
            with suppress(ProcessLookupError):  # monty's may have been replaced
                os.kill(process, signal.SIGCONT)

        thread = threading.Thread(target=pause)
        begin = time.monotonic()
        thread.start()
        assert sandbox.run([LONG, returning("7")]) == [RIGHT, Execution("ok", 7.0)]
        assert time.monotonic() - begin > 2.5, "or it had nothing to do while it was stopped"
        thread.join()


TRAINER = f"""
import os, sys
from reftune.grading.sandbox import Sandbox
with Sandbox(seconds=1.5) as sandbox:
    found = sandbox.run([f"y = {{i}}\\n" + {LONG!r} for i in range(2)])
    print(len(sandbox._monty._workers), [result.status for result in found])
"""


def test_eight_processes_on_one_machine_share_its_cores() -> None:
    environment = os.environ | {"LOCAL_WORLD_SIZE": "8"}
    trainers = [
        subprocess.Popen([sys.executable, "-c", TRAINER], env=environment, stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    told = [trainer.communicate()[0].decode().strip() for trainer in trainers]
    share = max(1, len(os.sched_getaffinity(0)) // 8)
    assert told == [f"{min(2, share)} ['ok', 'ok']"] * 8
