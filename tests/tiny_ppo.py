"""PPO alone on tiny_run's problems, from a warm-up model that many runs share: seconds of a CPU each."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import tiny_run
from reftune.config.files import load_config
from reftune.pipeline import run_stages
from reftune.problem import UserError

TOML = """
output_dir = "{folder}/runs"

[data]
train = "{folder}/train.jsonl"
test = "{folder}/test.jsonl"
cot = "program"
validation_size = 40

[prompt]
repeat_question = false
max_prompt_tokens = 40
max_new_tokens = 12

[model]
name = "{folder}/runs/start/warmup/model"

[sft]
epochs = 0

[ppo]
steps = 10
questions_per_step = 8
samples_per_question = 4
learning_rate = 3e-4
value_coef = 0.1
value_head_learning_rate = 1e-2
gae_lambda = 1.0
validate_every_steps = 5

[compute]
threads = 1
sandbox_workers = 1
"""


def make_start(folder: Path) -> Path:
    """Train the warm-up model, which is right on a third; return the configuration of PPO alone."""
    run_stages(load_config(tiny_run.write_config(folder), [], "start"), ("sft",))
    path = folder / "ppo.toml"
    path.write_text(TOML.format(folder=folder), encoding="utf-8")
    return path


def run_ppo(config: Path, name: str, *settings: str) -> Path:
    """Run PPO alone, whatever becomes of it, and return the directory of the run."""
    loaded = load_config(config, list(settings), name)
    with suppress(UserError):  # an update that blows up
        run_stages(loaded, ("ppo",))
    return loaded.run_dir
