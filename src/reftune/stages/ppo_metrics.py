"""What one step of PPO tells of its batch."""

import math
from collections import Counter
from typing import Any

from reftune.config import Ppo
from reftune.progress import seconds_spent
from reftune.training.advantages import explained_variance, importance_weights
from reftune.training.rollouts import accuracies, mean_parts
from reftune.training.types import AdvantagesAndReturns, Rollouts


def describe(rollouts: Rollouts, estimates: AdvantagesAndReturns, ppo: Ppo) -> dict[str, Any]:
    """Return the metrics of one batch under the field's names, before the update.

    `kl`, where there is a reference, is the mean over samples of the summed log-ratio to it;
    `sampler_weight` the mean of the weights that correct for the sampler, `sampler_truncated` the share
    of tokens at their cap. What the sandbox failed on counts in `statuses`, `response_length` and
    `truncated` alone.
    """
    mask, graded = rollouts.mask, rollouts.samples
    judged = mask.any(dim=1)
    cap = ppo.importance_sampling_cap or math.inf
    weights = importance_weights(rollouts.logprobs, rollouts.sampler_logprobs, mask, cap)[mask.bool()]
    kl = {}
    if rollouts.ref_logprobs is not None:
        log_ratios = ((rollouts.logprobs - rollouts.ref_logprobs) * mask).sum(1)
        kl["kl"] = float(log_ratios[judged].mean().nan_to_num(0.0))
    return {
        "reward": float(rollouts.rewards[judged].mean().nan_to_num(0.0)),
        **mean_parts(graded),
        **accuracies(graded),
        **kl,
        "response_length": sum(len(a.sample.tokens) for a in graded) / len(graded),
        "truncated": sum(not a.sample.finished for a in graded) / len(graded),
        "explained_variance": explained_variance(rollouts.values, estimates.returns, mask),
        "sampler_weight": float(weights.mean().nan_to_num(1.0)),
        "sampler_truncated": float((weights == cap).float().mean().nan_to_num(0.0)),
        "statuses": dict(Counter(a.verdict.status for a in graded)),
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
