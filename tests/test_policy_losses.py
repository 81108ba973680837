"""The losses beside PPO's own: by hand, and against what other libraries' code gives for one batch.

Those libraries were run on `BATCH` once, in float64; what they gave stands here as numbers:

- TRL: the middle of `GRPOTrainer._compute_loss`, huggingface/trl f2cd577
- verl: `compute_policy_loss_gspo`, `compute_policy_loss_cispo`, `kl_penalty_forward` and `agg_loss` of
  `verl/trainer/ppo/core_algos.py`, verl-project/verl 1dda039
- prime-rl: `default_loss_fn` of `src/prime_rl/trainer/rl/loss.py`, PrimeIntellect-ai/prime-rl 559b447
- Skywork-OR1: `EntController` of `verl/trainer/ppo/core_algos.py`, SkyworkAI/Skywork-OR1 64e96af
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from reftune.config import Ppo
from reftune.training.losses import (
    AGGREGATIONS,
    KL_LOSSES,
    POLICY_LOSSES,
    Divisors,
    Tokens,
    aggregate,
    clip,
    dppo_tv,
    kl_loss,
    next_entropy_coef,
)

Rows = Sequence[Sequence[float]]

LOGPROBS = [[-0.5, -1.2, -2.0, -0.1], [-3.0, -0.7], [-1.0, -0.4, -2.5]]
OLD = [[-0.9, -1.0, -1.9, -0.6], [-2.0, -0.8], [-1.0, -1.7, -2.2]]
SAMPLER = [[-0.95, -1.1, -1.7, -0.5], [-2.3, -0.8], [-1.2, -1.4, -4.2]]
REFERENCE = [[-0.7, -1.0, -2.4, -0.3], [-2.5, -0.9], [-1.3, -0.4, -2.0]]
ADVANTAGES = [[1.0, 1.0, -0.5, 0.8], [-1.2, -1.2], [0.3, -0.7, -0.9]]
LENGTHS = [4, 2, 3]


def table(rows: Rows, rubbish: float = 5.0) -> Tensor:
    """Return rows of numbers with rubbish on padding."""
    return torch.tensor([[*row, *[rubbish] * (4 - len(row))] for row in rows], dtype=torch.float64)


MASK = table([[1.0] * n for n in LENGTHS], 0.0)
BATCH = Tokens(table(LOGPROBS), table(OLD, -3.0), table(SAMPLER, -2.0), table(ADVANTAGES), MASK)


def policy_term(
    tokens: Tokens = BATCH, **settings: Any
) -> tuple[Tensor, list[list[float]], dict[str, Tensor]]:
    """Return losses per token, their gradient in the mean of sequence means, and the flags."""
    ppo = Ppo(**settings)
    new = tokens.logprobs.clone().requires_grad_()
    losses, flags = POLICY_LOSSES[ppo.policy_loss](tokens._replace(logprobs=new), ppo)
    divisors = Divisors(tokens.mask.sum(1), float(len(tokens.mask)))
    aggregate(losses, tokens.mask, divisors).backward()
    assert new.grad is not None
    assert not new.grad[tokens.mask == 0].any()
    assert not any(flag.requires_grad for flag in flags.values())
    return losses.detach(), real(new.grad), flags


def real(numbers: Tensor) -> list[list[float]]:
    return [row[:n].tolist() for row, n in zip(numbers, LENGTHS, strict=True)]


def same(found: Rows, expected: Rows) -> bool:
    return all(a == pytest.approx(b, abs=1e-9) for a, b in zip(found, expected, strict=True))


def one(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


# Gradients in the mean of sequence means.
TRL_GRPO = [[0.0, -0.0682275628, 0.0377015591, 0.0], [0.0, 0.2210341836], [-1 / 30, 0.0, 0.0]]
TRL_CISPO = [
    [-0.1243187248, -0.0682275628, 0.0377015591, -0.1099147514],
    [0.0735758882, 0.2210341836],
    [-1 / 30, 0.1555555556, 0.0740818221],
]
VERL_GSPO = [
    [-0.09681952, -0.09681952, 0.04840976, -0.077455616], [0.0, 0.0],
    [0.0, 0.1085476327, 0.139561242],
]  # fmt: skip


def test_clip_higher_and_dual_clip_are_those_of_trl() -> None:
    losses, slopes, flags = policy_term(clip_range=0.2, clip_range_high=0.28, dual_clip=3.0)
    # TRL, loss_type "grpo", epsilon 0.2, epsilon_high 0.28, delta 3; verl's dual clip gives the same.
    expected = [[-1.28, -0.8187307531, 0.452418709, -1.024], [0.96, 1.3262051017], [-0.3, 2.1, 0.72]]
    assert same(real(losses), expected)
    assert same(slopes, TRL_GRPO)
    counts = {name: int((flag * MASK).sum()) for name, flag in flags.items()}
    # Ratios: e^0.4, e^-0.2, e^-0.1, e^0.5; e^-1, e^0.1; 1, e^1.3, e^-0.3.
    assert counts == {
        "clip_fraction": 5, "clip_fraction_low": 2, "clip_fraction_high": 2, "dual_clip_fraction": 1,
    }  # fmt: skip


def test_without_them_the_loss_is_the_old_one() -> None:
    losses, slopes, flags = policy_term(clip_range=0.2)
    expected = [
        [-1.2, -0.8187307531, 0.452418709, -0.96],
        [0.96, 1.3262051017],
        [-0.3, 2.5685076673, 0.72],
    ]
    assert same(real(losses), expected)  # TRL, epsilon 0.2
    assert same(slopes, [*TRL_GRPO[:2], [-1 / 30, 0.2853897408, 0.0]])
    assert list(flags) == ["clip_fraction"]
    assert torch.equal(losses, policy_term(clip_range=0.2, clip_range_high=0.2)[0])


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),  # range 0.2 down, 0.5 up, dual clip 3
    [
        (2.0, 1.4, -2.8, -2.8),  # beyond 1.2, but within the upper range
        (2.0, 1.6, -3.0, 0.0),
        (-2.0, 0.7, 1.6, 0.0),
        (-2.0, 2.9, 5.8, 5.8),
        (-2.0, 3.5, 6.0, 0.0),  # the bound of a bad token
        (2.0, 3.5, -3.0, 0.0),  # not of a good one
    ],
)
def test_both_ranges_of_one_token(advantage: float, ratio: float, loss: float, slope: float) -> None:
    new = one(math.log(ratio)).requires_grad_()
    found, _ = clip(new, one(0.0), one(advantage), one(1.0), 0.2, 0.5, 3.0)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(slope)


def test_gspo_is_that_of_verl() -> None:
    losses, slopes, flags = policy_term(policy_loss="gspo", clip_range=0.2, clip_range_high=0.28)
    # Mean log-ratios (0.4 - 0.2 - 0.1 + 0.5) / 4 = 0.15, (-1 + 0.1) / 2 = -0.45, (0 + 1.3 - 0.3) / 3.
    assert losses[0].tolist() == pytest.approx([-math.exp(0.15) * a for a in ADVANTAGES[0]])
    assert losses[1, :2].tolist() == pytest.approx([0.8 * 1.2] * 2)
    # e^(1/3) = 1.3956 is beyond 1.28, which takes the good token of the third row away.
    assert losses[2, :3].tolist() == pytest.approx(
        [-1.28 * 0.3, math.exp(1 / 3) * 0.7, math.exp(1 / 3) * 0.9]
    )
    assert same(slopes, VERL_GSPO)
    mean = aggregate(losses, MASK, Divisors(MASK.sum(1), 3.0))
    assert mean.item() == pytest.approx(0.3027573106531776)
    assert (flags["clip_fraction"] * MASK).sum(1).tolist() == [0, 2, 3]


def test_with_one_advantage_per_sequence_gspo_has_the_gradient_of_the_sequences_ratio() -> None:
    tokens = BATCH._replace(
        advantages=torch.tensor([[1.5], [-1.2], [0.3]], dtype=torch.float64).expand(3, 4)
    )
    losses, slopes, _ = policy_term(tokens, policy_loss="gspo", clip_range=0.3)
    assert same(real(losses), [[-1.7427513641] * 4, [0.84] * 2, [-0.39] * 3])  # TRL, epsilon 0.3
    assert same(slopes, [[-0.1452292803] * 4, [0.0] * 2, [0.0] * 3])
    _, slopes, _ = policy_term(tokens, policy_loss="gspo", clip_range=1e3)
    new = BATCH.logprobs.clone().requires_grad_()
    ratios = torch.exp(((new - BATCH.old_logprobs) * MASK).sum(1) / MASK.sum(1))
    (-ratios * tokens.advantages[:, 0]).mean().backward()
    assert new.grad is not None
    assert same(slopes, real(new.grad))


def test_cispo_is_that_of_trl() -> None:
    losses, slopes, flags = policy_term(policy_loss="cispo", clip_range_high=1.0)
    expected = [
        [0.7459123488, 0.9824769037, -0.904837418, 0.1318977017],
        [-1.3243659882, -0.9283435712],
        [0.3, -0.56, -1.6668409965],  # the second one's ratio is e^1.3, its weight 2: 2 * 0.7 * -0.4
    ]
    assert same(real(losses), expected)  # TRL, loss_type "cispo", epsilon_high 2, which is 1 + ours
    assert same(slopes, TRL_CISPO)  # verl with clip_ratio_low 100 and clip_ratio_high 1 gives the same
    assert (flags["clip_fraction"] * MASK).sum(1).tolist() == [0, 0, 1]
    assert torch.equal(
        policy_term(policy_loss="cispo", clip_range=0.7)[0],
        policy_term(policy_loss="cispo", clip_range_high=0.7)[0],
    )


@pytest.mark.parametrize(
    ("tv_range", "totals", "slopes", "dropped"),  # prime-rl sums over each sequence
    [
        (
            0.2, [-0.5344283077, 1.9221074662, 6.4629291050],
            [[0.0, -0.904837418, 0.3704091103, 0.0], [0.5959023645, 1.3262051017],
             [-0.3664208274, 1.9027972799, 4.9265526526]],
            [2, 0, 0],
        ),
        (
            0.05, [-0.5344283077, 1.3262051017, 6.8293499325],
            [[0.0, -0.904837418, 0.3704091103, 0.0], [0.0, 1.3262051017],
             [0.0, 1.9027972799, 4.9265526526]],
            [2, 1, 1],
        ),
    ],
)  # fmt: skip
def test_dppo_tv_is_that_of_prime_rl(
    tv_range: float, totals: list[float], slopes: Rows, dropped: list[int]
) -> None:
    # Their ratio is to the sampler: ours, to the trainer before, times the weight of the advantage.
    weights = torch.exp(BATCH.old_logprobs - BATCH.sampler_logprobs)
    tokens = BATCH._replace(advantages=BATCH.advantages * weights)
    losses, found, flags = policy_term(tokens, policy_loss="dppo_tv", tv_range=tv_range)
    assert (losses * MASK).sum(1).tolist() == pytest.approx(totals)
    for row, expected, n in zip(found, slopes, LENGTHS, strict=True):
        assert [slope * 3 * n for slope in row] == pytest.approx(expected)
    assert (flags["clip_fraction"] * MASK).sum(1).tolist() == dropped


@pytest.mark.parametrize(
    ("advantage", "now", "sampler", "loss"),
    [
        (2.0, 0.75, 0.5, 0.0),  # risen by more than 0.2, though it is good enough
        (2.0, 0.625, 0.5, -2.5),  # risen by less: -2 * 0.625 / 0.5
        (2.0, 0.25, 0.5, -1.0),  # fallen, though it is good: nothing is dropped
        (-2.0, 0.25, 0.5, 0.0),
        (-2.0, 0.75, 0.5, 3.0),
        (-2.0, 0.001, 0.1, 0.02),  # a ratio of 0.01, but hardly any probability has moved
    ],
)
def test_dppo_tv_of_one_token(advantage: float, now: float, sampler: float, loss: float) -> None:
    then = one(math.log(sampler))
    found, _ = dppo_tv(one(math.log(now)), then, then, one(advantage), one(1.0), 0.2)
    assert found.item() == pytest.approx(loss)


@pytest.mark.parametrize(
    ("aggregation", "expected", "verl"),
    [
        # Sums over tokens 2.3, -2.4, -1.3; lengths 4, 2, 3.
        ("sequence_mean", (2.3 / 4 - 2.4 / 2 - 1.3 / 3) / 3, -0.352777775546),  # verl adds 1e-8 to n
        ("token_mean", (2.3 - 2.4 - 1.3) / 9, -0.155555555556),
        ("constant_length", (2.3 - 2.4 - 1.3) / 10 / 3, -0.046666666667),
    ],
)
def test_aggregations_are_those_of_verl(aggregation: str, expected: float, verl: float) -> None:
    everyone = torch.ones(3, dtype=torch.bool)
    divisors = AGGREGATIONS[aggregation](MASK.sum(1), everyone, 10)
    found = aggregate(BATCH.advantages, MASK, divisors).item()
    assert found == pytest.approx(expected)
    assert found == pytest.approx(verl, abs=1e-8)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("sequence_mean", (2.3 / 4 - 1.3 / 3) / 2),
        ("token_mean", (2.3 - 1.3) / 7),
        ("constant_length", (2.3 - 1.3) / 10 / 2),
    ],
)
def test_rows_that_do_not_count_are_in_no_divisor(aggregation: str, expected: float) -> None:
    counted = torch.tensor([True, False, True])
    divisors = AGGREGATIONS[aggregation](MASK.sum(1), counted, 10)
    rows = torch.tensor([0, 2])
    part = Divisors(divisors.rows[rows], divisors.total)
    found = aggregate(BATCH.advantages[rows], MASK[rows], part)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_row_order_and_cuts_change_no_aggregate(aggregation: str) -> None:
    divisors = AGGREGATIONS[aggregation](MASK.sum(1), torch.ones(3, dtype=torch.bool), 10)
    whole = aggregate(BATCH.advantages, MASK, divisors).item()
    wider = aggregate(pad(BATCH.advantages, (0, 3), value=9), pad(MASK, (0, 3)), divisors)
    parts = [
        aggregate(
            BATCH.advantages[rows], MASK[rows], Divisors(divisors.rows[rows], divisors.total)
        ).item()
        for rows in ([2, 0], [1])
    ]
    assert wider.item() == pytest.approx(whole)
    assert math.fsum(parts) == pytest.approx(whole)
    nothing = Divisors(divisors.rows[:1], divisors.total)  # a row that was dealt with the weight 0
    assert aggregate(BATCH.advantages[:1], 0 * MASK[:1], nothing).item() == 0


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_padding_row_order_and_cuts_change_no_policy_loss(name: str) -> None:
    ppo = Ppo(policy_loss=name, clip_range_high=0.5, dual_clip=2.0)
    whole, flags = POLICY_LOSSES[name](BATCH, ppo)
    for rows in ([2], [1, 0]):
        part, some = POLICY_LOSSES[name](Tokens(*(x[rows] for x in BATCH)), ppo)
        assert same((part * MASK[rows]).tolist(), (whole * MASK)[rows].tolist())
        for key, flag in some.items():
            assert torch.equal(flag * MASK[rows], flags[key][rows] * MASK[rows])
    rubbish = Tokens(*(torch.where(MASK.bool(), x, -1e4) for x in BATCH[:4]), MASK)
    new = torch.where(MASK.bool(), BATCH.logprobs, 1e4).requires_grad_()
    losses, _ = POLICY_LOSSES[name](rubbish._replace(logprobs=new), ppo)
    (losses * MASK).sum().backward()
    assert same((losses * MASK).tolist(), (whole * MASK).tolist())
    assert new.grad is not None
    assert new.grad.isfinite().all()
    assert not new.grad[MASK == 0].any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_where_nothing_has_moved_all_have_the_policy_gradient(name: str) -> None:
    still = BATCH._replace(logprobs=BATCH.old_logprobs, sampler_logprobs=BATCH.old_logprobs)
    _, slopes, flags = policy_term(still, policy_loss=name)
    expected = [[-a / n / 3 for a in row] for row, n in zip(ADVANTAGES, LENGTHS, strict=True)]
    assert same(slopes, expected)
    assert not any((flag * MASK).any() for flag in flags.values())


@pytest.mark.parametrize(
    ("kind", "expected"),  # verl's kl_penalty_forward; k3 is TRL's per_token_kl, too
    [
        ("loss_k1", [[0.2, -0.2, 0.4, 0.2], [-0.5, 0.2], [0.3, 0.0, -0.5]]),
        ("loss_k2", [[0.02, 0.02, 0.08, 0.02], [0.125, 0.02], [0.045, 0.0, 0.125]]),
        (
            "loss_k3",
            [[0.0187307531, 0.0214027582, 0.070320046, 0.0187307531], [0.1487212707, 0.0187307531],
             [0.0408182207, 0.0, 0.1487212707]],
        ),
    ],
)  # fmt: skip
def test_kl_estimators_are_those_of_verl(kind: str, expected: Rows) -> None:
    found = kl_loss(BATCH.logprobs, table(REFERENCE, -9.0), MASK, kind)
    assert same(real(found), expected)
    assert not found[MASK == 0].any()


def test_what_the_estimators_of_the_kl_have_for_a_gradient() -> None:
    """On samples of the policy: k1 none, k2 that of KL(pi, ref), k3 that of KL(ref, pi)."""
    logits = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    logprobs = logits.log_softmax(-1)

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    forward = gradient((logprobs.exp() * (logprobs - reference.log())).sum())
    backward = gradient((reference * (reference.log() - logprobs)).sum())
    assert not torch.allclose(forward, backward, atol=1e-2)
    expected = {"loss_k1": 0 * forward, "loss_k2": forward, "loss_k3": backward}
    assert expected.keys() == KL_LOSSES.keys()
    for kind, wanted in expected.items():
        terms = kl_loss(logprobs[:, None], reference.log()[:, None], torch.ones(3, 1).double(), kind)
        found = gradient((logprobs.exp().detach() * terms[:, 0]).sum())
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_the_entropys_coefficient_moves_as_skyworks() -> None:
    coef, found = 0.0, []
    for entropy in (0.5, 0.29, 0.2, 0.1, 0.31, 0.4, 0.2):
        coef = next_entropy_coef(coef, entropy, 0.3)
        found.append(coef)
    assert found == pytest.approx([0.0, 0.005, 0.01, 0.015, 0.01, 0.005, 0.01])
    assert next_entropy_coef(0.999, 0.1, 0.3) == 1.0


def test_choices_of_the_settings_are_those_of_the_tables() -> None:
    fields = Ppo.model_json_schema()["properties"]
    assert fields["loss_aggregation"]["enum"] == list(AGGREGATIONS)
    assert fields["kl_penalty"]["enum"] == ["reward", *KL_LOSSES]
