"""Run programs inside monty and report each as one line of JSON: the child's side of `reftune.sandbox`.

Started by its path as a bare interpreter. It must never import reftune or torch: start-up has to stay
cheap, and nothing of the trainer may be within reach. The protocol is one JSON string (a program) a
line in, one `[status, value, message]` a line out, in the same order. The first line out is `ready`;
any other says why this worker cannot work.
"""

from __future__ import annotations

import datetime
import gc
import importlib.util
import json
import os
import re
import resource
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pydantic_monty import (
    Monty,
    MontyCrashedError,
    MontyError,
    MontyRuntimeError,
    MontySyntaxError,
    OSPolicy,
    ResourceLimits,
)

if TYPE_CHECKING:
    from reftune.grading.sandbox_answers import Answer

WALL_FACTOR = 10.0  # of the time limit: what a program may take on a machine that does other things
GRACE_SECONDS = 0.5


def load(name: str) -> ModuleType:
    """Load a file or folder beside this file: as one of sys.path they would shadow Python's modules."""
    folder = Path(__file__).with_name(name)
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(folder)] if folder.is_dir() else None
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


REWRITING, ANSWERS = load("rewriting"), load("sandbox_answers")
clean, decode = ANSWERS.clean, ANSWERS.decode
is_subtle, rewrite = REWRITING.is_subtle, REWRITING.rewrite

# What follows every program. JSON keeps int, float, bool, None and str apart and refuses other objects
# without calling their methods; only the head of the text crosses over. The two newlines close whatever
# the program's last line leaves open, a backslash included.
CALL = "_answer = solution()"
ENCODE = f"(_dumps(_answer)[:{ANSWERS.MAX_ANSWER_CHARS}],)"
EPILOGUE = f"\n\n{CALL}\nfrom json import dumps as _dumps\n{ENCODE}"
EPILOGUE_OF_REWRITTEN = EPILOGUE.replace("_dumps(_answer)", f"_dumps({REWRITING.PLAIN_ANSWER})")

# The same program must give the same answer again, or an interrupted run ends elsewhere.
POLICY: OSPolicy = {
    "random_start": {"seed": 0},
    "datetime": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
}

OUTCOME_OF_EXCEPTION = {
    "TimeoutError": "timeout",
    "MemoryError": "memory",
    "SystemExit": "exited",
    "PermissionError": "blocked",
    "ImportError": "unsupported",
    "ModuleNotFoundError": "unsupported",
    "NotImplementedError": "unsupported",
}
# Monty's words where it differs from CPython; they are looked at before the name of the exception.
OUTCOME_OF_MESSAGE = (
    (re.compile(r"(name|module '(sys|os)' has no attribute) '_?(exit|quit)'"), "exited"),
    (re.compile(r"module '\w+' has no attribute|'reftune_\w+' object has no attribute"), "unsupported"),
    (re.compile(r"is not supported in this environment|suspension limit \d+ exceeded"), "blocked"),
    (re.compile(r"Max limit for backtracking"), "timeout"),
    (
        re.compile(
            r"Source is too deeply nested|function too large|Internal error in monty"
            r"|is not yet supported|cannot convert 'list' object to bytes"
        ),
        "unsupported",
    ),
)


class Runner:
    """Run each program in a fresh session of a warm monty process.

    A program may use `seconds` of CPU time and `memory_mb` megabytes; `text` accepts strings as answers.
    """

    def __init__(self, pool: Monty, seconds: float, memory_mb: int, text: bool) -> None:
        self._pool, self._seconds, self._text = pool, seconds, text
        self._meter = load("sandbox_meter").Meter(seconds)
        self._limits = [
            ResourceLimits(
                max_feed_duration_secs=wall, max_total_sleep_secs=0.0, max_memory=memory_mb << 20
            )
            for wall in (seconds, WALL_FACTOR * seconds)
        ]

    def run(self, program: str) -> Answer:
        """Return status, value and message of one program; nothing that it does raises.

        What monty cannot run, or runs otherwise than Python, is run in other words where there are any.
        """
        subtle = is_subtle(program)
        if subtle and (rewritten := rewrite(program)):
            return self._in_time(rewritten + EPILOGUE_OF_REWRITTEN)
        answer = self._in_time(program + EPILOGUE)
        failed = answer[0] in ("unsupported", "exception", "not_a_number")
        if failed and not subtle and (rewritten := rewrite(program)):
            return self._in_time(rewritten + EPILOGUE_OF_REWRITTEN)
        return answer

    def _in_time(self, program: str) -> Answer:
        """Run a program that may use so many seconds of CPU time.

        On a busy machine that takes longer, so what was stopped by the clock before runs once more with
        ten times as long; what then had no time is not charged.
        """
        for limits in self._limits:
            answer, spent = self._attempt(program, limits)
            stopped = answer[0] == "timeout" and self._meter.wall >= (
                limits["max_feed_duration_secs"] or 0
            )
            if not stopped and spent > self._seconds:
                return "timeout", None, f"needed {spent:.2f} s of CPU time"
            if not stopped or spent >= 0.8 * self._seconds:
                return answer
        message = f"only {spent:.2f} s of CPU time in ten times as much: the machine is too busy"
        return "sandbox_error", None, message

    def _attempt(self, program: str, limits: ResourceLimits) -> tuple[Answer, float]:
        """Return the answer of a program and its CPU seconds."""
        try:
            with self._pool.checkout(limits=limits, os_policy=POLICY) as session:
                self._meter.begin(session.worker_pid)
                encoded = session.feed_run(program, print_callback=_discard)
                spent = self._meter.spent()
        except (MontySyntaxError, MontyRuntimeError) as error:
            return failure(error), self._meter.spent()
        except MontyCrashedError as error:
            spent = self._meter.spent()
            if "SIGXCPU" in str(error):
                return ("timeout", None, "killed by the limit of CPU time"), self._seconds
            return (("timeout" if error.timed_out else "crash"), None, clean(str(error))), spent
        except Exception as error:  # what came back could not be made a Python object
            return ("bad_result", None, clean(f"{type(error).__name__}: {error}")), 0.0
        match encoded:
            case tuple((str(head),)):
                return decode(head, self._text), spent
            case _:  # the epilogue was not reached, and monty lets a module return
                return ("syntax_error", None, "'return' outside function"), spent


def failure(error: MontySyntaxError | MontyRuntimeError) -> Answer:
    """Name what stopped a program, by monty's words, the exception and the place."""
    message = clean(error.display("type-msg"))
    name, _, detail = message.partition(": ")
    frames = error.traceback()
    place = frames[0].source_line if len(frames) == 1 else None
    if place == CALL and re.search(r"'solution' is not defined|object is not callable", detail):
        return "no_solution", None, message
    for pattern, status in OUTCOME_OF_MESSAGE:
        if pattern.search(detail):
            return status, None, message
    if name in OUTCOME_OF_EXCEPTION:
        return OUTCOME_OF_EXCEPTION[name], None, message
    if place is not None and place.startswith("(_dumps("):
        huge = "integer string conversion" in detail  # over 4300 digits; floats end at 309
        return ("non_finite" if huge else "not_a_number"), None, message
    if REWRITING.is_gap(detail):
        return "unsupported", None, message
    # A syntax error below a frame comes from an exec() or raise of the program.
    parsing = isinstance(error, MontySyntaxError) and len(frames) <= 1
    return ("syntax_error" if parsing else "exception"), None, message


def _discard(stream: str, output: str) -> None:
    """Drop what a program prints."""


def confine(memory_mb: int, core: int) -> None:
    """Lower the limits of this process, and with them those of the monty process that it will start."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    # Only a backstop, as monty counts its own heap; 1 GiB is for what both map before any program. It
    # fails where a stricter limit holds already, or on systems without one.
    space = (1 << 30) + 2 * (memory_mb << 20)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
    # The two processes take turns. On one core each hand-over is cheap, a third more programs a second,
    # and monty's client starts one thread instead of one per core of the machine.
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):
            os.sched_setaffinity(0, {core})


def serve(channel: socket.socket, seconds: float, memory_mb: int, text: bool) -> None:
    """Answer programs until the other side closes the channel."""
    patience = WALL_FACTOR * seconds + GRACE_SECONDS  # then monty's process is killed and replaced
    with Monty(min_processes=1, max_processes=1, request_timeout=patience) as pool:
        runner = Runner(pool, seconds, memory_mb, text)
        status, _, message = runner.run("def solution():\n    return 3")
        if status in ("crash", "bad_result"):  # another program stands in monty's place
            raise RuntimeError(f"{os.environ.get('MONTY_BIN', 'monty')} runs no program: {message}")
        channel.sendall(b"ready\n")
        gc.freeze()  # what lives until the end need not be looked at again and again
        for line in channel.makefile("rb"):
            channel.sendall(json.dumps(runner.run(json.loads(line))).encode() + b"\n")


def main(arguments: list[str]) -> None:
    """Serve the socket whose descriptor comes first; the core to run on and the limits follow."""
    descriptor, core, seconds, memory_mb, text = arguments
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)  # the monty process must not be able to answer in our name
    with suppress(ConnectionError):  # the trainer is gone
        try:
            confine(int(memory_mb), int(core))
            serve(channel, float(seconds), int(memory_mb), text == "True")
        except (MontyError, RuntimeError, FileNotFoundError) as error:
            channel.sendall(f"{clean(str(error))}\n".encode(errors="replace"))


if __name__ == "__main__":
    main(sys.argv[1:])
