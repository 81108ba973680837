"""Sections of the configuration that say which language model is trained, and what of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from reftune.config.ranges import Amount, Few, Limit, Place, Section


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Model(Section):
    """Which language model to start from."""

    name: Place | None = Field(None, description="Hugging Face name, directory or GGUF file")
    scratch: str | None = Field(None, description="size of a new small Llama: tiny or small")
    scratch_overrides: dict[str, Few] = Field({}, description="LlamaConfig fields, e.g. hidden_size")
    init_std: float = Field(
        0.02, ge=1e-4, le=1, description="standard deviation of a scratch model's first weights"
    )
    vocab_size: int = Field(512, ge=260, le=10**6, description="of a scratch model's tokenizer")
    eos_token: str | None = Field(
        None, description='what ends a text, e.g. "</s>"; default: what the tokenizer of `name` says'
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of weights, computing and exported models; optimizers work in float32"
    )
    float32_head: bool = Field(
        False, description="logits of a model in 16 bits are computed in float32, to learn and to sample"
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit keeps small moments (GPUs; needs bitsandbytes)"
    )
    value_model: Literal["shared", "separate"] = Field(
        "shared", description="critic on the policy's own backbone, or a model of its own"
    )
    value_hidden_size: Amount = Field(
        0, description="features of a hidden layer in the critic's head; 0: it is linear"
    )
    value_targets: Literal["plain", "normalised", "two_hot"] = Field(
        "plain",
        description="what the critic's head learns: returns; how far they are from their running mean,"
        " in standard deviations; or their place among 51 equal steps of value_span",
    )
    value_span: list[float] = Field(
        [0.0, 1.0],
        description="two_hot: least and greatest return that the critic can say; with"
        " ppo.value_features of what these leave over, as [-1.0, 1.0]",
    )

    @field_validator("value_span")
    @classmethod
    def _rises(cls, span: list[float]) -> list[float]:
        if len(span) != 2 or span[0] >= span[1]:
            raise ValueError("model.value_span is from the least to the greatest return, as [0.0, 1.0]")
        return span

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.name is None) == (self.scratch is None):
            raise ValueError('set exactly one of model.name and model.scratch ("tiny" or "small")')
        return self


class Lora(Section):
    """An adapter of low rank that is trained in place of the model's weights, by every stage."""

    rank: int = Field(0, ge=0, le=4096, description="0: there is none, and all weights are trained")
    alpha: Limit | None = Field(None, description="default: twice the rank, which scales it by 2")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what it reads, while learning from chains")
    targets: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)] = Field(
        ["all"], description='linear layers, such as ["q_proj", "v_proj"]; all: but the output embedding'
    )
