"""The section [ppo], in parts: samples, advantages, critic, loss. Its keys are flat in the file."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from reftune.config.ranges import Amount, Count, Few, Limit, Rate, Section, Share, Weight
from reftune.config.training import Steps

ValueFeature = Literal["group", "surprise", "success_rate"]


class Kind(NamedTuple):
    """What an estimate of advantages needs; what it computes is in `training.advantages.ADVANTAGES`."""

    critic: bool = False
    compares: bool = False  # the samples of a question with each other
    scalable: bool = False  # by ppo.scale_rewards


KINDS = {
    "gae": Kind(critic=True),
    "group": Kind(compares=True, scalable=True),
    "rloo": Kind(compares=True),
    "reinforce++": Kind(compares=True),
    "maxrl": Kind(compares=True),
}


# What bounds another thing than a token's ratio, and how far the papers let it go.
OWN_RANGES = {
    "gspo": "ppo.clip_range = 3e-4 and ppo.clip_range_high = 4e-4, as in GSPO",
    "cispo": "ppo.clip_range_high = 4, as in ScaleRL",
}


class Sampling(Section):
    """Which questions are asked, which of their samples are learnt from, and what a long one costs."""

    dynamic_sampling: int = Field(
        0,
        ge=0,
        le=10**4,
        description="learn from questions that some samples get right and some wrong alone: ask others"
        " until a batch of them is full, in so many draws at most; 0: off",
    )
    difficulty_range: list[Share] = Field(
        [],
        description="such as [0.2, 0.8]: questions with a running success rate out of it are asked"
        " only now and then",
    )
    async_rollouts: bool = Field(
        False,
        description="draw the next step's samples while the policy learns from this one's: one update"
        " off-policy, for which importance sampling makes up",
    )
    overlong_buffer: Amount = Field(
        0, description="tokens before max_new_tokens in which the reward falls by up to 1; 0: off"
    )
    mask_truncated: bool = Field(False, description="leave samples that were cut off out of the loss")

    @field_validator("difficulty_range")
    @classmethod
    def _two_rates(cls, given: list[float]) -> list[float]:
        if given and (len(given) != 2 or given[0] > given[1]):
            raise ValueError(
                f"ppo.difficulty_range = {given} is no range; give two success rates, the lower one"
                " first, for example [0.2, 0.8]"
            )
        return given


class Advantages(Section):
    """What a sample is worth, token by token."""

    advantage: str = Field("gae", description=f"estimator: {', '.join(KINDS)}; only gae has a critic")
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
        description="what the critic goes by beside states: group (the question's other samples),"
        " surprise (how improbable the response is so far), success_rate (of the question)",
    )


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
        False, description="means leave out questions whose samples were all rewarded alike"
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


class Reference(Section):
    """What the KL penalty holds the policy near."""

    reference_reset_steps: Amount = Field(
        0, description="the policy becomes the reference, with a new optimizer, after so many; 0: never"
    )


class Ppo(PolicyLoss, Critic, Advantages, Sampling, Reference, Steps):
    """Online PPO whose reward is the checked answer."""

    ppo_epochs: Few = Field(2, description="passes over each batch; num_ppo_epochs in TRL")
    minibatch_size: Count | None = Field(None, description="samples per optimizer step; default all")

    @property
    def updates(self) -> int:
        """Return how many optimizer steps a batch gets at most."""
        batch = self.samples_per_step
        return self.ppo_epochs * math.ceil(batch / (self.minibatch_size or batch))

    @property
    def samples_per_step(self) -> int:
        """Return how many samples a batch has."""
        return self.questions_per_step * self.samples_per_question

    @property
    def kind(self) -> Kind:
        """Return what the estimate of advantages needs."""
        return KINDS[self.advantage]

    @field_validator("advantage")
    @classmethod
    def _known_estimator(cls, name: str) -> str:
        if name not in KINDS:
            raise ValueError(f"ppo.advantage: unknown estimator {name}; choose {' or '.join(KINDS)}")
        return name

    @model_validator(mode="after")
    def _knows_what_comes_next(self) -> Ppo:
        """Refuse to draw ahead what depends on the samples of the step before."""
        given = "dynamic_sampling" if self.dynamic_sampling else "difficulty_range"
        if self.async_rollouts and (self.dynamic_sampling or self.difficulty_range):
            raise ValueError(
                f"ppo.{given} chooses questions by the samples of the step before, which"
                " ppo.async_rollouts does not wait for; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _the_policy_can_learn(self) -> Ppo:
        if self.samples_per_question == 1 and (given := self._needs_several()):
            raise ValueError(f"{given}; set ppo.samples_per_question to 2 or more")
        if len(set(self.value_features)) < len(self.value_features):
            raise ValueError("ppo.value_features names one twice, which counts it twice; leave it out")
        if self.value_pretraining_steps >= self.steps:
            raise ValueError(
                f"ppo.value_pretraining_steps = {self.value_pretraining_steps} leaves the policy no step"
                f" to learn in; set it below ppo.steps = {self.steps}"
            )
        return self

    def _needs_several(self) -> str:
        """Say what needs several samples of a question, and why; nothing if one will do."""
        if self.kind.compares:
            return (
                f'ppo.advantage = "{self.advantage}" compares the samples of a question, and with one of'
                " each every advantage is 0"
            )
        if self.dynamic_sampling:
            return "ppo.dynamic_sampling keeps questions that some samples get right and some wrong"
        if self.difficulty_range:
            return "ppo.difficulty_range goes by success rates, of which one sample tells nothing"
        if "group" in self.value_features:
            return 'ppo.value_features: "group" compares the samples of a question'
        return ""
