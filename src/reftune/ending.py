"""How the command line ends: with an exit code that docs/commands.md lists, and with one sentence.

0: done; 2: bad input or machine; 128 + the signal's number: Ctrl-C (130), SIGTERM (143), or a closed
pipe (141); 1, with a traceback: a fault of ours.
"""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import typer

from reftune import interrupts
from reftune.launcher import local_processes
from reftune.problem import ToldElsewhere, UserError, shortened

INTERRUPTED = 128 + signal.SIGINT  # what typer turns KeyboardInterrupt into, too
CLOSED_PIPE = 128 + signal.SIGPIPE
PATIENCE = 10.0  # seconds that threads which somebody has left may take
LONGEST_SENTENCE = 2000
ONE_SIGNAL = 2.0  # seconds within which a launcher passes on what the terminal has sent to all


def run_to_end(command: Callable[[], None], again: Callable[[], str]) -> NoReturn:
    """Run a command and exit; `again` says what starting it once more will do.

    Raises what is a fault of ours.
    """
    _heed_signals()
    for stream in (sys.stdout, sys.stderr):  # a lone surrogate, or a letter that the terminal lacks
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code: object = 1
    try:
        code = _code_of(command, again)
    finally:
        _leave_no_thread(code if isinstance(code, int) else 1)
    sys.exit(code)  # type: ignore[arg-type]


def say(message: str) -> None:
    """Tell the user something, on standard error."""
    with suppress(BrokenPipeError):
        typer.echo(f"reftune: {shortened(message, LONGEST_SENTENCE)}", err=True)


def explain(error: Exception, again: Callable[[], str]) -> str | None:
    """Return the sentence for an error that the user can mend; None for a fault of ours."""
    if isinstance(error, UserError):
        return " ".join(str(error).splitlines())
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'output'}: the disk is full; free some space, and {again()}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; choose another place or mend this one"
    if isinstance(error, MemoryError) or _means_no_memory(error):
        told = "the memory is full; lower compute.tokens_per_microbatch or compute.sampler_rows, and"
        return f"{told} {again()}"
    return None


def _code_of(command: Callable[[], None], again: Callable[[], str]) -> object:
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _interrupted(again)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer and rich exit with 1 then
            return CLOSED_PIPE
        if end.code == INTERRUPTED:
            return _interrupted(again)
        with suppress(BrokenPipeError):
            sys.stdout.flush()
            return end.code
        return _close_pipe()
    except BrokenPipeError:
        return _close_pipe()
    except Exception as error:
        message = explain(error, again)
        if message is None:
            raise
        if not isinstance(error, ToldElsewhere):
            say(f"error: {message}")
        return 2
    return 0


def _interrupted(again: Callable[[], str]) -> int:
    say(f"interrupted; {again()}")
    return 128 + (interrupts.received() or signal.SIGINT)


def _close_pipe() -> int:
    """Let Python's own end not stumble over what cannot be written any more."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE


def _means_no_memory(error: Exception) -> bool:
    by_name = type(error).__name__ == "OutOfMemoryError"  # torch's, which takes seconds to import
    return by_name or "can't allocate memory" in str(error)


def _heed_signals() -> None:
    """End in order at the first Ctrl-C or SIGTERM, and at once at the second."""
    interrupts.forget()
    for number, default in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        with suppress(ValueError):  # not in the main thread
            if signal.getsignal(number) == default:  # a background job ignores Ctrl-C: so do we
                signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    if not threading.main_thread().is_alive():
        os._exit(128 + number)
    if not interrupts.received():
        interrupts.receive(number)
    elif not _launched() or time.monotonic() - interrupts.since() > ONE_SIGNAL:
        os._exit(128 + interrupts.received())


def _launched() -> bool:
    with suppress(UserError):
        return local_processes() > 1
    return False


def _leave_no_thread(code: int) -> None:
    """End this process with its main thread, even if a user's reward has left a thread at work."""

    def watch() -> None:
        threading.main_thread().join()
        time.sleep(PATIENCE)
        if left := [t.name for t in threading.enumerate() if not t.daemon and t.is_alive()]:
            say(f"ended, although these threads were still at work: {', '.join(left)}")
            os._exit(code)

    threading.Thread(target=watch, daemon=True).start()
