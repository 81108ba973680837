"""What a program finds: modules that are loaded before the doors close, and a clock that stands still.

Behind the doors no file can be opened, so what is not loaded here does not exist for a program.
"""

import datetime
import importlib
import os
import random
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from . import program

_STANDARD = """
abc array ast base64 binascii bisect builtins calendar cmath codecs collections collections.abc colorsys
contextlib copy csv dataclasses datetime decimal difflib dis encodings.ascii encodings.idna
encodings.latin_1 encodings.utf_16 encodings.utf_32 encodings.utf_8_sig enum errno fractions functools
gc graphlib hashlib heapq html inspect io itertools json keyword linecache locale logging math numbers
operator os os.path pickle pprint queue random re reprlib secrets shlex signal statistics string struct
sys textwrap threading time timeit token tokenize traceback types typing unicodedata uuid warnings
weakref zlib _strptime
"""
# numpy is cheap to fork, sympy is not: with it a fork takes three times as long.
# Kinds of workers, and what they load on top: the larger a process is, the longer a fork takes.
_NUMPY = ("numpy", "numpy.fft", "numpy.linalg", "numpy.ma", "numpy.polynomial", "numpy.random")
PACKAGES = {"plain": (), "numpy": _NUMPY, "sympy": (*_NUMPY, "sympy")}

NOW = 1704067200  # seconds: the first of January 2024, as for monty


def load(kind: str, folders: Sequence[str]) -> None:
    """Import what programs of a kind may use, where it is installed; `folders` hold the packages."""
    warnings.simplefilter("ignore")
    sys.path.extend(folders)
    for name in (*_STANDARD.split(), *PACKAGES[kind]):
        with suppress(ImportError):
            importlib.import_module(name)
    if numpy := sys.modules.get("numpy"):
        program.NUMBERS += {numpy.dtype(code).type for code in numpy.typecodes["AllInteger"]}
        program.NUMBERS += {numpy.dtype(code).type for code in numpy.typecodes["Float"]}
    if "sympy" in sys.modules:
        from . import warm_sympy

        warm_sympy.warm()


class StillDatetime(datetime.datetime):
    """Python's, at a time that does not pass."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        """Return the one moment that there is."""
        return cls.fromtimestamp(NOW, tz)

    utcnow = today = now


def stand_still() -> None:
    """Stop clock and chance, so that a program has one answer; no lock, only for who runs into it."""
    import io

    seeded, stream = random.Random.seed, random.Random(0)

    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        seeded(self, 0 if a is None else a, version)

    random.Random.seed = seed  # type: ignore[method-assign]
    os.urandom = random._urandom = stream.randbytes  # type: ignore[attr-defined]
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if sympy_random := sys.modules.get("sympy.core.random"):
        sympy_random.seed(0)
    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
        setattr(time, name, lambda: float(NOW))
        setattr(time, f"{name}_ns", lambda: NOW * 10**9)
    time.sleep = _sleep  # type: ignore[assignment]
    StillDatetime.__name__ = StillDatetime.__qualname__ = "datetime"
    StillDatetime.__module__ = "datetime"
    datetime.datetime = StillDatetime  # type: ignore[misc]
    vars(sys.modules["builtins"]).update(exit=sys.exit, quit=sys.exit)
    sys.stdin = io.StringIO("")


def _sleep(seconds: float) -> None:
    if seconds > 0:
        raise TimeoutError(f"no time passes here, and {seconds} s of it are asked for")
