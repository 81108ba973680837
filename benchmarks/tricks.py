"""(g) Tricks: what each device for speed is worth, by doing the same work without it.

    python -m benchmarks.tricks [--model-size 135m] [--only lanes forks ...]

Without --model-size it measures two models, the demo's and the real one, and prints one table. Each
trick is switched off in here alone, by replacing the function that does it; the product has no such
switch. Both sides take turns on the same work, so a ratio above 1 is what the trick gains.

Sampling, on the model's own prompts and lengths:

- forks: responses are one row until they differ. Without, each has a row from the beginning.
- shared prompts (sampling): a prompt's keys and values are kept once for all its responses. Without,
  each row has a copy in a padded cache. Forks, which need it, are off on both sides.

One update, on the model's own samples:

- prefix tree: tokens that responses begin with alike are computed once. Without, once per response.
- shared prompts (update): prompts and responses stand in one packed row. Without, each response is a
  padded row with its prompt before it. The prefix tree, which needs it, is off on both sides.
- lanes: as many replicas of the model as threads, one thread each (`training/cpu_threads.py`). Without,
  one model on all threads. The product uses replicas up to a size only; here they are forced.
- keep_freed_memory: the process keeps memory that it frees. Without, it gives large tensors back.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.contest import (
    REAL,
    Contestant,
    Options,
    Turns,
    compete,
    make_parser,
    ratios,
    spread,
    with_defaults,
)
from benchmarks.settings import replicated
from benchmarks.update import make_experience, reftune_update
from benchmarks.workload import described, open_workload, repeated, sample
from reftune.heap import keep_freed_memory
from reftune.model.batch import Sequences, collate
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.sampler import Sample
from reftune.sampling.shared_prefix import SharedPrefixDecoder

Ids = Sequence[Sequence[int]]
Switch = Callable[[], AbstractContextManager[Any]]


def without_forks() -> AbstractContextManager[Any]:
    """Give each response a row of its own when its prompt enters."""
    admit = SharedPrefixDecoder.admit

    def admit_apart(
        self: SharedPrefixDecoder, prompts: Ids, repeats: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        states, rows = admit(self, prompts, repeats)
        self.retain(rows)
        return states[rows], torch.arange(len(rows), device=rows.device)

    return mock.patch.object(SharedPrefixDecoder, "admit", admit_apart)


def without_shared_prompts() -> AbstractContextManager[Any]:
    """Decode in a padded cache."""
    make = BuiltinSampler.make_decoder

    def make_padded(self: BuiltinSampler, longest: int, max_new_tokens: int, rows: int) -> Any:
        self.shares_prompts = False
        return make(self, longest, max_new_tokens, rows)

    return mock.patch.object(BuiltinSampler, "make_decoder", make_padded)


def without_prefix_tree() -> AbstractContextManager[Any]:
    """Let every token of every response be a distinct one."""

    def number(_: Sequence[int], responses: Ids, time: int) -> tuple[list[list[int]], list[int]]:
        firsts = [row * time + column for row, r in enumerate(responses) for column in range(len(r))]
        numbers = iter(range(len(firsts)))
        return [[next(numbers) for _ in response] for response in responses], firsts

    return mock.patch("reftune.model.batch._number", number)


def without_packing() -> AbstractContextManager[Any]:
    """Give each response a prompt of its own, so that it is read as a padded row."""

    def collate_apart(prompts: Ids, responses: Ids) -> Sequences:
        shared = collate(prompts, responses)
        index = shared.prompt_index
        return replace(
            shared, prompts=shared.prompts[index], prompt_lengths=shared.prompt_lengths[index],
            prompt_index=torch.arange(len(index)),
        )  # fmt: skip

    return mock.patch("reftune.stages.ppo.loss.collate", collate_apart)


# Of each trick: what is off on both sides, and what is off without it.
SAMPLING: dict[str, tuple[Switch, Switch]] = {
    "forks": (nullcontext, without_forks),
    "shared prompts (sampling)": (without_forks, without_shared_prompts),
}
UPDATE: dict[str, tuple[Switch, Switch]] = {
    "prefix tree": (nullcontext, without_prefix_tree),
    "shared prompts (update)": (without_prefix_tree, without_packing),
    "lanes": (nullcontext, nullcontext),  # `updater` makes fewer
    "keep_freed_memory": (nullcontext, nullcontext),  # `updating` does not call it
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each trick with each model and print the table."""
    given = _parse(arguments)
    sizes = [given.model_size] if given.model_size or given.quick else [None, REAL]
    columns: list[dict[str, str]] = []
    for size in sizes:
        options = with_defaults(argparse.Namespace(**{**vars(given), "model_size": size}))
        print(f"{described(options)}\n", flush=True)
        columns.append({name: measure(name, options) for name in given.only or (*SAMPLING, *UPDATE)})
    heads = " | ".join(f"{size or 'tiny'}: faster by" for size in sizes)
    print(f"| trick | {heads} |\n|---|{'---:|' * len(sizes)}")
    for trick in columns[0]:
        print(f"| {trick} | {' | '.join(column[trick] for column in columns)} |")
    print(flush=True)


def measure(trick: str, options: Options) -> str:
    """Return how many times as fast work is with a trick: median, lowest and highest of the rounds."""
    run = sampling if trick in SAMPLING else updating
    sides = [
        Contestant(f"{trick}, {word}", partial(run, trick=trick, on=word == "with"))
        for word in ("with", "without")
    ]
    turns = compete(sides, options)
    if len(turns) < len(sides):
        return "left out"
    middle, low, high = spread(ratios(*turns.values()))
    print(f"{trick}: faster by {middle:.2f} ({low:.2f}-{high:.2f})\n", flush=True)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def sampling(turns: Turns, options: Options, trick: str, on: bool) -> None:
    """Sample the model's own prompts with or without a trick."""
    keep_freed_memory()
    act = sampler(options, trick, on)
    turns.serve(lambda turn: sum(len(s.tokens) for s in act(turn)))


def sampler(options: Options, trick: str, on: bool) -> Callable[[int], list[Sample]]:
    """Return the function that samples with or without a trick."""
    workload = open_workload(options, options.questions)
    rows = repeated(workload.prompts, options.samples)
    always, off = SAMPLING[trick]

    def act(turn: int) -> list[Sample]:
        with always(), nullcontext() if on else off():
            return sample(workload, rows, workload.eos, turn, workload.limit)

    return act


def updating(turns: Turns, options: Options, trick: str, on: bool) -> None:
    """Update with or without a trick."""
    if on or trick != "keep_freed_memory":
        keep_freed_memory()
    turns.serve(updater(options, trick, on))


def updater(options: Options, trick: str, on: bool) -> Callable[[int], float]:
    """Return the function that takes one optimizer step with or without a trick."""
    options.workload = "demo"  # the model's own samples
    experience = make_experience(options)
    experience = replace(experience, workload=experience.workload.set(ppo={"ppo_epochs": 1}))
    always, off = UPDATE[trick]
    replicas = torch.get_num_threads() if on else 1
    with replicated(replicas) if trick == "lanes" else nullcontext():
        update = reftune_update(experience, options)

    def act(turn: int) -> float:
        with always(), nullcontext() if on else off():
            return update(turn)

    return act


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--only", nargs="+", choices=(*SAMPLING, *UPDATE), help="default: all tricks")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
