"""Several sources to train on, with weights, and to test on, with an accuracy each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_line import start
from reftune import asking
from reftune.config import Data
from reftune.config.files import dump_config, load_config
from reftune.data.problems import load_splits, load_test
from reftune.evaluation.evaluate import summarise
from reftune.pipeline import run_stages
from reftune.problem import UserError
from reftune.reporting.run.report import write_report
from reftune.training.microbatches import turns
from tiny_pipeline import make_config
from tiny_stage import TRAIN, make_stage


def write(path: Path, numbers: range) -> str:
    rows = [{"id": str(n % 10), "question": f"What is {n}?", "answer": n, "chain": "."} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# Whose turn it is


def test_turns_by_hand() -> None:
    """Weights 2 and 1: (2, 1) takes a, (1, 2) takes b, (3, 0) takes a, and all are at 0 again."""
    assert turns((2.0, 1.0), 6) == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]
    assert turns((0.5,), 3) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, 0.2, 0.1), (5.0, 1.0), (1.0, 1e-3)])
def test_nobody_has_a_turn_more_than_his_share(weights: tuple[float, ...]) -> None:
    found = turns(weights, 2000)
    assert turns(weights, 700) == found[:700]
    had = [0] * len(weights)
    for n, (chosen, nth) in enumerate(found, start=1):
        assert nth == had[chosen]
        had[chosen] += 1
        assert all(h < n * w / sum(weights) + 1 for h, w in zip(had, weights, strict=True))
    assert had == [pytest.approx(2000 * w / sum(weights), abs=1) for w in weights]


def test_a_steps_questions_come_by_weight_and_depend_on_the_step_alone(tmp_path: Path) -> None:
    train = [replace(problem, source="ab"[i > 0]) for i, problem in enumerate(TRAIN)]  # one, and four
    stage = make_stage(tmp_path)
    data = stage.config.data.model_copy(update={"mixture": {"a": 1.0, "b": 3.0}})
    mixed = replace(stage, train=train, config=stage.config.model_copy(update={"data": data}))
    steps = [[p.id for p in mixed.questions(step, 6)] for step in range(1, 9)]
    asked = [name for step in steps for name in step]
    assert asked.count(TRAIN[0].id) == 12, "of 48: a quarter, though it is one of five"
    others = [name for name in asked if name != TRAIN[0].id]
    for first in range(0, 36, 4):  # passes of their own
        assert sorted(others[first : first + 4]) == [problem.id for problem in TRAIN[1:]]
    assert len({tuple(others[first : first + 4]) for first in range(0, 36, 4)}) > 1, "shuffled"
    resumed = replace(mixed)
    assert [[p.id for p in resumed.questions(step, 6)] for step in (5, 2)] == [steps[4], steps[1]]


# What is read


def test_several_sources_are_read_and_told_apart(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", range(10)), write(tmp_path / "b.jsonl", range(8, 18))
    c, d = write(tmp_path / "c.jsonl", range(20, 24)), write(tmp_path / "d.jsonl", range(17, 19))
    data = Data(mixture={a: 1, b: 2}, test_sources=[c, d], cot="natural", validation_size=3)
    splits = load_splits(data, seed=1)
    found = [*splits.train, *splits.validation]
    assert len({problem.id for problem in found}) == len(found) == 17
    assert {problem.source: problem.id[:2] for problem in found} == {a: "1:", b: "2:"}
    assert splits.report.duplicates == 2
    assert splits.report.overlaps == 1
    assert [problem.source for problem in splits.test] == [c] * 4 + [d] * 2
    assert load_test(data, 1) == splits.test
    with pytest.raises(UserError, match=r"a\.jsonl and .*b\.jsonl has 17 different questions"):
        load_splits(data.model_copy(update={"validation_size": 17}), seed=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["data.mixture={'a.jsonl' = 1}", "data.train=b.jsonl"],
            "data.train has no effect: data.mixture",
        ),
        (
            ["data.test_sources=['a.jsonl']", "data.test=b.jsonl"],
            "data.test has no effect: data.test_sou",
        ),
        (["data.mixture={'a.jsonl' = 0}"], "a.jsonl has the weight 0; leave it out, or raise it"),
        (["data.mixture={'a.jsonl' = -1}"], "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_mixed_is_named(
    settings: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "x.toml").write_text('model = {scratch = "tiny"}\n', encoding="utf-8")
    sets = [part for setting in settings for part in ("--set", setting)]
    assert start(monkeypatch, "run", tmp_path / "x.toml", *sets) == 2
    assert words in capsys.readouterr().err


def test_a_runs_record_of_its_mixture_is_read_back(tmp_path: Path) -> None:
    config = make_config(tmp_path, data={"mixture": {"a.b.jsonl": 1, "c/d": 2.5}, "test_sources": ["e"]})
    (tmp_path / "config.toml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "config.toml") == config


# What is told


def test_accuracies_by_source_are_counted_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [
        {"id": str(i), "correct": right, "source": source, "completion": "", "question": "?"}
        for i, (right, source) in enumerate([(True, "a"), (False, "b"), (True, "b"), (False, "b")])
    ]  # fmt: skip
    summary = summarise(rows)
    assert {name: (x["correct"], x["questions"]) for name, x in summary["sources"].items()} == {
        "a": (1, 1), "b": (1, 3)
    }  # fmt: skip
    asking._print_summary(summary | {"unjudged": 0, "statuses": {"ok": 4}, "limit": 9}, 4)
    assert "\nb: 33.3% (1 of 3), 95% interval " in capsys.readouterr().out
    assert "sources" not in summarise([{k: v for k, v in row.items() if k != "source"} for row in rows])


def test_a_run_on_a_mixture_tells_each_sources_accuracy(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", range(10)), write(tmp_path / "b.jsonl", range(20, 30))
    c, d = write(tmp_path / "c.jsonl", range(40, 44)), write(tmp_path / "d.jsonl", range(50, 52))
    data = {"mixture": {a: 1, b: 3}, "test_sources": [c, d], "cot": "natural", "validation_size": 2}
    steps = {"steps": 2, "questions_per_step": 4, "samples_per_question": 2, "validate_every_steps": 2}
    config = make_config(
        tmp_path / "run", "reft", data=data, ppo=steps, sft={"epochs": 1, "warmup_epochs": 1}
    )
    run_stages(config)
    metrics = (config.run_dir / "ppo/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert {f"accuracy/{a}", f"accuracy/{b}"} < json.loads(metrics[0]).keys()
    samples = (config.run_dir / "ppo/samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["source"] for line in samples} == {a, b}
    found = json.loads((config.run_dir / "evaluation/result.json").read_text(encoding="utf-8"))
    for model in ("sft", "reft"):
        assert [x["questions"] for x in found["models"][model]["sources"].values()] == [4, 2]
    write_report(config.run_dir)
    for page in ("report.md", "report.html"):
        shown = (config.run_dir / page).read_text(encoding="utf-8")
        assert shown.count(c) > 0, page
    assert f"\n| {c} | 0.0% " in (config.run_dir / "report.md").read_text(encoding="utf-8")
    assert not run_stages(config), "the questions are those that were kept"
