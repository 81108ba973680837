"""Cut rows into micro-batches by a token budget, deal them to processes, pad them to tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from reftune.types import Sequences

Item = TypeVar("Item")


def shuffled(count: int, *key: object) -> list[int]:
    """Return 0..count-1 in an order that depends on `key` alone (so that a resumed run repeats it)."""
    order = list(range(count))
    random.Random("/".join(map(str, key))).shuffle(order)
    return order


def minibatches(order: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Yield consecutive pieces of `order` of at most `size` rows."""
    for start in range(0, len(order), size):
        yield list(order[start : start + size])


def length_sorted(order: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return batches of `size` rows of similar length, in an order that stays random.

    Stretches of several batches are sorted by length and cut; then the batches are put in the order
    in which their first rows stood before.
    """
    batches: list[list[int]] = []
    for stretch in minibatches(order, 16 * size):
        batches += minibatches(sorted(stretch, key=lambda row: lengths[row]), size)
    place = {row: i for i, row in enumerate(order)}
    return sorted(batches, key=lambda batch: min(place[row] for row in batch))


def cut(
    rows: Sequence[int],
    lengths: Sequence[int],
    token_budget: int,
    processes: int = 1,
    groups: Sequence[int] | None = None,
) -> list[list[int]]:
    """Cut rows into micro-batches whose padded size stays within the budget of all processes together.

    Rows are sorted by length, longest first, so that little is padding and memory runs out at once
    or never; rows of a group stay together, so that they can share their prompt. A row longer than
    the budget gets a micro-batch of its own.

    Args:
        rows: indices to cut.
        lengths: tokens of every row, prompt included, indexed by the entries of `rows`.
        token_budget: padded tokens per process and micro-batch, shared prompts counted in every row.
        processes: how many processes share each micro-batch.
        groups: which question each row answers, indexed likewise; default: all different.
    """
    group = (lambda row: row) if groups is None else groups.__getitem__
    longest: dict[int, int] = {}
    for row in rows:
        longest[group(row)] = max(lengths[row], longest.get(group(row), 0))
    pieces: list[list[int]] = []
    fits = 0
    for row in sorted(rows, key=lambda r: (-longest[group(r)], group(r), r)):
        if not pieces or len(pieces[-1]) >= fits:
            pieces.append([])
            fits = processes * max(1, token_budget // max(1, longest[group(row)]))
        pieces[-1].append(row)
    return pieces


def deal(rows: Sequence[int], rank: int, processes: int) -> tuple[list[int], list[float]]:
    """Return this process's rows of a micro-batch, and their weights.

    A process that gets no row is dealt the first one with weight 0: collective operations need every
    process to run every micro-batch.
    """
    start, end = (len(rows) * r // processes for r in (rank, rank + 1))
    mine = list(rows[start:end])
    return (mine, [1.0] * len(mine)) if mine else ([rows[0]], [0.0])


def pad(rows: Sequence[Sequence[float]], width: int | None = None) -> Float[Tensor, "batch time"]:
    """Stack rows of numbers, right-padded with 0.0 to the longest (or to `width`)."""
    width = max((len(row) for row in rows), default=0) if width is None else width
    padded = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.float32)
    return padded


def length_mask(lengths: Sequence[int], width: int | None = None) -> Float[Tensor, "batch time"]:
    """Return 1.0 on the first `lengths[i]` columns of row i, 0.0 beyond."""
    width = max(lengths, default=0) if width is None else width
    return (torch.arange(width) < torch.tensor(list(lengths)).unsqueeze(1)).float()


def collate(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Sequences:
    """Stack ids: equal prompts once and left-padded, responses right-padded.

    The padding id is 0 whatever the tokenizer says.
    """
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    parents = [place[tuple(prompt)] for prompt in prompts]
    width, time = max(map(len, distinct)), max(map(len, responses))
    places, firsts = _number(parents, responses, time)
    return Sequences(
        prompts=torch.tensor([[0] * (width - len(p)) + list(p) for p in distinct]),
        prompt_lengths=torch.tensor([len(p) for p in distinct]),
        parents=torch.tensor(parents),
        responses=torch.tensor([list(r) + [0] * (time - len(r)) for r in responses]),
        response_lengths=torch.tensor([len(r) for r in responses]),
        places=torch.tensor([row + [0] * (time - len(row)) for row in places]),
        firsts=torch.tensor(firsts),
    )


def _number(
    parents: Sequence[int], responses: Sequence[Sequence[int]], time: int
) -> tuple[list[list[int]], list[int]]:
    """Number the distinct tokens (see `Sequences`): the nodes of a tree whose roots are the prompts.

    Returns the number of each token of each response, and where the first of each number stands in rows
    of `time` tokens.
    """
    children: dict[tuple[int, int], int] = {}  # (number before, or -1 - prompt; token) -> number
    firsts: list[int] = []
    places: list[list[int]] = []
    for row, (parent, response) in enumerate(zip(parents, responses, strict=True)):
        places.append([])
        before = -1 - parent
        for column, token in enumerate(response):
            before = children.setdefault((before, token), len(firsts))
            if before == len(firsts):
                firsts.append(row * time + column)
            places[-1].append(before)
    return places, firsts


def spread(sequences: Sequences, distinct: Tensor) -> Tensor:
    """Return what is said of each distinct token, (distinct,), for every response token, (batch, time).

    It means nothing on padding.
    """
    return pick(distinct.unsqueeze(1), sequences.places).squeeze(2)


def pick(table: Tensor, index: Tensor) -> Tensor:
    """Return the rows of (rows, features) that an index of any shape names."""
    # An embedding, because its gradient is faster than that of indexing.
    picked: Tensor = functional.embedding(index, table)
    return picked
