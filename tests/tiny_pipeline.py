"""A run of nine problems whose tiny models can be told apart, for tests of what the stages share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from reftune.config import Config
from reftune.data.problems import write_problems
from reftune.files import write_jsonl
from reftune.model.policy import PolicyWithValue
from reftune.model.scratch import new_model
from reftune.problem import Problem, Verdict
from tiny_stage import NORM, OneOf

TINY = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
# One has no chain. By the hashes of seed 42 q1 and q2 are for validation, by those of seed 7 q2 and q4.
PROBLEMS = [
    Problem(f"q{i}", f"How many are {i}?", f"{i}", None if i == 3 else f"Apples: {i}.") for i in range(6)
]
TESTS = [Problem(f"x{i}", f"Which is {i}?", f"{i}") for i in range(3)]
TRAINED_ON, VALIDATED_ON, TESTED_ON = ["q0", "q3", "q4", "q5"], ["q1", "q2"], ["x0", "x1", "x2"]

# Every model of a run: its directory, and the number that fills its last norm.
DIRECTORIES = {
    "warmup": "warmup", "sft": "sft", "offline_st": "offline_st", "online_st": "online_st", "reft": "ppo"
}  # fmt: skip
MARKS = {"warmup": 2.0, "sft": 3.0, "offline_st": 4.0, "online_st": 5.0, "reft": 6.0}
DRAWN: dict[str, Any] = {"status": "ok", "correct": True, "count": 1}
SAMPLES = [
    {"id": id_, "completion": text, **DRAWN} for id_, text in (("q4", "one"), ("q1", "a"), ("q4", "b"))
]


def make_config(folder: Path, *methods: str, **changes: Any) -> Config:
    """Return a run of these methods on PROBLEMS and TESTS, which are written into `folder`."""
    folder.mkdir(exist_ok=True)
    write_problems(folder / "train.jsonl", PROBLEMS)
    write_problems(folder / "test.jsonl", TESTS)
    data = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    settings: dict[str, Any] = {
        "output_dir": str(folder), "methods": list(methods),
        "data": {**data, "cot": "natural", "validation_size": 2},
        "prompt": {"trigger": " so ", "max_new_tokens": 4},
        "model": {"scratch": "tiny", "scratch_overrides": TINY, "vocab_size": 300},
        "evaluation": {"bootstrap": 100},
        "compute": {"threads": 1, "sampler_rows": 7, "tokens_per_microbatch": 99},
    }  # fmt: skip
    return Config.model_validate(settings | changes)


def with_model(config: Config, **changes: Any) -> Config:
    """Return the same run with other settings of its model."""
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


def write_models(config: Config) -> None:
    """Write every model of a run, each with weights of its own, and some warm-up samples."""
    for name, number in MARKS.items():
        model, tokenizer = new_model(config.model, ["How many are it?"], seed=int(number))
        assert isinstance(model, LlamaForCausalLM)
        with torch.no_grad():
            for parameter in model.parameters():  # far from zero, so that greedy answers differ
                parameter += 0.5 * torch.randn_like(parameter)
            model.get_parameter(NORM).fill_(number)
        for part in (model, tokenizer):
            part.save_pretrained(config.run_dir / DIRECTORIES[name] / "model")
    write_jsonl(config.run_dir / "warmup_samples/samples.jsonl", SAMPLES)


def weights_of(policy: PolicyWithValue) -> dict[str, torch.Tensor]:
    """Return a copy of the language model's weights as they are now."""
    return {name: value.detach().clone() for name, value in policy.policy.named_parameters()}


def ids(problems: Any) -> list[str]:
    return [problem.id for problem in problems]


def judge_nothing(*_: object) -> list[Verdict]:
    return []


class Device(OneOf):
    """The only process, on a device that holds no numbers, so that every machine has it."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    @property
    def device(self) -> torch.device:
        return torch.device("meta")
