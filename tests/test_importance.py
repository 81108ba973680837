"""Weights of samples by hand, and against what TRL's and verl's code gives for one batch.

- TRL: `vllm_importance_sampling_mode` in `GRPOTrainer._generate_and_score_completions`, f2cd577
- verl: `compute_rollout_rejection_mask` with "seq_mean_k1", `verl/trainer/ppo/rollout_corr_helper.py`,
  verl-project/verl 1dda039
"""

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
from reftune.training.importance import IMPORTANCE_SAMPLING, importance_weights
from reftune.training.types import Rollouts

TRAINER = [[-0.9, -1.0, -1.9, -0.6], [-2.0, -0.8], [-1.0, -1.7, -2.2]]
SAMPLER = [[-0.95, -1.1, -1.7, -0.5], [-2.3, -0.8], [-1.2, -1.4, -4.2]]
# pi / mu: e^0.05, e^0.1, e^-0.2, e^-0.1; e^0.3, 1; e^0.2, e^-0.3, e^2. Products: e^-0.15, e^0.3, e^1.9.
TOKENS = [
    [1.0512710964, 1.1051709181, 0.8187307531, 0.904837418],
    [1.3498588076, 1.0],
    [1.2214027582, 0.7408182207],
]


def rollouts(trainer: list[list[float]] = TRAINER, sampler: list[list[float]] = SAMPLER) -> Rollouts:
    graded = [graded_sample("a", [9] * len(row), i % 2) for i, row in enumerate(trainer)]
    return make_rollouts(graded, trainer, sampler=sampler)


def weights(**settings: Any) -> list[list[float]]:
    return shown(importance_weights(rollouts(), Ppo(**settings)))


def shown(found: Tensor) -> list[list[float]]:
    return [row[: len(real)].tolist() for row, real in zip(found, TRAINER, strict=True)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [*TOKENS[:2], [*TOKENS[2], 2.0]]),  # TRL, token_truncate, at most 2
        ({"importance_sampling_cap": 1.3}, [TOKENS[0], [1.3, 1.0], [*TOKENS[2], 1.3]]),
        (
            {"importance_sampling": "sequence_truncate"},  # TRL, sequence_truncate, at most 2
            [[0.8607079764] * 4, [1.3498588076] * 2, [2.0] * 3],
        ),
        ({"importance_sampling": "token_mask"}, [*TOKENS[:2], [*TOKENS[2], 0.0]]),  # TRL, 0.5 to 5
        (
            {"importance_sampling": "token_mask", "importance_sampling_min": 0.9,
             "importance_sampling_max": 8.0},
            [[1.0512710964, 1.1051709181, 0.0, 0.904837418], TOKENS[1],
             [1.2214027582, 0.0, math.exp(2)]],
        ),
        (
            {"importance_sampling": "sequence_mask", "importance_sampling_min": 0.9,
             "importance_sampling_max": 1.2},  # verl, seq_mean_k1, whose bounds are those of mu / pi
            [[1.0] * 4, [1.0] * 2, [0.0] * 3],
        ),
        ({"importance_sampling": "sequence_mask"}, [[0.0] * 4, [0.0] * 2, [0.0] * 3]),
    ],
)  # fmt: skip
def test_weights_are_those_of_trl_and_verl(
    settings: dict[str, Any], expected: list[list[float]]
) -> None:
    for row, wanted in zip(weights(**settings), expected, strict=True):
        assert row == pytest.approx(wanted)


@pytest.mark.parametrize("name", IMPORTANCE_SAMPLING)
def test_a_sampler_that_is_the_policy_has_the_weight_1(name: str) -> None:
    ppo = Ppo(importance_sampling=name)
    found = shown(importance_weights(rollouts(TRAINER, TRAINER), ppo))
    assert found == [[1.0] * len(row) for row in TRAINER]


def test_the_mean_of_a_sequence_knows_its_bounds() -> None:
    ratios = [[math.log(1.0015)] * 2, [math.log(1.0025)] * 3, [math.log(0.9985)]]
    near = rollouts(ratios, [[0.0] * len(row) for row in ratios])
    found = importance_weights(near, Ppo(importance_sampling="sequence_mask"))
    assert found[:, 0].tolist() == [1.0, 0.0, 0.0]  # 0.999 to 1.002


def test_a_token_knows_its_bounds() -> None:
    ratios = [[math.log(x) for x in row] for row in ([4.9, 5.1], [0.51, 0.49])]
    near = rollouts(ratios, [[0.0] * 2] * 2)
    found = importance_weights(near, Ppo(importance_sampling="token_mask"))
    assert (found > 0).tolist() == [[True, False], [True, False]]  # 0.5 to 5


@pytest.mark.parametrize("name", IMPORTANCE_SAMPLING)
def test_padding_and_cuts_change_nothing(name: str) -> None:
    batch, ppo = rollouts(), Ppo(importance_sampling=name)
    log_ratio = (batch.logprobs - batch.sampler_logprobs) * batch.mask
    whole = IMPORTANCE_SAMPLING[name](log_ratio, batch.mask, ppo)
    for row, real in enumerate(TRAINER):
        cut = slice(row, row + 1), slice(len(real))
        alone = IMPORTANCE_SAMPLING[name](log_ratio[cut], batch.mask[cut], ppo)
        torch.testing.assert_close(alone, whole[cut])


def test_advantages_are_weighed_and_metrics_tell_what_was_masked() -> None:
    ppo = Ppo(importance_sampling="token_mask", kl_coef=0.0, advantage="group", samples_per_question=3)
    batch = rollouts()
    found = compute_advantages(batch, ppo)
    plain = compute_advantages(batch, ppo.model_copy(update={"importance_sampling_cap": 0.0}))
    expected = plain.advantages * importance_weights(batch, ppo)
    assert torch.equal(found.advantages, expected)
    assert torch.equal(found.returns, plain.returns)
    row = describe(batch, found, ppo)
    assert row["sampler_masked"] == pytest.approx(1 / 9)
    assert not {"sampler_truncated", "sampler_weight"} & {*row}  # a mask has no cap, and 0 is no weight
