"""Runs that compare what `methods` names, grow, and start from another run's warm-up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from reftune.config import Config
from reftune.config.files import load_config
from reftune.files import read_json, read_jsonl
from reftune.pipeline import models_of, run_stages, stages_of
from reftune.problem import UserError

QUICK = ["evaluation={samples = 0, rerank = false}", "sft.epochs=2", "sft.warmup_epochs=1"]


def load(folder: Path, name: str, *changes: str) -> Config:
    return load_config(folder / "all.toml", [*QUICK, *changes], name)


def test_the_stages_are_those_that_the_methods_need(tmp_path: Path) -> None:
    path = tiny_run.write_all_methods(tmp_path)
    rerankers = [f"reranker/{model}" for model in ("sft", "offline_st", "online_st", "reft")]
    assert stages_of(load_config(path)) == [
        "sft", "warmup_samples", "offline_st", "online_st", "ppo", *rerankers, "evaluation",
    ]  # fmt: skip
    assert stages_of(load(tmp_path, "x", 'methods=["reft"]')) == ["sft", "ppo", "evaluation"]
    assert stages_of(load(tmp_path, "x", "methods=[]")) == ["sft", "evaluation"]
    backwards = load(tmp_path, "x", 'methods=["reft", "offline_st"]')
    assert models_of(backwards) == ["warmup", "sft", "offline_st", "reft"]


def test_a_run_grows_and_another_starts_from_its_warmup(tmp_path: Path) -> None:
    tiny_run.write_all_methods(tmp_path)
    first = load(tmp_path, "first", 'methods=["online_st"]')
    assert run_stages(first) == ["sft", "online_st", "evaluation"]
    answers = (first.run_dir / "evaluation/online_st.jsonl").read_bytes()
    grown = load(tmp_path, "first", 'methods=["offline_st", "online_st"]')
    assert run_stages(grown) == ["warmup_samples", "offline_st", "evaluation"]
    assert run_stages(grown) == []
    assert list(_result(grown)["models"]) == ["warmup", "sft", "offline_st", "online_st"]
    assert (first.run_dir / "evaluation/online_st.jsonl").read_bytes() == answers
    _check_warmup_samples(grown)

    start = f"start_from={first.run_dir}"
    second = load(
        tmp_path, "second", start, "ppo.kl_coef=0", "ppo.steps=2", "model.value_model=separate"
    )
    assert run_stages(second) == ["offline_st", "online_st", "ppo", "evaluation"]
    for name in ("warmup/model/model.safetensors", "sft/result.json", "warmup_samples/samples.jsonl"):
        assert (second.run_dir / name).read_bytes() == (first.run_dir / name).read_bytes(), name
    for stage in ("offline_st", "online_st"):  # they begin alike, so they end alike
        weights = f"{stage}/model/model.safetensors"
        assert (second.run_dir / weights).read_bytes() == (first.run_dir / weights).read_bytes()

    with pytest.raises(UserError, match=r"start_from = .*first: that run differs in sft\.learning_rate"):
        run_stages(load(tmp_path, "third", start, "sft.learning_rate=1e-3"))
    with pytest.raises(UserError, match="no run directory with a finished SFT stage"):
        run_stages(load(tmp_path, "fourth", f"start_from={tmp_path}"))


def _check_warmup_samples(config: Config) -> None:
    rows = read_jsonl(config.run_dir / "warmup_samples/samples.jsonl")
    result = read_json(config.run_dir / "warmup_samples/result.json")
    train = len(read_jsonl(config.run_dir / "data/train.jsonl"))
    assert result["questions"] == train + 40
    assert result["samples"] == 4 * (train + 40) == sum(row["count"] for row in rows)
    assert len({(row["id"], row["completion"]) for row in rows}) == len(rows) == result["different"]
    offline = read_json(config.run_dir / "offline_st/result.json")
    assert offline["annotated_examples"] == train
    assert 0 < offline["sampled_examples"] <= result["different_correct"]


def _result(config: Config) -> dict[str, Any]:
    result: dict[str, Any] = read_json(config.run_dir / "evaluation/result.json")
    return result


def _rewrite(path: Path, **fields: str) -> None:
    rows = [{**row, **fields} for row in read_jsonl(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("def solution():\n    return 5", r"train\.jsonl: 220 of 220 annotated programs do not give"),
        ("seven", "no problem has a program chain"),
    ],
)
def test_annotations_that_cannot_be_learnt_from_are_refused(
    tmp_path: Path, chain: str, message: str
) -> None:
    path = tiny_run.write_config(tmp_path)
    _rewrite(tmp_path / "train.jsonl", chain=chain)
    with pytest.raises(UserError, match=message):
        run_stages(load_config(path), ("sft",))
