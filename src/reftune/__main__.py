"""The program: what `reftune`, `python -m reftune` and `accelerate launch -m reftune` start."""

import atexit
import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line, and let the process end with its exit code.

    On its way out, which takes a second, Python puts the handlers of signals away: another Ctrl-C would
    end it by the signal. Our own end comes before that.
    """
    codes: list[int] = []
    atexit.register(_end, codes)  # first in, so last out: all others have cleaned up
    try:
        from reftune.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        codes.append(130)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            codes.append(end.code or 0)
        raise


def _end(codes: list[int]) -> None:
    if codes:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(codes[0])


if __name__ == "__main__":
    main()
