"""The one loop over steps that all stages take: log, time, checkpoints, and ends that lose nothing."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from reftune.interrupts import Stopped, deferred, received, stop
from reftune.runs.checkpoints import load_checkpoint, save_checkpoint
from reftune.runs.run_log import RunLog
from reftune.training.rollouts import graded_rows
from reftune.training.types import GradedSample

State = dict[str, Any]  # where a stage is; part of its checkpoints
Metrics = dict[str, Any]
# Get the step's number (from 1) and the state, which they may change. The first trains the model, and
# returns the step's metrics and the samples that are logged with it; the second validates it where that
# is due, and changes the state only when it is done.
TakeStep = Callable[[int, State], tuple[Metrics, Sequence[GradedSample]]]
EndStep = Callable[[int, State], Metrics]

LEARNT = "learnt"  # in a state: what a step has found whose validation was broken off


@dataclass
class Loop:
    """The steps of one stage, from where it stands.

    Args:
        directory: of the stage.
        total: steps of the whole stage.
        every: steps between two checkpoints; none is written after the last one.
        seconds: time after which a checkpoint is written, whatever the steps say; 0: never.
        keep: how many checkpoints stay.
    """

    accelerator: Accelerator
    directory: Path
    total: int
    every: int
    seconds: float
    keep: int = 2
    saved: float = 0.0  # when the last checkpoint was, or the beginning
    kept: int = 0  # its number, or that of the one that was loaded

    def begin(self, start: State) -> State:
        """Load the newest checkpoint and return its state, or `start` if there is none."""
        state = load_checkpoint(self.accelerator, self.directory) or {"step": 0, **start}
        self.kept = state["step"]
        if LEARNT in state:
            state["step"] -= 1  # it is not finished
        return state

    def run(self, state: State, log: RunLog, take_step: TakeStep, end_step: EndStep) -> None:
        """Take the steps that are left.

        A signal lets the step finish that is training, and breaks off what only reads (see
        `interrupts`). Then a checkpoint is written, and `Stopped` raised.
        """
        self.saved = time.monotonic()
        with deferred():
            try:
                for step in range(state["step"] + 1, self.total + 1):
                    _take(step, state, log, take_step, end_step)
                    self._keep(step, state)
            except Stopped:
                self._save(state)
                raise

    def _keep(self, step: int, state: State) -> None:
        """Write a checkpoint after a step where it is due; end if a signal asks for it."""
        overdue = bool(self.seconds) and time.monotonic() - self.saved >= self.seconds
        signal, overdue = _agree(self.accelerator, received(), overdue)
        if step < self.total and (step % self.every == 0 or overdue):
            self._save(state)
        if signal:
            stop(signal)

    def _save(self, state: State) -> None:
        """Write a checkpoint of a state, unless it is there already, or nothing has been done yet."""
        number = state["step"] + (LEARNT in state)
        if number != self.kept:
            save_checkpoint(self.accelerator, self.directory, number, state, self.keep)
        self.saved, self.kept = time.monotonic(), number


def _take(step: int, state: State, log: RunLog, take_step: TakeStep, end_step: EndStep) -> None:
    """Take one step, or the rest of it, and log it."""
    if LEARNT not in state:
        started = time.perf_counter()
        metrics, samples = take_step(step, state)
        state["seconds"] += time.perf_counter() - started
        state[LEARNT] = {"metrics": metrics, "samples": graded_rows(samples)}
    started = time.perf_counter()
    found = end_step(step, state)
    seconds = time.perf_counter() - started
    state["seconds"] += seconds
    metrics = state[LEARNT]["metrics"] | found | ({"seconds_validation": seconds} if found else {})
    samples = state.pop(LEARNT)["samples"]
    if samples:
        log.samples(step, samples)
    log.metrics(step, {**metrics, "memory_gib": _peak_memory(), "seconds": state["seconds"]})
    state["step"] = step


def _peak_memory() -> float:
    """Return the most that this process has held so far, in GiB: of a GPU's memory, or of the CPU's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _agree(accelerator: Accelerator, signal: int, overdue: bool) -> tuple[int, bool]:
    """Return a signal that any process has got, and whether the main one finds a checkpoint due."""
    if accelerator.num_processes == 1:
        return signal, overdue
    told = accelerator.gather(torch.tensor([[signal, int(overdue)]], device=accelerator.device))
    return int(told[:, 0].max()), bool(told[0, 1])
