"""Cut rows into micro-batches by a token budget, deal them to processes, pad them to tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reftune.types import Sequences


def shuffled(count: int, *key: object) -> list[int]:
    """Return 0..count-1 in an order that depends on `key` alone (so that a resumed run repeats it)."""
    order = list(range(count))
    random.Random("/".join(map(str, key))).shuffle(order)
    return order


def minibatches(order: Sequence[int], size: int) -> Iterator[list[int]]:
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
    rows: Sequence[int], lengths: Sequence[int], token_budget: int, processes: int = 1
) -> list[list[int]]:
    """Cut rows into micro-batches whose padded size stays within the budget of all processes together.

    Rows are sorted by length, longest first, so that little is padding and memory runs out at once
    or never. A row longer than the budget gets a micro-batch of its own.

    Args:
        rows: indices to cut.
        lengths: tokens of every row, indexed by the entries of `rows`.
        token_budget: padded tokens per process and micro-batch.
        processes: how many processes share each micro-batch.
    """
    pieces: list[list[int]] = []
    for row in sorted(rows, key=lambda r: (-lengths[r], r)):
        rows_that_fit = max(1, token_budget // max(1, lengths[pieces[-1][0]])) if pieces else 0
        if pieces and len(pieces[-1]) < rows_that_fit * processes:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces


def deal(rows: Sequence[int], rank: int, processes: int) -> tuple[list[int], list[float]]:
    """Return this process's rows of a micro-batch, and their weights.

    A process that gets no row is dealt the first one with weight 0: collective operations need every
    process to run every micro-batch.
    """
    mine = list(rows[rank::processes])
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


def collate(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
) -> Sequences:
    """Join prompts and responses into right-padded rows of ids.

    The padding id is 0 whatever the tokenizer says: lengths, never ids, tell what is real.
    """
    rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return Sequences(
        input_ids=ids,
        prompt_lengths=torch.tensor([len(p) for p in prompts]),
        response_lengths=torch.tensor([len(r) for r in responses]),
    )
