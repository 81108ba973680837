"""What an update of PPO aims at: from the rewards of samples to advantages and returns."""

from reftune.config import Ppo
from reftune.training.advantages import ADVANTAGES, importance_weights, token_rewards, whiten
from reftune.training.types import AdvantagesAndReturns, Rollouts


def compute_advantages(rollouts: Rollouts, ppo: Ppo) -> AdvantagesAndReturns:
    """Turn rewards into token rewards, advantages and returns (Luong et al. 2024, section 3.2).

    Returns are raw advantage + value; only the policy's advantages are whitened, and weighed where the
    sampler's probabilities are not the trainer's.
    """
    reference = rollouts.logprobs if rollouts.ref_logprobs is None else rollouts.ref_logprobs
    per_token = token_rewards(rollouts.rewards, rollouts.logprobs, reference, rollouts.mask, ppo.kl_coef)
    estimator = ADVANTAGES[ppo.advantage]
    advantages = estimator.estimate(per_token, rollouts, ppo)
    returns = (advantages + rollouts.values) * rollouts.mask
    if ppo.whiten and estimator.critic:  # a group baseline has centred them already, per question
        advantages = whiten(advantages, rollouts.mask)
    if ppo.importance_sampling_cap:
        advantages = advantages * importance_weights(
            rollouts.logprobs, rollouts.sampler_logprobs, rollouts.mask, ppo.importance_sampling_cap
        )
    return AdvantagesAndReturns(per_token, advantages, returns)
