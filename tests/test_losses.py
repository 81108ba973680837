"""PPO's losses and cross-entropy by hand, and against loops over tokens from the paper's equations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from reftune.training import losses
from reftune.training.losses import clip, cross_entropy, ratio_statistics

LENGTHS = [5, 1, 0, 3]


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def sequence_mean(numbers: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the real tokens of each row, by `aggregate` of that row alone."""
    means = []
    for one, real in zip(numbers, mask, strict=True):
        divisors = losses.AGGREGATIONS["sequence_mean"](real.sum()[None], torch.tensor([True]), 99)
        means.append(losses.aggregate(one[None], real[None], divisors))
    return torch.stack(means)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    return sequence_mean(clip(logprobs, old_logprobs, advantages, mask, clip_range)[0], mask)


def two_hot_loss(logits: Tensor, returns: Tensor, mask: Tensor, support: Tensor) -> Tensor:
    return sequence_mean(losses.two_hot_loss(logits, returns, mask, support), mask)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    return sequence_mean(losses.value_loss(values, old_values, returns, mask, clip_range), mask)


def ragged(seed: int) -> list[Tensor]:
    """Return five random tensors, rubbish in their padding, and the mask."""
    random = np.random.default_rng(seed)
    mask = torch.tensor([[1.0] * n + [0.0] * (5 - n) for n in LENGTHS], dtype=torch.float64)
    return [*(torch.tensor(random.normal(size=(4, 5))) for _ in range(3)), mask]


def reference_policy_loss(
    logprobs: list[float], old_logprobs: list[float], advantages: list[float], clip: float
) -> float:
    """Return minus the objective of Schulman et al. 2017, equation 7, of one sequence."""
    objective = 0.0
    for new, old, advantage in zip(logprobs, old_logprobs, advantages, strict=True):
        ratio = math.exp(new) / math.exp(old)
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        objective += min(ratio * advantage, bounded * advantage)
    return -objective / len(logprobs)


def reference_value_loss(
    values: list[float], old_values: list[float], returns: list[float], clip: float
) -> float:
    total = 0.0
    for value, old, target in zip(values, old_values, returns, strict=True):
        bounded = min(max(value, old - clip), old + clip)
        total += max((value - target) ** 2, (bounded - target) ** 2) / 2
    return total / len(values)


def finite_differences(function: Callable[[list[float]], float], at: list[float]) -> list[float]:
    """Return the central differences of a function of several numbers."""
    step, slopes = 1e-6, []
    for i in range(len(at)):
        low, high = list(at), list(at)
        low[i], high[i] = at[i] - step, at[i] + step
        slopes.append((function(high) - function(low)) / (2 * step))
    return slopes


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),  # slope: of the loss in the log-probability
    [
        (2.0, 1.1, -2.2, -2.2),  # inside the range: -A * ratio, whose slope is itself
        (2.0, 1.5, -2.4, 0.0),  # gone far enough up: clipped at 1.2
        (2.0, 0.5, -1.0, -1.0),  # gone down, though it is good: not clipped
        (-2.0, 1.5, 3.0, 3.0),  # gone up, though it is bad: not clipped
        (-2.0, 0.5, 1.6, 0.0),  # gone far enough down: clipped at 0.8
        (-2.0, 0.9, 1.8, 1.8),
        (0.0, 1.5, 0.0, 0.0),
    ],
)
def test_policy_loss_of_one_token(advantage: float, ratio: float, loss: float, slope: float) -> None:
    old = row(-1.5)
    new = (old + math.log(ratio)).requires_grad_()
    actual = policy_loss(new, old, row(advantage), row(1), clip_range=0.2)
    actual.sum().backward()
    assert actual.item() == pytest.approx(loss)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(slope)


def test_policy_loss_averages_over_the_tokens_of_a_sequence() -> None:
    logs = torch.tensor([[1.1, 1.5, 1.0], [0.5, 1.0, 8.0]]).log()
    advantages = torch.tensor([[2.0, 2.0, -1.0], [-2.0, 4.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    found = policy_loss(logs, torch.zeros(2, 3), advantages, mask, clip_range=0.2)
    # (-2.2 - 2.4 + 1) / 3 = -1.2 and (1.6 - 4) / 2 = -1.2
    torch.testing.assert_close(found, torch.tensor([-1.2, -1.2]))


def test_ratio_one_gives_minus_the_mean_advantage() -> None:
    logprobs, advantages, _, mask = ragged(seed=1)
    new = logprobs.clone().requires_grad_()
    found = policy_loss(new, logprobs, advantages, mask, clip_range=0.2)
    found.sum().backward()
    assert new.grad is not None
    for i, n in enumerate(LENGTHS):
        real = advantages[i, :n].tolist()
        assert found[i].item() == pytest.approx(-math.fsum(real) / max(n, 1))
        expected = [-a / n for a in real] + [0.0] * (5 - n)
        assert new.grad[i].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("clip", [0.2, 0.5])
def test_policy_loss_and_its_gradient_agree_with_loops_over_tokens(clip: float) -> None:
    logprobs, old, advantages, mask = ragged(seed=2)
    new = logprobs.clone().requires_grad_()
    found = policy_loss(new, old, advantages, mask, clip)
    found.sum().backward()
    assert new.grad is not None
    for i, n in enumerate(LENGTHS):
        if n == 0:
            assert found[i].item() == 0
            assert new.grad[i].tolist() == [0.0] * 5
            continue
        fixed = old[i, :n].tolist(), advantages[i, :n].tolist(), clip

        def reference(x: list[float], fixed: tuple[list[float], list[float], float] = fixed) -> float:
            return reference_policy_loss(x, *fixed)

        here = logprobs[i, :n].tolist()
        assert found[i].item() == pytest.approx(reference(here), abs=1e-12)
        slopes = finite_differences(reference, here)
        assert new.grad[i].tolist() == pytest.approx([*slopes, *[0.0] * (5 - n)], abs=1e-8)


def test_only_an_active_clip_takes_the_gradient_away() -> None:
    logprobs, old, advantages, mask = ragged(seed=3)
    new = logprobs.clone().requires_grad_()
    policy_loss(new, old, advantages, mask, 0.2).sum().backward()
    assert new.grad is not None
    ratio = np.exp((logprobs - old).numpy())
    good = advantages.numpy() > 0
    active = (good & (ratio > 1.2)) | (~good & (ratio < 0.8)) | (mask.numpy() == 0)
    assert ((new.grad.numpy() == 0) == active).all()
    assert 0 < active[mask.numpy() == 1].sum() < sum(LENGTHS)  # both kinds are there


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),  # the old value is 0, the range 0.2
    [
        (0.1, 1.0, 0.405, -0.9),  # inside: 0.9^2 / 2
        (1.0, 2.0, 1.62, 0.0),  # gone far enough towards the return: (0.2 - 2)^2 / 2
        (-1.0, -2.0, 1.62, 0.0),
        (1.0, 0.0, 0.5, 1.0),  # gone past the return: 1^2 / 2, and the way back is open
        (-1.0, 0.1, 0.605, -1.1),
    ],
)
def test_value_loss_of_one_token(value: float, target: float, loss: float, slope: float) -> None:
    values = row(value).requires_grad_()
    actual = value_loss(values, row(0), row(target), row(1), clip_range=0.2)
    actual.sum().backward()
    assert actual.item() == pytest.approx(loss)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("clip", [0.2, 1.0])
def test_value_loss_and_its_gradient_agree_with_loops_over_tokens(clip: float) -> None:
    values, old, returns, mask = ragged(seed=4)
    new = values.clone().requires_grad_()
    found = value_loss(new, old, returns, mask, clip)
    found.sum().backward()
    assert new.grad is not None
    for i, n in enumerate(LENGTHS):
        if n == 0:
            assert found[i].item() == 0
            assert new.grad[i].tolist() == [0.0] * 5
            continue
        fixed = old[i, :n].tolist(), returns[i, :n].tolist(), clip

        def reference(x: list[float], fixed: tuple[list[float], list[float], float] = fixed) -> float:
            return reference_value_loss(x, *fixed)

        here = values[i, :n].tolist()
        assert found[i].item() == pytest.approx(reference(here), abs=1e-12)
        slopes = finite_differences(reference, here)
        assert new.grad[i].tolist() == pytest.approx([*slopes, *[0.0] * (5 - n)], abs=1e-8)


SUPPORT = torch.linspace(-1, 1, 5, dtype=torch.float64)  # -1, -0.5, 0, 0.5, 1


def test_two_hot_loss_by_hand() -> None:
    chances = torch.tensor([[[0.1, 0.2, 0.4, 0.2, 0.1]] * 3], dtype=torch.float64)
    # 0.3 lies at 3/5 of the way from 0 to 0.5; -0.5 is a value itself; 7 counts as 1; then padding
    returns, mask = row(0.3, -0.5, 7.0), row(1, 1, 0)
    first, second = -0.4 * math.log(0.4) - 0.6 * math.log(0.2), -math.log(0.2)
    expected = torch.tensor([(first + second) / 2], dtype=torch.float64)
    torch.testing.assert_close(two_hot_loss(chances.log(), returns, mask, SUPPORT), expected)
    ends = two_hot_loss(chances.log(), row(1.0, 7.0, -3.0), row(1, 1, 1), SUPPORT)
    torch.testing.assert_close(ends, torch.tensor([-math.log(0.1)], dtype=torch.float64))


def test_two_hot_loss_is_that_of_sheeprl() -> None:
    logits = torch.tensor(
        [
            [0.5, -1, 2, 0, 0.3],
            [0.1, 0.2, 0.3, 0.4, -0.5],
            [-2, 1, 0.5, 0, 1.5],
            [3, 0, -1, 0.25, -0.75],
        ],
        dtype=torch.float64,
    ).unsqueeze(1)  # four sequences of one token
    returns = torch.tensor([[0.3], [-0.5], [1.7], [-1.2]], dtype=torch.float64)
    found = two_hot_loss(logits, returns, torch.ones_like(returns), SUPPORT)
    # -TwoHotEncodingDistribution(logits, 1, -1, 1).log_prob, without symlog, of sheeprl
    # (Eclectic-Sheep/sheeprl, sheeprl/utils/distribution.py at 02f3e197176e)
    sheeprl = [1.6643225447797894, 1.5535015182725396, 0.8009865612961531, 0.14457496233703404]
    expected = torch.tensor(sheeprl, dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_the_classes_that_a_return_teaches_have_it_as_their_mean() -> None:
    returns = torch.tensor([[-1.0, -0.93, -0.5, 0.0, 0.21, 0.5, 0.999, 1.0]], dtype=torch.float64)
    logits = torch.zeros(1, 8, 5, dtype=torch.float64).requires_grad_()
    two_hot_loss(logits, returns, torch.ones_like(returns), SUPPORT).sum().backward()
    assert logits.grad is not None
    taught = 0.2 - 8 * logits.grad  # the slope is what is said less what is taught, over 8 tokens
    torch.testing.assert_close(taught @ SUPPORT, returns)
    torch.testing.assert_close(taught.sum(2), torch.ones_like(returns))
    assert ((taught > 1e-9).sum(2) <= 2).all()


def test_cross_entropy_sums_over_the_real_tokens() -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.5], [0.125, 0.3, 0.3], [0.3, 0.3, 0.3]]).log()
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # 1/2 * 1/4 * 1/2 = 1/16 and 1/8: 4 and 3 bits
    expected = torch.tensor([4 * math.log(2), 3 * math.log(2), 0.0])
    torch.testing.assert_close(cross_entropy(logprobs, mask), expected)


def test_sequence_mean_by_hand() -> None:
    numbers = torch.tensor([[1.0, 2.0, 6.0], [5.0, 7.0, 100.0], [100.0, 100.0, 100.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(sequence_mean(numbers, mask), torch.tensor([3.0, 6.0, 0.0]))


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "policy": lambda first, old, aim, mask: policy_loss(first, old, aim, mask, 0.2),
    "value": lambda first, old, aim, mask: value_loss(first, old, aim, mask, 0.2),
    "cross entropy": lambda first, old, aim, mask: cross_entropy(first, mask),
    "two hot": lambda first, old, aim, mask: two_hot_loss(
        torch.stack((first, old, first - old, -first, 2 * old), 2), aim, mask, SUPPORT
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_padding_row_order_and_cuts_change_nothing(name: str) -> None:
    loss, (first, old, aim, mask) = LOSSES[name], ragged(seed=6)
    whole = loss(first, old, aim, mask)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(loss(first[order], old[order], aim[order], mask[order]), whole[order])
    wider = pad(first, (0, 4), value=5), pad(old, (0, 4), value=-5), pad(aim, (0, 4), value=9)
    torch.testing.assert_close(loss(wider[0], wider[1], wider[2], pad(mask, (0, 4))), whole)
    pieces = [loss(first[rows], old[rows], aim[rows], mask[rows]) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(torch.cat(pieces), whole)


@pytest.mark.parametrize("name", LOSSES)
def test_the_real_tokens_alone_decide(name: str) -> None:
    # 1e4 overflows as a log-ratio: even there neither the loss nor its gradient may become NaN.
    first, old, aim, mask = ragged(seed=7)
    clean = LOSSES[name](first * mask, old * mask, aim * mask, mask)
    first = torch.where(mask.bool(), first, 1e4).requires_grad_()
    old, aim = torch.where(mask.bool(), old, -1e4), torch.where(mask.bool(), aim, -1e4)
    found = LOSSES[name](first, old, aim, mask)
    found.sum().backward()
    torch.testing.assert_close(found, clean)
    assert first.grad is not None
    assert (first.grad[mask == 0] == 0).all()
    assert first.grad.isfinite().all()


def test_ratio_statistics_by_hand() -> None:
    # Ratios 1.5, 1 and 0.5, then 1.19 in a row of its own; the padding's e^8 does not count.
    new = torch.tensor([[1.5, 1.0, 0.5], [1.19, math.exp(8), 1.0]]).log().requires_grad_()
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    sums = ratio_statistics(new, torch.zeros(2, 3), mask)
    assert sums["ratio_mean"].item() == pytest.approx(4.19)
    # k3 = ratio - 1 - log ratio: 0.5 - 0.405465, 0, -0.5 + 0.693147, 0.19 - 0.173953
    assert sums["approx_kl"].item() == pytest.approx(0.303729, abs=1e-5)
    assert not any(total.requires_grad for total in sums.values())
    _, flags = clip(new, torch.zeros(2, 3), torch.ones(2, 3), mask, 0.2)
    assert {name: flag.tolist() for name, flag in flags.items()} == {
        "clip_fraction": [[True, False, True], [False, False, False]]
    }


def test_ratio_statistics_of_an_unchanged_policy() -> None:
    logprobs, _, advantages, mask = ragged(seed=8)
    sums = ratio_statistics(logprobs, logprobs, mask)
    assert {name: total.item() for name, total in sums.items()} == {
        "ratio_mean": sum(LENGTHS), "approx_kl": 0,
    }  # fmt: skip
    _, flags = clip(logprobs, logprobs, advantages, mask, 0.0)
    assert not flags["clip_fraction"].any()  # beyond the range, not at its edge
