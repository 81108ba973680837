"""Importance sampling: what a sample weighs whose sampler is not quite the policy. Pure functions.

pi / mu is a token's probability to the trainer before the update over that to the sampler: another
engine, or another rounding. All weights are (batch, time), and 1 or 0 on padding, which nobody reads.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from reftune.config import Ppo
from reftune.training.types import Rollouts


def token_truncate(log_ratio: Float[Tensor, "batch time"], cap: float) -> Float[Tensor, "batch time"]:
    """Return min(pi / mu, cap) per token (truncated importance sampling, Ionides 2008)."""
    return torch.exp(log_ratio).clamp(max=cap)


def sequence_truncate(log_ratio: Float[Tensor, "batch time"], cap: float) -> Float[Tensor, "batch time"]:
    """Return min(product over the sequence of pi / mu, cap), the same for all of its tokens."""
    return torch.exp(log_ratio.sum(dim=1, keepdim=True)).clamp(max=cap).expand_as(log_ratio)


def token_mask(
    log_ratio: Float[Tensor, "batch time"], low: float, high: float
) -> Float[Tensor, "batch time"]:
    """Return pi / mu where it lies within the bounds, else 0 (IcePop, arXiv:2510.18855)."""
    weights = torch.exp(log_ratio)
    return torch.where((weights < low) | (weights > high), 0.0, weights)


def sequence_mask(
    log_ratio: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    low: float,
    high: float,
) -> Float[Tensor, "batch time"]:
    """Return 1 for sequences whose geometric mean of pi / mu lies within the bounds, else 0.

    This is verl's geometric rejection sampling, `seq_mean_k1`, which has the bounds of mu / pi.
    """
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = torch.exp(log_ratio.sum(dim=1, keepdim=True) / lengths)
    return ((mean >= low) & (mean <= high)).to(log_ratio.dtype).expand_as(log_ratio)


def _bounds(ppo: Ppo, low: float, high: float) -> tuple[float, float]:
    """Return the bounds of the settings, or else the default ones."""
    given = ppo.importance_sampling_min, ppo.importance_sampling_max
    return (low if given[0] is None else given[0]), (high if given[1] is None else given[1])


# From log(pi / mu), 0 on padding, and the mask.
IMPORTANCE_SAMPLING: dict[str, Callable[[Tensor, Tensor, Ppo], Tensor]] = {
    "token_truncate": lambda r, mask, ppo: token_truncate(r, ppo.importance_sampling_cap or math.inf),
    "sequence_truncate": lambda r, mask, ppo: sequence_truncate(
        r, ppo.importance_sampling_cap or math.inf
    ),
    "token_mask": lambda r, mask, ppo: token_mask(r, *_bounds(ppo, 0.5, 5.0)),
    "sequence_mask": lambda r, mask, ppo: sequence_mask(r, mask, *_bounds(ppo, 0.999, 1.002)),
}


def importance_weights(rollouts: Rollouts, ppo: Ppo) -> Float[Tensor, "batch time"]:
    """Return by what the advantages of a batch are multiplied, in the settings' way."""
    log_ratio = (rollouts.logprobs - rollouts.sampler_logprobs) * rollouts.mask
    return IMPORTANCE_SAMPLING[ppo.importance_sampling](log_ratio, rollouts.mask, ppo)
