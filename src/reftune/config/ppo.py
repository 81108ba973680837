"""The section [ppo], in four parts: samples, advantages, critic, loss. Its keys are flat in the file."""

from __future__ import annotations

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


class Critic(Section):
    """What predicts the return of a state, and how it learns."""

    value_head_learning_rate: Rate | None = Field(None, description="default: learning_rate")
    critic_warmup_steps: Amount = Field(0, description="first steps in which only the critic learns")
    value_clip_range: Limit = Field(0.2, description="of the critic's change; cliprange_value in TRL")
    value_coef: Weight = Field(5.0, description="alpha, weight of the value loss; vf_coef in TRL")


class PolicyLoss(Section):
    """What the policy minimises."""

    kl_coef: Weight = Field(0.01, description="beta of the KL penalty per token; 0: no reference model")
    clip_range: Limit = Field(0.2, description="of the ratio; cliprange, or epsilon")


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
