"""Programs as text: names, order, what is left out."""

from __future__ import annotations

import pytest

from reftune.data.derive.programs import free_name, variable_name, write_program


def test_steps_become_lines_and_the_last_one_the_result() -> None:
    steps = {"pens": "3 * 4", "cost": "pens * 0.5"}
    assert write_program(steps) == (
        "def solution():\n    pens = 3 * 4\n    cost = pens * 0.5\n    result = cost\n    return result"
    )


def test_steps_that_nothing_needs_are_left_out() -> None:
    steps = {"a": "1 + 1", "b": "a + 1", "unused": "a + 5", "c": "b * 2"}
    assert "unused" not in write_program(steps)
    assert write_program(steps).count("\n") == 5


def test_math_is_imported_where_it_is_used() -> None:
    assert write_program({"root": "math.sqrt(16)"}).startswith(
        "def solution():\n    import math\n    root = math.sqrt(16)\n"
    )


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("Natalia sold 48/2", "clips in May.", "clips_in_may"),
        ("Working 50 minutes, she earned 0.2 x 50", ".", "earned"),
        ("So the total cost was 5*3", "", "total_cost"),
        ("First find the number of striped nails: 20 nails - 6 nails", "nails", "striped_nails"),
        ("Natalia sold 48/2", "clips", "natalia_sold_clips"),
        ("Each has", "pages because he reads fast", "pages"),
        ("it takes 3*4", "minutes of the day on his own", "minutes_of_the_day"),
        ("3+4", "", None),
        ("", "\u4e94 pens", None),
    ],
)
def test_a_number_is_named_by_the_words_beside_it(before: str, after: str, name: str | None) -> None:
    assert variable_name(before, after) == name


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        ("pens", "pens"),
        ("cost", "cost_3"),
        ("sum", "sum_value"),
        ("class", "class_value"),
        ("result", "result_value"),
    ],
)
def test_a_name_is_free_and_harmless(wish: str, name: str) -> None:
    assert free_name(wish, {"cost", "cost_2"}) == name
