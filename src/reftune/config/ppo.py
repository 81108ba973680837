"""The section [ppo], in four parts: samples, advantages, critic, loss. Its keys are flat in the file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from reftune.config.ranges import Amount, Count, Few, Limit, Rate, Section, Weight
from reftune.config.training import Steps

ValueFeature = Literal["group", "surprise", "success_rate"]


class Advantages(Section):
    """What a sample is worth, token by token."""

    advantage: str = Field("gae", description="gae (with a critic) or group (baseline per question)")
    scale_rewards: bool = Field(False, description="group: divide by the question's standard deviation")
    gamma: float = Field(1.0, gt=0, le=1, description="discount of later rewards, per token")
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="lambda of GAE: 1 trusts returns alone, 0 the critic"
    )
    lambda_length_alpha: Weight = Field(
        0.0,
        description="lambda of a response of l tokens is 1 - 1 / (alpha l), as in VAPO, but at least 0;"
        " 0: gae_lambda for all",
    )
    whiten: bool = Field(True, description="gae: normalise advantages over all tokens of the batch")
    importance_sampling_cap: Weight = Field(
        2.0, description="cap of the trainer's over the sampler's probability; 0: no correction"
    )


class Critic(Section):
    """What predicts the return of a state, and how it learns."""

    value_coef: Weight = Field(5.0, description="alpha, weight of the value loss; vf_coef in TRL")
    value_clip_range: Limit = Field(0.2, description="of the critic's change; cliprange_value in TRL")
    value_head_learning_rate: Rate | None = Field(None, description="default: learning_rate")
    value_epochs: Amount = Field(
        0, description="further passes over each batch in which only the critic learns"
    )
    value_lambda: float | None = Field(
        None, ge=0, le=1, description="lambda of the critic's targets; default: that of advantages"
    )
    value_pretraining_steps: Amount = Field(
        0,
        description="first steps, at most, in which only the critic learns, until it explains no more",
    )
    value_features: list[ValueFeature] = Field(
        [],
        description="what the critic goes by beside the state: group (the question's other samples),"
        " surprise (how improbable the response so far), success_rate (of the question)",
    )


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
        if len(set(self.value_features)) < len(self.value_features):
            raise ValueError("ppo.value_features names one twice, which counts it twice; leave it out")
        if "group" in self.value_features and self.samples_per_question == 1:
            raise ValueError(
                'ppo.value_features: "group" compares the samples of a question, and there is one of'
                " each; set ppo.samples_per_question to 2 or more"
            )
        if self.value_pretraining_steps >= self.steps:
            raise ValueError(
                f"ppo.value_pretraining_steps = {self.value_pretraining_steps} leaves the policy no step"
                f" to learn in; set it below ppo.steps = {self.steps}"
            )
        return self
