"""Rows dealt out to be read: each once, by one process, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from reftune.training.sharded_map import sharded_map
from tiny_stage import OneOf

LENGTHS = [2, 5, 3, 4, 1]


def read_into(empty: Tensor, seen: list[list[int]]) -> Callable[[list[int]], None]:
    """Return a function that writes 10 times each row's number, and remembers the rows."""

    def read(rows: list[int]) -> None:
        assert not torch.is_grad_enabled()
        seen.append(rows)
        for row in rows:
            empty[row] += 10.0 * row

    return read


@pytest.mark.parametrize(
    ("budget", "groups", "pieces"),
    [
        (8, None, [[1], [3, 2], [0, 4]]),  # of 5 tokens one fits, of 4 two, of 2 four
        (100, None, [[1, 3, 2, 0, 4]]),
        (1, None, [[1], [3], [2], [0], [4]]),  # each is longer than the budget
        (10, [0, 0, 1, 1, 1], [[0, 1], [2, 3], [4]]),  # those of a question stay together
    ],
)
def test_every_row_is_read_once_in_pieces_within_the_budget(
    budget: int, groups: list[int] | None, pieces: list[list[int]]
) -> None:
    empty, seen = torch.zeros(5), []
    filled = sharded_map(empty, read_into(empty, seen), LENGTHS, budget, Accelerator(cpu=True), groups)
    assert seen == pieces
    assert filled.tolist() == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("index", "pieces", "mine"),
    [
        # Two processes: of 5 tokens two rows fit, then of 3 tokens four. The last is one row of three.
        (0, [[1], [2]], [0, 10, 20, 0, 0]),
        (1, [[3], [0, 4]], [0, 0, 0, 30, 40]),
    ],
)
def test_a_process_reads_its_share_of_every_piece(
    index: int, pieces: list[list[int]], mine: list[float]
) -> None:
    accelerator = OneOf(index, 2)
    empty, seen = torch.zeros(5), []
    filled = sharded_map(empty, read_into(empty, seen), LENGTHS, 8, accelerator)
    assert seen == pieces
    assert filled.tolist() == mine
    assert accelerator.reduced == 1  # the sum over processes is whole on each of them


def test_a_process_without_a_row_of_its_own_reads_another_s_and_adds_nothing() -> None:
    """With a model in parts all processes have to read as often; each row counts once all the same."""
    for index, read, mine in ((0, [[1]], [0, 0]), (1, [[1]], [0, 10]), (2, [[0]], [0, 0])):
        empty, seen = torch.zeros(2), []
        filled = sharded_map(empty, read_into(empty, seen), [1, 3], 3, OneOf(index, 3))
        assert (seen, filled.tolist()) == (read, mine)


def test_rows_are_read_in_mixed_precision_where_the_run_is() -> None:
    inside: list[bool] = []

    class Mixed(OneOf):
        within = False

        @contextmanager
        def autocast(self, *_: Any) -> Iterator[None]:
            self.within = True
            yield
            self.within = False

    accelerator = Mixed(0, 1)
    empty = torch.zeros(2)
    filled = sharded_map(empty, lambda _: inside.append(accelerator.within), [1, 1], 1, accelerator)
    assert inside == [True, True]
    assert not accelerator.within
    assert accelerator.reduced == 0  # one process has it all
    assert filled is empty
