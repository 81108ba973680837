"""One start at a time: who works on a run holds its directory, and others see that on any machine.

The system's lock on a file decides on one machine, and ends with the process. Not every shared file
system takes such locks to other machines. So the holder gives signs of life in a second file, too, and
whoever finds one of another machine looks for a while whether they go on.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from reftune.files import make_directory, writing_to
from reftune.launcher import tell_once
from reftune.problem import UserError

HOLDER = ".holder.json"
BEAT, WATCHED = 5.0, 20.0  # seconds: between two signs of life, and until a machine is taken for dead
BOOT = Path("/proc/sys/kernel/random/boot_id")  # another one on each machine


@contextmanager
def only_start(run_dir: Path) -> Iterator[None]:
    """Keep a second start of the same run away while the block runs; the system ends it with us.

    Raises UserError where another process has begun, here or on another machine.
    """
    make_directory(run_dir)
    lock = FileLock(run_dir / ".lock", blocking=False)
    with writing_to(run_dir / ".lock"):
        try:
            lock.acquire()
        except Timeout:
            raise _refusal(run_dir) from None
        except NotImplementedError:  # a file system without locks
            pass
    try:
        _let_others_speak(run_dir)
        with _giving_signs(run_dir / HOLDER):
            yield
    finally:
        lock.release()


def _let_others_speak(run_dir: Path) -> None:
    """Raise UserError where a process of another machine that held the run gives signs of life."""
    first = _read(run_dir)
    if not first or json.loads(first)["machine"] == _machine():  # there the lock has decided
        return
    tell_once(f"{run_dir}: {_who(first)} worked on it; looking for {WATCHED:g} s whether it still does")
    until = time.monotonic() + WATCHED
    while time.monotonic() < until:
        if _read(run_dir) != first:
            raise _refusal(run_dir)
        time.sleep(WATCHED / 40)
    tell_once(f"{run_dir}: it gives no sign of life; going on in its place")


@contextmanager
def _giving_signs(path: Path) -> Iterator[None]:
    left = threading.Event()

    def go_on() -> None:
        count = 0
        while not left.wait(BEAT):
            count += 1
            with suppress(OSError):  # a full disk keeps nobody from working
                _sign(path, count)

    with writing_to(path):
        _sign(path, 0)
    threading.Thread(target=go_on, name="holder", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        path.unlink(missing_ok=True)


def _sign(path: Path, count: int) -> None:
    told = {"machine": _machine(), "host": socket.gethostname(), "process": os.getpid(), "signs": count}
    with path.open("r+" if count else "w", encoding="utf-8") as file:  # not where all was removed
        file.write(json.dumps(told))


def _read(run_dir: Path) -> str:
    """Return what the holder has written last; nothing where there is none, or it is at it."""
    try:
        text = (run_dir / HOLDER).read_text(encoding="utf-8")
        return text if {"machine", "host", "process"} <= json.loads(text).keys() else ""
    except (OSError, ValueError, AttributeError):
        return ""


def _machine() -> str:
    with suppress(OSError):
        return BOOT.read_text(encoding="ascii").strip()
    return socket.gethostname()


def _who(text: str) -> str:
    told = json.loads(text)
    return f"process {told['process']} on {told['host']}"


def _refusal(run_dir: Path) -> UserError:
    who = f" ({_who(text)})" if (text := _read(run_dir)) else ""
    told = f"another process{who} works on this run; wait for its end, or choose another --name"
    return UserError(f"{run_dir}: {told}")
