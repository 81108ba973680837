"""Run one program in this process, and say what became of it; everything here may be played with by it.

Nothing that the program could do to this code harms anybody else: the process holds nothing but the
program, and what it writes counts only as what the program says of itself (`frames.py`).
"""

import json
import math
import os
import sys
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any

from ..sandbox_answers import MAX_ANSWER_CHARS
from . import frames

EXIT_MEMORY = 77  # there is no memory left to say so
HUGE = 2**1024  # no float is so large
NUMBERS: list[type] = [Decimal, Fraction]  # exact types that count as numbers; numpy's are added


def run(program: str) -> tuple[bytes, str]:
    """Return kind and text of the frame that tells what the program answers, or what stopped it."""
    try:
        code = compile(program, "<program>", "exec", dont_inherit=True)
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes, half characters
        return _fault("syntax_error", error)
    except RecursionError as error:
        return _fault("unsupported", error)  # nested too deep for the compiler
    try:
        return _answer_of(code)
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except BaseException as error:
        sys.settrace(None)
        return _fault(None, error)


def _answer_of(code: object) -> tuple[bytes, str]:
    main = sys.modules["__main__"] = ModuleType("__main__")  # nothing of the worker in it
    exec(code, main.__dict__)  # type: ignore[arg-type]
    solution = main.__dict__.get("solution")
    if not callable(solution):
        return frames.FAULT, "no_solution\nthe program defines no callable solution()"
    return frames.ANSWER, encode(solution())


def encode(answer: object) -> str:
    """Return the head of the JSON text of an answer; what is no number, text or None is a list."""
    kind = type(answer)
    if kind in NUMBERS or _is_number_of_sympy(answer):
        answer = _plain(answer)
        kind = type(answer)
    if kind is int and not -HUGE < answer < HUGE:  # type: ignore[operator]
        return "Infinity"
    if kind is str:
        return json.dumps(answer[:MAX_ANSWER_CHARS])[:MAX_ANSWER_CHARS]  # type: ignore[index]
    if answer is None or kind in (bool, int, float):
        return json.dumps(answer)
    return json.dumps([f"a {kind.__name__}"[:100]])


def _plain(number: Any) -> int | float:
    """Return a number of another type as Python's own: an int where it is whole."""
    try:
        value = float(number)
    except OverflowError:  # a Fraction beyond the range of floats
        return math.inf
    whole = int(number) if math.isfinite(value) else None
    return whole if whole is not None and whole == number else value


def _is_number_of_sympy(answer: object) -> bool:
    sympy = sys.modules.get("sympy")
    return (
        sympy is not None
        and isinstance(answer, sympy.Expr)
        and answer.is_number
        and answer.is_real is True
    )


def _status(error: BaseException) -> str:
    for kind, status in (
        (SystemExit, "exited"), (PermissionError, "blocked"), (ImportError, "unsupported"),
        (TimeoutError, "timeout"),
    ):  # fmt: skip
        if isinstance(error, kind):
            return status
    return "exception"


def _fault(status: str | None, error: BaseException) -> tuple[bytes, str]:
    try:
        status = status or _status(error)
        message = f"{type(error).__name__[:100]}: {str(error)[:300]}"
    except BaseException:  # its own class or words fail
        status, message = status or "exception", "an exception that cannot be shown"
    return frames.FAULT, f"{status}\n{message}"
