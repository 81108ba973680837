"""Cases that a careful reader has judged, where the folder of them lies beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reftune import grade
from reftune.problem import Cot

DISPUTED = {  # ids of cases that we judge otherwise, and why: the interpreter has none, and says so
    "P123": "inheritance",
    "P124": "property and staticmethod",
    "P126": "generator functions",
    "P128": "sympy",
    "P129": "numpy",
}


@pytest.mark.parametrize(("name", "cot"), [("answers", "natural"), ("programs", "program")])
def test_answers_are_judged_as_a_careful_reader_does(shared_data: Path, name: str, cot: Cot) -> None:
    path = shared_data.parent / "faults" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no cases at {path}")
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    verdicts = grade(
        [case["completion"] for case in cases],
        [case["answer"] for case in cases],
        cot=cot,
        choices=[case.get("choices") for case in cases],
    )
    otherwise = {c["id"]: v for c, v in zip(cases, verdicts, strict=True) if v.correct != c["expected"]}
    assert len(cases) > 100
    assert list(otherwise) == [id_ for id_ in DISPUTED if id_[0] == "P" and name == "programs"]
    assert {verdict.status for verdict in otherwise.values()} <= {"unsupported"}
