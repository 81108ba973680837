"""What one step of PPO tells of its batch."""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from reftune.config import Ppo
from reftune.progress import seconds_spent
from reftune.training.advantages import ADVANTAGES, explained_variance
from reftune.training.importance import importance_weights
from reftune.training.rollouts import accuracies, group_shares, mean_parts
from reftune.training.types import AdvantagesAndReturns, Rollouts


def describe(rollouts: Rollouts, estimates: AdvantagesAndReturns, ppo: Ppo) -> dict[str, Any]:
    """Return the metrics of one batch under the field's names, before the update.

    `kl`, where there is a reference, is the mean over samples of the summed log-ratio to it. What the
    sandbox failed on counts in `statuses`, `response_length` and `truncated` alone.
    """
    mask, graded = rollouts.mask, rollouts.samples
    judged = torch.tensor([a.verdict.judged for a in graded])  # what was cut off, too
    parts, kl = {}, {}
    if ppo.overlong_buffer:
        given = torch.tensor([a.verdict.reward for a in graded])
        parts["overlong_penalty"] = float((rollouts.rewards - given)[judged].mean().nan_to_num(0.0))
    if rollouts.ref_logprobs is not None:
        log_ratios = ((rollouts.logprobs - rollouts.ref_logprobs) * mask).sum(1)
        kl["kl"] = float(log_ratios[mask.any(dim=1)].mean().nan_to_num(0.0))
    return {
        "reward": float(rollouts.rewards[judged].mean().nan_to_num(0.0)),
        **parts,
        **mean_parts(graded),
        **accuracies(graded),
        **group_shares(graded),
        **kl,
        "response_length": sum(len(a.sample.tokens) for a in graded) / len(graded),
        "truncated": sum(not a.sample.finished for a in graded) / len(graded),
        "explained_variance": explained(rollouts, estimates),
        **(_by_quarter(estimates, mask) if ADVANTAGES[ppo.advantage].critic else {}),
        **_weights(rollouts, ppo),
        "statuses": dict(Counter(a.verdict.status for a in graded)),
    }


def _weights(rollouts: Rollouts, ppo: Ppo) -> dict[str, float]:
    """Return what corrects for the sampler: the mean weight and the share at its cap, or masked."""
    weights = importance_weights(rollouts, ppo)[rollouts.mask.bool()]
    if ppo.importance_sampling.endswith("_mask"):
        return {"sampler_masked": float((weights == 0).float().mean().nan_to_num(0.0))}
    capped = weights == (ppo.importance_sampling_cap or math.inf)
    return {
        "sampler_weight": float(weights.mean().nan_to_num(1.0)),
        "sampler_truncated": float(capped.float().mean().nan_to_num(0.0)),
    }


def explained(rollouts: Rollouts, estimates: AdvantagesAndReturns) -> float:
    """Return how much of what followed the critic explains, over all tokens."""
    return explained_variance(estimates.values, estimates.monte_carlo, rollouts.mask)


def _by_quarter(estimates: AdvantagesAndReturns, mask: Tensor) -> dict[str, float]:
    """Return the same of the tokens in each quarter of a response."""
    place = 4 * torch.arange(mask.shape[1]) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return {
        f"explained_variance/quarter_{k + 1}": explained_variance(
            estimates.values, estimates.monte_carlo, mask * ((place >= k) & (place < k + 1))
        )
        for k in range(4)
    }


def timings(rollouts: Rollouts, started: float, sampled: float, ended: float) -> dict[str, float]:
    """Return what a step took, from three readings of a clock in seconds."""
    tokens = sum(len(a.sample.prompt) + len(a.sample.tokens) for a in rollouts.samples)
    spent = seconds_spent()
    parts = {f"seconds_{name}": spent.get(name, 0.0) for name in ("sampling", "judging", "reading")}
    return {
        "seconds_rollouts": sampled - started,
        **parts,
        "seconds_update": ended - sampled,
        "tokens_per_second": tokens / (ended - started),
    }
