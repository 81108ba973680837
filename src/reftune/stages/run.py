"""A run: its configuration with all that its stages share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedConfig

from reftune.config import Config
from reftune.data.problems import Splits, load_splits, require_same, write_splits
from reftune.grading.judge import Judge
from reftune.grading.rewards import OwnReward, RewardSpec, own_reward
from reftune.methods import BASE, MAIN, directory_of
from reftune.model.loading import (
    build_model,
    load_architecture,
    load_policy,
    load_tokenizer,
    make_policy,
    training_dtype,
)
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter, make_prompter
from reftune.model.wording import Wording
from reftune.problem import Problem, UserError
from reftune.runs.listener import Listener
from reftune.runs.run_dir import has_begun
from reftune.runs.setup import check_examples, check_prompts, judge_of, with_prompt
from reftune.stages.stage import Stage
from reftune.stages.warmup_choice import require_start


@dataclass
class Run:
    """A configuration with all that its stages share: data, judge, processes, models.

    `rewards` are the functions that a Python program gave for `reward.function`.
    """

    config: Config
    accelerator: Accelerator
    rewards: Sequence[RewardSpec] = ()
    listener: Listener | None = None

    @cached_property
    def splits(self) -> Splits:
        """Load the problems once.

        Raises UserError where the run, or the one that it starts from, has learnt from others.
        """
        config = self.config
        splits = load_splits(config.data, config.seed, check_answers=config.reward.grades_answers)
        if self.accelerator.is_main_process:
            if has_begun(config.run_dir):
                require_same(config.run_dir / "data", splits, ("train", "validation", "test"))
            if config.start_from is not None:
                require_same(Path(config.start_from) / "data", splits, ("train", "validation"))
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
    def reward(self) -> OwnReward | None:
        """Start the user's own reward once, where there is one; it ends with this process."""
        return own_reward(self.config.reward, self.rewards)

    @cached_property
    def judge(self) -> Judge:
        """Start the judge once; its sandbox ends with this process."""
        config = with_prompt(self.config, self.directory(self.config.lineup.start))
        return judge_of(config, self.problems, self.reward)

    def directory(self, model: str) -> Path:
        """Return where one of this run's models lies: its own ones, or the given one ("base")."""
        if model == BASE and self.config.model.name is not None:
            return Path(self.config.model.name)
        return self.config.run_dir / directory_of(model) / "model"

    def prompter(self, model: str) -> Prompter:
        """Return the prompter of one of this run's models."""
        config, given = self.config, self.config.model.eos_token
        tokenizer = load_tokenizer(self.directory(model), given if model == BASE else None)
        return make_prompter(tokenizer, config.prompt, config.data.cot, given)

    def stage(self, name: str, prompter: Prompter, train: Sequence[Problem] | None = None) -> Stage:
        """Return a stage of this run; it trains on all training problems, or on `train`."""
        splits, problems = self.splits, self.splits.train if train is None else train
        return Stage(
            name, self.config, prompter, self.judge, problems, splits.validation, self.accelerator,
            self.listener,
        )  # fmt: skip

    def load_policy(
        self, model: str, *, critic: bool = False, trainable: bool = False, placed: bool = True
    ) -> PolicyWithValue:
        """Load a model of this run: to train it, or just to read it, then on the device.

        `placed` off leaves it where it was read; the learner moves what it trains.
        """
        device = self.accelerator.device if placed and not trainable else None
        settings, directory = self.config.model, self.directory(model)
        return load_policy(
            directory, settings, critic=critic, trainable=trainable, lora=self.config.lora, device=device
        )

    def first_policy(
        self, *, critic: bool = False, trainable: bool = False
    ) -> tuple[PolicyWithValue, Prompter]:
        """Load the model that the methods start from: the warm-up, or the given one.

        Raises UserError where the warm-up has nothing to reinforce (`sft.warmup_gate`).
        """
        start = self.config.lineup.start
        if start == BASE:  # whose prompts no SFT stage has looked at
            return self.base_policy(critic=critic, trainable=trainable)
        require_start(self.config)
        return self.load_policy(start, critic=critic, trainable=trainable), self.prompter(start)

    def base_policy(
        self, *, critic: bool = False, trainable: bool = True
    ) -> tuple[PolicyWithValue, Prompter]:
        """Load the given model, or create a new one; refuse it where prompts or chains do not fit."""
        config = self.config
        wording = Wording(config.prompt, config.data.cot)
        texts = [text for problem in self.annotated for text in wording.pieces(problem)]
        named: torch.dtype = getattr(torch, config.model.dtype)
        dtype = training_dtype(config.model.dtype) if trainable else named
        model, tokenizer = build_model(config.model, texts, config.seed, dtype)
        prompter = make_prompter(tokenizer, config.prompt, config.data.cot, config.model.eos_token)
        check_prompts(prompter, self.problems, model)
        if config.sft.epochs or set(config.methods) - {MAIN}:  # else nobody reads them
            check_examples(prompter, self.annotated, model)
        device = None if trainable else self.accelerator.device
        policy = make_policy(
            model, config.model, critic=critic, trainable=trainable, lora=config.lora, device=device
        )
        return policy, prompter

    def base_architecture(self) -> tuple[PreTrainedConfig, Prompter]:
        """Return what the base model is made like, and its prompter, without its weights."""
        if self.config.model.name is not None:
            return load_architecture(self.config.model.name), self.prompter(BASE)
        policy, prompter = self.base_policy()
        return policy.policy.config, prompter

    def require(self, stages: Sequence[str]) -> None:
        """Raise UserError unless these stages are finished."""
        for stage in stages:
            if not (self.config.run_dir / stage / "result.json").exists():
                told = f"{self.config.run_dir}: stage {stage} must be finished first"
                raise UserError(f"{told}; `reftune run` runs all in order")
