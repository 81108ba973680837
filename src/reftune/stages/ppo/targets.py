"""What an update of PPO aims at: from the rewards of samples to advantages and returns."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from reftune.config import Ppo
from reftune.training.advantages import ADVANTAGES, gae, monte_carlo, token_rewards, whiten
from reftune.training.importance import importance_weights
from reftune.training.types import AdvantagesAndReturns, Rollouts


def compute_advantages(
    rollouts: Rollouts,
    ppo: Ppo,
    beside: Float[Tensor, "batch time"] | None = None,
    value_lambda: float | None = None,
) -> AdvantagesAndReturns:
    """Turn rewards into token rewards, advantages and returns (Luong et al. 2024, section 3.2).

    Returns are raw advantage + value; only the policy's advantages are whitened, and weighed where the
    sampler's probabilities are not the trainer's.

    Args:
        rollouts: with the values of the value head.
        ppo: the settings.
        beside: values that are added to those of the head, which learns what is left.
        value_lambda: of the head's returns; default: as of the advantages.
    """
    reference = rollouts.logprobs if rollouts.ref_logprobs is None else rollouts.ref_logprobs
    mask, kl_coef = rollouts.mask, ppo.kl_coef if ppo.kl_penalty == "reward" else 0.0
    per_token = token_rewards(rollouts.rewards, rollouts.logprobs, reference, mask, kl_coef)
    values = rollouts.values if beside is None else rollouts.values + beside
    estimator = ADVANTAGES[ppo.advantage]
    advantages = estimator.estimate(per_token, replace(rollouts, values=values), ppo)
    learnt = (
        advantages if value_lambda is None else gae(per_token, values, mask, ppo.gamma, value_lambda)
    )
    returns = (learnt + rollouts.values) * mask
    if ppo.whiten and estimator.critic:  # a group baseline has centred them already, per question
        advantages = whiten(advantages, mask)
    if ppo.importance_sampling_cap:
        advantages = advantages * importance_weights(rollouts, ppo)
    followed = monte_carlo(per_token, mask, ppo.gamma)
    return AdvantagesAndReturns(per_token, advantages, returns, values, followed)
