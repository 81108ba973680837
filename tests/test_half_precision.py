"""A run in 16 bits works from the first stage to the last, whatever the critic and the advantage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from reftune.config import Config
from reftune.files import read_jsonl
from reftune.methods import OPTIONAL
from reftune.pipeline import run_stages
from reftune.training.advantages import ADVANTAGES
from tiny_pipeline import make_config

DTYPES = ("bfloat16", "float16")
# Critics that an advantage can have; "" where it has none.
KINDS = [
    (name, critic)
    for name, advantage in ADVANTAGES.items()
    for critic in (("shared", "separate") if advantage.critic else ("",))
]
EPOCHS, WARMUP = 20, {"warmup_epochs": 15}  # enough to end a text now and then
REWARD = "def reward(question, completion, answer):\n    return len(completion) % 3 / 2\n"


def run(folder: Path, dtype: str, *methods: str, critic: str = "", **sections: Any) -> Config:
    """Run a tiny pipeline in some precision."""
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    model = make_config(folder).model.model_dump(exclude_defaults=True) | {"dtype": dtype}
    config = make_config(
        folder, *methods, model=model | ({"value_model": critic} if critic else {}),
        reward={"function": f"{folder / 'reward.py'}:reward"},
        prompt={"trigger": " so ", "max_new_tokens": 16},
        sft={"epochs": EPOCHS, "learning_rate": 2e-2, "validate_every_epochs": EPOCHS} | WARMUP,
        **sections,
    )  # fmt: skip
    run_stages(config)
    return config


def metrics(config: Config, stage: str) -> list[dict[str, Any]]:
    text = (config.run_dir / stage / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def quick(dtype: str, advantage: str, critic: str) -> bool:
    """Tell whether a case is tried by `make test`: each dtype, each advantage and each critic is."""
    return dtype == DTYPES[KINDS.index((advantage, critic)) % 2]


@pytest.mark.parametrize(
    ("dtype", "advantage", "critic"),
    [
        pytest.param(d, *kind, marks=() if quick(d, *kind) else pytest.mark.slow)
        for d in DTYPES
        for kind in KINDS
    ],
)
def test_a_run_in_16_bits_learns_something_finite(
    dtype: str, advantage: str, critic: str, tmp_path: Path
) -> None:
    ppo = {
        "steps": 2, "questions_per_step": 3, "samples_per_question": 6, "advantage": advantage,
        "learning_rate": 1e-2, "validate_every_steps": 2,
    }  # fmt: skip
    config = run(tmp_path, dtype, "reft", critic=critic, ppo=ppo)
    for stage, count in (("sft", EPOCHS), ("ppo", 2)):
        rows = metrics(config, stage)
        assert len(rows) == count
        for row in rows:
            assert math.isfinite(row["loss"])
            assert 0 < row["grad_norm"] < math.inf
    assert max(row["reward"] for row in metrics(config, "ppo")) > 0, "there is something to learn"
    answers = [read_jsonl(config.run_dir / f"evaluation/{name}.jsonl") for name in ("sft", "reft")]
    assert [len(rows) for rows in answers] == [3, 3]
    weights = [config.run_dir / stage / "model/model.safetensors" for stage in ("warmup", "ppo")]
    before, after = (safe_open(path, "pt") for path in weights)
    names = list(before.keys())
    assert {before.get_tensor(name).dtype for name in names} == {getattr(torch, dtype)}
    assert all(torch.isfinite(after.get_tensor(name)).all() for name in names)
    assert any(not torch.equal(before.get_tensor(name), after.get_tensor(name)) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_methods_and_rerankers_run_in_16_bits(dtype: str, tmp_path: Path) -> None:
    steps = {"steps": 2, "questions_per_step": 3, "samples_per_question": 2, "learning_rate": 1e-2}
    epochs = {"epochs": 1, "learning_rate": 1e-2}
    config = run(
        tmp_path, dtype, *OPTIONAL, ppo=steps, online_st=steps, offline_st=epochs, reranker=epochs,
        warmup_samples={"per_question": 6}, evaluation={"samples": 2, "rerank": True, "bootstrap": 100},
    )  # fmt: skip
    for stage in ("sft", "offline_st", "online_st", "ppo", "reranker/reft"):
        assert all(math.isfinite(row["loss"]) for row in metrics(config, stage))
