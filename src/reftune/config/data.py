"""Sections of the configuration that say what is asked and how a question becomes text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from reftune.config.ranges import Count, Place, Section, Seed, Weight
from reftune.problem import AnswerStyle, Cot

# What `apply_chat_template` itself takes, and the messages.
_NOT_OF_A_TEMPLATE = (
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
)  # fmt: skip

# A source that reasoning_gym generates, what a problem of it keeps, and the function that verifies it.
GYM, GYM_COLUMN, GYM_REWARD = "reasoning_gym:", "reasoning_gym", "reftune.data.gym:reward"

PAPERS_TEMPLATE = "Question:\n{question}\nAnswer reasoning:\n"  # Luong et al. 2024

# What the answer style "auto" means, by the style of the prompt and the kind of chain.
AUTO_ANSWERS: dict[tuple[str, Cot], AnswerStyle] = {
    ("plain", "natural"): "trigger",
    ("plain", "program"): "function",
    ("chat", "natural"): "boxed",
    ("chat", "program"): "fenced",
}


class Synthetic(Section):
    """The built-in problem generator (used where a data source is "synthetic")."""

    min_events: int = Field(2, ge=0, le=1000, description="fewest changes in a story")
    max_events: int = Field(4, ge=0, le=1000, description="most changes in a story")
    people: int = Field(3, ge=2, le=1000, description="most people in a story")
    max_number: int = Field(20, ge=4, le=10**9, description="largest starting amount")
    distractors: float = Field(0.3, ge=0, le=1, description="share of stories with an irrelevant fact")
    retold: bool = Field(False, description="natural chains say again what each calculation is made of")
    choices: int = Field(0, ge=0, le=5, description="2 to 5 options per question; 0: a number is asked")
    train_size: Count = Field(1700, description="problems to train on, validation included")
    test_size: Count = Field(1000, description="problems to test on")
    seed: Seed | None = Field(None, description="draws the problems; default: the run's seed")


class Columns(Section):
    """Names of the columns in a data set that is not in one of the known formats."""

    id: str | None = Field(None, description="what names a problem; default: its place in the file")
    question: str = Field("question", description="the question")
    answer: str = Field(
        "answer", description="the final answer; without such a column it is what the chain states"
    )
    chain: str | None = Field(None, description="the worked solution; default: there is none")
    choices: str | None = Field(None, description="the options of a question; default: there are none")


class Data(Section):
    """Where the problems come from."""

    train: Place = Field(
        "synthetic", description='a file, a directory, a Hugging Face data set name, or "synthetic"'
    )
    test: Place = Field("synthetic", description="likewise; touched once, for the final evaluation")
    mixture: dict[Place, Weight] = Field(
        {}, description="several sources to train on in place of `train`, with their weights"
    )
    test_sources: list[Place] = Field(
        [], description="several sources to test on in place of `test`; each one's accuracy is told, too"
    )
    cot: Cot = Field("program", description="kind of chain: program (executed) or natural (text)")
    validation_size: Count = Field(200, description="questions carved from train by a seeded hash")
    train_split: str = Field("train", description="split of the hub data set to train on")
    test_split: str = Field("test", description="split of the hub data set to test on")
    subset: str | None = Field(None, description="configuration name of the hub data set")
    columns: Columns | None = Field(None, description="column names, where the format is unknown")
    keep_columns: list[str] = Field(
        [], description="other columns, which your own reward may ask for by their names"
    )
    max_train: Count | None = Field(None, description="use only this many training problems")
    max_chains: Count | None = Field(
        None, description="use the chains of only this many training problems; SFT takes no others"
    )
    max_test: Count | None = Field(None, description="use only this many test problems")
    synthetic: Synthetic = Synthetic()

    @field_validator("mixture")
    @classmethod
    def _has_weights(cls, mixture: dict[str, float]) -> dict[str, float]:
        for source, weight in mixture.items():
            if not weight:
                raise ValueError(f"data.mixture: {source} has the weight 0; leave it out, or raise it")
        return mixture

    @property
    def trained_on(self) -> list[str]:
        """Return the sources of the training problems."""
        return list(self.mixture) or [self.train]

    @property
    def training_data(self) -> str:
        """Return the names of these sources, for people."""
        return " and ".join(self.trained_on)

    @property
    def tested_on(self) -> list[str]:
        """Return the sources of the test problems."""
        return self.test_sources or [self.test]


class Prompt(Section):
    """How a question becomes text, and its answer; the strings of the plain style are the paper's."""

    style: Literal["auto", "plain", "chat"] = Field(
        "auto", description="plain text, or a turn of a chat; auto: chat where there is a chat template"
    )
    template: str | None = Field(
        None, description="text around {question}; default: the paper's, or what `answer_style` asks for"
    )
    system: str = Field("", description="chat: system message; default: the chat template's own")
    template_args: dict[str, bool | int | str] = Field(
        {}, description="chat: arguments of the chat template, e.g. {enable_thinking = false}"
    )
    answer_style: Literal["auto", AnswerStyle] = Field(
        "auto",
        description="natural: trigger, boxed, hashes or answer_is; program: function or fenced;"
        " auto: trigger or function in plain text, boxed or fenced in a chat",
    )
    trigger: str = Field(
        "\nTherefore, the answer is: ", description='text before the answer, in answer_style "trigger"'
    )
    repeat_question: bool = Field(True, description="programs carry the question as their docstring")
    max_prompt_tokens: Count = Field(300, description="a question with a longer prompt is refused")
    max_new_tokens: Count = Field(400, description="longer responses are cut off, and count as wrong")

    @field_validator("template")
    @classmethod
    def _asks_the_question(cls, template: str | None) -> str | None:
        if template is not None and "{question}" not in template:
            raise ValueError("prompt.template must hold {question}, or all prompts are the same")
        return template

    @field_validator("template_args")
    @classmethod
    def _are_the_templates_own(cls, given: dict[str, bool | int | str]) -> dict[str, bool | int | str]:
        for name in given:
            if name in _NOT_OF_A_TEMPLATE:
                raise ValueError(f"prompt.template_args: {name} is set by reftune itself; leave it out")
        return given
