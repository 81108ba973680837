"""Sections of the configuration that say what answers are worth and how models are compared."""

from __future__ import annotations

from pydantic import Field, model_validator

from reftune.config.data import GYM_REWARD
from reftune.config.ranges import Place, Section, Temperature


class Reward(Section):
    """What a completion is worth, in sampling stages and the evaluation; what a program may use."""

    function: Place | list[Place] | None = Field(
        None, description="your own reward: path.py:function or package.module:function, or several"
    )
    weights: list[float] = Field([], description="of several functions; default: 1 each")
    seconds: float = Field(30.0, gt=0, le=10**5, description="that a call of your reward may take")
    max_failed: float = Field(
        0.25, ge=0, le=1, description="share of a batch on which your reward may fail; more ends the run"
    )
    partial_reward: float = Field(
        0.1, ge=0, le=1, description="reward of a wrong but well-formed answer"
    )
    sandbox_seconds: float = Field(2.0, gt=0, le=3600, description="CPU time that a program may use")
    sandbox_memory_mb: int = Field(256, ge=16, le=2**20, description="heap that a program may use")
    full_python: bool = Field(
        False, description="run what the sandbox calls unsupported (numpy, sympy) in a locked-in CPython"
    )

    @property
    def grades_answers(self) -> bool:
        """Tell whether answers are compared with the right ones, where no verifier belongs to them."""
        return self.function in (None, GYM_REWARD)


class Evaluation(Section):
    """How the models are compared on the test questions."""

    samples: int = Field(0, ge=0, le=10**4, description="per question, to vote; 0: greedy only")
    temperature: Temperature = Field(1.0, description="of the samples that vote")
    rerank: bool = Field(False, description="train a reranker per model and choose samples by its score")
    base: bool = Field(
        True, description="compare model.name as it is, too; always where the methods start from it"
    )
    bootstrap: int = Field(10000, ge=100, le=10**6, description="resamples behind an interval")

    @model_validator(mode="after")
    def _something_to_rank(self) -> Evaluation:
        if self.rerank and self.samples < 2:
            raise ValueError(
                "evaluation.rerank needs samples to choose from; set evaluation.samples to 2 or more"
            )
        return self
