"""Which equations are found in worked solutions, however they are written."""

from __future__ import annotations

import ast

import pytest

from reftune.data.derive.equations import read_equations


def found(text: str) -> list[tuple[str, float]]:
    return [(ast.unparse(e.calculation), float(e.result)) for e in read_equations(text)]


@pytest.mark.parametrize(
    ("text", "equation"),
    [
        # calculator annotations
        ("Half is 48/2 = <<48/2=24>>24 clips.", ("48 / 2", 24)),
        ("It is $<<.5*100=50.00>>50.00", ("0.5 * 100", 50)),
        ("nights 560//10 = <<560//10=56>>56", ("560 // 10", 56)),
        ("-14 + (-8) = <<-14+-8=-22>>-22 degrees", ("-14 + -8", -22)),
        ("a week 52 x 3 = <<156=156>>156", ("52 * 3", 156)),  # that one computes nothing
        ("he has $1,375 - $230 = $<<1145=1145>>1145 left", ("1375 - 230", 1145)),
        # in the sentence
        ("he needs 40 / 10 = 4 days", ("40 / 10", 4)),
        ("That is $45,000+$22,500=$67,500", ("45000 + 22500", 67500)),
        ("1 000 000 + 500 000 = 1 500 000 cars", ("1000000 + 500000", 1500000)),
        ("60 minutes/hour / 2 minutes/mile = 30 miles/hour", ("60 / 2", 30)),
        ("8km/4hrs = 2km/hr", ("8 / 4", 2)),
        ("$4/pound * 3 pounds = $12", ("4 * 3", 12)),
        ("1.5 L * 4 = 6 L", ("1.5 * 4", 6)),
        ("from 23 total meters \u2013 13 meters \u00d7 1 = 10", ("23 - 13 * 1", 10)),
        ("Female: 44(.50)=22", ("44 * 0.5", 22)),
        ("because 14 boys plus 11 girls equals 25", ("14 + 11", 25)),
        ("half of the class, 1/2 of 30 = 15", ("1 / 2 * 30", 15)),
        ("he wins 3 - 5 * 2 = -7", ("3 - 5 * 2", -7)),
        ("it takes 10/3 = 3.33 hours", ("10 / 3", 3.33)),  # rounded by the text
        # fractions and percentages, read so that the equation holds
        ("2 cups / 1/4 cup/burger = 8 burgers", ("2 / (1 / 4)", 8)),
        ("14 * 1 1/2 = 21", ("14 * (1 + 1 / 2)", 21)),
        ("3/5 * 1/5 = 3/25", ("3 / 5 * 1 / 5", 0.12)),
        ("100% - 20% = 80%", ("100 - 20", 80)),
        ("20 * 40% = 8 girls", ("20 * (40 / 100)", 8)),
        ("60% * 40% = 24%", ("60 / 100 * (40 / 100) * 100", 24)),
        ("8 girls / 25 people = 32%", ("8 / 25 * 100", 32)),
        ("500 * (60%) = 300", ("500 * (60 / 100)", 300)),
        # an unknown
        ("so 5x + 7 = 52\nx = 9 Oreos", ("(52 - 7) / 5", 9)),
        ("Let x be it. x + x + 30 = 160 toys, 2x = 130, x = <<65=65>>65", ("(160 - 30) / 2", 65)),
        ("26=5+3y\ny=<<7=7>>7", ("(26 - 5) / 3", 7)),
        ("N = 300/3\nN=100", ("300 / 3", 100)),
    ],
)
def test_an_equation_is_read(text: str, equation: tuple[str, float]) -> None:
    assert found(text)[-1:] == [equation]


@pytest.mark.parametrize(
    "text",
    [
        "Therefore he has <<72=72>>72.",
        "The answer = 72",
        "3 + 4 = 8",  # wrong
        "5 - 3 - 2 = 1",  # and not 3 - 2
        "5x = 45",  # nobody says what x is
        "5x = 45 and x = 8",
        "x = y + 3",
        "p + m = 27",
        "10:00-00:00 = 10 hours",
        "8 meters after the 2nd turn + 0 meters = 8",  # not 2 + 0
        "4 < 4.8 < 5",
        "1/0 = 3",
        "== = =",
        "",
    ],
)
def test_what_does_not_hold_is_no_equation(text: str) -> None:
    assert found(text) == []


def test_equations_come_in_the_order_of_the_text() -> None:
    text = "2*3 = <<2*3=6>>6 + 4 = 10 pens.\nSo 10*2=20 and 1 hour - 20 minutes = 40"
    assert found(text) == [("2 * 3", 6), ("6 + 4", 10), ("10 * 2", 20)]


def test_an_equation_has_the_texts_beside_its_number() -> None:
    [equation] = read_equations("She sold 48/2 = <<48/2=24>>24 clips in May.")
    assert equation.before.startswith("She sold")
    assert equation.after == "24 clips in May."
