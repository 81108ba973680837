"""A run: its configuration with all that its stages share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator

from reftune.config import Config
from reftune.data.problems import Splits, load_splits
from reftune.grading.judge import Judge
from reftune.methods import directory_of
from reftune.model.loading import load_model, load_tokenizer
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.problem import Problem
from reftune.runs.run_dir import write_splits
from reftune.runs.setup import judge_of
from reftune.stages.stage import Stage


@dataclass
class Run:
    """A configuration with all that its stages share: data, judge, processes."""

    config: Config
    accelerator: Accelerator

    @cached_property
    def splits(self) -> Splits:
        """Load the problems once."""
        config = self.config
        splits = load_splits(config.data, config.seed, check_answers=config.reward.function is None)
        if self.accelerator.is_main_process:
            write_splits(config.run_dir / "data", splits)
        return splits

    @property
    def problems(self) -> list[Problem]:
        """Return the problems of all three splits."""
        return [*self.splits.train, *self.splits.validation, *self.splits.test]

    @property
    def annotated(self) -> list[Problem]:
        """Return the training problems that have a chain."""
        return [problem for problem in self.splits.train if problem.chain]

    @cached_property
    def judge(self) -> Judge:
        """Start the judge once; its sandbox ends with this process."""
        return judge_of(self.config, self.problems)

    def directory(self, model: str) -> Path:
        """Return where this run has written one of its models."""
        return self.config.run_dir / directory_of(model) / "model"

    def prompter(self, directory: Path) -> Prompter:
        """Return the prompter of a model directory that this run wrote."""
        return Prompter(load_tokenizer(directory), self.config.prompt, self.config.data.cot)

    def stage(self, name: str, prompter: Prompter, train: Sequence[Problem] | None = None) -> Stage:
        """Return a stage of this run; it trains on all training problems, or on `train`."""
        splits, problems = self.splits, self.splits.train if train is None else train
        return Stage(
            name, self.config, prompter, self.judge, problems, splits.validation, self.accelerator
        )

    def frozen(self, directory: Path) -> PolicyWithValue:
        """Load a model that is only read, to the device."""
        dtype = torch.bfloat16 if self.config.model.dtype == "bfloat16" else torch.float32
        model = load_model(directory, dtype).to(self.accelerator.device)
        return PolicyWithValue(model.eval().requires_grad_(False))
