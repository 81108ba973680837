"""What flows from samples to an update: graded samples, rollouts, advantages and returns.

Every per-token tensor is response-only, shape (batch, time), right-padded: column t speaks of response
token t in all of them, and `mask` is 1.0 on real tokens (the EOS included), 0.0 on padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from reftune.problem import Problem, Verdict
from reftune.sampling.sampler import Sample


@dataclass(frozen=True, slots=True)
class GradedSample:
    """One judged sample: the problem, the sampled tokens, the completion they spell, its verdict.

    `trace` is what a log says beside these, such as what its tokens were worth.
    """

    problem: Problem
    sample: Sample
    completion: str
    verdict: Verdict
    trace: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Rollouts:
    """One global batch of graded samples, read by policy, critic and reference.

    `rewards` are those of whole samples; rows of one question share a number in `groups`.
    """

    samples: list[GradedSample]
    groups: Int[Tensor, " batch"]
    rewards: Float[Tensor, " batch"]
    mask: Float[Tensor, "batch time"]
    sampler_logprobs: Float[Tensor, "batch time"]
    logprobs: Float[Tensor, "batch time"]
    ref_logprobs: Float[Tensor, "batch time"] | None
    values: Float[Tensor, "batch time"]


@dataclass(frozen=True, slots=True)
class AdvantagesAndReturns:
    """What the update aims at: token rewards, whitened advantages, returns for the value head.

    `values` are the critic's, of its head and its features together, and `monte_carlo` what followed.
    """

    token_rewards: Float[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]
    values: Float[Tensor, "batch time"]
    monte_carlo: Float[Tensor, "batch time"]
