"""Token rewards, GAE, baselines per question, whitening: by hand and against other formulas and code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from made_rollouts import graded_sample, make_rollouts
from reftune.config import Ppo
from reftune.config.ppo import KINDS
from reftune.training.advantages import (
    ADVANTAGES,
    explained_variance,
    gae,
    group,
    length_lambda,
    maxrl,
    monte_carlo,
    reinforce_plus_plus,
    rloo,
    token_rewards,
    whiten,
)

LENGTHS = [6, 1, 0, 4, 5]  # of the ragged batch: a single token and a row without any among them


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def mask_of(lengths: list[int], width: int) -> Tensor:
    return torch.tensor([[1.0] * n + [0.0] * (width - n) for n in lengths], dtype=torch.float64)


def ragged(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return random rewards and values (with rubbish in the padding of the values), mask, groups."""
    random = np.random.default_rng(seed)
    mask = mask_of(LENGTHS, 6)
    rewards = torch.tensor(random.normal(size=(5, 6))) * mask
    return rewards, torch.tensor(random.normal(size=(5, 6))), mask, torch.arange(5)


def averaged_returns(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Estimate advantages as GAE is defined: the exponential average of k-step estimators.

    Schulman et al. 2016, equations 14 and 16, for an episode that ends: A^(k) sums k rewards and
    bootstraps from the value behind them, and all the weight beyond the end falls on the last one.
    """
    steps = len(rewards)
    advantages = []
    for t in range(steps):
        left = steps - t
        estimators = []
        for k in range(1, left + 1):
            behind = gamma**k * values[t + k] if t + k < steps else 0.0
            estimators.append(sum(gamma**i * rewards[t + i] for i in range(k)) + behind - values[t])
        weights = [(1 - lam) * lam ** (k - 1) for k in range(1, left)] + [lam ** (left - 1)]
        advantages.append(math.fsum(w * a for w, a in zip(weights, estimators, strict=True)))
    return advantages


def test_token_rewards_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.5, 7.0], [7.0, 7.0, 7.0]])
    ref_logprobs = torch.tensor([[-2.0, -2.0, -1.0], [-1.5, 0.0, -7.0], [-7.0, -7.0, -7.0]])
    scores = torch.tensor([1.0, 0.1, 1.0])
    rewards = token_rewards(scores, logprobs, ref_logprobs, mask_of([3, 2, 0], 3).float(), kl_coef=0.5)
    # Row 0: -0.5 * (1, 0, -2), and 1 on the last; row 1: -0.5 * (1, -0.5), and 0.1; row 2 has no token.
    expected = torch.tensor([[-0.5, 0.0, 2.0], [-0.5, 0.35, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(rewards, expected)


def test_the_score_goes_to_the_last_real_token() -> None:
    lengths = [4, 1, 3, 0, 2]
    zeros = torch.zeros(5, 4)
    rewards = token_rewards(torch.arange(1.0, 6.0), zeros, zeros, mask_of(lengths, 4).float(), 0.05)
    placed = {(i, t): rewards[i, t].item() for i, t in torch.nonzero(rewards).tolist()}
    assert placed == {(0, 3): 1.0, (1, 0): 2.0, (2, 2): 3.0, (4, 1): 5.0}


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        # rewards 0, 0, 1; values 0.5, 0.25, 0.5, and 0 after the end
        # deltas -0.25, 0.25, 0.5; A = 0.5, 0.25 + 0.95 * 0.5, -0.25 + 0.95 * 0.725
        (1.0, 0.95, (0.43875, 0.725, 0.5)),
        # deltas 0.125 - 0.5, 0.25 - 0.25, 0.5; A = 0.5, 0.25 * 0.5, -0.375 + 0.25 * 0.125
        (0.5, 0.5, (-0.34375, 0.125, 0.5)),
        (1.0, 0.0, (-0.25, 0.25, 0.5)),  # the deltas themselves
        (1.0, 1.0, (0.5, 0.75, 0.5)),  # return 1 minus the value
    ],
)
def test_gae_by_hand(gamma: float, lam: float, expected: tuple[float, ...]) -> None:
    ppo = Ppo(gamma=gamma, gae_lambda=lam)
    advantages = gae(row(0, 0, 1), row(0.5, 0.25, 0.5), row(1, 1, 1), ppo.gamma, ppo.gae_lambda)
    torch.testing.assert_close(advantages, row(*expected))


def test_gae_of_one_token_is_its_reward_minus_its_value() -> None:
    advantages = gae(row(1), row(0.25), row(1), 1.0, 0.95)
    torch.testing.assert_close(advantages, row(0.75))


def test_the_defaults_are_the_papers() -> None:
    ppo = Ppo()
    advantages = gae(row(0, 0, 1), row(0.5, 0.25, 0.5), row(1, 1, 1), ppo.gamma, ppo.gae_lambda)
    torch.testing.assert_close(advantages, row(0.43875, 0.725, 0.5))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (0.8, 1.0)])
def test_gae_is_the_average_of_k_step_estimators(gamma: float, lam: float) -> None:
    rewards, values, mask, _groups = ragged()
    advantages = gae(rewards, values, mask, gamma, lam)
    for i, n in enumerate(LENGTHS):
        reference = averaged_returns(rewards[i, :n].tolist(), values[i, :n].tolist(), gamma, lam)
        assert advantages[i].tolist() == pytest.approx([*reference, *[0.0] * (6 - n)], abs=1e-12)


def test_gae_with_lambda_one_is_return_minus_value() -> None:
    rewards, values, mask, _groups = ragged()
    advantages = gae(rewards, values, mask, 1.0, 1.0)
    for i, n in enumerate(LENGTHS):
        for t in range(n):
            to_go = math.fsum(rewards[i, t:n].tolist())
            assert advantages[i, t].item() == pytest.approx(to_go - values[i, t].item(), abs=1e-12)


@pytest.mark.parametrize("name", [*ADVANTAGES, "scaled"])
def test_padding_and_row_order_change_nothing(name: str) -> None:
    rewards, values, mask, _ = ragged()
    groups = torch.tensor([0, 1, 0, 1, 0])

    def function(rewards: Tensor, values: Tensor, mask: Tensor, groups: Tensor) -> Tensor:
        estimates = {
            "gae": lambda: gae(rewards, values, mask, 1.0, 0.95),
            "group": lambda: group(rewards, mask, groups),
            "scaled": lambda: group(rewards, mask, groups, scale_rewards=True),
            "rloo": lambda: rloo(rewards, mask, groups),
            "reinforce++": lambda: reinforce_plus_plus(rewards, mask, groups),
            "maxrl": lambda: maxrl(rewards, rewards[:, 0].abs(), mask, groups),
        }
        return estimates[name]()

    whole = function(rewards, values, mask, groups)

    wider = pad(values, (0, 3), value=9.0)
    zeros = torch.zeros(5, 3, dtype=torch.float64)
    padded = function(torch.cat([rewards, zeros], 1), wider, torch.cat([mask, zeros], 1), groups)
    torch.testing.assert_close(padded, torch.cat([whole, zeros], 1))

    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = function(rewards[order], values[order], mask[order], groups[order])
    torch.testing.assert_close(permuted, whole[order])


def test_gae_of_a_row_does_not_depend_on_the_other_rows() -> None:
    rewards, values, mask, _groups = ragged()
    whole = gae(rewards, values, mask, 1.0, 0.95)
    for i in range(5):
        alone = gae(rewards[i : i + 1], values[i : i + 1], mask[i : i + 1], 1.0, 0.95)
        torch.testing.assert_close(alone, whole[i : i + 1])


def test_lambda_by_length_by_hand() -> None:
    # 1 - 1 / (0.5 * 5), 1 - 1 / (0.5 * 4), and 0 for 1 - 1 / 1, 1 - 1 / 0.5 and for no token at all
    found = length_lambda(mask_of([5, 4, 2, 1, 0], 6), 0.5)
    torch.testing.assert_close(found, torch.tensor([0.6, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64))
    assert length_lambda(mask_of([8], 8), 10.0).item() == pytest.approx(1 - 1 / 80)


def test_each_row_may_have_a_lambda_of_its_own() -> None:
    rewards, values, mask, _groups = ragged()
    lambdas = torch.tensor([0.3, 0.9, 0.5, 1.0, 0.0], dtype=torch.float64)
    whole = gae(rewards, values, mask, 0.9, lambdas)
    for i in range(5):
        alone = gae(rewards[i : i + 1], values[i : i + 1], mask[i : i + 1], 0.9, lambdas[i].item())
        torch.testing.assert_close(alone, whole[i : i + 1])


def test_gae_with_lambda_by_length_is_that_of_verl() -> None:
    rewards = torch.tensor([[0.0, 0.0, 0.1, -0.2, 1.0], [0.5, -0.1, 0.3, 0.0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[0.2, 0.4, -0.1, 0.6, 0.5], [0.3, 0.9, -0.4, 0.7, 0.7]], dtype=torch.float64)
    mask = mask_of([5, 3], 5)
    # compute_gae_advantage_return of verl (volcengine/verl, verl/trainer/ppo/core_algos.py at
    # 012be9d9dcb7), before it whitens, of each row with gamma 0.9 and VAPO's lambda 1 - 1 / (0.5 l)
    verl = [[0.09858688, -0.113728, 0.6968, -0.08, 0.5], [0.665, -1.15, 0.7, 0.0, 0.0]]
    expected = torch.tensor(verl, dtype=torch.float64)
    found = gae(rewards, values, mask, 0.9, length_lambda(mask, 0.5))
    torch.testing.assert_close(found, expected)


def test_what_follows_a_token_by_hand() -> None:
    rewards, mask = row(1, -2, 4, 0), row(1, 1, 1, 0)
    torch.testing.assert_close(monte_carlo(rewards, mask, 1.0), row(3, 2, 4, 0))
    torch.testing.assert_close(monte_carlo(rewards, mask, 0.5), row(1, 0, 4, 0))


GROUP_REWARDS = torch.tensor(
    [
        [0.0, 1.0, 0.0],  # question 7: totals 1, 0, 0.5, mean 0.5
        [0.5, 0.5, 9.0],  # question 2: totals 1 and 0, mean 0.5; the third number is padding
        [-0.5, 0.5, 0.0],
        [0.25, 0.25, 0.0],
        [0.0, 0.0, 0.0],
        [4.0, 4.0, 4.0],  # question 7 again, not judged: no token, and in no mean
    ]
)
GROUP_MASK = mask_of([3, 2, 3, 2, 1, 0], 3).float()
GROUPS = torch.tensor([7, 2, 7, 7, 2, 7])


def test_group_by_hand() -> None:
    expected = torch.tensor(
        [
            [0.5, 0.5, 0.5],
            [0.5, 0.5, 0.0],
            [-0.5, -0.5, -0.5],
            [0.0, 0.0, 0.0],
            [-0.5, 0.0, 0.0],
            [0.0, 0.0, 0.0],
        ]
    )
    torch.testing.assert_close(group(GROUP_REWARDS, GROUP_MASK, GROUPS), expected)


def test_group_scale_by_hand() -> None:
    advantages = group(GROUP_REWARDS, GROUP_MASK, GROUPS, scale_rewards=True)
    # Question 7: deviations 0.5, -0.5, 0, so the standard deviation is sqrt(0.5 / 3) = 0.40825, and
    # 0.5 / 0.40825 = 1.22474. Question 2: deviations +-0.5, standard deviation 0.5.
    expected = torch.tensor([1.22474, 1.0, -1.22474, 0.0, -1.0, 0.0])
    torch.testing.assert_close(advantages[:, 0], expected, atol=5e-4, rtol=0)


def test_rloo_by_hand() -> None:
    # Question 7: totals 1, 0, 0.5 against the others' means 0.25, 0.75, 0.5; question 2: 1 and 0. What
    # nobody judged is none of the others.
    found = rloo(GROUP_REWARDS, GROUP_MASK, GROUPS)
    torch.testing.assert_close(found[:, 0], torch.tensor([0.75, 1.0, -0.75, 0.0, -1.0, 0.0]))
    assert found[3].tolist() == found[5].tolist() == [0.0, 0.0, 0.0]
    assert found[1].tolist() == [1.0, 1.0, 0.0], "nothing on padding"


def test_reinforce_plus_plus_by_hand() -> None:
    # Deviations from the question's mean, token by token: 0.5 five times, -0.5 four times, 0 twice. The
    # mean of the eleven is 0.5 / 11, their mean square 2.25 / 11.
    mean = 0.5 / 11
    scale = 1 / math.sqrt(2.25 / 11 - mean**2)
    found = reinforce_plus_plus(GROUP_REWARDS, GROUP_MASK, GROUPS)
    expected = scale * (torch.tensor([0.5, 0.5, -0.5, 0.0, -0.5]) - mean)
    torch.testing.assert_close(found[:5, 0], expected)
    assert not (found * (1 - GROUP_MASK)).any(), "nothing on padding, nor where nobody judged"


def test_maxrl_by_hand() -> None:
    # Question 7: mean 0.5, so deviations 0.5, -0.5 and 0 are doubled. Question 2 has the score 0.25 in
    # the mean (0.5 and 0): a KL penalty is in the deviations alone.
    scores = torch.tensor([1.0, 0.5, 0.0, 0.5, 0.0, 9.0])
    found = maxrl(GROUP_REWARDS, scores, GROUP_MASK, GROUPS)
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, 2.0, -1.0, 0.0, -2.0, 0.0]))


@pytest.mark.parametrize("score", [0.0, -0.5])
def test_maxrl_learns_nothing_where_nothing_was_found(score: float) -> None:
    penalties = torch.tensor([[-0.3], [-0.1], [1.0], [0.0]])
    scores = torch.tensor([score, 0.0, 1.0, 0.0])
    found = maxrl(penalties, scores, torch.ones(4, 1), torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(found, torch.tensor([[0.0], [0.0], [1.0], [-1.0]]))


# Three questions, of three, two and three samples; each sample's token rewards.
SAMPLES = [
    [0, 0, 1], [0.25, 0, 0, 0.5], [0], [0, 1], [0, 0, 0, 0.1], [0.5, -0.25, 0], [1], [0, 0],
]  # fmt: skip
QUESTIONS = torch.tensor([0, 0, 0, 5, 5, 2, 2, 2])
# verl at 1dda039b, compute_rloo_outcome_advantage; NeMo-RL at 7ea279ab says the same:
# calculate_baseline_and_std_per_prompt with leave_one_out_baseline.
VERLS_RLOO = [0.625, 0.25, -0.875, 0.9, -0.9, -0.25, 0.875, -0.625]
# NeMo-RL at 7ea279ab, ReinforcePlusPlusAdvantageEstimator with minus_baseline; verl's
# compute_reinforce_plus_plus_baseline_outcome_advantage divides by n - 1 tokens instead of n.
NEMOS_REINFORCE = [
    1.12555397, 0.47494477, -1.47688305, 1.21230185, -1.12989151, -0.39253426, 1.55929363, -1.04314351,
]  # fmt: skip
# The authors' code at github.com/tajwarfahim/maxrl, c0698ebb, compute_maxrl_outcome_advantage.
AUTHORS_MAXRL = [
    0.71428449, 0.2857138, -0.99999829, 0.81818033, -0.81818033, -0.39999904, 1.39999664, -0.9999976,
]  # fmt: skip


def as_batch(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    padded = [[*row, *[0.0] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.float64), mask_of([len(row) for row in rows], width)


def test_rloo_is_verls() -> None:
    found = rloo(*as_batch(SAMPLES), QUESTIONS)[:, 0]
    assert found.tolist() == pytest.approx(VERLS_RLOO, abs=1e-7)


def test_rloo_of_what_was_not_judged_is_trls() -> None:
    # TRL at f2cd5771, RLOOTrainer, whose unscorable rewards are NaN: 1, 0.75, NaN, 0 and 0.25, NaN.
    rewards, mask = as_batch([[1.0], [0.75], [9.0], [0.0], [0.25], [9.0]])
    mask[2] = mask[5] = 0
    found = rloo(rewards * mask, mask, torch.tensor([0, 0, 0, 0, 1, 1]))[:, 0]
    assert found.tolist() == pytest.approx([0.625, 0.25, 0.0, -0.875, 0.0, 0.0])


def test_reinforce_plus_plus_is_nemo_rls() -> None:
    found = reinforce_plus_plus(*as_batch(SAMPLES), QUESTIONS)[:, 0]
    assert found.tolist() == pytest.approx(NEMOS_REINFORCE, abs=1e-6)


def test_maxrl_is_its_authors() -> None:
    rewards, mask = as_batch(SAMPLES)
    found = maxrl(rewards, rewards.sum(1), mask, QUESTIONS)[:, 0]
    assert found.tolist() == pytest.approx(AUTHORS_MAXRL, abs=1e-5)  # they add 1e-6 to the mean


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.compares])
def test_a_question_with_one_judged_sample_has_nothing_to_compare(name: str) -> None:
    graded = [graded_sample("a", [5], 1.0), graded_sample("a", [5], 1.0, status="sandbox_error")]
    rollouts = make_rollouts(graded, [[0.0], [0.0]])
    rewards = rollouts.rewards.unsqueeze(1) * rollouts.mask
    found = ADVANTAGES[name].estimate(rewards, rollouts, Ppo())
    torch.testing.assert_close(found, torch.zeros(2, 1, dtype=torch.float64))


def test_the_table_gives_maxrl_the_rewards_without_the_penalty() -> None:
    graded = [graded_sample("a", [5], 1.0), graded_sample("a", [5], 0.0)]
    rollouts = make_rollouts(graded, [[0.0], [0.0]])
    penalised = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)  # the mean is 0, that of rewards 1/2
    found = ADVANTAGES["maxrl"].estimate(penalised, rollouts, Ppo())
    assert found[:, 0].tolist() == [1.0, -1.0]


def test_a_question_whose_samples_all_score_the_same_teaches_nothing() -> None:
    rewards = torch.full((10, 1), 0.1)
    groups = torch.tensor([0] * 9 + [3])  # question 3 has one sample only
    for scale in (False, True):
        # Exactly: the mean of nine times 0.1 is not 0.1, and what is left would be learnt from.
        assert group(rewards, torch.ones(10, 1), groups, scale).tolist() == [[0.0]] * 10
        small = group(torch.tensor([[2e-6], [1e-6]]), torch.ones(2, 1), groups[:2], scale)
        assert small.sign().tolist() == [[1.0], [-1.0]]  # however little a reward tells apart


def test_group_of_no_rows_is_empty() -> None:
    nothing = torch.zeros(0, 3)
    assert group(nothing, nothing, torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


def test_whiten_by_hand() -> None:
    # Four real tokens 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5. They count one by one,
    # not row by row, and the padding's 100 does not.
    advantages = torch.tensor([[1.0, 3.0, 5.0], [7.0, 100.0, 100.0]])
    mask = mask_of([3, 1], 3).float()
    expected = torch.tensor([[-3.0, -1.0, 1.0], [3.0, 0.0, 0.0]]) / math.sqrt(5)
    torch.testing.assert_close(whiten(advantages, mask), expected)


def test_a_whitened_batch_has_mean_zero_and_variance_one() -> None:
    _, noise, mask, _ = ragged(seed=5)
    real = whiten(40 + 3 * noise, mask)[mask.bool()].numpy()
    assert real.mean() == pytest.approx(0, abs=1e-9)
    assert real.var() == pytest.approx(1, abs=1e-6)


def test_whiten_is_finite_where_there_is_nothing_to_scale() -> None:
    mask = mask_of([2, 0], 2)
    constant = torch.full((2, 2), 0.7, dtype=torch.float64)
    torch.testing.assert_close(whiten(constant, mask), torch.zeros_like(mask), atol=1e-6, rtol=0)
    torch.testing.assert_close(whiten(constant, 0 * mask), torch.zeros_like(mask))
    one_token = whiten(constant, mask_of([1, 0], 2))
    torch.testing.assert_close(one_token, torch.zeros_like(mask), atol=1e-6, rtol=0)


def test_whiten_ignores_padding_and_row_order() -> None:
    _, noise, mask, _ = ragged()
    whole = whiten(noise, mask)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(whiten(noise[order], mask[order]), whole[order])
    wider = pad(noise, (0, 2), value=9.0)
    padded = whiten(wider, pad(mask, (0, 2)))
    torch.testing.assert_close(padded, pad(whole, (0, 2)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0, 4.0), 1.0),
        ((5.0, 9.0), 1.0),  # off by a constant: all of the variance is explained
        ((1.0, 1.0), 0.0),
        ((1.0, 3.0), 0.75),  # errors -1 and 1: 1 - 1 / 4
        ((4.0, 0.0), -3.0),  # errors -4 and 4: 1 - 16 / 4
    ],
)
def test_explained_variance_by_hand(values: tuple[float, float], expected: float) -> None:
    returns = torch.tensor([[0.0, 99.0], [4.0, 99.0]])  # the second column is padding
    guesses = torch.tensor([[values[0], -99.0], [values[1], 50.0]])
    assert explained_variance(guesses, returns, mask_of([1, 1], 2).float()) == pytest.approx(expected)


def test_explained_variance_without_variance_is_zero() -> None:
    noise, ones = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.ones(2, 2)
    assert explained_variance(noise, ones, ones) == 0.0
    assert explained_variance(ones, noise, 0 * ones) == 0.0  # no real token


def test_explained_variance_of_returns_that_hardly_differ() -> None:
    # Returns 0 and 0.02: variance 0.0001. Errors 0 and 0.01: variance 0.000025, a quarter.
    returns, values = torch.tensor([[0.0, 0.02]]), torch.tensor([[0.0, 0.01]])
    assert explained_variance(values, returns, torch.ones(1, 2)) == pytest.approx(0.75, abs=1e-6)


def test_explained_variance_of_equal_scores_is_zero_in_spite_of_rounding() -> None:
    values = torch.linspace(-1, 1, 64 * 30).reshape(64, 30)
    rewards, mask = torch.zeros(64, 30), torch.ones(64, 30)
    rewards[:, -1] = 0.1  # every answer is wrong
    returns = values + gae(rewards, values, mask, 1.0, 1.0)
    assert returns.unique().numel() > 1
    assert explained_variance(values, returns, mask) == 0.0


def test_the_settings_know_each_estimator_and_what_it_needs() -> None:
    assert {name: estimator.kind for name, estimator in ADVANTAGES.items()} == KINDS
    assert [name for name, kind in KINDS.items() if kind.critic] == ["gae"]
    assert [name for name, kind in KINDS.items() if not kind.compares] == ["gae"]
