"""How this process holds its memory, where the C library is GNU's."""

import ctypes

_OPTIONS = {-1: 2**30, -2: 2**26, -3: 2**25}  # trim threshold, top pad, mmap threshold


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees.

    Else every large tensor of an operation goes back to the system, and the next one is faulted in anew,
    page by page. The numbers are those of <malloc.h>; 32 MiB is the highest mmap threshold there is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _OPTIONS.items():
            mallopt(option, value)


def give_back_freed_memory() -> None:
    """Give back what was kept: what comes next wants blocks of other sizes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
