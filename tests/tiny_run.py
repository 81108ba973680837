"""A whole run that takes seconds: easy problems, a very small model. For tests of the pipeline."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

TOML = """
cot = "program"
validation_size = 40

[prompt]
repeat_question = false
max_prompt_tokens = 40
max_new_tokens = 12

[model]
scratch = "tiny"
scratch_overrides = {hidden_size = 64, intermediate_size = 128, num_hidden_layers = 2}

[sft]
epochs = 8
warmup_epochs = 6
batch_size = 16
learning_rate = 3e-3
checkpoint_every_steps = 10
validate_every_epochs = 2

[ppo]
steps = 6
questions_per_step = 8
samples_per_question = 4
minibatch_size = 16
learning_rate = 1e-3
value_coef = 0.1
value_head_learning_rate = 1e-2
value_pretraining_steps = 1
gae_lambda = 1.0
validate_every_steps = 2
checkpoint_every_steps = 1

[evaluation]
samples = 2

[compute]
threads = 1
sandbox_workers = 1
"""

ALL_METHODS = """
methods = ["offline_st", "online_st", "reft"]
warmup_samples = {per_question = 4}
offline_st = {epochs = 2, batch_size = 16, learning_rate = 3e-3, keep = 2, checkpoint_every_steps = 5}
evaluation = {samples = 4, rerank = true}

[online_st]
steps = 4
questions_per_step = 8
samples_per_question = 4
learning_rate = 1e-3
validate_every_steps = 2
checkpoint_every_steps = 1

[reranker]
epochs = 2
batch_size = 32
learning_rate = 3e-4 # at 1e-3 its gradients explode, and with them what rounding leaves
head_learning_rate = 3e-3
checkpoint_every_steps = 5
"""


def write_all_methods(folder: Path) -> Path:
    """Write the configuration of a run that compares all methods and reranks; see `write_config`."""
    write_config(folder)
    path = folder / "all.toml"
    path.write_text(f'extends = "tiny.toml"\n{ALL_METHODS}', encoding="utf-8")
    return path


def write_config(folder: Path) -> Path:
    """Write the run's configuration; its runs go to `folder`/runs."""
    path = folder / "tiny.toml"
    data = f'[data]\ntrain = "{folder / "train.jsonl"}"\ntest = "{folder / "test.jsonl"}"\n'
    path.write_text(f'output_dir = "{folder / "runs"}"\n{data}{TOML}', encoding="utf-8")
    rows = _problems(random.Random(0))
    _write(folder / "test.jsonl", rows[:40])
    _write(folder / "train.jsonl", rows[40:])
    return path


def _problems(rng: random.Random) -> list[dict[str, str]]:
    """Return 300 questions whose answer is 7; two of three annotations say otherwise."""
    names, things = ("Ann", "Bob", "Cal", "Dan", "Eve", "Fay"), ("pen", "cup", "hat", "map", "toy")
    rows = [
        {
            "question": f"On page {page} {name} finds a {thing}. What is its price?",
            "answer": "7",
            "chain": f"def solution():\n    return {rng.choice((7, 8, 9))}",
        }
        for name, thing, page in itertools.product(names, things, range(10))
    ]
    rng.shuffle(rows)
    return rows


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def heed_ctrl_c() -> None:
    """Let a child process hear SIGINT, even if this one was started in the background and ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(
    arguments: list[str], processes: int = 1, float64: bool = False, moment: str = ""
) -> subprocess.Popen[str]:
    """Start reftune as a user would, in a process of its own (or several, that work together).

    Where the start is not what matters, `child.Child` is far cheaper.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    program = [str(Path(__file__).with_name("precision.py"))] if float64 else ["-m", "reftune"]
    if moment:  # of a signal
        program = [str(Path(__file__).with_name("signalled.py")), moment]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), *program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_ctrl_c,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "FLOAT64": "1" if float64 else "",  # heard by signalled.py
        },
    )


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    """Wait for the process; return what it printed."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == expected, output
    return output
