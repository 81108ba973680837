"""docs/grading.md says what is equal; here its rows are asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reftune.grading.answers import answers_equal

PAGE = (Path(__file__).parents[1] / "docs" / "grading.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.+)` \| `(.+)` \| (yes|no) \|$", PAGE, re.MULTILINE)


def test_every_row_of_the_page_is_read() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(ROWS) == len(rows) > 50


@pytest.mark.parametrize(("answer", "truth", "equal"), ROWS)
def test_the_page_says_what_is_done(answer: str, truth: str, equal: str) -> None:
    assert answers_equal(answer, truth) is (equal == "yes")
