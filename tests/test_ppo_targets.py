"""What PPO makes of a batch before it learns: rewards, advantages, returns and the figures it tells."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from made_rollouts import graded_sample, make_rollouts
from reftune.config import Ppo
from reftune.stages.ppo.metrics import describe
from reftune.stages.ppo.targets import compute_advantages
from reftune.training.rollouts import group_shares
from reftune.training.types import Rollouts

# Question a: a response of two tokens with the reward 1, one of one token with 0. Question b: one of
# one token with 1, and one that nobody judged, whose numbers are rubbish.
# log pi - log ref is (-2.5, -4), (-2), (0); pi / mu is (1.5, 0.5), (4), (1).
#
# Rewards at kl_coef 0.5: 0.5 * 2.5 = 1.25 and 0.5 * 4 + 1 = 3; 0.5 * 2 = 1; 1.
VALUES = [[2.0, 4.0], [-2.0], [-4.0], [5.0, -5.0]]
REWARDS = [[1.25, 3.0], [1.0], [1.0]]

# GAE, gamma = lambda = 0.5: A = r - V at the end of a response, 3 - 4, 1 + 2, 1 + 4; before it
# r + 0.5 * V' - V + 0.25 * A' = 1.25 + 2 - 2 - 0.25 = 1. Returns are A + V: 1 + 2, -1 + 4; 3 - 2; 5 - 4.
GAE = [[1.0, -1.0], [3.0], [5.0]]
RETURNS = [[3.0, 3.0], [1.0], [1.0]]

# Their mean is (1 - 1 + 3 + 5) / 4 = 2, their variance (1 + 9 + 1 + 9) / 4 = 5.
WHITE = [[-1 / math.sqrt(5), -3 / math.sqrt(5)], [1 / math.sqrt(5)], [3 / math.sqrt(5)]]

# Group: totals 4.25 and 1 have the mean 2.625; alone, question b's response is its own mean.
GROUP = [[1.625, 1.625], [-1.625], [0.0]]
GROUP_RETURNS = [[3.625, 5.625], [-3.625], [-4.0]]  # A + V again

PLAIN: dict[str, Any] = {
    "samples_per_question": 2, "kl_coef": 0.5, "gamma": 0.5, "gae_lambda": 0.5,
    "whiten": False, "importance_sampling_cap": 0.0,
}  # fmt: skip


def example() -> Rollouts:
    graded = [
        graded_sample("a", [10, 11], 1.0),
        graded_sample("a", [12], 0.0),
        graded_sample("b", [13], 1.0),
        graded_sample("b", [14, 15], 9.0, status="sandbox_error"),
    ]
    logprobs = [[-1.0, -2.0], [-3.0], [-1.5], [-8.0, -9.0]]
    reference = [[1.5, 2.0], [-1.0], [-1.5], [6.0, 3.0]]
    shift = [[math.log(1.5), math.log(0.5)], [math.log(4.0)], [0.0], [2.0, 3.0]]
    sampler = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(logprobs, shift, strict=True)]
    return make_rollouts(graded, logprobs, reference=reference, sampler=sampler, values=VALUES)


def table(rows: list[list[float]]) -> Tensor:
    """Return rows of numbers with 0 on padding, and a row of 0 for the response that nobody judged."""
    filled = [[*row, *[0.0] * (2 - len(row))] for row in [*rows, []]]
    return torch.tensor(filled, dtype=torch.float64)


def times(rows: list[list[float]], factors: list[list[float]]) -> list[list[float]]:
    return [[a * b for a, b in zip(*pair, strict=True)] for pair in zip(rows, factors, strict=True)]


@pytest.mark.parametrize(
    ("settings", "rewards", "advantages", "returns"),
    [
        ({}, REWARDS, GAE, RETURNS),
        ({"whiten": True}, REWARDS, WHITE, RETURNS),
        # the sampler made the second response too rarely, by a factor of 4: it counts twice, or thrice
        ({"importance_sampling_cap": 2.0}, REWARDS, times(GAE, [[1.5, 0.5], [2], [1]]), RETURNS),
        ({"importance_sampling_cap": 3.0}, REWARDS, times(GAE, [[1.5, 0.5], [3], [1]]), RETURNS),
        (
            {"whiten": True, "importance_sampling_cap": 2.0},  # weighed after whitening
            REWARDS, times(WHITE, [[1.5, 0.5], [2], [1]]), RETURNS,
        ),
        # without the penalty A = 1 - 4, 0 + 2, 1 + 4, and 0 + 2 - 2 + 0.25 * -3 before the first
        (
            {"kl_coef": 0.0},
            [[0.0, 1.0], [0.0], [1.0]], [[-0.75, -3.0], [2.0], [5.0]], [[1.25, 1.0], [0.0], [1.0]],
        ),
        (
            {"kl_penalty": "loss_k3"},  # the penalty is in the loss, and not here
            [[0.0, 1.0], [0.0], [1.0]], [[-0.75, -3.0], [2.0], [5.0]], [[1.25, 1.0], [0.0], [1.0]],
        ),
        # gamma = lambda = 1: the rewards to come, 4.25 and 3, 1, 1, are the returns
        (
            {"gamma": 1.0, "gae_lambda": 1.0},
            REWARDS, [[2.25, -1.0], [3.0], [5.0]], [[4.25, 3.0], [1.0], [1.0]],
        ),
        ({"advantage": "group"}, REWARDS, GROUP, GROUP_RETURNS),
        ({"advantage": "group", "whiten": True}, REWARDS, GROUP, GROUP_RETURNS),  # never whitened
        # the standard deviation is 1.625, too, and 1.625 / (1.625 + 0.0001) = 0.99994
        (
            {"advantage": "group", "scale_rewards": True},
            REWARDS, [[0.99994, 0.99994], [-0.99994], [0.0]],
            [[2.99994, 4.99994], [-2.99994], [-4.0]],
        ),
        (
            {"advantage": "group", "importance_sampling_cap": 2.0},
            REWARDS, times(GROUP, [[1.5, 0.5], [2], [1]]), GROUP_RETURNS,
        ),
    ],
)  # fmt: skip
def test_targets_by_hand(
    settings: dict[str, Any],
    rewards: list[list[float]],
    advantages: list[list[float]],
    returns: list[list[float]],
) -> None:
    targets = compute_advantages(example(), Ppo(**{**PLAIN, **settings}))
    for found, expected in (
        (targets.token_rewards, rewards), (targets.advantages, advantages), (targets.returns, returns),
    ):  # fmt: skip
        torch.testing.assert_close(found, table(expected), atol=2e-6, rtol=0)


# What is beside the head, of the same tokens; rubbish where nobody judged.
BESIDE = [[0.5, -1.0], [2.0, 0.0], [-3.0, 0.0], [7.0, 7.0]]


@pytest.mark.parametrize(
    ("settings", "value_lambda", "learnt"),
    [
        ({}, None, [[3.0, 3.0], [1.0], [1.0]]),
        # what followed: 1.25 + 3 / 2, 3; 1; 1
        ({}, 1.0, [[2.75, 3.0], [1.0], [1.0]]),
        # r + 0.5 V': 1.25 + 2, 3; 1; 1
        ({}, 0.0, [[3.25, 3.0], [1.0], [1.0]]),
        # lambda of two tokens is 1 - 1 / 2, and of one token it does not matter
        ({"gae_lambda": 1.0, "lambda_length_alpha": 1.0}, None, [[3.0, 3.0], [1.0], [1.0]]),
        ({"gae_lambda": 1.0, "lambda_length_alpha": 1.0}, 1.0, [[2.75, 3.0], [1.0], [1.0]]),
    ],
)
def test_the_head_learns_what_is_left_and_the_policy_from_both_by_hand(
    settings: dict[str, Any], value_lambda: float | None, learnt: list[list[float]]
) -> None:
    rollouts, beside = example(), torch.tensor(BESIDE, dtype=torch.float64)
    whole = rollouts.values.clone()
    rollouts.values.sub_(beside)  # the head says the rest of what the critic says
    targets = compute_advantages(rollouts, Ppo(**{**PLAIN, **settings}), beside, value_lambda)
    close = {"atol": 2e-6, "rtol": 0}
    torch.testing.assert_close(targets.advantages, table(GAE), **close)
    left = table(learnt) - beside * rollouts.mask
    torch.testing.assert_close(targets.returns, left, **close)
    torch.testing.assert_close(targets.values * rollouts.mask, whole * rollouts.mask, **close)
    torch.testing.assert_close(targets.monte_carlo, table([[2.75, 3.0], [1.0], [1.0]]), **close)
    torch.testing.assert_close(targets.token_rewards, table(REWARDS), **close)


def test_another_lambda_of_the_head_changes_nothing_for_the_policy() -> None:
    plain = compute_advantages(example(), Ppo(whiten=True))
    other = compute_advantages(example(), Ppo(whiten=True), value_lambda=1.0)
    assert torch.equal(plain.advantages, other.advantages)
    assert not torch.equal(plain.returns, other.returns)


def test_explained_variance_is_told_of_each_quarter_of_a_response() -> None:
    graded = [graded_sample("a", [1] * 8, 1.0), graded_sample("a", [1] * 4, 0.0)]
    rollouts = make_rollouts(graded, [[-1.0] * 8, [-1.0] * 4])
    targets = compute_advantages(rollouts, Ppo())
    # Two tokens each of the first, one of the second; in the third quarter it says what follows.
    targets.monte_carlo[:] = torch.tensor([[1.0] * 8, [-1.0] * 4 + [50.0] * 4])
    targets.values[:] = 0.0
    targets.values[0, 4:6], targets.values[1, 2] = 1.0, -1.0
    row = describe(rollouts, targets, Ppo())
    quarters = [row[f"explained_variance/quarter_{k}"] for k in (1, 2, 3, 4)]
    assert quarters == [0.0, 0.0, 1.0, 0.0]
    group = describe(rollouts, targets, Ppo(advantage="group", samples_per_question=2))
    assert [key for key in group if key.startswith("explained")] == ["explained_variance"]


def test_a_batch_is_described_by_hand() -> None:
    graded = [
        graded_sample("a", [10, 11, 12], 1.0),
        graded_sample("a", [13], 0.0, status="syntax_error"),
        graded_sample("b", [14, 15], 0.1, finished=False),
        graded_sample("b", [16, 17], 1.0),
    ]
    logprobs = [[-1.0, -2.0, -3.0], [-1.0], [-2.0, -2.0], [-1.0, -4.0]]
    # log pi - log ref: (1, 2, -0.5), (0.5), (-1, 0), (3, 1)
    reference = [[-2.0, -4.0, -2.5], [-1.5], [-1.0, -2.0], [-4.0, -5.0]]
    # pi / mu: (1, 1, 1), (3), (0.5, 1), (2.5, 5), of which three are cut to 2
    shift = [[0.0] * 3, [math.log(3)], [math.log(0.5), 0.0], [math.log(2.5), math.log(5)]]
    sampler = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(logprobs, shift, strict=True)]
    values = [[0.0, 0.0, 0.0], [1.0], [1.0, 1.0], [0.0, 0.0]]
    rollouts = make_rollouts(graded, logprobs, reference=reference, sampler=sampler, values=values)
    targets = compute_advantages(rollouts, Ppo())
    # What followed has the variance 1; the critic's errors (0, 2, 0), (1), (-1, 1), (2, 0) have the
    # mean 5 / 8 and the variance 11 / 8 - 25 / 64 = 63 / 64.
    targets.monte_carlo[:] = torch.tensor([[0.0, 2, 0], [2, 50, 50], [0, 2, 50], [2, 0, 50]])
    row = describe(rollouts, targets, Ppo(importance_sampling_cap=2.0))
    assert row == {
        "reward": pytest.approx((1 + 0 + 0.1 + 1) / 4),
        "accuracy": 2 / 4,
        "groups_all_right": 0.0,
        "groups_all_wrong": 0.0,
        "kl": pytest.approx((2.5 + 0.5 - 1 + 4) / 4),
        "response_length": 8 / 4,
        "truncated": 1 / 4,
        "explained_variance": pytest.approx(1 / 64),
        # Of returns 0, 2, 0, 2 it says 0, 1, 1, 0; of 0, 2, 0 it says 0, 1, 0; one has no variance.
        "explained_variance/quarter_1": pytest.approx(-0.25),
        "explained_variance/quarter_2": 0.0,
        "explained_variance/quarter_3": pytest.approx(0.75),
        "explained_variance/quarter_4": 0.0,
        "sampler_weight": pytest.approx((3 + 2 + 1.5 + 4) / 8),
        "sampler_truncated": pytest.approx(3 / 8),
        "statuses": {"ok": 3, "syntax_error": 1},
    }
    uncapped = describe(rollouts, targets, Ppo(importance_sampling_cap=0.0))
    assert uncapped["sampler_weight"] == pytest.approx((3 + 3 + 1.5 + 7.5) / 8)
    assert uncapped["sampler_truncated"] == 0.0


def test_groups_are_all_right_all_wrong_or_mixed() -> None:
    outcomes = {"a": (1.0, 1.0), "b": (1.0, 1.0, 0.0), "c": (0.1, 0.0), "d": (0.0,), "e": (1.0, 1.0)}
    graded = [
        graded_sample(id_, [10], reward) for id_, rewards in outcomes.items() for reward in rewards
    ]
    # What nobody judged is in no group: "a" would be a mixed one, "f" has no second sample.
    graded += [graded_sample(id_, [10], 0.0, status="sandbox_error") for id_ in ("a", "f")]
    graded.append(graded_sample("f", [10], 1.0))
    assert group_shares(graded) == {"groups_all_right": 2 / 4, "groups_all_wrong": 1 / 4}
    assert group_shares(graded[-1:]) == {}  # one sample per question: there are no groups


def test_what_nobody_judged_counts_in_no_figure_of_the_judged() -> None:
    rollouts = example()
    row = describe(rollouts, compute_advantages(rollouts, Ppo()), Ppo())
    assert row["accuracy"] == row["reward"] == pytest.approx(2 / 3)
    assert row["kl"] == pytest.approx((-2.5 - 4 - 2 + 0) / 3)
    assert row["sampler_weight"] == pytest.approx((1.5 + 0.5 + 2 + 1) / 4)
    assert row["sampler_truncated"] == pytest.approx(1 / 4)
    assert row["statuses"] == {"ok": 3, "sandbox_error": 1}


def test_a_batch_of_which_nothing_was_judged_has_figures_too() -> None:
    rollouts = make_rollouts([graded_sample("a", [10, 11], 0.0, status="sandbox_error")], [[-1.0, -2.0]])
    row = describe(rollouts, compute_advantages(rollouts, Ppo()), Ppo())
    assert (row["sampler_weight"], row["sampler_truncated"], row["accuracy"]) == (1.0, 0.0, 0.0)
    assert (row["reward"], row["kl"], row["explained_variance"]) == (0.0, 0.0, 0.0)
