"""Votes and reranking on samples written by hand."""

from __future__ import annotations

import pytest

from reftune.evaluation.aggregation import (
    AGGREGATIONS,
    accuracy_of,
    available,
    ladder,
    rerank,
    saved_curves,
    vote,
    weighted_vote,
    within_question_auc,
)
from reftune.problem import Answer, Row


def sample(value: Answer | None, correct: bool, rerank: float | None = None) -> Row:
    return {"value": value, "correct": correct, "rerank": rerank}


# 5 is right: two of five say so; the reranker is sure of one 7, and likes the 5s on the whole.
SAMPLES = [
    sample(7.0, False, 0.9),
    sample(5.0, True, 0.6),
    sample(None, False),
    sample(7.0, False, 0.05),
    sample(5.0, True, 0.5),
    sample(7.0, False, 0.1),
]


def test_each_aggregation_chooses_in_its_own_way() -> None:
    assert not vote(SAMPLES)  # 7: three votes of five
    assert not rerank(SAMPLES)  # 7: 0.9
    assert weighted_vote(SAMPLES)  # 5: 1.1, 7: 1.05
    assert rerank(SAMPLES[1:])  # 5: 0.6


def test_ties_go_to_what_was_seen_first() -> None:
    tied = [sample(5.0, True, 0.5), sample(7.0, False, 0.5)]
    for choose in (vote, rerank, weighted_vote):
        assert choose(tied)
        assert not choose(tied[::-1])


def test_a_sample_without_an_answer_is_no_choice() -> None:
    for choose in (vote, rerank, weighted_vote):
        assert not choose([sample(None, False)])
        assert not choose([])
        assert choose([sample(None, False), sample(5.0, True, 1e-9)])


def test_answers_within_the_tolerance_are_one_answer() -> None:
    close = [sample(7.0, False, 0.4), sample(5.0, True, 0.3), sample(5.009, True, 0.3)]
    assert vote(close)
    assert weighted_vote(close)
    assert not rerank(close)


def test_only_what_was_ranked_can_be_reranked() -> None:
    ranked = {"samples": SAMPLES}
    plain = {"samples": [{"value": 5.0, "correct": True}]}
    assert list(available([ranked, ranked])) == list(AGGREGATIONS) == ["vote", "rerank", "weighted vote"]
    assert list(available([ranked, plain])) == ["vote"]
    assert list(available([{"correct": True}])) == []


def test_accuracies_with_fewer_samples_are_means_over_disjoint_bunches() -> None:
    right, wrong = sample(5.0, True), sample(7.0, False)
    rows = [{"samples": [right, wrong, wrong, wrong, right]}, {"samples": [right] * 5}]
    # k = 1: 2/5 and 1. k = 2: (right, wrong) gives the first, (wrong, wrong) nothing; the fifth is left.
    # k = 5: the first question is lost.
    for k, expected in ((1, 0.7), (2, 0.75), (5, 0.5)):
        assert accuracy_of(rows, AGGREGATIONS["vote"], k) == pytest.approx(expected)
    for k in (0, 6):
        with pytest.raises(ValueError, match="5 samples were drawn"):
            accuracy_of(rows, AGGREGATIONS["vote"], k)


@pytest.mark.parametrize(("k", "steps"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_curves_are_drawn_at_powers_of_two_and_at_the_end(k: int, steps: list[int]) -> None:
    assert ladder(k) == steps


def test_pairs_of_one_question_are_ordered_or_not() -> None:
    # Right 0.6 and 0.5 against wrong 0.9, 0.05, 0.1: four of six pairs; what has no answer is left out.
    first = {"samples": SAMPLES}
    # Right 0.3 and 0.2 against wrong 0.2: one pair in order, one tied.
    second = {"samples": [sample(1.0, True, 0.3), sample(1.0, True, 0.2), sample(2.0, False, 0.2)]}
    easy = {"samples": [sample(1.0, True, 0.99)] * 3}  # no pair, however sure the reranker is
    assert within_question_auc([first, second, easy]) == pytest.approx(5.5 / 8)
    assert within_question_auc([easy]) is None


def test_saved_curves_have_numbers_again() -> None:
    summary = {"greedy": {}, "curves": {"vote": {"1": 0.4, "2": 0.5}}, "pass": {"1": 0.4, "2": 0.6}}
    assert saved_curves(summary) == {"vote": {1: 0.4, 2: 0.5}, "pass": {1: 0.4, 2: 0.6}}
