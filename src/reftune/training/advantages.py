"""From rewards to advantages: token rewards, GAE, group baseline, whitening. Pure functions of tensors.

All per-token tensors are (batch, time), response-only and right-padded; `mask` is 1.0 on real tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reftune.config import Ppo
from reftune.config.ppo import KINDS, Kind
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
    gae_lambda: float | Float[Tensor, " batch"],
) -> Float[Tensor, "batch time"]:
    """Estimate advantages with a critic: A_t = sum_l (gamma * gae_lambda)^l delta_{t+l}.

    delta_t = r_t + gamma * V_{t+1} - V_t, and the value after the last real token is 0
    (Schulman et al. 2016, equations 11, 12 and 16). lambda is one number, or one of each row.
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


def length_lambda(mask: Float[Tensor, "batch time"], alpha: float) -> Float[Tensor, " batch"]:
    """Return lambda by the length l of each row: 1 - 1 / (alpha * l), at least 0.

    Advantages then reach equally far, by share of the response: over about alpha * l tokens
    (VAPO, Yue et al. 2025, equation 10).
    """
    return (1 - 1 / (alpha * mask.sum(dim=1).clamp(min=1))).clamp(min=0)


def monte_carlo(
    rewards: Float[Tensor, "batch time"], mask: Float[Tensor, "batch time"], gamma: float
) -> Float[Tensor, "batch time"]:
    """Return what followed each token: the discounted sum of its reward and all later ones."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)


def _gae_of(rewards: Float[Tensor, "batch time"], rollouts: Rollouts, ppo: Ppo) -> Tensor:
    alpha = ppo.lambda_length_alpha
    gae_lambda = length_lambda(rollouts.mask, alpha) if alpha else ppo.gae_lambda
    return gae(rewards, rollouts.values, rollouts.mask, ppo.gamma, gae_lambda)


def group(
    rewards: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    groups: Int[Tensor, " batch"],
    scale_rewards: bool = False,
) -> Float[Tensor, "batch time"]:
    """Estimate advantages without a critic: a sample's total reward minus the mean of its question's.

    Every token of a sample gets the same number, which is 0 where those of a question are all rewarded
    alike. With `scale_rewards` it is divided by the question's standard deviation, as in GRPO (Shao et
    al. 2024, section 4.1.2), with n in its divisor. Rows without real tokens count in no mean.
    """
    real = _real(mask)
    totals = (rewards * mask).sum(dim=1)
    centred = totals - _group_mean(totals, real, groups)
    centred = centred * told_apart(totals, mask, groups)  # not what rounding leaves of a mean
    if scale_rewards:
        centred = centred / (_group_mean(centred.square(), real, groups).sqrt() + 1e-4)
    return centred.unsqueeze(1) * mask


def told_apart(
    numbers: Float[Tensor, " batch"],
    mask: Float[Tensor, "batch time"],
    groups: Int[Tensor, " batch"],
) -> Bool[Tensor, " batch"]:
    """Tell of every row whether `numbers` differ between the rows of its group that have real tokens."""
    size, real = int(groups.max()) + 1 if len(groups) else 0, mask.any(dim=1)
    start = numbers.new_zeros(size)
    most, least = (
        start.scatter_reduce(0, groups[real], numbers[real], how, include_self=False)
        for how in ("amax", "amin")
    )
    return (most > least)[groups]


def rloo(
    rewards: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "batch time"]:
    """Estimate advantages without a critic: a sample's total reward minus the mean of the others'.

    Of a question's n samples that is n / (n - 1) * (R - mean), and 0 where there is no other one
    (RLOO, Ahmadian et al. 2024, arXiv:2402.14740).
    """
    real = _real(mask)
    count = _group_sum(real, groups)
    return group(rewards, mask, groups) * (count / (count - 1).clamp(min=1)).unsqueeze(1)


def reinforce_plus_plus(
    rewards: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "batch time"]:
    """Estimate advantages without a critic: baseline per question, scale of the whole batch.

    A sample's total reward minus the mean of its question's, then `whiten` over all tokens
    (REINFORCE++ with baseline, Hu et al. 2025, arXiv:2501.03262).
    """
    return whiten(group(rewards, mask, groups), mask)


def maxrl(
    rewards: Float[Tensor, "batch time"],
    scores: Float[Tensor, " batch"],
    mask: Float[Tensor, "batch time"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "batch time"]:
    """Estimate advantages without a critic: (R - mean) / mean, which gives hard questions more weight.

    So the gradient is that of the likelihood of a right answer, not of its probability (Tajwar et al.
    2026, arXiv:2602.02710). What is divided by is the question's mean of `scores`, the samples' rewards
    without a KL penalty; where that is not above 0 nothing was found that could be made more likely,
    and the advantages are 0.
    """
    mean = _group_mean(scores, _real(mask), groups).unsqueeze(1)
    return torch.where(mean > 0, group(rewards, mask, groups) / mean, 0.0)


class Estimator(NamedTuple):
    """What kind of estimate it is; how it follows from token rewards, rollouts and settings."""

    kind: Kind
    estimate: Callable[[Float[Tensor, "batch time"], Rollouts, Ppo], Float[Tensor, "batch time"]]

    @property
    def critic(self) -> bool:
        """Tell whether it needs a critic."""
        return self.kind.critic


ADVANTAGES: dict[str, Estimator] = {
    "gae": Estimator(KINDS["gae"], _gae_of),
    "group": Estimator(KINDS["group"], lambda r, b, ppo: group(r, b.mask, b.groups, ppo.scale_rewards)),
    "rloo": Estimator(KINDS["rloo"], lambda r, b, _: rloo(r, b.mask, b.groups)),
    "reinforce++": Estimator(
        KINDS["reinforce++"], lambda r, b, _: reinforce_plus_plus(r, b.mask, b.groups)
    ),
    "maxrl": Estimator(KINDS["maxrl"], lambda r, b, _: maxrl(r, b.rewards, b.mask, b.groups)),
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


def _real(mask: Float[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """Return 1 for every row that has real tokens, and 0 for the others."""
    return mask.any(dim=1).to(mask.dtype)


def _group_sum(
    numbers: Float[Tensor, " batch"], groups: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return, for every row, the sum of `numbers` over its group."""
    size = int(groups.max()) + 1 if len(groups) else 0
    return numbers.new_zeros(size).index_add(0, groups, numbers)[groups]


def _group_mean(
    numbers: Float[Tensor, " batch"], real: Float[Tensor, " batch"], groups: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return, for every row, the mean of `numbers` over the real rows of its group."""
    return _group_sum(numbers * real, groups) / _group_sum(real, groups).clamp(min=1)
