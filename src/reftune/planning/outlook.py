"""What a run is about to do, in a few sentences before it begins."""

import math
from collections.abc import Sequence

import torch

from reftune.config import Config
from reftune.data.problems import Splits
from reftune.planning.machine import this_machine
from reftune.planning.shapes import Shape
from reftune.progress import duration


def outlook(
    config: Config,
    splits: Splits,
    device: torch.device,
    left: Sequence[str],
    done: Sequence[str],
    *,
    shape: Shape | None = None,
    seconds: float | None = None,
) -> list[str]:
    """Say where a run works, which stages are to come, on which questions, and with which model.

    Args:
        config: of the run.
        splits: its problems.
        device: where it runs.
        left: the stages that are to come.
        done: those that are finished.
        shape: the given model's sizes, as far as they are known.
        seconds: what the former take, as far as one can guess.
    """
    begins = f"{config.run_dir}: {'goes on' if done else 'begins'} with "
    sentences = [begins + ", ".join(_stage(stage, config, splits) for stage in left)]
    if done:
        sentences[0] += f"; finished: {', '.join(done)}"
    sentences.append(_questions(splits))
    if shape is not None:
        sentences.append(_model(config, shape, device))
    if seconds is not None:
        guess = f"about {duration(seconds, 2)}, guessed from this machine's rates"
        sentences.append(f"{guess}; `reftune plan` tries the model, and tells memory and time")
    return sentences


def _stage(stage: str, config: Config, splits: Splits) -> str:
    name = stage.partition("/")[0]
    if config.start_from is not None and name in ("sft", "warmup_samples"):
        return f"{stage} (that of {config.start_from}, where it has one)"
    if name == "sft":
        annotated = sum(problem.chain is not None for problem in splits.train)
        steps = config.sft.epochs * math.ceil(annotated / config.sft.batch_size)
        return f"{stage} ({_counted(steps, 'step')})"
    if name in ("ppo", "online_st"):
        return f"{stage} ({_counted(getattr(config, name).steps, 'step')})"
    if name == "evaluation":
        return f"{stage} ({_counted(len(config.lineup.models), 'model')})"
    return stage


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _questions(splits: Splits) -> str:
    report = splits.report
    sentence = (
        f"{len(splits.train):,} questions to train on, {len(splits.validation):,} for validation,"
        f" {len(splits.test):,} to test on"
    )
    left_out = [
        f"{count:,} {what}"
        for count, what in ((report.duplicates, "repeated"), (report.overlaps, "of the test set"))
        if count
    ]
    return f"{sentence}; left out of training: {', '.join(left_out)}" if left_out else sentence


def _model(config: Config, shape: Shape, device: torch.device) -> str:
    trained = "all of them trained"
    if shape.adapted:
        trained = f"{shape.trained / 1e6:,.1f} million trained in an adapter of rank {config.lora.rank}"
    return (
        f"{config.model.name}: {shape.weights / 1e6:,.1f} million parameters in {config.model.dtype},"
        f" {trained}, on {this_machine(device).name}"
    )
