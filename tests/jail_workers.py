"""What tests of the locked-in CPython share: its workers of many kinds, and another user to be."""

import ctypes
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from jail_layers import CAP_DAC_READ_SEARCH, NOBODY, PR_SET_KEEPCAPS, ROWS, jail, row, successes

__all__ = ["ROWS", "become_nobody", "jail", "row", "successes"]
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2


def become_nobody() -> None:
    """Let a process that is about to start be an unprivileged user, who can read this Python's files."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    rights = (ctypes.c_uint32 * 6)(*[CAP_DAC_READ_SEARCH] * 3)
    assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), rights) == 0
    number = CAP_DAC_READ_SEARCH.bit_length() - 1
    assert libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0) == 0
