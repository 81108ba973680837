"""Cases that a careful reader has judged, where the folder of them lies beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reftune import grade

DISPUTED: dict[str, str] = {}  # id of a case that we judge otherwise, and the reason


def test_answers_are_judged_as_a_careful_reader_does(shared_data: Path) -> None:
    path = shared_data.parent / "faults" / "answers.jsonl"
    if not path.is_file():
        pytest.skip(f"no cases at {path}")
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    verdicts = grade(
        [case["completion"] for case in cases],
        [case["answer"] for case in cases],
        cot="natural",
        choices=[case.get("choices") for case in cases],
    )
    otherwise = [c["id"] for c, v in zip(cases, verdicts, strict=True) if v.correct != c["expected"]]
    assert len(cases) > 100
    assert otherwise == list(DISPUTED)
