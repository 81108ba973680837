"""(h) Growth: what `reftune plan` says of larger models on more GPUs than anybody has at hand.

    python -m benchmarks.growth [--gpu h100] [--gpus 1 8 64]

Memory and time of SFT (3 epochs) and 100 steps of PPO on texts of about GSM8K's lengths: 7,000 questions
to train on, 64 questions x 8 samples a step. Nothing is run: the sizes are those of Qwen2.5's
configurations, and what is assumed of time stands below the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import Qwen2Config

from reftune.config import Config
from reftune.planning.fitting import with_choices
from reftune.planning.machine import named_machine
from reftune.planning.memory import total
from reftune.planning.pace import DECODING_SHARE, TRAINING_SHARE, assumed
from reftune.planning.plan import Calculation, find_cures, planned
from reftune.planning.sharing import BETWEEN, GPUS_EACH, WITHIN, with_sharding
from reftune.planning.workload import Lengths

MODELS: dict[str, dict[str, Any]] = {
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
             "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
             "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
           "tie_word_embeddings": False},
}  # fmt: skip
LENGTHS = Lengths(
    prompt=120.0, longest_prompt=300, response=150.0, longest_response=512, example=270.0,
    longest_example=700,
)  # fmt: skip
COUNTS = {"train": 7000, "annotated": 7000, "validation": 300, "test": 1319, "models": 3}
SETTINGS: dict[str, Any] = {
    "model": {"name": "given", "dtype": "bfloat16"},
    "prompt": {"max_new_tokens": 512},
    "sft": {"epochs": 3, "warmup_epochs": 1, "batch_size": 64},
    "ppo": {"steps": 100, "questions_per_step": 64, "samples_per_question": 8},
    "compute": {"gradient_checkpointing": True},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each model and number of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8, 64])
    given = parser.parse_args(arguments)
    print("| model | GPUs | sharding | GiB of each | fullest | SFT step | PPO step | run | |")
    print("|---|---:|---|---:|---|---:|---:|---:|---|")
    for model in MODELS:
        for gpus in given.gpus:
            print(_row(model, given.gpu, gpus), flush=True)
    card = named_machine(given.gpu).card
    assert card is not None
    print(
        f"\nAssumed: {card.tflops:g} TFLOP/s of which an update reaches {TRAINING_SHARE:.0%},"
        f" {card.bandwidth:g} GB/s of which a decoding step reaches {DECODING_SHARE:.0%}; between GPUs"
        f" {WITHIN / 1e9:g} GB/s on a machine of {GPUS_EACH}, {BETWEEN / 1e9:g} GB/s beyond, nothing of"
        " it hidden behind computing."
    )


def _row(model: str, gpu: str, gpus: int) -> str:
    machine = replace(named_machine(gpu), processes=gpus)
    calculation = Calculation(Qwen2Config(**MODELS[model]), LENGTHS, COUNTS, machine)
    config = Config.model_validate(SETTINGS)
    shape = calculation.shape(config)
    config = with_sharding(config, None, shape, machine)
    config = with_choices(config, config.lineup.stages, shape, machine)
    assert machine.card is not None
    pace = assumed(machine.card, shape, config)
    stages = [planned(work, moments, pace, calculation, config)
              for work, moments in calculation.needs(config)]  # fmt: skip
    fullest = max(stages, key=lambda stage: total(stage.items))
    peak = total(fullest.items) + machine.program
    steps = {stage.work.name: stage.step_seconds or 0.0 for stage in stages}
    hours = sum(stage.seconds or 0.0 for stage in stages) / 3600
    cures = [] if peak <= machine.share else find_cures(config, calculation.peak, machine)
    told = "" if peak <= machine.share else f"does not fit; with {', '.join(cures)}" if cures else "no"
    return (
        f"| {model} | {gpus} | {config.compute.sharding} | {peak / 2**30:.1f} |"
        f" {fullest.work.name}, {fullest.fullest} | {steps['sft']:.2f} s | {steps['ppo']:.1f} s |"
        f" {hours:.1f} h | {told} |"
    )


if __name__ == "__main__":
    main()
