"""Evaluate and compare mathematical expressions by math-verify, within bounds of time and size.

math-verify hands model-written text to sympy, which a few characters can keep busy for hours. Its own
time limit is an alarm signal: only the main thread can have one, and it cannot interrupt a single long
operation such as the power of two large integers. So only expressions known to be small are let
through, and the alarm is a second net.
"""

import functools
import logging
import math
import re
import threading
from typing import Any

_MAX_CHARS = 200
_MAX_BRACKETS = 8  # the parser's time grows steeply with their nesting
_MAX_POWER = 100  # all exponents multiplied
_MAX_SYMBOLIC_POWER = 20  # likewise where there are variables: multiplying out takes long

_UNKNOWN_COMMAND = re.compile(
    r"\\(?!(?:[dt]?frac|sqrt|cdot|times|div|pm|mp|pi|circ|degree|infty|cup|cap|in|leq?|geq?|lt|gt|neq?"
    r"|sin|cos|tan|sec|csc|cot|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|alpha|beta|gamma|theta|lambda|phi)(?![A-Za-z]))[A-Za-z]+"
)
_POWER = re.compile(
    r"\^\s*(?:[0-9A-Za-z]|\\circ"
    r"|\{\s*(?:\\circ|-?[0-9]?[A-Za-z](?:\s*[-+]\s*[0-9])?|-?[0-9]{1,3}|-?[0-9]/[0-9])\s*\})"
)
_OPERATOR = re.compile(r"[\\^{}+*/=]")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in)(?![A-Za-z])")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def expression_value(text: str) -> float | None:
    r"""Return the value of a numeric LaTeX expression such as `\frac{1}{2}` or `2\sqrt{3}`, or None.

    Words beside it are taken as units and left out.
    """
    expression = _parse(_WORD.sub(" ", text))
    if expression is None or not getattr(expression, "is_number", False):
        return None
    try:
        value = float(expression)
    except (TypeError, ValueError, OverflowError):  # complex, or beyond a float
        return None
    return value if math.isfinite(value) else None


def same_expression(answer: str, truth: str) -> bool:
    """Tell whether two expressions are equal as mathematics; two plain texts never are."""
    # Words are refused because letters multiply: cat/2 would equal act/2.
    if not all(_OPERATOR.search(text) and not _WORD.search(text) for text in (answer, truth)):
        return False
    if _RELATION.search(answer) or _RELATION.search(truth):
        return False
    ours, theirs = _parse(answer), _parse(truth)
    if ours is None or theirs is None:
        return False
    found = _ratios(ours, theirs)
    if found is not None:
        return all(abs(ratio - 1) < _PRECISION for ratio in found)
    from math_verify import verify

    return bool(verify(theirs, ours, timeout_seconds=_seconds()))


def constant_factor(answer: tuple[str, str], truth: tuple[str, str]) -> float | None:
    """Return the number, not 0, by which one equation's sides differ from the other's, or None.

    Each is given by its two sides.
    """
    sides = [_parse(side) for side in (*answer, *truth)]
    if any(side is None for side in sides):
        return None
    try:
        found = _ratios(sides[0] - sides[1], sides[2] - sides[3])
    except TypeError:  # a side is a set or a relation
        return None
    if not found or any(abs(ratio - found[0]) > _PRECISION * abs(found[0]) for ratio in found):
        return None
    factor = found[0]
    return factor.real if abs(factor.imag) < _PRECISION < abs(factor) else None


# Values of the unknowns, of either sign, at which expressions are compared: no identity holds by chance.
_POINTS = (0.7391, -1.3817, 1.9273, -0.4159)
_PRECISION = 1e-9


def _ratios(ours: Any, theirs: Any) -> list[complex] | None:
    """Return the ratio of two expressions at several points, or None where they are no numbers there."""
    try:
        unknowns = sorted(ours.free_symbols | theirs.free_symbols, key=str)
        found = []
        for n in range(len(_POINTS)):
            point = {u: _POINTS[(n + i) % 4] * (1 + 0.0731 * i) for i, u in enumerate(unknowns)}
            a, b = complex(ours.evalf(subs=point)), complex(theirs.evalf(subs=point))
            found.append(1 + a - b if abs(b) < _PRECISION else a / b)
    except Exception:  # sympy raises whatever it likes on what is no number
        return None
    return found if unknowns and all(math.isfinite(abs(ratio)) for ratio in found) else None


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    """Return sympy's reading of an expression, or None."""
    text = text.replace("$", "").replace("%", "").strip()
    if not _is_small(text):
        return None
    # Imported here: it takes half a second, and plain numbers never need it.
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # its time limits are no news to the user
    config = [LatexExtractionConfig()]
    found = parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=_seconds())
    return found[0] if found else None


def _is_small(text: str) -> bool:
    """Tell whether an expression is free of towers of powers, factorials, sums and the like."""
    if not text or len(text) > _MAX_CHARS or "!" in text:
        return False
    powers = _POWER.findall(text)
    exponents = [int(digits) for power in powers for digits in re.findall("[0-9]+", power)]
    symbolic = re.search(r"(?<![\\A-Za-z])[A-Za-z]", text)
    return (
        len(powers) == text.count("^")
        and math.prod(max(exponent, 1) for exponent in exponents)
        <= (_MAX_SYMBOLIC_POWER if symbolic else _MAX_POWER)
        and sum(map(text.count, "{([")) <= _MAX_BRACKETS
        and not _UNKNOWN_COMMAND.search(text)
    )


def _seconds() -> int | None:
    return 3 if threading.current_thread() is threading.main_thread() else None
