"""When two numbers are equal."""

from __future__ import annotations

import math

TOLERANCE = 1e-2  # numbers at most this far apart are equal (paper, section 4.1)


def same_number(a: float, b: float) -> bool:
    """Tell whether two numbers are equal within TOLERANCE; grading and voting both ask here."""
    if not math.isfinite(a - b):
        return a == b
    # One unit in the last place keeps 1.01 equal to 1.00 although the binary difference exceeds 0.01.
    return abs(a - b) <= TOLERANCE + math.ulp(max(abs(a), abs(b)))
