"""A guess within a second or two of how long a run takes: from this machine's rates, without a trial."""

import time
from collections.abc import Callable, Sequence

import torch

from reftune.methods import BASE
from reftune.model.loading import training_dtype
from reftune.planning.pace import Card, Pace, assumed
from reftune.planning.shapes import Shape
from reftune.planning.workload import StageWork, counts_of, measure, works
from reftune.problem import UserError
from reftune.runs.run_dir import complete_checkpoints
from reftune.stages.run import Run

LEAST = 120.0  # seconds; below, what is not counted, such as starting, takes as long
TRIES = 4  # the fastest one counts: others may be at work beside it


def rough_seconds(run: Run, left: Sequence[str], shape: Shape | None) -> float | None:
    """Guess how long the stages that are left take, what their checkpoints have done subtracted.

    A model without known sizes and stages that take a minute or two tell nothing.

    Args:
        run: with its problems.
        left: its stages that are not finished.
        shape: the model's sizes.
    """
    config = run.config
    if shape is None:
        return None
    try:
        prompter = run.prompter(BASE)
    except UserError:  # whoever needs it says so
        return None
    card = measured_card(run.accelerator.device, training_dtype(config.model.dtype))
    pace = assumed(card, shape, config)
    lengths = measure(prompter, run.splits.train, config)
    found = [work for work in works(config, lengths, counts_of(run)) if work.name in left]
    seconds = sum(_seconds(run, work, pace) for work in found)
    return seconds if seconds >= LEAST else None


def _seconds(run: Run, work: StageWork, pace: Pace) -> float:
    saved = complete_checkpoints(run.config.run_dir / work.name)
    done = int(saved[-1].name.removeprefix("step-")) if saved else 0
    return pace.stage(work, run.config.compute.rows) * max(0.0, 1 - done / work.steps)


def measured_card(device: torch.device, dtype: torch.dtype) -> Card:
    """Return the machine at hand by its rates, from one matrix product and one pass over memory."""
    rate = matrix_rate(device, dtype)
    long = torch.ones(2**26, device=device)  # 256 MiB: larger than any cache, and there on any machine
    reading = _fastest(long.sum, device)
    return Card(0.0, rate / 1e12, long.nbytes / reading / 1e9, float32=1.0)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating point operations per second of a product of two square matrices."""
    size = 4096 if device.type == "cuda" else 1024
    square = torch.ones(size, size, device=device, dtype=dtype)
    return float(2 * size**3 / _fastest(lambda: square @ square, device))


def _fastest(act: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(TRIES):
        started = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
