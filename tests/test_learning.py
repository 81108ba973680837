"""The claim of it all: checked answers alone, without a chain to imitate, make a model better."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny_run
from reftune.config.files import load_config
from reftune.pipeline import run_stages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished warm-up."""
    folder = tmp_path_factory.mktemp("learning")
    run_stages(load_config(tiny_run.write_config(folder), ["name=warm"]), ("sft",))
    return folder


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_checked_answers_alone_make_the_reward_rise(folder: Path, advantage: str) -> None:
    settings = [
        "ppo.steps=9", "ppo.questions_per_step=16", "ppo.samples_per_question=4",
        "ppo.minibatch_size=32", "ppo.learning_rate=1.5e-3", "ppo.validate_every_steps=9",
        "ppo.checkpoint_every_steps=9", f"ppo.advantage={advantage}",
        f"name={advantage}", f"start_from={folder / 'runs' / 'warm'}",
    ]  # fmt: skip
    config = load_config(folder / "tiny.toml", settings)
    run_stages(config, ("sft", "ppo"))
    text = (config.run_dir / "ppo" / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[:2]) / 2 < 0.5  # two of three annotations are wrong, and SFT repeats them
    assert sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 0.2
    # Log-probabilities below 10 after a hundred roundings by 6e-8 of themselves are 6e-5 apart at most.
    assert max(row["logprob_gap"] for row in rows) < 1e-4
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)  # the first batch comes from the reference itself
