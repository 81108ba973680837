"""Runs that compare what `methods` names, grow, and start from another run's warm-up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from reftune import sample
from reftune.config import Config, Model
from reftune.config.files import load_config
from reftune.files import read_json, read_jsonl
from reftune.model.scratch import new_model
from reftune.pipeline import models_of, run_stages, stages_of
from reftune.problem import UserError
from reftune.reporting.comparison.compare import compare_runs
from reftune.reporting.run.report import write_report

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


BARE = """
extends = "all.toml"
methods = ["offline_st", "reft"]

[data]
max_train = 24
max_test = 12
validation_size = 8

[prompt]
max_prompt_tokens = 99

[sft]
epochs = 0
warmup_epochs = 0

[ppo]
steps = 2

[reward]
function = "reward.py:odd"
"""


def given_model(folder: Path) -> str:
    """Write a random model, as somebody else's; return its directory."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    settings = Model(scratch="tiny", vocab_size=300, scratch_overrides=sizes)
    model, tokenizer = new_model(settings, ["On page 1 Ann finds"], seed=0)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "given")
    return str(folder / "given")


def test_without_chains_the_methods_start_from_the_given_model(tmp_path: Path) -> None:
    tiny_run.write_all_methods(tmp_path)
    rows = read_jsonl(tmp_path / "train.jsonl")
    bare = [{key: row[key] for key in ("question", "answer")} for row in rows]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    odd = "def odd(question, completion, answer):\n    return len(completion) % 2\n"
    (tmp_path / "reward.py").write_text(odd)
    text = BARE.replace("reward.py", str(tmp_path / "reward.py"))
    (tmp_path / "bare.toml").write_text(text)
    config = load_config(tmp_path / "bare.toml", [f"model.name={given_model(tmp_path)}"])

    run_stages(config)
    assert list(_result(config)["models"]) == ["base", "offline_st", "reft"]
    assert {path.name for path in config.run_dir.iterdir() if path.is_dir()} == {
        "data", "warmup_samples", "offline_st", "ppo", "reranker", "evaluation",
    }  # fmt: skip
    base = [row["completion"] for row in read_jsonl(config.run_dir / "evaluation/base.jsonl")]
    asked = sample(config.model.name or "", _questions(config), cot="program", overrides=TINY_PROMPT)
    assert base == [graded.completion for graded in asked]
    first = read_jsonl(config.run_dir / "ppo/metrics.jsonl")[0]
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)  # the policy begins at its reference

    page = write_report(config.run_dir)
    markdown = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "Base samples: done" in markdown
    assert "How far the policy has moved from the base model." in markdown
    assert "ReFT against Base | greedy |" in markdown
    assert "training questions without a chain: 24" in markdown
    assert "SFT" not in markdown
    assert "arm-up" not in markdown
    assert {"SFT", "Warm-up"} & set(re.findall(r"[\w-]+", page.read_text(encoding="utf-8"))) == set()
    comparison = compare_runs([config.run_dir])
    assert next(d.base_method for d in comparison.differences if d.method == "reft") == "base"


TINY_PROMPT = ["prompt.repeat_question=false", "prompt.max_new_tokens=12"]


def _questions(config: Config) -> list[str]:
    return [row["question"] for row in read_jsonl(config.run_dir / "data/test.jsonl")]


def test_sft_learns_from_the_questions_that_have_a_chain_and_ppo_from_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_run.write_config(tmp_path)
    rows = read_jsonl(tmp_path / "train.jsonl")
    for row in rows[::2]:
        del row["chain"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = ["sft.epochs=1", "sft.batch_size=1000", "sft.learning_rate=1e-9", "ppo.steps=1"]
    changes += ["sft.warmup_epochs=1", "ppo.questions_per_step=220", "ppo.samples_per_question=1"]
    changes += ["ppo.samples_logged_per_step=220", "ppo.value_pretraining_steps=0"]
    config = load_config(path, changes)
    run_stages(config, ("sft", "ppo"))
    train = read_jsonl(config.run_dir / "data/train.jsonl")
    chains = sum("chain" in row for row in train)
    assert 0 < chains < len(train) == 220
    told = f"{chains} of 220 training questions have a chain; SFT learns from these, and the other"
    assert told in capsys.readouterr().err
    asked = [row["id"] for row in read_jsonl(config.run_dir / "ppo/samples.jsonl")]
    assert sorted(asked) == sorted(row["id"] for row in train)


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
