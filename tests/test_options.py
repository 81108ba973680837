from __future__ import annotations

import pytest

from reftune.data.formats import write_options
from reftune.grading.cells import read_options


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        (("38", "27.675"), "a ) 38 , b ) 27.675"),
        (("3 , 4", "none of these", "x"), "a ) 3 , 4 , b ) none of these , c ) x"),
    ],
)
def test_writing_and_reading_undo_each_other(choices: tuple[str, ...], line: str) -> None:
    assert write_options(choices) == line
    assert read_options(line) == choices


@pytest.mark.parametrize(
    "line", ["", "a ) 38", "b ) 38 , a ) 27", "a ) 38 , c ) 27", "What is a ) 38 , b ) 27", "38 , 27"]
)
def test_what_is_no_list_of_options(line: str) -> None:
    assert read_options(line) is None


def test_mathqas_own_list_is_read() -> None:
    assert read_options("['a ) 38', 'b ) 27.675', 'c ) 30']") == ("38", "27.675", "30")
