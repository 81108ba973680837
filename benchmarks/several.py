"""(g) Several processes on one CPU: memory as planned and as measured, and tokens per second.

    python -m benchmarks.several [--sizes 0.6M 20M 135M] [--processes 1 2 4] [--keep]

Each line is a short run (SFT, then PPO) of a model with random weights, in one process, with whole
models in several (DDP), or with parts (FSDP2). Memory is the main process's peak. The processes share
the machine's cores, so that several are no faster than one here: it shows what sharing the work costs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from reftune.config.files import load_config
from reftune.model.scratch import train_tokenizer
from reftune.planning.memory import total
from reftune.planning.plan import calculate

FOLDER = Path("runs/several")
SIZES: dict[str, dict[str, int]] = {  # the last one is SmolLM2-135M's
    "0.6M": {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3,
             "num_attention_heads": 4, "num_key_value_heads": 2},
    "20M": {"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 10,
            "num_attention_heads": 6, "num_key_value_heads": 3},
    "135M": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
             "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
}  # fmt: skip
SETTINGS = """
[data]
train = "synthetic"
test = "synthetic"
cot = "program"
validation_size = 4
max_train = 8
max_test = 2
[prompt]
max_prompt_tokens = 500
max_new_tokens = 16
[sft]
epochs = 1
warmup_epochs = 1
batch_size = 4
checkpoint_every_steps = 1
[ppo]
steps = 2
questions_per_step = 2
samples_per_question = 4
validate_every_steps = 2
checkpoint_every_steps = 1
[evaluation]
samples = 0
[compute]
tokens_per_microbatch = 1024
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, run, and print both, for every size, number of processes and sharding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.6M", "20M"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--keep", action="store_true", help="the runs that are there already")
    given = parser.parse_args(arguments)
    print(
        "| model | processes | sharding | GiB: planned | measured | ratio | SFT tokens/s | PPO s/step |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for size in given.sizes:
        for processes in given.processes:
            for sharding in ("none", "fsdp2") if processes > 1 else ("none",):
                print(_row(size, processes, sharding, keep=given.keep), flush=True)


def _row(size: str, processes: int, sharding: str, *, keep: bool) -> str:
    config, name = _configuration(size), f"{size}-{processes}-{sharding}"
    place = FOLDER / name
    if not keep:
        shutil.rmtree(place, ignore_errors=True)
    words = [
        "launch",
        str(config),
        "--processes",
        str(processes),
        "--sharding",
        sharding,
        "--name",
        name,
    ]
    done = subprocess.run([sys.executable, "-m", "reftune", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    sft, ppo = (_metrics(place / stage) for stage in ("sft", "ppo"))
    measured = max(row["memory_gib"] for row in (*sft, *ppo))
    planned = _planned(config, name, processes, sharding)
    speed = median(row["tokens_per_second"] for row in sft[1:])
    step = median(row["seconds_sampling"] + row["seconds_update"] for row in ppo[1:])
    memory = f"{planned:.2f} | {measured:.2f} | {planned / measured:.2f}"
    return f"| {size} | {processes} | {sharding} | {memory} | {speed:,.0f} | {step:.2f} |"


def _planned(config: Path, name: str, processes: int, sharding: str) -> float:
    """Return the plan's GiB of training, from a process of its own, whose program counts."""
    code = (
        "from benchmarks.several import peak_of; import sys;"
        " print(peak_of(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))"
    )
    words = [str(config), name, str(processes), sharding]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def peak_of(config: str, name: str, processes: int, sharding: str) -> float:
    """Return the GiB of a process that SFT and PPO take by the plan."""
    settings, _, calculation = calculate(load_config(Path(config), [], name), None, processes, sharding)
    needs = [moments for work, moments in calculation.needs(settings) if work.learns]
    peak = max(total(items) for moments in needs for items in moments.values())
    return (calculation.machine.program + peak) / 2**30


def _configuration(size: str) -> Path:
    """Write a model with random weights, once, and the configuration of its runs."""
    model, path = FOLDER / "models" / size, FOLDER / f"{size}.toml"
    if not model.exists():
        logging.set_verbosity_error()
        tokenizer = train_tokenizer([SETTINGS, "def solution():\n    return 7\n"], 400)
        tokenizer.save_pretrained(model)
        ends = tokenizer.eos_token_id
        shape: dict[str, Any] = {**SIZES[size], "bos_token_id": ends, "eos_token_id": ends}
        LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **shape)).save_pretrained(model)
    path.write_text(
        f'output_dir = "{FOLDER}"\n{SETTINGS}\n[model]\nname = "{model}"\n', encoding="utf-8"
    )
    return path


def _metrics(stage: Path) -> list[dict[str, Any]]:
    text = (stage / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    main()
