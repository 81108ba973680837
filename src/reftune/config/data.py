"""Sections of the configuration that say what is asked and how a question becomes text."""

from __future__ import annotations

from pydantic import Field, field_validator

from reftune.config.ranges import Count, Place, Section, Seed
from reftune.problem import Cot


class Synthetic(Section):
    """The built-in problem generator (used where a data source is "synthetic")."""

    min_events: int = Field(2, ge=0, le=1000, description="fewest changes in a story")
    max_events: int = Field(4, ge=0, le=1000, description="most changes in a story")
    people: int = Field(3, ge=2, le=1000, description="most people in a story")
    max_number: int = Field(20, ge=4, le=10**9, description="largest starting amount")
    distractors: float = Field(0.3, ge=0, le=1, description="share of stories with an irrelevant fact")
    choices: int = Field(0, ge=0, le=5, description="2 to 5 options per question; 0: a number is asked")
    train_size: Count = Field(1700, description="problems to train on, validation included")
    test_size: Count = Field(1000, description="problems to test on")
    seed: Seed | None = Field(None, description="draws the problems; default: the run's seed")


class Columns(Section):
    """Names of the columns in a data set that is not in one of the known formats."""

    id: str | None = None
    question: str = "question"
    answer: str = "answer"
    chain: str | None = None
    choices: str | None = None


class Data(Section):
    """Where the problems come from."""

    train: Place = Field("synthetic", description='a file, a Hugging Face data set name, or "synthetic"')
    test: Place = Field("synthetic", description="likewise; touched once, for the final evaluation")
    cot: Cot = Field("program", description="kind of chain: program (executed) or natural (text)")
    validation_size: Count = Field(200, description="questions carved from train by a seeded hash")
    train_split: str = "train"
    test_split: str = "test"
    subset: str | None = Field(None, description="configuration name of the hub data set")
    columns: Columns | None = Field(None, description="column names, where the format is unknown")
    max_train: Count | None = Field(None, description="use only this many training problems")
    max_test: Count | None = Field(None, description="use only this many test problems")
    synthetic: Synthetic = Synthetic()


class Prompt(Section):
    """How a question becomes text; the defaults are the paper's exact strings."""

    template: str = "Question:\n{question}\nAnswer reasoning:\n"
    trigger: str = Field("\nTherefore, the answer is: ", description="text before the answer (natural)")
    repeat_question: bool = Field(True, description="programs carry the question as their docstring")
    max_prompt_tokens: Count = 300
    max_new_tokens: Count = 400

    @field_validator("template")
    @classmethod
    def _asks_the_question(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("prompt.template must hold {question}, or all prompts are the same")
        return template
