"""The critic without a network: by hand, and against least squares with made-up observations."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from made_rollouts import graded_sample, make_rollouts
from reftune.training.types import Rollouts
from reftune.training.value_features import FEATURES
from reftune.training.value_regression import ValueRegression, regressors

NAMES = ["surprise", "group", "success_rate"]
RATES = {"q0": 0.5}


def drawn(seed: int, unjudged: Sequence[int] = ()) -> tuple[Rollouts, Tensor]:
    """Return random rollouts of three questions, and random returns with rubbish on padding."""
    rng = random.Random(seed)
    graded, logprobs = [], []
    for i in range(9):
        tokens = [rng.randrange(2) for _ in range(rng.randint(1, 5))]
        status = "sandbox_error" if i in unjudged else "ok"
        graded.append(graded_sample(f"q{i % 3}", tokens, rng.random(), status=status))  # type: ignore[arg-type]
        logprobs.append([-3 * rng.random() for _ in tokens])
    rollouts = make_rollouts(graded, logprobs)
    returns = torch.tensor([[rng.gauss(0, 1) for _ in row] for row in rollouts.mask])
    return rollouts, returns.double()


def least_squares(batches: Sequence[tuple[Tensor, Tensor, Tensor]], first: list[float]) -> np.ndarray:
    """Return weights by numpy's least squares on tokens, one by one.

    A batch that is k steps old counts 0.7^k, and ten tokens of each number alone say its first weight.
    """
    rows, aims = [], []
    for age, (features, returns, mask) in enumerate(reversed(batches)):
        for i, t in torch.nonzero(mask).tolist():
            weight = 0.7 ** (age / 2)
            rows.append(weight * features[i, t].double().numpy())
            aims.append(weight * returns[i, t].item())
    for k, weight in enumerate(first):
        rows.append(10**0.5 * np.eye(len(first))[k])
        aims.append(10**0.5 * weight)
    return np.asarray(np.linalg.lstsq(np.array(rows), np.array(aims), rcond=None)[0])


def test_features_stand_in_the_order_of_their_names_with_a_1_behind_them() -> None:
    rollouts, _ = drawn(1, unjudged=(2,))
    found = regressors(NAMES, rollouts, RATES)
    parts = found.split([3, 3, 2, 1], dim=2)
    for name, part in zip(NAMES, parts, strict=False):
        torch.testing.assert_close(part, FEATURES[name].compute(rollouts, RATES))
    torch.testing.assert_close(parts[3].squeeze(2), rollouts.mask)


def test_before_any_batch_a_value_is_the_mean_reward_of_the_questions_other_samples() -> None:
    graded = [graded_sample("a", [5, 6], reward) for reward in (1.0, 0.5, 0.0)]
    rollouts = make_rollouts(graded, [[-1.0, -2.0]] * 3)
    for names in (["group"], NAMES):
        values = ValueRegression(names, {}).values(regressors(names, rollouts, {}))
        expected = torch.tensor([[0.25, 0.25], [0.5, 0.5], [0.75, 0.75]])
        torch.testing.assert_close(values, expected)
    assert not ValueRegression(["surprise"], {}).values(regressors(["surprise"], rollouts, {})).any()


def test_weights_by_hand() -> None:
    # Of a question that is asked for the first time nothing is known but the 1.
    names, regression = ["success_rate"], ValueRegression(["success_rate"], {})
    rollouts = make_rollouts([graded_sample("new", [1] * 10, 1.0)], [[-1.0] * 10])
    known = regressors(names, rollouts, {})
    regression.learn(known, torch.ones(1, 10))
    # ten tokens say 1 and caution says 0 with the weight of ten
    torch.testing.assert_close(regression.values(known), torch.full((1, 10), 0.5))
    regression.learn(known, torch.zeros(1, 10))
    # seven tokens' worth says 1, ten say 0, and caution says 0: 7 / 27
    torch.testing.assert_close(regression.values(known), torch.full((1, 10), 7 / 27))


def test_weights_are_those_of_least_squares_with_older_batches_fading() -> None:
    regression, batches = ValueRegression(NAMES, {}), []
    first = [0.0] * 3 + [1.0, 0.0, 0.0] + [0.0] * 3
    for seed in range(4):
        rollouts, returns = drawn(seed, unjudged=(seed, 7))
        known = regressors(NAMES, rollouts, RATES)
        batches.append((known, returns, rollouts.mask))
        regression.learn(known, returns)
        expected = least_squares(batches, first)
        assert regression.weights.tolist() == pytest.approx(expected.tolist(), abs=1e-9)
        values = known.double().numpy() @ expected
        np.testing.assert_allclose(regression.values(known).numpy(), values, atol=1e-6)
    assert not regression.values(known)[rollouts.mask == 0].any()


def test_row_order_and_padding_change_nothing() -> None:
    rollouts, returns = drawn(5, unjudged=(1,))
    known = regressors(NAMES, rollouts, RATES)
    plain, other = ValueRegression(NAMES, {}), ValueRegression(NAMES, {})
    plain.learn(known, returns)
    order = torch.tensor([3, 8, 0, 1, 7, 2, 6, 5, 4])
    wider = torch.cat([known, torch.zeros(9, 2, known.shape[2])], 1)[order]
    other.learn(wider, torch.cat([returns, torch.full((9, 2), 50.0)], 1)[order])
    torch.testing.assert_close(other.weights, plain.weights)


def test_a_later_one_goes_on_where_an_earlier_one_was_kept() -> None:
    whole, kept = ValueRegression(NAMES, {}), ValueRegression(NAMES, {})
    for seed in range(3):
        rollouts, returns = drawn(seed)
        known = regressors(NAMES, rollouts, RATES)
        whole.learn(known, returns)
        kept.learn(known, returns)
        kept = ValueRegression(NAMES, json.loads(json.dumps(kept.memory())))
        assert torch.equal(kept.weights, whole.weights)
