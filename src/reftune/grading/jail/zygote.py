"""The zygote: a warm Python that forks once per program, and learns nothing of any of them.

It never reads a program or an answer, so that the copy of its memory in which a program runs holds no
other's. Its messages are one byte in (go) and one record out (how the process ended, and what it used).
"""

import os
import random
import struct
import sys
from dataclasses import dataclass

from . import frames, layers, preload, program

GO = b"g"
ENDED = struct.Struct("<id")  # as wait4 tells it: status, seconds of CPU time
ASKED = struct.Struct(f"<{frames.NONCE_BYTES}sI")  # before a program: nonce, bytes of its text
RESULT = 3  # the descriptor that a program's process says its frame to, the only one beside 0 to 2


@dataclass(frozen=True)
class Ends:
    """The zygote's ends of its four pipes."""

    go: int
    ended: int
    programs: int
    results: int


def serve(ends: Ends, limits: layers.Limits) -> None:
    """Fork at each GO until the worker is gone."""
    preload.stand_still()
    while os.read(ends.go, 1) == GO:
        process = os.fork()
        if process == 0:
            try:
                run_one(ends, limits)
            finally:
                os._exit(1)
        _, status, usage = os.wait4(process, 0)
        os.write(ends.ended, ENDED.pack(status, usage.ru_utime + usage.ru_stime))


def run_one(ends: Ends, limits: layers.Limits) -> None:
    """Read a program, give up all else, run it, say one frame, and end."""
    nonce, size = ASKED.unpack(read_exactly(ends.programs, ASKED.size))
    text = read_exactly(ends.programs, size).decode("utf-8", "surrogatepass")
    os.dup2(ends.results, RESULT)
    os.closerange(RESULT + 1, 64)
    random.seed(0)  # the module draws a new one after a fork
    for put in layers.PROGRAM_LAYERS.values():
        put(limits)
    kind, said = program.run(text)
    sys.settrace(None)
    sys.setprofile(None)
    os.write(RESULT, frames.pack(nonce, kind, said))
    os._exit(0)


def read_exactly(descriptor: int, size: int) -> bytes:
    """Return so many bytes; raise EOFError where the other side ends before."""
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
