"""A stage without a run: a tiny model, a judge that follows a script, a clock, other processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from reftune.config import Config, Data, Model, Prompt
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.model.scratch import train_tokenizer
from reftune.problem import Problem, Verdict
from reftune.stages.stage import Stage
from tiny_models import tiny_model

VOCAB = 300
TOKENIZER = train_tokenizer(["what is it? Question: Answer reasoning: it is"], VOCAB)
PROMPTER = Prompter(TOKENIZER, Prompt(template="{question}", trigger=":", max_new_tokens=2), "natural")
TRAIN = [Problem(f"t{i}", f"what is {i}?", str(i), "it is") for i in range(5)]
VALIDATION = [Problem(f"v{i}", f"what is {i}{i}?", str(i), "it is") for i in range(4)]
NORM = "model.norm.weight"  # a parameter that tests write their marks into


class Clock:
    """Stands for the module `time`: a second passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


class ScriptedJudge:
    """Call so many completions right, call by call; remember the questions and what was generated."""

    def __init__(self, *right: int) -> None:
        self.right = list(right)
        self.asked: list[list[str]] = []

    def __call__(self, problems: Sequence[Problem], *_: object) -> list[Verdict]:
        self.asked.append(sorted(problem.id for problem in problems))
        count = self.right.pop(0)
        return [Verdict("ok", None, i < count, float(i < count)) for i in range(len(problems))]


class OneOf(Accelerator):  # type: ignore[misc]
    """One of several processes, as far as code that shares work out can tell."""

    def __init__(self, index: int, count: int) -> None:
        super().__init__(cpu=True)
        self.index, self.count, self.waits, self.reduced = index, count, 0, 0

    @property
    def process_index(self) -> int:
        return self.index

    @property
    def num_processes(self) -> int:
        return self.count

    @property
    def is_main_process(self) -> bool:
        return self.index == 0

    def wait_for_everyone(self) -> None:
        self.waits += 1

    def reduce(self, tensor: Tensor, reduction: str = "mean", scale: float = 1.0) -> Tensor:
        assert (reduction, scale) == ("sum", 1.0)
        self.reduced += 1
        return tensor


def look_oneself(accelerator: Accelerator, look: Callable[[], Any]) -> Any:
    """Stand for `by_main` where no other process is there to tell or to hear."""
    accelerator.wait_for_everyone()
    return look()


def make_policy(seed: int = 0, critic: str = "none", **changes: Any) -> PolicyWithValue:
    return PolicyWithValue(tiny_model(seed=seed, vocab_size=VOCAB, **changes), critic)


def make_stage(
    folder: Path,
    name: str = "sft",
    judge: ScriptedJudge | None = None,
    accelerator: Accelerator | None = None,
    **sections: Any,
) -> Stage:
    """Return a stage of a run in `folder`/run; `sections` are those of the configuration."""
    config = Config(
        output_dir=str(folder), model=Model(scratch="tiny"), data=Data(cot="natural"), **sections
    )
    everything = (PROMPTER, judge or ScriptedJudge(), TRAIN, VALIDATION)
    return Stage(name, config, *everything, accelerator or Accelerator(cpu=True))


def mark(policy: PolicyWithValue, number: float) -> None:
    """Make a policy one that can be told from others."""
    with torch.no_grad():
        policy.policy.get_parameter(NORM).fill_(number)


def mark_of(directory: Path) -> float:
    """Return the mark of a policy whose model directory this is."""
    return float(load_file(directory / "model.safetensors")[NORM][0])
