"""The section [ppo], in four parts: samples, advantages, critic, loss. Its keys are flat in the file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from reftune.config.ranges import Amount, Count, Few, Limit, Rate, Section, Weight
from reftune.config.training import Steps


class Advantages(Section):
    """What a sample is worth, token by token."""

    advantage: str = Field("gae", description="gae (with a critic) or group (baseline per question)")
    scale_rewards: bool = Field(False, description="group: divide by the question's standard deviation")
    gamma: float = Field(1.0, gt=0, le=1, description="discount of later rewards, per token")
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="lambda of GAE: 1 trusts returns alone, 0 the critic"
    )
    whiten: bool = Field(True, description="gae: normalise advantages over all tokens of the batch")
    importance_sampling_cap: Weight = Field(
        2.0, description="cap of the trainer's over the sampler's probability; 0: no correction"
    )
    importance_sampling: str = Field(
        "token_truncate",
        description="token_truncate, sequence_truncate (at the cap), token_mask or sequence_mask",
    )
    importance_sampling_min: Weight | None = Field(
        None, description="of what a mask keeps; default: 0.5 of a token, 0.999 of a sequence's mean"
    )
    importance_sampling_max: Limit | None = Field(
        None, description="of what a mask keeps; default: 5 of a token, 1.002 of a sequence's mean"
    )


class Critic(Section):
    """What predicts the return of a state, and how it learns."""

    value_head_learning_rate: Rate | None = Field(None, description="default: learning_rate")
    critic_warmup_steps: Amount = Field(0, description="first steps in which only the critic learns")
    value_clip_range: Limit = Field(0.2, description="of the critic's change; cliprange_value in TRL")
    value_coef: Weight = Field(5.0, description="alpha, weight of the value loss; vf_coef in TRL")


class PolicyLoss(Section):
    """What the policy minimises."""

    kl_coef: Weight = Field(0.01, description="beta of the KL penalty per token; 0: no reference model")
    kl_penalty: Literal["reward", "loss_k1", "loss_k2", "loss_k3"] = Field(
        "reward", description="where beta goes: into token rewards, or the loss, with which estimator"
    )
    policy_loss: str = Field(
        "clip", description="clip (PPO), gspo (clips a sequence's ratio), cispo or dppo_tv"
    )
    clip_range: Limit = Field(0.2, description="of the ratio; 3e-4 for gspo")
    clip_range_high: Limit | None = Field(
        None, description="of the ratio upwards; default: clip_range. 0.28 in DAPO, 4 for cispo"
    )
    dual_clip: Weight = Field(0.0, description="bound of the ratio where A < 0, such as 3; 0: none")
    tv_range: Limit = Field(
        0.2, description="dppo_tv: of a token's probability, beyond which it drops out"
    )
    loss_aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = Field(
        "sequence_mean",
        description="mean over samples of their tokens' mean; over all tokens of the minibatch (DAPO);"
        " over samples of their tokens' sum / prompt.max_new_tokens (Dr. GRPO)",
    )
    live_denominator: bool = Field(
        False, description="means leave out questions whose samples all have the advantage 0"
    )
    entropy_coef: Weight = Field(0.0, description="of the entropy bonus")
    entropy_target: Limit | None = Field(
        None, description="below it entropy_coef rises by 0.005 a step, above it falls and rests"
    )
    positive_coef: Weight = Field(
        0.0, description="of the right samples' mean negative log-likelihood; 0.1 in VAPO"
    )

    @model_validator(mode="after")
    def _dual_clip_bounds(self) -> PolicyLoss:
        if 0 < self.dual_clip <= 1:
            raise ValueError(
                f"ppo.dual_clip = {self.dual_clip} would bound even a ratio of 1; set it above 1 (3 is"
                " usual), or to 0"
            )
        return self


class Ppo(PolicyLoss, Critic, Advantages, Steps):
    """Online PPO whose reward is the checked answer."""

    ppo_epochs: Few = Field(2, description="passes over each batch; num_ppo_epochs in TRL")
    minibatch_size: Count | None = Field(None, description="samples per optimizer step; default all")

    @model_validator(mode="after")
    def _the_policy_can_learn(self) -> Ppo:
        if self.advantage == "group" and self.samples_per_question == 1:
            raise ValueError(
                'ppo.advantage = "group" compares the samples of a question, and with one of each every'
                " advantage is 0; set ppo.samples_per_question to 2 or more"
            )
        if self.critic_warmup_steps >= self.steps:
            raise ValueError(
                f"ppo.critic_warmup_steps = {self.critic_warmup_steps} leaves the policy no step to"
                f" learn in; set it below ppo.steps = {self.steps}"
            )
        return self
