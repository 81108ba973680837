"""Exact values of plain expressions, linear equations in one unknown, and what is not arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest

from reftune.data.derive.arithmetic import MAX_CHARS, number_of, parse, solve, value_of, write


def number(text: str) -> Fraction | None:
    tree = parse(text)
    return None if tree is None else number_of(tree)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48 / 2", 24),
        ("0.1 + 0.2", Fraction(3, 10)),  # exact, not 0.30000000000000004
        ("1 / 3 + 1 / 6", Fraction(1, 2)),
        ("560 // 10", 56),
        ("-(3 - 5) * 2", 4),
        ("2 - 3 - 4", -5),
        ("5", 5),
    ],
)
def test_value_is_exact(text: str, value: Fraction) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 / 0",
        "1 / (2 - 2)",
        "2 ** 3",
        "f(2)",
        "__import__('os')",
        "[1]",
        "1 < 2",
        "True",
        "'a'",
        "1 +",
        "1; 2",
        "1e999",
        "x * y",
        "x * x",
        "1 / x",
        "x // 2",
        "(" * 90 + "1" + ")" * 90 + "+" + "-" * 90,
        "-" * (MAX_CHARS - 1) + "x" * 2,
    ],
)
def test_what_is_no_plain_arithmetic_has_no_value(text: str) -> None:
    assert parse(text) is None


def test_an_expression_with_an_unknown_is_linear() -> None:
    tree = parse("2 * (x - 3) / 4 + x")
    assert tree is not None
    value = value_of(tree)
    assert value is not None
    assert (value.slope, value.constant) == (Fraction(3, 2), Fraction(-3, 2))
    assert number_of(tree) is None


@pytest.mark.parametrize(
    ("left", "right", "solution"),
    [
        ("3 * x", "3000", "3000 / 3"),
        ("5 * x + 7", "52", "(52 - 7) / 5"),
        ("x + x + 30", "160", "(160 - 30) / 2"),
        ("26", "5 + 3 * x", "(26 - 5) / 3"),
        ("38", "32 + x", "38 - 32"),
        ("2 * x - 3", "17", "(17 + 3) / 2"),
        ("25 + x", "2 * (6 + x)", "25 - 12"),
        ("x / 3", "4", "4 / (1 / 3)"),
        ("x", "5", None),  # is the solution already
        ("x", "x + 1", None),
        ("3", "4", None),
    ],
)
def test_a_linear_equation_is_solved(left: str, right: str, solution: str | None) -> None:
    one, other = parse(left), parse(right)
    assert one is not None
    assert other is not None
    assert solve(one, other) == solution


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(3), "3"),
        (Fraction(-7, 2), "-3.5"),
        (Fraction("0.2778"), "0.2778"),
        (Fraction(1, 3), "(1 / 3)"),
        (Fraction(1, 10**7), "(1 / 10000000)"),
        (Fraction(10**20), "100000000000000000000"),
    ],
)
def test_numbers_are_written_as_python_reads_them(value: Fraction, text: str) -> None:
    assert write(value) == text
    assert number(text) == value
