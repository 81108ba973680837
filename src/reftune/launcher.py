"""What a launcher tells each of several processes, such as `accelerate launch`, and what it needs."""

import functools
import os
import socket
import sys

from reftune.problem import UserError

ANSWERS_WITHIN = 30.0  # seconds, also where many processes ask at once


def check_launcher() -> None:
    """Raise UserError where the environment is no launcher's, or the launcher is gone already.

    Its store is there before it starts a process; without it they would wait for each other for hours.
    """
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        _number(name, 0)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), _number("MASTER_PORT", 0)
    try:
        socket.create_connection((host, port), ANSWERS_WITHIN).close()
    except OSError as error:
        raise UserError(
            f"the launcher does not answer at {host}:{port} ({error}); start again"
        ) from None


def rank() -> int:
    """Return the number of this process among all; raise UserError where the environment has none."""
    return _number("RANK", 0)


@functools.cache
def tell_once(sentence: str) -> None:
    """Tell the user something on standard error: from one process, and not a second time."""
    if rank() == 0:
        print(f"reftune: {sentence}", file=sys.stderr, flush=True)


def local_processes() -> int:
    """Return how many processes share this machine; raise UserError where the environment has none."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1))


def all_processes() -> int:
    """Return how many processes work on a run, on all machines; raise UserError as `rank` does."""
    return max(1, _number("WORLD_SIZE", 1))


def available_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return sorted(os.sched_getaffinity(0)) if known else list(range(os.cpu_count() or 1))


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _number(name: str, default: int) -> int:
    told = os.environ.get(name, str(default))
    if not told.removeprefix("-").isdecimal():
        raise UserError(f"the environment says {name} = {told!r}, which is no number; unset it")
    return int(told)
