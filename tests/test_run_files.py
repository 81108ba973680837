from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from reftune.run_files import MAX_CHARACTERS, MAX_QUESTIONS, facts, questions, read_run, rollouts_by_step
from reftune.types import UserError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write(tmp_path / "config.toml", 'name = "trial"\n[ppo]\nsteps = 9\nlearning_rate = 5e-5\n')
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def sample(**values: Any) -> dict[str, Any]:
    row = {
        "id": "1",
        "question": "q",
        "answer": "4",
        "completion": "c",
        "outcome": "ok",
        "correct": False,
    }
    return row | {"value": 4.0} | values


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_that_has_just_begun_is_empty(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.config["name"] == "trial"
    assert not any([run.info, run.data, run.sft_rows, run.sft, run.ppo_rows, run.ppo, run.rollouts])
    assert not any([run.evaluation, run.answers, run.unreadable])
    assert facts(run) == {"PPO": [("steps", "9"), ("learning rate", "5e-05")]}


def test_steps_written_twice_count_once_and_validation_joins_its_step(run_dir: Path) -> None:
    lines = ['{"step": 1, "loss": 3}', '{"step": 2, "loss": 2}', '{"step": 3, "loss": 9}']
    lines += ['{"step": 2, "loss": 2.5}', '{"step": 2, "validation_accuracy": 0.5}']
    write(run_dir / "sft/metrics.jsonl", "\n".join(lines))
    assert read_run(run_dir).sft_rows == [
        {"step": 1, "loss": 3},
        {"step": 2, "loss": 2.5, "validation_accuracy": 0.5},
        {"step": 3, "loss": 9},
    ]


def test_damaged_lines_are_left_out_and_named(run_dir: Path) -> None:
    write(run_dir / "ppo/metrics.jsonl", '{"step": 1}\n\n[1]\n{"kl": 2}\n{"step": 2, "kl')
    run = read_run(run_dir)
    assert run.ppo_rows == [{"step": 1}]
    assert run.unreadable == ["ppo/metrics.jsonl: 3 of 4 lines cannot be read and are left out"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.toml", "name =", r"config\.toml: cannot be read: .*Invalid value"),
        ("sft/result.json", "{", r"result\.json: cannot be read: .*; delete it and run its stage again"),
        ("evaluation/result.json", "[]", r"result\.json: must hold a JSON object"),
    ],
)
def test_damaged_files_are_named(run_dir: Path, name: str, text: str, message: str) -> None:
    write(run_dir / name, text)
    with pytest.raises(UserError, match=message):
        read_run(run_dir)


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such run directory"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not a run directory, it holds no config\.toml"):
        read_run(tmp_path)


def test_questions_join_the_models_by_id(run_dir: Path) -> None:
    write_rows(
        run_dir / "evaluation/sft.jsonl", [sample(id="a", value=5.0), sample(id="b", correct=True)]
    )
    reft = [sample(id="b", outcome="timeout", value=None), sample(id="a", correct=True, value=1 / 3)]
    write_rows(run_dir / "evaluation/reft.jsonl", reft)
    kept, counts = questions(read_run(run_dir), ("sft", "reft"))
    assert [(q["id"], q["gained"], q["lost"]) for q in kept] == [("a", True, False), ("b", False, True)]
    assert kept[0]["chains"]["sft"] == {"text": "c", "outcome": "ok", "value": "5", "correct": False}
    assert kept[0]["chains"]["reft"]["value"] == str(1 / 3)
    assert kept[1]["chains"]["reft"]["value"] == ""
    assert counts == {"gained": 1, "lost": 1, "all": 2}


def test_rare_results_are_among_the_questions_shown(run_dir: Path) -> None:
    rows = [sample(id=str(index), correct=True) for index in range(3 * MAX_QUESTIONS)]
    rows[17] |= {"correct": False, "outcome": "memory"}
    rows[-1] |= {"correct": False}
    write_rows(run_dir / "evaluation/reft.jsonl", rows)
    kept, counts = questions(read_run(run_dir), ("sft", "reft"))
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
    ((question,), _) = questions(read_run(run_dir), ("sft", "reft"))
    assert question["chains"]["reft"]["text"] == "x" * MAX_CHARACTERS + "\n[... 7 more characters]"


def test_rollouts_keep_the_first_and_the_last_step() -> None:
    rows = [sample(step=step, score=0.1) for step in range(1, 101) for _ in range(2)]
    steps = rollouts_by_step(rows)
    assert (len(steps), steps[0]["step"], steps[-1]["step"]) == (30, 1, 100)
    assert all(len(step["samples"]) == 2 for step in steps)
    gaps = [b["step"] - a["step"] for a, b in itertools.pairwise(steps)]
    assert set(gaps) <= {3, 4}  # 99 / 29 = 3.4
    assert steps[0]["samples"][0]["score"] == "0.1"
    assert [step["step"] for step in rollouts_by_step([sample(step=4)])] == [4]
    assert rollouts_by_step([]) == []
