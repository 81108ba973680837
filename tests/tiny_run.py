"""A whole run that takes seconds: easy problems, a very small model. For tests of the pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOML = """
[data]
cot = "program"
validation_size = 40

[data.synthetic]
min_events = 0
max_events = 0
people = 2
max_number = 9
distractors = 0.0
train_size = 240
test_size = 40

[prompt]
repeat_question = false
max_prompt_tokens = 80
max_new_tokens = 40

[model]
scratch = "tiny"
scratch_overrides = {hidden_size = 64, intermediate_size = 128, num_hidden_layers = 2}

[sft]
epochs = 3
warmup_epochs = 2
batch_size = 16
learning_rate = 3e-3
checkpoint_every_steps = 4

[ppo]
steps = 6
questions_per_step = 8
samples_per_question = 4
minibatch_size = 16
learning_rate = 2e-4
value_head_learning_rate = 1e-2
critic_warmup_steps = 1
gae_lambda = 1.0
validate_every_steps = 2
checkpoint_every_steps = 1

[evaluation]
samples = 2

[compute]
threads = 1
sandbox_workers = 1
"""


def write_config(folder: Path) -> Path:
    """Write the run's configuration; its runs go to `folder`/runs."""
    path = folder / "tiny.toml"
    path.write_text(f'output_dir = "{folder / "runs"}"\n{TOML}', encoding="utf-8")
    return path


def start(arguments: list[str], launcher: list[str] | None = None) -> subprocess.Popen[str]:
    """Start reftune as a user would, in a process of its own."""
    command = [sys.executable, *(launcher or []), "-m", "reftune", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    """Wait for the process; return what it printed."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == expected, output
    return output
