"""Ctrl-C and SIGTERM while a step is at work: the first one waits until the work can be kept.

Signals are the main thread's: one that works `aside` is neither broken off nor counted on the screen.

Three kinds of code: by default a signal ends the work at once; within `deferred` it waits for the next
call of `check`; and there, within `breakable`, which changes nothing that would have to be kept, it
ends the work at once again.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn


class Stopped(KeyboardInterrupt):
    """The work ends because a signal asks for it, and stands where it can go on."""


class _State:
    number = 0  # of the first signal that this process got, or another one that works with it
    since = 0.0  # when it came
    deferred = breakable = False


class _Local(threading.local):
    aside = False


_local = _Local()


@contextmanager
def aside() -> Iterator[None]:
    """Let this thread work beside the main one while the block runs."""
    _local.aside = True
    try:
        yield
    finally:
        _local.aside = False


def is_aside() -> bool:
    """Tell whether this thread works beside the main one."""
    return _local.aside


def receive(number: int) -> None:
    """Take the first signal: end the work at hand at once, or let it come to where it can go on."""
    _State.number, _State.since = number, time.monotonic()
    if _State.deferred and not _State.breakable:
        _tell("finishing this step and saving; once more to leave at once")
        return
    if _State.deferred:
        _tell("stopping; once more to leave at once")
    raise Stopped


def end_soon(number: int) -> None:
    """Ask for an end as that signal would, wherever the work stands: the next `check` heeds it."""
    _State.number, _State.since = number, time.monotonic()


def received() -> int:
    """Return the number of the signal that asks this process to end, 0 if there is none."""
    return _State.number


def since() -> float:
    """Return when that signal came, on the clock of `time.monotonic`."""
    return _State.since


def stop(number: int) -> NoReturn:
    """End the work because of a signal that this process or another one that works with it got."""
    end_soon(number)
    raise Stopped


def check() -> None:
    """End the work here if a signal has asked for it."""
    if _State.number:
        raise Stopped


def forget() -> None:
    """Begin anew, as if no signal had come."""
    _State.number, _State.deferred, _State.breakable = 0, False, False


@contextmanager
def deferred() -> Iterator[None]:
    """Let signals wait for `check` while the block runs; what is inside must call it now and then."""
    _State.deferred = True
    try:
        yield
    finally:
        _State.deferred = False


@contextmanager
def breakable() -> Iterator[None]:
    """Let a signal end the block at once, though work is `deferred`: it changes nothing."""
    if is_aside():  # the signal would break off what the main thread does
        yield
        return
    _State.breakable = True
    try:
        check()
        yield
        check()  # code in between may have caught what the signal raised
    finally:
        _State.breakable = False


def _tell(message: str) -> None:
    """Write a line in a signal's handler, where streams may be in the middle of a write."""
    start = "\n" if os.isatty(2) else ""  # behind a progress bar
    with suppress(OSError):
        os.write(2, f"{start}reftune: {message}\n".encode())
