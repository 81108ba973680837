"""What a run is about to do, in a few sentences before it begins."""

import math
from collections.abc import Sequence

import torch

from reftune.config import Config
from reftune.data.problems import Splits
from reftune.model.loading import load_architecture
from reftune.planning.machine import this_machine
from reftune.planning.shapes import shape_of
from reftune.progress import duration


def outlook(
    config: Config,
    splits: Splits,
    device: torch.device,
    left: Sequence[str],
    done: Sequence[str],
    seconds: float | None = None,
) -> list[str]:
    """Say where a run works, which stages are to come, on which questions, and with which model.

    Args:
        config: of the run.
        splits: its problems.
        device: where it runs.
        left: the stages that are to come.
        done: those that are finished.
        seconds: what the former take, as far as one can guess.
    """
    begins = f"{config.run_dir}: {'goes on' if done else 'begins'} with "
    sentences = [begins + ", ".join(_stage(stage, config, splits) for stage in left)]
    if done:
        sentences[0] += f"; finished: {', '.join(done)}"
    sentences.append(_questions(splits))
    if told := _model(config, device):
        sentences.append(told)
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
        return f"{stage} ({config.sft.epochs * math.ceil(annotated / config.sft.batch_size):,} steps)"
    if name in ("ppo", "online_st"):
        return f"{stage} ({getattr(config, name).steps:,} steps)"
    if name == "evaluation":
        return f"{stage} ({len(config.lineup.models)} models)"
    return stage


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


def _model(config: Config, device: torch.device) -> str | None:
    """Describe a given model; a new one, and one of a kind that cannot be built, tell nothing yet."""
    if config.model.name is None:
        return None
    try:
        shape = shape_of(load_architecture(config.model.name), config, activations=False)
    except Exception:  # whoever loads it says what is wrong
        return None
    trained = "all of them trained"
    if shape.adapted:
        trained = f"{shape.trained / 1e6:,.1f} million trained in an adapter of rank {config.lora.rank}"
    return (
        f"{config.model.name}: {shape.weights / 1e6:,.1f} million parameters in {config.model.dtype},"
        f" {trained}, on {this_machine(device).name}"
    )
