from __future__ import annotations

import random
from itertools import chain, pairwise

import pytest
import torch

from reftune.model.batch import collate, gather_nodes, length_mask, pad
from reftune.training.microbatches import length_sorted, make_microbatches, minibatches, shard, shuffled


def some_lengths(count: int, seed: int = 0) -> list[int]:
    return [random.Random(f"{seed}/{i}").randint(1, 60) for i in range(count)]


def test_shuffled_is_a_permutation_that_depends_on_the_key_alone() -> None:
    orders = [shuffled(50, 42, "sft", epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    random.seed(1)  # the global generator has no part in it
    assert shuffled(50, 42, "sft", 0) == orders[0]
    assert shuffled(0, 42) == []


def test_shuffled_is_the_same_in_every_process() -> None:
    # Written down once: another order would let a run resumed by another version repeat and skip rows.
    assert shuffled(8, 42, "sft", 1) == [2, 4, 7, 1, 0, 6, 5, 3]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (2, [[3, 1], [4, 0], [2]]),
        (5, [[3, 1, 4, 0, 2]]),
        (9, [[3, 1, 4, 0, 2]]),
        (1, [[3], [1], [4], [0], [2]]),
    ],
)
def test_minibatches_keep_the_order(size: int, expected: list[list[int]]) -> None:
    assert list(minibatches([3, 1, 4, 0, 2], size)) == expected


def test_length_sorted_by_hand() -> None:
    # By length: rows 1, 3 | 5, 2 | 4, 0. Their first rows stood at places 1, 2 and 0.
    batches = length_sorted([0, 1, 2, 3, 4, 5], [9, 1, 5, 2, 8, 3], size=2)
    assert batches == [[4, 0], [1, 3], [5, 2]]


@pytest.mark.parametrize(("count", "size"), [(1, 4), (40, 4), (103, 3), (200, 8), (0, 4)])
def test_length_sorted_uses_every_row_once_in_full_batches(count: int, size: int) -> None:
    order, lengths = shuffled(count, "order"), some_lengths(count)
    batches = length_sorted(order, lengths, size)
    assert sorted(chain.from_iterable(batches)) == list(range(count))
    assert len(batches) == -(-count // size)  # the number of steps is planned by this
    assert sorted(map(len, batches), reverse=True)[: count // size] == [size] * (count // size)
    assert length_sorted(order, lengths, size) == batches


def test_length_sorted_batches_of_a_stretch_do_not_overlap_in_length() -> None:
    order, lengths = shuffled(64, "order"), some_lengths(64)  # one stretch: 16 batches of 4
    batches = length_sorted(order, lengths, 4)
    spans = sorted((min(b), max(b)) for b in ([lengths[row] for row in batch] for batch in batches))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_length_sorted_does_not_go_from_short_to_long() -> None:
    lengths = some_lengths(64)
    batches = length_sorted(shuffled(64, "order"), lengths, 4)
    shortest = [min(lengths[row] for row in batch) for batch in batches]
    rises = sum(after >= before for before, after in pairwise(shortest))
    assert 3 <= rises <= 12  # of 15


def test_length_sorted_moves_no_row_out_of_its_stretch() -> None:
    order = shuffled(70, "order")
    batches = length_sorted(order, some_lengths(70), size=2)
    assert set(chain.from_iterable(batches[:16])) == set(order[:32])
    assert set(chain.from_iterable(batches[16:32])) == set(order[32:64])


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (1, [[2], [0, 1], [3]]),  # 8; 5 and 3 padded to 5; 1, for a third row of 5 exceeds 10
        (2, [[2, 0], [1, 3]]),  # one row of 8 for each process; then up to three rows of 3
    ],
)
def test_cut_by_hand(processes: int, expected: list[list[int]]) -> None:
    assert (
        make_microbatches([0, 1, 2, 3], [5, 3, 8, 1], token_budget=10, processes=processes) == expected
    )


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 59, 120, 10_000])
def test_cut_fits_the_budget_of_every_process_and_uses_every_row_once(
    budget: int, processes: int
) -> None:
    lengths = some_lengths(83)
    rows = shuffled(83, "rows")[:70]
    pieces = make_microbatches(rows, lengths, budget, processes)
    assert sorted(chain.from_iterable(pieces)) == sorted(rows)
    for piece in pieces:
        for rank in range(processes):
            mine, _ = shard(piece, rank, processes)
            assert len(mine) == 1 or len(mine) * max(lengths[row] for row in mine) <= budget


@pytest.mark.parametrize("processes", [1, 2])
def test_cut_leaves_no_piece_that_could_take_the_next_row(processes: int) -> None:
    lengths = some_lengths(83)
    for piece, following in pairwise(make_microbatches(range(83), lengths, 150, processes)):
        share = -(-(len(piece) + 1) // processes)  # rows of the busiest process, with one row more
        assert share * lengths[piece[0]] > 150
        assert min(lengths[row] for row in piece) >= max(lengths[row] for row in following)


def test_cut_does_not_depend_on_the_order_of_the_rows() -> None:
    lengths = [7] * 5 + some_lengths(20)
    pieces = make_microbatches(range(25), lengths, 60)
    assert make_microbatches(shuffled(25, "another"), lengths, 60) == pieces
    groups = [row % 4 for row in range(25)]
    pieces = make_microbatches(range(25), lengths, 60, groups=groups)
    assert make_microbatches(shuffled(25, "another"), lengths, 60, groups=groups) == pieces


def test_cut_keeps_the_rows_of_a_question_together() -> None:
    # Question 8 has the longest row (9), question 5 comes next (7), question 6 has a row of 6 and so on.
    lengths, groups = [3, 7, 9, 6, 1, 2], [8, 5, 8, 6, 5, 8]
    assert make_microbatches(range(6), lengths, 1000, groups=groups) == [[0, 2, 5, 1, 4, 3]]
    # As long as one another, they still do not mix.
    assert make_microbatches([3, 2, 1, 0], [5, 5, 5, 5], 1000, groups=[0, 1, 0, 1]) == [[0, 2, 1, 3]]
    # 18 // 9 = 2 rows; then question 8 again, whose longest row still decides; 18 // 7; 18 // 6
    assert make_microbatches(range(6), lengths, 18, groups=groups) == [[0, 2], [5, 1], [4, 3]]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 130, 500])
def test_cut_by_groups_fits_the_budget_and_uses_every_row_once(budget: int, processes: int) -> None:
    lengths, rows = some_lengths(83), shuffled(83, "rows")[:70]
    groups = [row % 11 for row in range(83)]
    pieces = make_microbatches(rows, lengths, budget, processes, groups)
    together = [groups[row] for row in chain.from_iterable(pieces)]
    assert sorted(chain.from_iterable(pieces)) == sorted(rows)
    assert (
        sum(after != before for before, after in pairwise(together)) == 10
    )  # each group in one stretch
    for piece in pieces:
        for rank in range(processes):
            mine, _ = shard(piece, rank, processes)
            assert len(mine) == 1 or len(mine) * max(lengths[row] for row in mine) <= budget


def test_cut_edges() -> None:
    assert make_microbatches([], [1, 2], 100) == []
    assert make_microbatches([1], [1, 200], 100) == [[1]]
    assert make_microbatches([0, 1, 2], [200, 200, 200], 100, processes=2) == [
        [0, 1],
        [2],
    ]  # one for each process
    assert make_microbatches([0, 1], [0, 0], 100) == [[0, 1]]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_deal_covers_each_row_once_over_the_ranks(count: int, processes: int) -> None:
    rows = [row * 10 for row in range(count)]
    weight_of = dict.fromkeys(rows, 0.0)
    for rank in range(processes):
        mine, weights = shard(rows, rank, processes)
        assert len(mine) == len(weights) > 0
        for row, weight in zip(mine, weights, strict=True):
            weight_of[row] += weight
    assert weight_of == dict.fromkeys(rows, 1.0)


def test_deal_by_hand() -> None:
    assert shard([5, 6, 7], 0, 2) == ([5], [1.0])  # neighbours stay together: they may share a prompt
    assert shard([5, 6, 7], 1, 2) == ([6, 7], [1.0, 1.0])
    assert shard([5], 0, 2) == ([5], [0.0])  # it gets nothing, and runs along without weight
    assert shard([5], 1, 2) == ([5], [1.0])


def test_pad_by_hand() -> None:
    rows = [[1.5], [2.0, -3.0], []]
    expected = [[1.5, 0.0], [2.0, -3.0], [0.0, 0.0]]
    assert pad(rows).tolist() == expected
    assert pad(rows, width=3).tolist() == [[*row, 0.0] for row in expected]


def test_length_mask_by_hand() -> None:
    assert length_mask([1, 3, 0]).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert length_mask([1, 0], width=2).tolist() == [[1, 0], [0, 0]]
    assert length_mask([1]).dtype == torch.float32


def test_collate_by_hand() -> None:
    batch = collate([[7, 8], [9], [7, 8], [8, 7]], [[1], [2, 3, 4], [5, 6], [1]])
    assert batch.prompts.tolist() == [[7, 8], [0, 9], [8, 7]]  # each once, padded on the left
    assert batch.prompt_lengths.tolist() == [2, 1, 2]
    assert batch.prompt_index.tolist() == [0, 1, 0, 2]
    assert batch.responses.tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0], [1, 0, 0]]
    assert batch.response_lengths.tolist() == [1, 3, 2, 1]
    assert batch.prompts.dtype == batch.responses.dtype == torch.int64


def test_tokens_are_the_same_after_the_same_prompt_and_response() -> None:
    batch = collate([[7], [9], [7], [7]], [[1, 2, 2], [1, 2], [1, 2, 3], [1, 2]])
    assert batch.node_index.tolist() == [[0, 1, 2], [3, 4, 0], [0, 1, 5], [0, 1, 0]]
    assert batch.first_occurrence.tolist() == [0, 1, 2, 3, 4, 8]
    said = torch.tensor([10.0, 11.0, 12.0, 13.0, 14.0, 15.0])
    assert gather_nodes(batch, said)[2].tolist() == [10.0, 11.0, 15.0]


def test_collate_keeps_ids_that_equal_the_padding() -> None:
    batch = collate([[0, 5], [5]], [[0], [3, 0]])
    assert (batch.prompts.tolist(), batch.prompt_lengths.tolist()) == ([[0, 5], [0, 5]], [2, 1])
    assert batch.prompt_index.tolist() == [0, 1]
    assert batch.response_lengths.tolist() == [1, 2]
