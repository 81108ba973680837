"""MathQA's formulas: every operation, constants, which number is which."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from reftune.data.derive.formulas import OPERATIONS, program_from_formula, question_numbers
from reftune.data.derive.programs import UnderivableError
from reftune.grading.sandbox import Sandbox

# Worked out by hand, or known: a 3-4-5 triangle, a circle of radius 3, sphere of radius 3, ...
VALUES: dict[str, tuple[tuple[float, ...], float]] = {
    "add": ((3, 4), 7),
    "subtract": ((3, 4), -1),
    "multiply": ((3, 4), 12),
    "divide": ((3, 4), 0.75),
    "power": ((3, 4), 81),
    "sqrt": ((16,), 4),
    "log": ((8,), 3),
    "negate": ((3,), -3),
    "inverse": ((4,), 0.25),
    "max": ((3, 4), 4),
    "min": ((3, 4), 3),
    "floor": ((3.7,), 3),
    "round": ((1.23456,), 1.2346),
    "reminder": ((17, 5), 2),
    "gcd": ((12, 18), 6),
    "lcm": ((4, 6), 12),
    "factorial": ((5,), 120),
    "choose": ((5, 2), 10),
    "permutation": ((5, 2), 20),
    "sum_consecutive_number": ((3, 6), 12),
    "count_interval": ((9, 3), 7),
    "union_prob": ((0.5, 0.4, 0.2), 0.7),
    "negate_prob": ((0.3,), 0.7),
    "sine": ((math.pi / 6,), 0.5),
    "cosine": ((math.pi / 3,), 0.5),
    "tangent": ((math.pi / 4,), 1),
    "radians_to_degree": ((math.pi,), 180),
    "degree_to_radians": ((180,), math.pi),
    "square_area": ((3,), 9),
    "square_perimeter": ((3,), 12),
    "square_edge_by_area": ((9,), 3),
    "square_edge_by_perimeter": ((12,), 3),
    "rectangle_area": ((3, 4), 12),
    "rectangle_perimeter": ((3, 4), 14),
    "diagonal": ((3, 4), 5),
    "side_by_diagonal": ((5, 4), 3),
    "triangle_area": ((3, 4), 6),
    "triangle_perimeter": ((3, 4, 5), 12),
    "triangle_area_three_edges": ((13, 14, 15), 84),
    "quadrilateral_area": ((10, 3, 4), 35),
    "trapezium_area": ((10, 3, 4), 35),
    "rhombus_area": ((6, 8), 24),
    "rhombus_perimeter": ((5,), 20),
    "circle_area": ((3,), 28.2743),
    "circumface": ((3,), 18.8496),
    "circle_arc": ((90, 4), 6.2832),
    "circle_sector_area": ((4, 90), 12.5664),
    "semi_circle_perimiter": ((7,), 35.9911),
    "volume_cube": ((3,), 27),
    "volume_rectangular_prism": ((2, 3, 4), 24),
    "volume_cylinder": ((3, 4), 113.0973),
    "volume_cone": ((3, 4), 37.6991),
    "volume_sphere": ((3,), 113.0973),
    "surface_cube": ((3,), 54),
    "surface_rectangular_prism": ((2, 3, 4), 52),
    "surface_cylinder": ((3, 4), 131.9469),
    "surface_cone": ((3, 4), 75.3982),
    "surface_sphere": ((3,), 113.0973),
    "cube_edge_by_volume": ((27,), 3),
    "percent": ((20, 50), 10),
    "from_percent": ((20,), 0.2),
    "to_percent": ((0.2,), 20),
    "gain_percent": ((20,), 120),
    "loss_percent": ((20,), 80),
    "negate_percent": ((20,), 80),
    "p_after_gain": ((20, 50), 60),
    "p_after_loss": ((20, 50), 40),
    "original_price_before_gain": ((20, 60), 50),
    "original_price_before_loss": ((20, 40), 50),
    "speed": ((60, 4), 15),
    "speed_in_still_water": ((11, 5), 8),
    "stream_speed": ((11, 5), 3),
    "speed_ratio_steel_to_stream": ((11, 5), 8 / 3),
    "combined_work": ((3, 6), 2),
    "find_work": ((2, 6), 3),
}


def formula_of(operation: str, numbers: tuple[float, ...]) -> tuple[str, str]:
    names = ",".join(f"n{i}" for i in range(len(numbers)))
    return f"{operation}({names})|", " and ".join(f"{number:.12f}" for number in numbers)


def values(programs: list[str]) -> list[Any]:
    with Sandbox(workers=1) as sandbox:
        return [result.value for result in sandbox.run(programs)]


def test_every_operation_computes_what_it_is_called() -> None:
    assert VALUES.keys() == OPERATIONS.keys()
    programs = [
        program_from_formula(*formula_of(name, numbers)) for name, (numbers, _) in VALUES.items()
    ]
    found = dict(zip(VALUES, values(programs), strict=True))
    assert found == pytest.approx({name: value for name, (_, value) in VALUES.items()}, abs=1e-4)


def test_a_formula_is_written_step_by_step() -> None:
    question = "a shop sold it at 5 % less and earned 31.1 % . how much without ?"
    formula = "add(n1,const_100)|subtract(const_100,n0)|multiply(#0,const_100)|divide(#2,#1)|add(#3,#3)|"
    assert program_from_formula(formula, question) == (
        "def solution():\n"
        "    total = 31.1 + 100\n"
        "    difference = 100 - 5\n"
        "    product = total * 100\n"
        "    quotient = product / difference\n"
        "    total_2 = quotient + quotient\n"
        "    result = total_2\n"
        "    return result"
    )


def test_constants() -> None:
    formulas = [
        "multiply(n0,const_0_2778)",
        "multiply(n0,const_3.6)|",
        "multiply(n0,const_pi)",
        "sine(const_deg_to_rad)",
    ]
    programs = [program_from_formula(formula, "10 of them") for formula in formulas]
    assert values(programs) == pytest.approx([2.778, 36, 31.415927, 0.0174524], abs=1e-6)


def test_whole_numbers_are_asked_of_the_right_operands() -> None:
    programs = [
        program_from_formula("divide(n0,n1)|choose(n1,#0)|", "20 and 2"),  # 10 choose 2, in either order
        program_from_formula("divide(n0,n1)|factorial(#0)|", "20 and 4"),
    ]
    assert values(programs) == [45, 120]


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("add 5 % to rs . 1,200.50 .", ["5", "1200.5"]),
        ("1 / 2 of the 2nd half , 3 - 4", ["1", "2", "3", "4"]),
        ("the set { 3 , 3,3 , 4,5 }", ["3", "33", "45"]),
        ("two of 05 at 0.5 or .5", ["5", "0.5", "0.5"]),
        ("x2 , 7 . 5a", ["7"]),
        ("none", []),
    ],
)
def test_numbers_of_a_question(question: str, numbers: list[str]) -> None:
    assert question_numbers(question) == [Fraction(number) for number in numbers]


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("add(n0,n5)|", "names a number that is not there"),
        ("add(#0,n0)|", "names a number that is not there"),
        ("add(n0,const_x)", "unknown constant"),
        ("add(n0,y)", "unknown constant"),
        ("integrate(n0)", "unknown operation integrate"),
        ("add(n0)", "add has a wrong number of operands"),
        ("add(n0,n1", "cannot be read"),
        ("n0", "cannot be read"),
        ("__import__('os')", "unknown constant"),
        (" | ", "is empty"),
    ],
)
def test_what_cannot_be_read_is_named(formula: str, message: str) -> None:
    with pytest.raises(UnderivableError, match=message):
        program_from_formula(formula, "3 and 4")
