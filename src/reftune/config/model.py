"""The section of the configuration that says which language model is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from reftune.config.ranges import Few, Place, Section


class Model(Section):
    """Which language model to start from."""

    name: Place | None = Field(None, description="Hugging Face name or directory")
    scratch: str | None = Field(None, description="size of a new small Llama: tiny or small")
    scratch_overrides: dict[str, Few] = Field({}, description="LlamaConfig fields, e.g. hidden_size")
    vocab_size: int = Field(512, ge=260, le=10**6, description="of a scratch model's tokenizer")
    eos_token: str | None = Field(
        None, description='what ends a text, e.g. "</s>"; default: what the tokenizer of `name` says'
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of weights, computing and exported models; optimizers work in float32"
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit keeps small moments (GPUs; needs bitsandbytes)"
    )
    value_model: Literal["shared", "separate"] = Field(
        "shared", description="critic on the policy's own backbone, or a model of its own"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.name is None) == (self.scratch is None):
            raise ValueError('set exactly one of model.name and model.scratch ("tiny" or "small")')
        return self
