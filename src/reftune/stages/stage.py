"""What every training stage works with, and what the stages that sample do around their steps."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from reftune.config import Config, Epochs, Steps
from reftune.evaluation.doctor.diagnosis import Watch
from reftune.evaluation.doctor.windows import in_order, settings_of
from reftune.files import atomic_directory, read_rows, write_json
from reftune.grading.judge import Judge
from reftune.interrupts import check
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter, trained_at
from reftune.model.saving import save_generation, save_policy, whole_weights
from reftune.model.sharding import shard
from reftune.problem import Problem, Row
from reftune.progress import counting
from reftune.runs.checkpoints import remove_checkpoints
from reftune.runs.listener import Listener
from reftune.runs.processes import by_main
from reftune.runs.run_log import RunLog
from reftune.runs.setup import sharding
from reftune.stages.steps import EndStep, Loop, Metrics, State, TakeStep
from reftune.training.first_prompts import check_first_prompts
from reftune.training.learner import Learner, online_schedule
from reftune.training.microbatches import shuffled, turns
from reftune.training.optimizer import make_optimizer
from reftune.training.rollouts import Generator, accuracy, make_generator
from reftune.training.token_budget import token_budget
from reftune.training.types import GradedSample

# Get the step's number (from 1), and what the method remembers from step to step: its own, as JSON.
OnlineStep = Callable[[int, dict[str, Any]], tuple[Metrics, Sequence[GradedSample]]]
RESULT_KEYS = ("best_validation_accuracy", "seconds")


_order = lru_cache(maxsize=16)(shuffled)  # a batch asks for the same ones again and again


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its name, which is that of its directory, and all that it works with."""

    name: str
    config: Config
    prompter: Prompter
    judge: Judge
    train: Sequence[Problem]
    validation: Sequence[Problem]
    accelerator: Accelerator
    listener: Listener | None = None

    @property
    def directory(self) -> Path:
        """Return where metrics, checkpoints, the model and `result.json` go."""
        return self.config.run_dir / self.name

    @property
    def token_budget(self) -> int:
        """Return how many padded tokens are read at once."""
        return token_budget(self.config.compute.tokens_per_microbatch)

    def log(self, total: int, done: int) -> RunLog:
        """Return the stage's log, of which `done` of `total` steps were made before."""
        watch = self._watch() if self.name == "ppo" else None
        return RunLog(self.directory, self.accelerator, self.name, total, done, self.listener, watch)

    def _watch(self) -> Callable[[Row], Iterable[object]] | None:
        """Return what says of each step what is wrong, and has said so before an interruption."""
        if not self.accelerator.is_main_process:
            return None
        path = self.directory / "metrics.jsonl"
        before = [row for _, row in read_rows(path, bad=[])] if path.exists() else []
        return Watch(in_order(before), settings_of(self.config.model_dump())).hear

    def learner(
        self, model: torch.nn.Module, settings: Epochs | Steps, head_learning_rate: float | None = None
    ) -> Learner:
        """Return what takes the optimizer steps of a section of settings, within this machine's budget.

        Args:
            model: what is trained; it goes to the device, or a part of it to each process's.
            head_learning_rate: of a critic or classifier; default: the model's.
        """
        compute, kind = self.config.compute, self.config.model.optimizer
        if sharding(self.config, self.accelerator) == "none":
            model.to(self.accelerator.device)
        else:
            shard(model, self.accelerator.device)
        rates = (settings.learning_rate, settings.weight_decay, head_learning_rate)
        optimizer = make_optimizer(model, *rates, kind)
        norm = settings.max_grad_norm
        return Learner(
            model, optimizer, self.accelerator, self.token_budget, norm,
            gradient_checkpointing=compute.gradient_checkpointing,
        )  # fmt: skip

    def generator(self, policy: PolicyWithValue) -> Generator:
        """Return a generator that samples from `policy`; raise UserError where it does so wrongly."""
        compute = self.config.compute
        generator = make_generator(policy, self.prompter, self.judge, self.accelerator, compute)
        check_first_prompts(generator, policy, self.train)
        return generator

    def rate_factor(self, settings: Steps, step: int, rest: int = 0) -> float:
        """Return the factor of an online stage's learning rate, 0 in its first `rest` steps."""
        if step <= rest:
            return 0.0
        falling = settings.lr_schedule == "linear"
        return online_schedule(
            step - rest, settings.steps - rest, settings.lr_warmup_steps, falling=falling
        )

    def validate(self, generator: Generator) -> float:
        """Return the greedy accuracy on the validation questions."""
        key = (self.config.seed, "validation")
        with counting("validation"):
            return accuracy(generator.generate(self.validation, 1, 0.0, key=key))

    def questions(self, step: int, count: int) -> list[Problem]:
        """Return the questions of step `step` (from 1): endless shuffled passes, cut into batches."""
        return self.questions_from((step - 1) * count, count)

    def questions_from(self, first: int, count: int) -> list[Problem]:
        """Return `count` questions of endless shuffled passes, from number `first` (from 0) on.

        With `data.mixture` each source has passes of its own, and `turns` says whose question comes
        next: of all questions up to any one, each source has its share of the weights, whatever its
        size. As everything else that is drawn, this depends on the seed and the number alone.
        """
        last, weights = first + count, self.config.data.mixture
        parts = {s: part for s in weights if (part := [p for p in self.train if p.source == s])}
        if not parts:  # one source
            return [self._in_pass(self.train, position) for position in range(first, last)]
        names = list(parts)
        order = turns(tuple(weights[name] for name in names), 1 << last.bit_length())
        return [self._in_pass(parts[names[k]], nth, names[k]) for k, nth in order[first:last]]

    def _in_pass(self, problems: Sequence[Problem], position: int, *source: str) -> Problem:
        """Return the problem at a position of endless shuffled passes."""
        number, place = divmod(position, len(problems))
        return problems[_order(len(problems), self.config.seed, "questions", *source, number)[place]]

    def run_steps(
        self, total: int, checkpoint_every: int, start: State, take_step: TakeStep, end_step: EndStep
    ) -> State:
        """Take `total` steps; go on from the newest checkpoint if there is one.

        Args:
            checkpoint_every: steps between two checkpoints; none is written after the last one.
            start: what the state holds before the first step, beside `step` and `seconds`.
            take_step, end_step: train and validate; see `stages.steps`.

        Returns the state after the last step.
        """
        compute, given = self.config.compute, (self.accelerator, self.directory, total, checkpoint_every)
        loop = Loop(*given, 60 * compute.checkpoint_every_minutes, compute.checkpoints_kept)
        state = loop.begin({"seconds": 0.0, **start})
        self._know_export(state)
        with self.log(total, state["step"]) as log:
            if state["step"]:
                log.say(f"{self.name}: goes on behind step {state['step']} of {total}")
            loop.run(state, log, take_step, end_step)
        return state

    def run_online(
        self, settings: Steps, policy: PolicyWithValue, generator: Generator, take_step: OnlineStep
    ) -> dict[str, Any]:
        """Take the steps of an online method; return what is also written to `result.json`.

        Before each step the sampler takes over the policy's weights. Every `validate_every_steps` and
        after the last step the policy is validated, and the best one is kept.
        """

        def take(step: int, state: State) -> tuple[Metrics, Sequence[GradedSample]]:
            generator.update_weights(policy)
            metrics, samples = take_step(step, state.setdefault("memory", {}))
            return metrics, samples[: settings.samples_logged_per_step]

        def validate(step: int, state: State) -> Metrics:
            if step % settings.validate_every_steps and step != settings.steps:
                return {}
            generator.update_weights(policy)
            solved = self.validate(generator)
            self.keep_best(policy, state, "step", step, solved)
            return {"validation_accuracy": solved}

        every, start = settings.checkpoint_every_steps, {"best_validation_accuracy": -1.0}
        state = self.run_steps(settings.steps, every, start, take, validate)
        return self.finish({key: state[key] for key in ("best_step", *RESULT_KEYS)})

    def keep_best(
        self, policy: PolicyWithValue, state: State, unit: str, number: int, solved: float
    ) -> None:
        """Export the model if it is the best so far; `number` of `unit` is where it stands."""
        if solved > state["best_validation_accuracy"]:
            state |= {"best_validation_accuracy": solved, f"best_{unit}": number}
            trained = {unit: number, "validation_accuracy": solved}
            self.export(policy, self.directory / "model", **trained)

    def _know_export(self, state: State) -> None:
        """Let the state know a model that was exported after its checkpoint, if it is better.

        Where steps do not repeat bit for bit, that model may come from steps that will not come again.
        """
        trained = by_main(self.accelerator, lambda: trained_at(self.directory / "model"))
        if trained.get("validation_accuracy", -1.0) > state.get("best_validation_accuracy", math.inf):
            state["best_validation_accuracy"] = trained["validation_accuracy"]
            state |= {f"best_{unit}": trained[unit] for unit in ("epoch", "step") if unit in trained}

    def export(self, policy: PolicyWithValue, target: Path, **trained: float) -> None:
        """Write a model directory that is there as a whole or not at all (main process).

        Args:
            trained: what else the directory says of the model: its `epoch` or `step`, and
                `validation_accuracy`.
        """
        weights = whole_weights(policy, keep=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            with atomic_directory(target) as directory:
                dtype = self.config.model.dtype
                save_policy(policy, directory, dtype, weights)
                save_generation(policy.policy, self.prompter, directory)
                self.prompter.save(directory, {"stage": self.name, **trained}, dtype)
        self.accelerator.wait_for_everyone()

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write `result.json`, which makes the stage a finished one, and return what it holds."""
        if self.accelerator.is_main_process:
            write_json(self.directory / "result.json", result)
            remove_checkpoints(self.directory)
        self.accelerator.wait_for_everyone()
        check()  # a signal that came after the last step
        return dict(result)
