"""The worker: it takes programs from the trainer, has the zygote run them, and reads what they say.

It speaks the protocol of `sandbox_worker.py`: a program as a JSON string a line in, `[status, value,
message]` a line out; the first line is `ready`, with a semicolon and a name for each layer that this
machine does not allow, and any other says why this worker cannot work. It is locked in like its zygote,
though it never runs a program. When the zygote does anything unexpected it ends, and the trainer starts
another one.
"""

import gc
import io
import json
import os
import select
import signal
from contextlib import suppress

from ..sandbox_answers import Answer, clean, decode
from . import frames, kernel, layers, preload, zygote
from .program import EXIT_MEMORY

WALL_FACTOR = 10.0  # of the time limit: what a program may take on a machine that does other things
GRACE_SECONDS = 0.5
# The filter alone forbids what it tries, so the answer shows whether the kernel heeds filters.
PROBE = """
import os
def solution():
    try:
        os.getpriority(os.PRIO_PROCESS, 0)
    except PermissionError:
        return 3
"""
CANNOT_SAY = "solution() said something that is no answer"


class Unfit(Exception):
    """This worker cannot work, or not any more; the message says why."""


class Zygote:
    """Our side of the zygote's process; pipes and process come one after the other (see `start`)."""

    def __init__(self) -> None:
        go, self._go = os.pipe()
        self._ended, ended = os.pipe()
        programs, self._programs = os.pipe()
        os.set_blocking(self._programs, False)
        # A program that floods its pipe gets an error from it, and waits for nobody.
        self._results, results = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._theirs = zygote.Ends(go, ended, programs, results)
        self._patience = 0.0

    def start(self, channel: int, limits: layers.Limits) -> None:
        """Fork the zygote, which keeps its ends and nothing else."""
        ours = (channel, self._go, self._ended, self._programs, self._results)
        if os.fork() == 0:
            try:
                for descriptor in ours:
                    os.close(descriptor)
                zygote.serve(self._theirs, limits)
            finally:
                os._exit(0)
        for descriptor in (self._theirs.go, self._theirs.ended, self._theirs.results):
            os.close(descriptor)
        self._patience = limits.wall_seconds + GRACE_SECONDS

    def run(self, program: str, text: bool, seconds: float) -> Answer:
        """Return the answer of one program; raise Unfit where the zygote fails."""
        nonce, source = os.urandom(frames.NONCE_BYTES), program.encode("utf-8", "surrogatepass")
        os.write(self._go, zygote.GO)
        self._send(zygote.ASKED.pack(nonce, len(source)) + source)
        self._wait({self._ended: select.POLLIN})
        try:
            ended = zygote.read_exactly(self._ended, zygote.ENDED.size)
        except EOFError:
            raise Unfit("the zygote ended") from None
        status, spent = zygote.ENDED.unpack(ended)
        said = self._said()  # the process is gone, so this is all that it ever said
        self._take_back()
        return verdict(status, spent / seconds, said, nonce, text)

    def _send(self, data: bytes) -> None:
        while data and self._wait({self._programs: select.POLLOUT, self._ended: select.POLLIN}):
            data = data[os.write(self._programs, data) :]

    def _wait(self, events: dict[int, int]) -> bool:
        """Wait for one of some events, of descriptors; return whether the first one has come alone."""
        poll = select.poll()
        for descriptor, event in events.items():
            poll.register(descriptor, event)
        if not (come := poll.poll(1000 * self._patience)):
            raise Unfit("the zygote does not answer")
        return [descriptor for descriptor, _ in come] == [next(iter(events))]

    def _take_back(self) -> None:
        """Read what a process has not: one that was killed from outside, and the next one must not."""
        poll = select.poll()
        poll.register(self._theirs.programs, select.POLLIN)
        while poll.poll(0):
            os.read(self._theirs.programs, 1 << 16)

    def _said(self) -> bytes:
        parts = []
        with suppress(BlockingIOError):
            while part := os.read(self._results, 1 << 16):
                parts.append(part)
        return b"".join(parts)


def verdict(status: int, share: float, said: bytes, nonce: bytes, text: bool) -> Answer:
    """Return the answer that a program's end and its frame stand for.

    Args:
        status: as wait4 has it.
        share: of its CPU time that it has used.
        said: all that it has written to its pipe.
        nonce: what a frame of it has to begin with.
        text: whether a text is an answer.
    """
    if os.WIFSIGNALED(status):
        return _killed(os.WTERMSIG(status), share)
    code = os.waitstatus_to_exitcode(status)
    if code == EXIT_MEMORY and not said:
        return "memory", None, "MemoryError"
    if not said:
        return "exited", None, f"the process ended with code {code}"
    frame = frames.parse(said, nonce) if code == 0 else None
    if frame is None:
        return "bad_result", None, CANNOT_SAY
    kind, payload = frame
    if kind == frames.ANSWER:
        return decode(payload, text)
    fault = frames.fault(payload)
    return ("bad_result", None, CANNOT_SAY) if fault is None else (fault[0], None, clean(fault[1]))


def _killed(number: int, share: float) -> Answer:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    spent_all = number == signal.SIGKILL and share >= 1  # the backstop of `limit_program`
    if number in (signal.SIGPROF, signal.SIGXCPU) or spent_all:
        return "timeout", None, f"its CPU time was used up ({name})"
    if number == signal.SIGALRM:
        if share >= 0.8:
            return "timeout", None, "killed by the wall clock"
        return "sandbox_error", None, f"{share:.0%} of its CPU time in ten times as much: too busy"
    if number == signal.SIGSYS:
        return "blocked", None, "it made a system call that no program may make"
    return "crash", None, f"killed by {name}"


def serve(channel: int, seconds: float, memory_mb: int, text: bool) -> None:
    """Lock this process in and answer programs until the other side closes the channel."""
    lines = io.BufferedReader(io.FileIO(channel, "rb", closefd=False))
    limits = layers.Limits(seconds, WALL_FACTOR * seconds, layers.mapped_bytes() + (memory_mb << 20))
    children = Zygote()
    layers.end_first()
    missing = layers.lock_down(limits)
    gc.freeze()  # what lives until the end is looked at no more, and so not copied in each fork
    children.start(channel, limits)
    if (probed := children.run(PROBE, text, seconds))[1] != 3:
        raise Unfit(f"the kernel takes seccomp filters but does not heed them: {probed}")
    _say(channel, ";".join(["ready", *missing]))
    for line in lines:
        _say(channel, json.dumps(children.run(json.loads(line), text, seconds)))


def _say(channel: int, line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(channel, data) :]


def main(arguments: list[str]) -> None:
    """Serve the socket whose descriptor comes first; core, limits, kind and packages' folders follow."""
    descriptor, core, seconds, memory_mb, text, kind, *folders = arguments
    channel = int(descriptor)
    with suppress(ConnectionError):  # the trainer is gone
        try:
            if reason := kernel.seccomp_missing():
                raise Unfit(reason)
            with suppress(OSError):
                os.sched_setaffinity(0, {int(core)})  # it takes turns with the zygote
            preload.load(kind, folders)
            serve(channel, float(seconds), int(memory_mb), text == "True")
        except (Unfit, OSError, ValueError) as error:
            _say(channel, clean(f"{error}"))
