from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from reftune.reporting.run.run_files import read_run
from reftune.reporting.run.sample_browser import (
    MAX_CHARACTERS,
    MAX_QUESTIONS,
    questions,
    rollouts_by_step,
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "config.toml").write_text('name = "trial"\n', encoding="utf-8")
    return tmp_path


def sample(**values: Any) -> dict[str, Any]:
    row = {
        "id": "1",
        "question": "q",
        "answer": "4",
        "completion": "c",
        "status": "ok",
        "correct": False,
    }
    return row | {"value": 4.0} | values


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_questions_join_the_models_by_id(run_dir: Path) -> None:
    write_rows(
        run_dir / "evaluation/sft.jsonl", [sample(id="a", value=5.0), sample(id="b", correct=True)]
    )
    reft = [sample(id="b", status="timeout", value=None), sample(id="a", correct=True, value=1 / 3)]
    write_rows(run_dir / "evaluation/reft.jsonl", reft)
    kept, counts = questions(read_run(run_dir))
    assert [(q["id"], q["gained"], q["lost"]) for q in kept] == [("a", True, False), ("b", False, True)]
    assert kept[0]["chains"]["sft"] == {"text": "c", "status": "ok", "value": "5", "correct": False}
    assert kept[0]["chains"]["reft"]["value"] == str(1 / 3)
    assert kept[1]["chains"]["reft"]["value"] == ""
    assert counts == {"gained": 1, "lost": 1, "all": 2}


def test_rare_results_are_among_the_questions_shown(run_dir: Path) -> None:
    rows = [sample(id=str(index), correct=True) for index in range(3 * MAX_QUESTIONS)]
    rows[17] |= {"correct": False, "status": "memory"}
    rows[-1] |= {"correct": False}
    write_rows(run_dir / "evaluation/reft.jsonl", rows)
    kept, counts = questions(read_run(run_dir))
    ids = [int(question["id"]) for question in kept]
    assert len(ids) == MAX_QUESTIONS
    assert {17, 3 * MAX_QUESTIONS - 1} < set(ids)
    assert ids == sorted(ids)
    assert counts == {
        "gained": 0,
        "lost": 0,
        "all": 3 * MAX_QUESTIONS,
    }  # there is no SFT to compare with


def test_long_texts_are_cut_and_say_so(run_dir: Path) -> None:
    write_rows(run_dir / "evaluation/reft.jsonl", [sample(completion="x" * (MAX_CHARACTERS + 7))])
    ((question,), _) = questions(read_run(run_dir))
    assert question["chains"]["reft"]["text"] == "x" * MAX_CHARACTERS + "\n[... 7 more characters]"


def test_rollouts_keep_the_first_and_the_last_step() -> None:
    rows = [sample(step=step, reward=0.1) for step in range(1, 101) for _ in range(2)]
    steps = rollouts_by_step(rows)
    assert (len(steps), steps[0]["step"], steps[-1]["step"]) == (30, 1, 100)
    assert all(len(step["samples"]) == 2 for step in steps)
    gaps = [b["step"] - a["step"] for a, b in itertools.pairwise(steps)]
    assert set(gaps) <= {3, 4}  # 99 / 29 = 3.4
    assert steps[0]["samples"][0]["reward"] == "0.1"
    assert [step["step"] for step in rollouts_by_step([sample(step=4)])] == [4]
    assert rollouts_by_step([]) == []
