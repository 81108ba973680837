"""What an update of PPO aims at: from the rewards of samples to advantages and returns."""

from reftune.config import Ppo
from reftune.training.advantages import ADVANTAGES, token_rewards, whiten
from reftune.training.importance import importance_weights
from reftune.training.types import AdvantagesAndReturns, Rollouts


def compute_advantages(rollouts: Rollouts, ppo: Ppo) -> AdvantagesAndReturns:
    """Turn rewards into token rewards, advantages and returns (Luong et al. 2024, section 3.2).

    Returns are raw advantage + value; only the policy's advantages are whitened, and weighed where the
    sampler's probabilities are not the trainer's.
    """
    reference = rollouts.logprobs if rollouts.ref_logprobs is None else rollouts.ref_logprobs
    kl_coef = ppo.kl_coef if ppo.kl_penalty == "reward" else 0.0
    per_token = token_rewards(rollouts.rewards, rollouts.logprobs, reference, rollouts.mask, kl_coef)
    estimator = ADVANTAGES[ppo.advantage]
    advantages = estimator.estimate(per_token, rollouts, ppo)
    returns = (advantages + rollouts.values) * rollouts.mask
    if ppo.whiten and estimator.critic:  # a group baseline has centred them already, per question
        advantages = whiten(advantages, rollouts.mask)
    if ppo.importance_sampling_cap:
        advantages = advantages * importance_weights(rollouts, ppo)
    return AdvantagesAndReturns(per_token, advantages, returns)
