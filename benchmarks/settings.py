"""(f) Settings: micro-batches, CPU threads and rows of the sampler, each at several values.

    python -m benchmarks.settings [--model-size 135m --questions 8 --rounds 1]

Each value gets a process of its own, one after the other, and a turn to warm up. The real model's own
default of 2 questions fills no large batch: give it 8 or more, and time.

- Update: tokens per second of one pass over responses (the model's own; with the real model as long as
  SVAMP's programs), over `compute.tokens_per_microbatch`, and on a CPU with one or two replicas of the
  model that share the threads (`training/cpu_threads.py`).
- Sampling: tokens per second over `compute.sampler_rows`, up to the number of responses.
- Prefill: prompt tokens per second over `shared_prefix.PREFILL_TOKENS`.

Recommended is the smallest value that is within 3% of the fastest: smaller ones take less memory. What
one padded token of a micro-batch takes is the slope of the peak memory, up to where a micro-batch holds
the whole batch; from that and the free memory the last line says what `training/token_budget.py` would
choose.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.contest import (
    REAL,
    Contestant,
    Options,
    Spread,
    Turns,
    compete,
    parse_options,
    speed,
    spread,
)
from benchmarks.update import make_experience, reftune_update
from benchmarks.workload import described, open_workload, repeated, sample
from reftune.heap import keep_freed_memory
from reftune.training.cpu_threads import CpuThreads
from reftune.training.token_budget import token_budget

MICROBATCHES = (256, 512, 1024, 2048, 4096, 8192)
ROWS = (16, 32, 64, 128, 256, 512)
PREFILL = (512, 1024, 2048, 4096, 8192, 16384)
NEARLY = 0.97  # of the fastest


@dataclass(frozen=True)
class Measured:
    """One value of a setting and what it gave."""

    value: int
    rate: Spread  # per second: median, lowest, highest
    peak_mb: float

    @property
    def row(self) -> str:
        """Return a row of a Markdown table."""
        middle, low, high = self.rate
        return f"| {self.value} | {middle:,.0f} | {low:,.0f}-{high:,.0f} | {self.peak_mb:,.0f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure value after value; print a table of each setting and the recommended values."""
    options = parse_options(__doc__ or "", arguments)
    print(f"{described(options)}\n", flush=True)
    updates = {}
    for replicas in (1, 2) if options.device == "cpu" and options.dtype == "float32" else (1,):
        options.replicas = replicas
        title = f"compute.tokens_per_microbatch, {replicas} replica{'s' if replicas > 1 else ''}"
        updates[replicas] = _measure(title, updating, _of(MICROBATCHES, options), options)
    best = max(updates, key=lambda count: recommended(updates[count]).rate[0])
    rows = [n for n in ROWS if n < 2 * options.questions * options.samples] or ROWS[:1]
    sampler_rows = _measure("compute.sampler_rows", sampling, _of(rows, options), options)
    prefill = _measure("shared_prefix.PREFILL_TOKENS", prefilling, _of(PREFILL, options), options)
    print(f"Recommended: compute.tokens_per_microbatch = {recommended(updates[best]).value}"
          f" with {best} replica(s), compute.sampler_rows = {recommended(sampler_rows).value},"
          f" PREFILL_TOKENS = {recommended(prefill).value}.\n")  # fmt: skip
    print(f"{chosen(updates[best], best, options)}\n", flush=True)


def recommended(measured: Sequence[Measured]) -> Measured:
    """Return the smallest value that is nearly as fast as the fastest."""
    fastest = max(each.rate[0] for each in measured)
    return next(each for each in measured if each.rate[0] >= NEARLY * fastest)


def bytes_per_token(measured: Sequence[Measured]) -> float:
    """Return the slope of the peak memory, in bytes, from the smallest value to the first highest."""
    if len(measured) < 2:
        return 0.0
    first, most = measured[0], max(each.peak_mb for each in measured)
    last = next(each for each in measured[1:] if each.peak_mb >= NEARLY * most)
    return max(0.0, (last.peak_mb - first.peak_mb) * 2**20 / (last.value - first.value))


def updating(turns: Turns, options: Options) -> None:
    """Update with micro-batches of `options.value` tokens and `options.replicas` replicas."""
    keep_freed_memory()
    options.workload = "svamp x 8" if options.model_size == REAL else "demo"
    experience = make_experience(options)
    settings = {"compute": {"tokens_per_microbatch": options.value}, "ppo": {"ppo_epochs": 1}}
    experience = replace(experience, workload=experience.workload.set(**settings))
    with replicated(options.replicas):
        act = reftune_update(experience, options)
    turns.serve(act)


def replicated(count: int) -> Any:
    """Let learners that are made within have so many replicas, on one thread at least each."""
    threads = CpuThreads(count, max(1, torch.get_num_threads() // count))
    return mock.patch("reftune.training.learner.make_cpu_threads", return_value=threads)


def sampling(turns: Turns, options: Options) -> None:
    """Sample with at most `options.value` rows."""
    keep_freed_memory()
    workload = open_workload(options, options.questions).set(compute={"sampler_rows": options.value})
    rows = repeated(workload.prompts, options.samples)

    def act(turn: int) -> int:
        return sum(len(s.tokens) for s in sample(workload, rows, workload.eos, turn, workload.limit))

    turns.serve(act)


def prefilling(turns: Turns, options: Options) -> None:
    """Read prompts, `options.value` tokens at once, and draw a single token."""
    keep_freed_memory()
    workload = open_workload(options, options.questions * options.samples)
    with mock.patch("reftune.sampling.shared_prefix.PREFILL_TOKENS", options.value):

        def act(turn: int) -> int:
            sample(workload, workload.prompts, workload.eos, turn, 1)
            return sum(map(len, workload.prompts))

        turns.serve(act)


def _of(values: Sequence[int], options: Options) -> Sequence[int]:
    return values[:2] if options.quick else values


def _measure(
    title: str, run: Callable[[Turns, Options], None], values: Sequence[int], options: Options
) -> list[Measured]:
    """Measure each value in a process of its own, as long as there is memory, and print their table."""
    print(f"| {title} | tokens/s | lowest-highest | peak memory, MB |\n|---:|---:|---:|---:|")
    measured: list[Measured] = []
    for options.value in values:
        try:
            turns = compete([Contestant(f"{title} = {options.value}", run)], options)
        except RuntimeError:  # the larger the value, the more memory
            if not measured:
                raise
            traceback.print_exc()
            break
        if not turns:
            sys.exit("nothing can be measured")
        [each] = turns.values()
        measured.append(
            Measured(options.value, spread(list(map(speed, each))), max(turn.peak_mb for turn in each))
        )
        print(measured[-1].row, flush=True)
    print(flush=True)
    return measured


def chosen(measured: Sequence[Measured], replicas: int, options: Options) -> str:
    """Say what the product's rule makes of what was measured."""
    each, free = bytes_per_token(measured) / replicas, _free_bytes(options.device)
    if not each or free is None:
        return "Of the memory that a token takes nothing can be said."
    tokens = token_budget(None, each, free, replicas)
    return (
        f"A padded token of a micro-batch takes {each / 2**10:,.0f} KB; with {free / 2**30:.1f} GB free"
        f" the rule of training/token_budget.py would choose {tokens} tokens."
    )


def _free_bytes(device: str) -> float | None:
    """Return the memory that is free now, in bytes; None where the system does not tell."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    return 1024 * float(text.partition("MemAvailable:")[2].split()[0])


if __name__ == "__main__":
    main()
