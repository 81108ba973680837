"""The losses: of the policy, the critic, chains; and how losses of tokens become one. Pure functions.

Those of PPO return one number per token, (batch, time), and `aggregate` makes one of them all: how a
minibatch is cut into micro-batches or dealt to processes then changes nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reftune.config import Ppo

PerToken = Float[Tensor, "batch time"]
# The loss of each token, and by the names of metrics which of them count there.
PolicyTerm = tuple[PerToken, dict[str, Bool[Tensor, "batch time"]]]


class Tokens(NamedTuple):
    """What a policy loss is computed from; the log-probabilities are those of the tokens chosen.

    `old_logprobs` are the trainer's before the update, `sampler_logprobs` those sampled from.
    """

    logprobs: Float[Tensor, "batch time"]
    old_logprobs: Float[Tensor, "batch time"]
    sampler_logprobs: Float[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    mask: Float[Tensor, "batch time"]


def clip(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float = 0.0,
) -> PolicyTerm:
    """Return PPO's clipped loss: max(-A * ratio, -A * clip(ratio, 1 - low, 1 + high)).

    ratio = exp(logprobs - old_logprobs) (Schulman et al. 2017, equation 7). A range of its own upwards
    is DAPO's clip-higher (Yu et al. 2025, section 3.1); with `dual_clip` the loss of a token with A < 0
    is at most -A * dual_clip (Ye et al. 2020).
    """
    ratio = torch.exp((logprobs - old_logprobs) * mask)
    losses, flags = _clipped(ratio, advantages, clip_range, clip_range_high)
    if dual_clip:
        flags["dual_clip_fraction"] = (advantages < 0) & (ratio > dual_clip)
        losses = torch.where(advantages < 0, losses.minimum(-advantages * dual_clip), losses)
    return losses, flags


def gspo(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    clip_range: float,
    clip_range_high: float | None = None,
) -> PolicyTerm:
    """Return the clipped loss of the whole sequence's ratio: exp(mean_t(logprobs - old_logprobs)).

    This is GSPO-token (Zheng et al. 2025, section 4.3): value and gradient are those of GSPO
    where all tokens of a sequence have one advantage, and advantages per token may be given, too.
    """
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = ((logprobs - old_logprobs) * mask).detach().sum(dim=1, keepdim=True) / lengths
    ratio = torch.exp(mean + (logprobs - logprobs.detach()))
    return _clipped(ratio, advantages, clip_range, clip_range_high)


def cispo(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    clip_range_high: float,
) -> PolicyTerm:
    """Return -min(ratio, 1 + clip_range_high) * A * logprobs, whose first factor has no gradient.

    So the weight of a token is bounded, but none loses its gradient (MiniMax 2025, section 3.1, without
    a bound from below; ScaleRL, Khatri et al. 2025).
    """
    ratio = torch.exp((logprobs.detach() - old_logprobs) * mask)
    losses = -ratio.clamp(max=1 + clip_range_high) * advantages * logprobs
    return losses, {"clip_fraction": ratio > 1 + clip_range_high}


def dppo_tv(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    sampler_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    tv_range: float,
) -> PolicyTerm:
    """Return -A * ratio, and 0 once the probability is `tv_range` from the sampler's, the way A pushes.

    A token drops out where A > 0 and pi - mu > tv_range, or A < 0 and mu - pi > tv_range: the total
    variation of "this token or another" (Qi et al. 2026, DPPO-Binary-TV). There the ratio is pi / mu,
    here pi / pi_old: the advantages carry the weight pi_old / mu.
    """
    ratio = torch.exp((logprobs - old_logprobs) * mask)
    moved = logprobs.detach().exp() - sampler_logprobs.exp()
    dropped = ((advantages > 0) & (moved > tv_range)) | ((advantages < 0) & (moved < -tv_range))
    return torch.where(dropped, 0.0, -advantages * ratio), {"clip_fraction": dropped}


def _clipped(ratio: Tensor, advantages: Tensor, low: float, high: float | None) -> PolicyTerm:
    """Return PPO's clipped loss of a ratio; with a `high` of its own both sides are told apart."""
    up = low if high is None else high
    clipped = ratio.clamp(1 - low, 1 + up)
    change = ratio.detach() - 1
    flags = {"clip_fraction": (change > up) | (-change > low)}
    if high is not None:
        flags["clip_fraction_low"] = (advantages < 0) & (-change > low)
        flags["clip_fraction_high"] = (advantages > 0) & (change > up)
    return torch.maximum(-advantages * ratio, -advantages * clipped), flags


POLICY_LOSSES: dict[str, Callable[[Tokens, Ppo], PolicyTerm]] = {
    "clip": lambda t, ppo: clip(
        t.logprobs, t.old_logprobs, t.advantages, t.mask,
        ppo.clip_range, ppo.clip_range_high, ppo.dual_clip,
    ),
    "gspo": lambda t, ppo: gspo(
        t.logprobs, t.old_logprobs, t.advantages, t.mask, ppo.clip_range, ppo.clip_range_high
    ),
    "cispo": lambda t, ppo: cispo(
        t.logprobs, t.old_logprobs, t.advantages, t.mask,
        ppo.clip_range if ppo.clip_range_high is None else ppo.clip_range_high,
    ),
    "dppo_tv": lambda t, ppo: dppo_tv(*t, ppo.tv_range),
}  # fmt: skip


def value_loss(
    values: Float[Tensor, "batch time"],
    old_values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    clip_range: float,
) -> Float[Tensor, "batch time"]:
    """Return the clipped value loss per token: 0.5 * max((V-R)^2, (clip(V)-R)^2), 0 on padding.

    V may leave `old_values` by at most clip_range before the clipped term takes over.
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    worst = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * worst * mask


def _k1(log_ratio: Tensor) -> Tensor:
    return log_ratio


def _k2(log_ratio: Tensor) -> Tensor:
    return 0.5 * log_ratio.square()


def _k3(log_ratio: Tensor) -> Tensor:
    return torch.expm1(-log_ratio) + log_ratio


# Estimators of KL(pi, pi_ref) by log(pi / pi_ref) of the sampled tokens (Schulman 2020). The mean of k1
# and k3 is the KL, but what matters in a loss are gradients: on samples of pi itself that of k1 is
# 0 in the mean (E[grad log pi] = 0), that of k2 is the KL's own, and k3's the one of KL(pi_ref, pi).
KL_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"loss_k1": _k1, "loss_k2": _k2, "loss_k3": _k3}


def kl_loss(
    logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    kind: str,
) -> Float[Tensor, "batch time"]:
    """Estimate per token how far the policy is from its reference, by a line of `KL_LOSSES`."""
    return KL_LOSSES[kind]((logprobs - ref_logprobs) * mask)


def two_hot_loss(
    logits: Float[Tensor, "batch time bins"],
    returns: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    support: Float[Tensor, " bins"],
) -> Float[Tensor, "batch time"]:
    """Return the value loss of a classifier per token: its cross-entropy, 0 on padding.

    The target of a return are the two values of `support`, in equal steps, that it lies between, each
    the more probable the nearer (Imani and White 2018; Farebrother et al. 2024, section 3). Returns
    beyond count as its ends.
    """
    place = (returns.clamp(support[0], support[-1]) - support[0]) / (support[1] - support[0])
    lower = place.floor().long().clamp(max=len(support) - 2)
    upper_share = place - lower
    logs = logits.log_softmax(-1)
    at_lower, at_upper = (logs.gather(-1, (lower + k).unsqueeze(-1)).squeeze(-1) for k in (0, 1))
    return -((1 - upper_share) * at_lower + upper_share * at_upper) * mask


def cross_entropy(
    logprobs: Float[Tensor, "batch time"], mask: Float[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Return the negative log-likelihood per sequence, summed over its real tokens."""
    return -(logprobs * mask).sum(dim=1)


class Divisors(NamedTuple):
    """What the sum over the tokens of each row is divided by, and then the sum over all rows."""

    rows: Float[Tensor, " batch"]
    total: float


# From the rows' lengths, which of them count in the mean, and the most tokens that a row may have.
AGGREGATIONS: dict[str, Callable[[Tensor, Tensor, int], Divisors]] = {
    "sequence_mean": lambda n, counted, most: Divisors(n.clamp(min=1), float(counted.sum())),
    "token_mean": lambda n, counted, most: Divisors(torch.ones_like(n), float(n[counted].sum())),
    "constant_length": lambda n, counted, most: Divisors(torch.full_like(n, most), float(counted.sum())),
}


def aggregate(
    numbers: Float[Tensor, "batch time"], mask: Float[Tensor, "batch time"], divisors: Divisors
) -> Float[Tensor, ""]:
    """Return this part of a minibatch's loss: sum over rows of (sum over tokens / theirs) / total."""
    return ((numbers * mask).sum(dim=1) / divisors.rows).sum() / divisors.total


def next_entropy_coef(coef: float, entropy: float, target: float, delta: float = 0.005) -> float:
    """Return the coefficient of the entropy bonus after a step: up where the entropy is below `target`.

    Else down, within 0 and 1 (Skywork-OR1, He et al. 2025).
    """
    return min(1.0, max(0.0, coef + (delta if entropy < target else -delta)))


def ratio_statistics(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
) -> dict[str, Tensor]:
    """Return token sums of the ratio and of the approximate KL (k3 of Schulman 2020).

    Sums, not means: the caller adds them up over micro-batches and divides by the tokens once.
    """
    log_ratio = (logprobs.detach() - old_logprobs) * mask
    ratio = torch.exp(log_ratio)
    return {
        "ratio_mean": (ratio * mask).sum(),
        "approx_kl": ((ratio - 1 - log_ratio) * mask).sum(),
    }
