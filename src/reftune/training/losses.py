"""The losses: clipped policy loss, clipped value loss, cross-entropy. Pure functions of tensors.

Each returns one number per sequence, so that the caller can weigh rows: how a batch is cut into
micro-batches or dealt to processes then changes nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def sequence_mean(
    numbers: Float[Tensor, "batch time"], mask: Float[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Average over the real tokens of each sequence; 0 for a sequence without any."""
    return (numbers * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def policy_loss(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    clip_range: float,
) -> Float[Tensor, " batch"]:
    """Return PPO's clipped loss per sequence: the token mean of max(-A * ratio, -A * clip(ratio)).

    ratio = exp(logprobs - old_logprobs), clipped to 1 +- clip_range (Schulman et al. 2017, equation 7).
    """
    ratio = torch.exp((logprobs - old_logprobs) * mask)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return sequence_mean(torch.maximum(-advantages * ratio, -advantages * clipped), mask)


def value_loss(
    values: Float[Tensor, "batch time"],
    old_values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    clip_range: float,
) -> Float[Tensor, " batch"]:
    """Return the clipped value loss per sequence: the token mean of 0.5 * max((V-R)^2, (clip(V)-R)^2).

    V may leave `old_values` by at most clip_range before the clipped term takes over.
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    worst = torch.maximum((values - returns).square(), (clipped - returns).square())
    return sequence_mean(0.5 * worst, mask)


def two_hot_loss(
    logits: Float[Tensor, "batch time bins"],
    returns: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    support: Float[Tensor, " bins"],
) -> Float[Tensor, " batch"]:
    """Return the value loss of a classifier per sequence: the token mean of its cross-entropy.

    The target of a return are the two values of `support`, in equal steps, that it lies between, each
    the more probable the nearer (Imani and White 2018; Farebrother et al. 2024, section 3). Returns
    beyond count as its ends.
    """
    place = (returns.clamp(support[0], support[-1]) - support[0]) / (support[1] - support[0])
    lower = place.floor().long().clamp(max=len(support) - 2)
    upper_share = place - lower
    logs = logits.log_softmax(-1)
    at_lower, at_upper = (logs.gather(-1, (lower + k).unsqueeze(-1)).squeeze(-1) for k in (0, 1))
    return sequence_mean(-(1 - upper_share) * at_lower - upper_share * at_upper, mask)


def cross_entropy(
    logprobs: Float[Tensor, "batch time"], mask: Float[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Return the negative log-likelihood per sequence, summed over its real tokens."""
    return -(logprobs * mask).sum(dim=1)


def ratio_statistics(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    clip_range: float,
) -> dict[str, Tensor]:
    """Return token sums of the ratio, of clipped tokens and of the approximate KL (k3 of Schulman 2020).

    Sums, not means: the caller adds them up over micro-batches and divides by the tokens once.
    """
    log_ratio = (logprobs.detach() - old_logprobs) * mask
    ratio = torch.exp(log_ratio)
    return {
        "ratio_mean": (ratio * mask).sum(),
        "clip_fraction": (((ratio - 1).abs() > clip_range) * mask).sum(),
        "approx_kl": ((ratio - 1 - log_ratio) * mask).sum(),
    }
