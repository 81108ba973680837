"""Shuffle rows, cut them into micro-batches by a token budget, deal them to processes."""

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

Item = TypeVar("Item")


def shuffled(count: int, *key: object) -> list[int]:
    """Return 0..count-1 in an order that depends on `key` alone (so that a resumed run repeats it)."""
    order = list(range(count))
    random.Random("/".join(map(str, key))).shuffle(order)
    return order


@lru_cache(maxsize=4)
def turns(weights: tuple[float, ...], count: int) -> list[tuple[int, int]]:
    """Return whose turn it is at each of `count` positions, and the how-manieth turn of his (from 0).

    Smooth weighted round robin: at each position all gain their weight, and who has most takes the turn
    for the sum of all weights. Of the first n positions nobody has a whole turn more than his share of
    n, and a longer list begins as a shorter one.
    """
    gained, had, found = [0.0] * len(weights), [0] * len(weights), []
    for _ in range(count):
        gained = [have + weight for have, weight in zip(gained, weights, strict=True)]
        chosen = max(range(len(weights)), key=gained.__getitem__)
        gained[chosen] -= sum(weights)
        found.append((chosen, had[chosen]))
        had[chosen] += 1
    return found


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


def make_microbatches(
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


def shard(rows: Sequence[int], rank: int, processes: int) -> tuple[list[int], list[float]]:
    """Return this process's rows of a micro-batch, and their weights.

    A process that gets no row is dealt the first one with weight 0: collective operations need every
    process to run every micro-batch.
    """
    start, end = (len(rows) * r // processes for r in (rank, rank + 1))
    mine = list(rows[start:end])
    return (mine, [1.0] * len(mine)) if mine else ([rows[0]], [0.0])
