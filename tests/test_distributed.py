"""Two processes under accelerate do what one does with the same global batch.

In float64: a whole run amplifies what rounding leaves, by a thousand and more.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

import tiny_run
from child import Child
from precision import CLOSE
from reftune.model.scratch import train_tokenizer
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    config = str(tiny_run.write_all_methods(folder))
    two = tiny_run.start(["run", config, "--name", "two"], processes=2, float64=True)
    Child("reftune", "run", config, "--name", "one", float64=True).finish()
    tiny_run.finish(two)
    processes = [
        json.loads((folder / "runs" / n / "run.json").read_text())["processes"] for n in ("one", "two")
    ]
    assert processes == [1, 2]
    return folder / "runs"


def _metrics(runs: Path, name: str, stage: str) -> list[dict[str, Any]]:
    text = (runs / name / stage / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("sft", ("loss", "grad_norm")),
        ("warmup_samples", ("accuracy",)),
        ("offline_st", ("loss", "grad_norm")),
        ("online_st", ("loss", "grad_norm", "accuracy")),
        ("reranker/reft", ("loss", "grad_norm")),
        ("ppo", ("loss", "policy_loss", "value_loss", "reward", "kl", "entropy", "explained_variance")),
    ],
)
def test_two_processes_give_the_losses_of_one(runs: Path, stage: str, keys: tuple[str, ...]) -> None:
    one, two = _metrics(runs, "one", stage), _metrics(runs, "two", stage)
    assert len(one) == len(two) > 0
    assert stage != "ppo" or max(row["reward"] for row in one) > 0.3, "there is something to compare"
    for a, b in zip(one, two, strict=True):
        for key in keys:
            assert b[key] == pytest.approx(a[key], abs=CLOSE, rel=CLOSE), (stage, a["step"], key)


def test_every_sample_is_there_once_and_in_order(runs: Path) -> None:
    rows = [
        (runs / name / "evaluation" / "reft.jsonl").read_text().splitlines() for name in ("one", "two")
    ]
    one, two = ([json.loads(row) for row in lines] for lines in rows)
    assert [row["id"] for row in two] == [row["id"] for row in one]
    assert [row["completion"] for row in two] == [row["completion"] for row in one]
    for a, b in zip(one, two, strict=True):
        scores = [[s["rerank"] for s in row["samples"] if s["rerank"] is not None] for row in (a, b)]
        assert scores[1] == pytest.approx(scores[0], abs=CLOSE)


def test_the_warmups_samples_are_the_same(runs: Path) -> None:
    files = [runs / name / "warmup_samples/samples.jsonl" for name in ("one", "two")]
    assert files[0].read_text(encoding="utf-8") == files[1].read_text(encoding="utf-8")


def test_two_processes_ask_keep_and_leave_out_the_same_questions(tmp_path: Path) -> None:
    """With all that filters questions at once, and a reference that moves."""
    config = str(tiny_run.write_config(tmp_path))
    changes = [
        "data.max_train=20", "data.validation_size=20", "data.max_test=4", "sft.epochs=24",
        "sft.warmup_epochs=24", "sft.validate_every_epochs=24", "sft.batch_size=8", "ppo.steps=6",
        "evaluation.samples=0",
        "ppo.dynamic_sampling=3", "ppo.difficulty_range=[0.3, 0.7]", "ppo.reference_reset_steps=2",
        "ppo.advantage=rloo", "ppo.mask_truncated=true",
    ]  # fmt: skip
    arguments = ["run", config, *(x for change in changes for x in ("--set", change))]
    Child("reftune", *arguments, "--name", "one", float64=True).finish()
    start = [*arguments, "--name", "two", "--set", f"start_from={tmp_path / 'runs/one'}"]
    tiny_run.finish(tiny_run.start(start, processes=2, float64=True))
    one, two = (_metrics(tmp_path / "runs", name, "ppo") for name in ("one", "two"))
    for key in ("questions_kept", "questions_dropped", "questions_left_out"):
        assert sum(row[key] for row in one) > 0, key
    exact = ("draws", "questions_kept", "questions_dropped", "questions_left_out", "reference_step")
    for a, b in zip(one, two, strict=True):
        assert [b[key] for key in exact] == [a[key] for key in exact]
        for key in ("reward", "kl", "accuracy_drawn"):
            assert b[key] == pytest.approx(a[key], abs=CLOSE, rel=CLOSE), (a["step"], key)


def test_masters_get_the_gradients_of_both_processes(tmp_path: Path) -> None:
    """In bfloat16 DDP sees no gradient; with one process's alone, or both twice, the norm is off."""
    config = str(tiny_run.write_config(tmp_path))
    changes = ("model.dtype=bfloat16", "sft.epochs=1", "sft.warmup_epochs=1")
    arguments = ["sft", config, *(x for change in changes for x in ("--set", change))]
    two = tiny_run.start([*arguments, "--name", "two"], processes=2)
    Child("reftune", *arguments, "--name", "one").finish()
    tiny_run.finish(two)
    one, both = (_metrics(tmp_path / "runs", name, "sft") for name in ("one", "two"))
    assert one[3]["loss"] < 0.9 * one[0]["loss"], "the steps are large"
    for key in ("loss", "grad_norm"):  # a number of 8 bits is right to 1/256, and some steps amplify it
        for a, b in list(zip(one, both, strict=True))[:4]:
            assert b[key] == pytest.approx(a[key], rel=0.01), (key, a["step"])


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_model_with_eyes_learns_to_read(critic: str, tmp_path: Path) -> None:
    """No text reaches its vision tower, and whoever waits for gradients from there stops at step 2."""
    texts = [f"On page {page} Ann finds a pen. def solution():\n    return 7\n" for page in range(9)]
    tokenizer = train_tokenizer(texts, 400)
    for part in (tokenizer, _reader(len(tokenizer))):
        part.save_pretrained(tmp_path / "gemma3")
    text = tiny_run.write_config(tmp_path).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("scratch")]
    (tmp_path / "tiny.toml").write_text("\n".join(lines), encoding="utf-8")
    changes = [
        f"model.name={tmp_path / 'gemma3'}", f"model.value_model={critic}", "sft.epochs=1",
        "sft.warmup_epochs=1", "sft.batch_size=80", "sft.validate_every_epochs=1", "ppo.steps=3",
        "prompt.max_prompt_tokens=200",
    ]  # fmt: skip
    arguments = ["run", str(tmp_path / "tiny.toml"), *(x for c in changes for x in ("--set", c))]
    tiny_run.finish(tiny_run.start(arguments, processes=2))
    for stage in ("sft", "ppo"):
        rows = _metrics(tmp_path / "runs", "tiny", stage)
        assert len(rows) >= 3
        assert all(math.isfinite(row["grad_norm"]) for row in rows)


def _reader(tokens: int) -> PreTrainedModel:
    model = tiny_model("gemma3")
    model.resize_token_embeddings(tokens, mean_resizing=False)
    return model
