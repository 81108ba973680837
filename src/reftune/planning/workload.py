"""What a run has to do, counted in tokens: from its settings and its data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from reftune.config import Config
from reftune.model.prompts import Prompter
from reftune.problem import Problem
from reftune.stages.run import Run
from reftune.training.token_budget import token_budget

QUESTIONS = 512  # so many of a set stand for all of them


@dataclass(frozen=True, slots=True)
class Draw:
    """Questions that are answered in one go, each so many times."""

    questions: int
    samples: int
    response: float  # tokens, on average
    longest: int  # tokens that the longest response has
    prompt: float  # tokens, on average
    longest_prompt: int  # tokens
    learning: bool  # whether it is the model that learns

    @property
    def rows(self) -> int:
        """Return the number of responses."""
        return self.questions * self.samples


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a run's texts."""

    prompt: float  # mean
    longest_prompt: int
    response: float  # mean of annotated responses; where there are none, half of the limit
    longest_response: int  # the limit of sampled ones
    example: float  # mean of prompt and annotated response
    longest_example: int

    def draw(self, questions: int, samples: int = 1, *, learning: bool = True) -> Draw:
        """Return what it is to answer so many questions."""
        return Draw(
            questions, samples, self.response, self.longest_response, self.prompt, self.longest_prompt,
            learning=learning,
        )  # fmt: skip


def measure(prompter: Prompter, problems: Sequence[Problem], config: Config) -> Lengths:
    """Return the lengths of the first of these problems."""
    limit = config.prompt.max_new_tokens
    asked = list(problems[:QUESTIONS])
    prompts = [len(prompter.encode_prompt(problem)) for problem in asked]
    pairs = [prompter.encode_example(problem) for problem in asked if problem.chain]
    examples = [len(prompt) + len(response) for prompt, response in pairs if pairs]
    examples = [length for length in examples if length <= config.sft.max_tokens] or [0]
    # What a program's opening gives away is not sampled.
    given = fmean(prompts) - fmean(len(prompt) for prompt, _ in pairs) if pairs else 0.0
    response = fmean(len(response) for _, response in pairs) - given if pairs else limit / 2
    return Lengths(
        fmean(prompts), max(prompts), min(response, limit), limit, fmean(examples), max(examples)
    )


@dataclass(frozen=True, slots=True)
class StageWork:
    """What one stage does."""

    name: str
    steps: int  # optimizer steps, or those of sampling and learning
    learns: float = 0.0  # tokens per step that go forward and backward
    updates: int = 0  # optimizer steps in each step
    reads: float = 0.0  # tokens per step that only go forward
    reference: bool = False  # whether a frozen model reads, too
    draws: Draw | None = None  # of each step
    validates: Draw | None = None
    validations: int = 0
    microbatch: float = 0.0  # tokens in the largest micro-batch
    targets: float = 0.0  # of them, those whose logits are needed


def counts_of(run: Run) -> dict[str, int]:
    """Return how many problems of each kind, and how many models, a run has."""
    splits = run.splits
    return {
        "train": len(splits.train), "annotated": len(run.annotated),
        "validation": len(splits.validation), "test": len(splits.test),
        "models": len(run.config.lineup.models),
    }  # fmt: skip


def works(config: Config, lengths: Lengths, counts: Mapping[str, int]) -> list[StageWork]:
    """Return what each stage of a run does.

    Args:
        config: of the run.
        lengths: of its texts.
        counts: number of problems in "train", "annotated", "validation" and "test", and of "models".
    """
    found = []
    for stage in config.lineup.stages:
        name = stage.partition("/")[0]
        if name in ("sft", "offline_st", "reranker"):
            found.append(_epochs(stage, config, lengths, counts))
        elif name in ("ppo", "online_st"):
            found.append(_steps(stage, config, lengths, counts))
        else:
            found.append(_asking(stage, config, lengths, counts))
    return found


def _epochs(stage: str, config: Config, lengths: Lengths, counts: Mapping[str, int]) -> StageWork:
    name = stage.partition("/")[0]
    settings: Any = getattr(config, name)
    examples = counts["annotated"]
    if name == "offline_st":
        examples += counts["train"] * config.offline_st.keep
    if name == "reranker":
        examples = counts["train"] * config.warmup_samples.per_question
    per_epoch = math.ceil(examples / settings.batch_size)
    batch = min(settings.batch_size, examples)
    every = getattr(settings, "validate_every_epochs", 1)
    tries = config.sft.warmup_k if name == "sft" and config.sft.warmup_epochs == "auto" else 0
    largest = _microbatch(config, batch, lengths.longest_example)
    return StageWork(
        stage,
        steps=settings.epochs * per_epoch,
        learns=batch * lengths.example,
        updates=1,
        validates=lengths.draw(counts["validation"], 1 + tries) if name != "reranker" else None,
        validations=math.ceil(settings.epochs / every),
        microbatch=largest,
        targets=largest * (1 - lengths.prompt / max(1.0, lengths.example)),
    )


def _steps(stage: str, config: Config, lengths: Lengths, counts: Mapping[str, int]) -> StageWork:
    settings: Any = getattr(config, stage)
    samples = settings.samples_per_question
    rows = settings.questions_per_step * samples
    passes = settings.ppo_epochs if stage == "ppo" else settings.update_epochs
    # A question's prompt is read once for all its samples.
    distinct = settings.questions_per_step * lengths.prompt + rows * lengths.response
    # The reference, and the policy where the sampler's numbers are not the trainer's.
    models = 2 if has_own_critic(stage, config) else 1
    exact = config.model.dtype == "float32" and config.compute.sampler == "builtin"
    again = stage == "ppo" and not (exact and models == 1 and not config.ppo.async_rollouts)
    readers = has_reference(stage, config) + models * again
    padded = _microbatch(config, rows, lengths.longest_prompt + lengths.longest_response)
    share = distinct / (rows * (lengths.prompt + lengths.response))
    return StageWork(
        stage,
        steps=settings.steps,
        learns=passes * distinct * models,
        updates=passes * math.ceil(rows / (getattr(settings, "minibatch_size", None) or rows)),
        reads=distinct * readers,
        reference=has_reference(stage, config),
        draws=lengths.draw(settings.questions_per_step, samples),
        validates=lengths.draw(counts["validation"]),
        validations=math.ceil(settings.steps / settings.validate_every_steps),
        microbatch=padded * share,
        targets=padded * lengths.response / (lengths.prompt + lengths.response),
    )


def has_reference(stage: str, config: Config) -> bool:
    """Tell whether a stage has a frozen model beside the one that learns."""
    return stage == "ppo" and config.ppo.kl_coef > 0


def has_own_critic(stage: str, config: Config) -> bool:
    """Tell whether a stage's critic is a model of its own, which learns as the policy does."""
    return stage == "ppo" and config.model.value_model == "separate" and config.ppo.kind.critic


def _asking(stage: str, config: Config, lengths: Lengths, counts: Mapping[str, int]) -> StageWork:
    """Return the work of a stage that only answers: an evaluation, or warm-up samples."""
    test = stage == "evaluation"
    questions = counts["test"] if test else counts["train"] + counts["validation"]
    samples = 1 + config.evaluation.samples if test else config.warmup_samples.per_question
    draws = lengths.draw(questions, samples, learning=False)
    return StageWork(stage, steps=counts["models"] if test else 1, draws=draws)


def _microbatch(config: Config, rows: int, longest: int) -> float:
    """Return the padded tokens of the largest micro-batch (see `make_microbatches`)."""
    fits = max(1, token_budget(config.compute.tokens_per_microbatch) // max(1, longest))
    return min(rows, fits) * longest
