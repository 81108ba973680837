"""From rewards to advantages: token rewards, GAE, group baseline, whitening. Pure functions of tensors.

All per-token tensors are (batch, time), response-only and right-padded; `mask` is 1.0 on real tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reftune.config import Ppo
from reftune.training.types import Rollouts


def token_rewards(
    rewards: Float[Tensor, " batch"],
    logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    kl_coef: float,
) -> Float[Tensor, "batch time"]:
    """Return r_t = terminal_t - kl_coef * (logprobs_t - ref_logprobs_t).

    The reward of a row goes to its last real token; a row without real tokens gets nothing (Luong et al.
    2024, section 3.2).
    """
    per_token = -kl_coef * (logprobs - ref_logprobs) * mask
    lengths = mask.sum(dim=1).long()
    rows = torch.nonzero(lengths > 0).squeeze(1)
    per_token[rows, lengths[rows] - 1] += rewards[rows]
    return per_token


def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "batch time"]:
    """Estimate advantages with a critic: A_t = sum_l (gamma * gae_lambda)^l delta_{t+l}.

    delta_t = r_t + gamma * V_{t+1} - V_t, and the value after the last real token is 0
    (Schulman et al. 2016, equations 11, 12 and 16).
    """
    advantages = torch.zeros_like(rewards)
    next_advantage = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # On padding both carried numbers stay 0, so a row's last real token sees the end of its episode.
        next_advantage = (delta + gamma * gae_lambda * next_advantage) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = next_advantage
    return advantages


def group(
    rewards: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    groups: Int[Tensor, " batch"],
    scale_rewards: bool = False,
) -> Float[Tensor, "batch time"]:
    """Estimate advantages without a critic: a sample's total reward minus the mean of its question's.

    Every token of a sample gets the same number. With `scale_rewards` it is divided by the
    question's standard deviation, as in GRPO (Shao et al. 2024, section 4.1.2). Rows without real
    tokens count in no mean.
    """
    real = mask.any(dim=1).to(rewards.dtype)
    totals = (rewards * mask).sum(dim=1)
    centred = totals - _group_mean(totals, real, groups)
    if scale_rewards:
        centred = centred / (_group_mean(centred.square(), real, groups).sqrt() + 1e-4)
    return centred.unsqueeze(1) * mask


class Estimator(NamedTuple):
    """How advantages follow from token rewards, rollouts and settings; whether a critic is needed."""

    estimate: Callable[[Float[Tensor, "batch time"], Rollouts, Ppo], Float[Tensor, "batch time"]]
    critic: bool


ADVANTAGES: dict[str, Estimator] = {
    "gae": Estimator(lambda r, b, ppo: gae(r, b.values, b.mask, ppo.gamma, ppo.gae_lambda), critic=True),
    "group": Estimator(lambda r, b, ppo: group(r, b.mask, b.groups, ppo.scale_rewards), critic=False),
}


def whiten(
    advantages: Float[Tensor, "batch time"], mask: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Shift and scale to mean 0 and variance 1 over all real tokens of the batch."""
    count = mask.sum().clamp(min=1)
    mean = (advantages * mask).sum() / count
    centred = (advantages - mean) * mask
    return centred * torch.rsqrt(centred.square().sum() / count + 1e-8)


def explained_variance(
    values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over real tokens.

    1 is a perfect critic, 0 a constant one, and a negative one is worse than a constant; 0 too where all
    returns are the same.
    """
    real = mask.bool()
    if not real.any():
        return 0.0
    spread = returns[real].var(correction=0)
    if spread < 1e-10:  # equal rewards: what is left is the rounding of advantage + value
        return 0.0
    return float(1 - (returns - values)[real].var(correction=0) / spread)


def _group_mean(
    numbers: Float[Tensor, " batch"], real: Float[Tensor, " batch"], groups: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return, for every row, the mean of `numbers` over the real rows of its group."""
    size = int(groups.max()) + 1 if len(groups) else 0
    sums = numbers.new_zeros(size).index_add(0, groups, numbers * real)
    counts = numbers.new_zeros(size).index_add(0, groups, real)
    return (sums / counts.clamp(min=1))[groups]
