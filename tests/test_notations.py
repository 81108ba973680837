"""A right answer is right in every notation, and a wrong one is wrong in each of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

import pytest

from reftune.grading.answers import answers_equal

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["?", "?", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def spelled(n: int) -> str:
    if n < 0:
        return "minus " + spelled(-n)
    for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = f" {'and ' if n % size < 100 else ''}{spelled(n % size)}" if n % size else ""
            return f"{spelled(n // size)} {name}{rest}"
    return ONES[n] if n < 20 else TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")


def in_script(n: int, zero: str) -> str:
    return "".join(chr(ord(zero) + int(c)) if c.isdigit() else c for c in str(n))


INTEGERS: list[Callable[[int], str]] = [
    str, lambda n: f"{n:,}", lambda n: f"{n:,}".replace(",", " "), lambda n: f"{n}.00",
    lambda n: f"{n:,}".replace(",", "{,}"), lambda n: f"\\text{{{n}}} apples", lambda n: f"x = {n}",
    lambda n: f"${n}$", lambda n: f"{n} dollars", lambda n: f"**{n}**", lambda n: f"\\({n}\\)",
    lambda n: f"{n:e}", lambda n: f"{7 * n}/7", lambda n: f"\\frac{{{3 * n}}}{{3}}", spelled,
    lambda n: in_script(n, "\u0660"), lambda n: in_script(n, "\uff10"),
    lambda n: str(n).replace("-", "\u2212"),
]  # fmt: skip

FRACTIONS: list[Callable[[Fraction], str]] = [
    lambda q: f"{q.numerator}/{q.denominator}", lambda q: f"\\frac{{{q.numerator}}}{{{q.denominator}}}",
    lambda q: f"\\dfrac{{{q.numerator}}}{{{q.denominator}}}", lambda q: f"{float(q)}",
    lambda q: f"{'-' * (q < 0)}{abs(q.numerator)}\u2044{q.denominator}",
    lambda q: f"{'-' * (q < 0)}\\frac{{{2 * abs(q.numerator)}}}{{{2 * q.denominator}}}",
    lambda q: f"y = {q.numerator}/{q.denominator}", lambda q: f"${float(q)}$",
    lambda q: f"{float(q):.6f} cups", lambda q: f"{float(q)}".replace("-", "\u2013"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(INTEGERS)))
def test_integers(number: int) -> None:
    draw = random.Random(number)
    for digits in (1, 2, 3, 4, 6, 7):
        n = draw.choice((1, 1, -1)) * draw.randrange(10 ** (digits - 1), 10**digits)
        for other in INTEGERS:  # as the truth, too, but the notations that name an unknown or a thing
            truth = other(n)
            assert answers_equal(INTEGERS[number](n), truth), (INTEGERS[number](n), truth)
            for wrong in (n + 1, -n, 10 * n, n + 1000, n - 2):
                answer = INTEGERS[number](wrong)
                assert not answers_equal(answer, truth), (answer, truth)


@pytest.mark.parametrize("number", range(len(FRACTIONS)))
def test_fractions(number: int) -> None:
    draw = random.Random(number)
    for _ in range(8):
        q = Fraction(draw.choice((1, -1)) * draw.randrange(1, 60), draw.choice((2, 4, 5, 8, 10)))
        if q.denominator == 1:
            continue
        for other in FRACTIONS:
            truth = other(q)
            assert answers_equal(FRACTIONS[number](q), truth), (FRACTIONS[number](q), truth)
            for wrong in (q + Fraction(1, 10), -q, 1 / q if abs(q) != 1 else q + 1, 2 * q):
                if abs(wrong - q) > Fraction(1, 50):
                    answer = FRACTIONS[number](wrong)
                    assert not answers_equal(answer, truth), (answer, truth)
