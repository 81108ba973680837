"""Sections of the configuration that say how models are trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from reftune.config.ranges import Amount, Count, Few, Limit, Rate, Section, Temperature, Weight


class Epochs(Section):
    """Training on given examples, several times over."""

    epochs: Count = Field(40, description="length of the run; its best epoch is the model")
    batch_size: Count = Field(48, description="examples per optimizer step, on all processes together")
    max_tokens: int = Field(1024, ge=2, le=10**7, description="longer examples are left out")
    learning_rate: Rate = Field(1e-5, description="peak; it rises first and then falls to 0")
    lr_warmup_share: float = Field(0.1, ge=0, le=1, description="share of the steps with a rising rate")
    weight_decay: Weight = Field(0.0, description="of AdamW")
    max_grad_norm: Limit = Field(1.0, description="gradients of a larger norm are scaled down to it")
    checkpoint_every_steps: Count = Field(200, description="beside compute.checkpoint_every_minutes")


class Supervised(Epochs):
    """Training on chains; the best epoch is the one that answers most validation questions."""

    validate_every_epochs: Count = Field(1, description="the best of these epochs is kept")


class Sft(Supervised):
    """Supervised warm-up, and the SFT baseline: one run, two checkpoints."""

    epochs: Amount = Field(
        40, description="length of the run; its best epoch is the model. 0: no SFT, and no chain needed"
    )
    warmup_epochs: Amount | Literal["auto"] = Field(
        2,
        description="the other methods start from this epoch's model; 0: from the given model;"
        ' "auto": from the validated epoch with the best pass@1 and pass@k',
    )
    warmup_k: Few = Field(16, description='"auto": samples of each validation question, the k of pass@k')
    warmup_gate: float = Field(
        0.05, ge=0, le=1, description='"auto": least pass@k from which the other methods start; 0: any'
    )

    @field_validator("warmup_epochs", mode="before")
    @classmethod
    def _a_number_or_auto(cls, given: Any) -> Any:
        if given == "auto" or (isinstance(given, int) and given >= 0):
            return given
        raise ValueError(f'sft.warmup_epochs: a number of epochs from 0 on, or "auto", not {given!r}')

    @model_validator(mode="before")
    @classmethod
    def _no_warmup_without_epochs(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("epochs") == 0:
            return {"warmup_epochs": 0, **values}
        return values

    @model_validator(mode="after")
    def _warmup_within(self) -> Sft:
        if (1 if self.warmup_epochs == "auto" else self.warmup_epochs) > self.epochs:
            both = "; set both to 0 to leave SFT out" if self.epochs == 0 else ""
            raise ValueError(f"sft.warmup_epochs must not exceed sft.epochs{both}")
        return self


class WarmupSamples(Section):
    """Samples of the model that the methods start from, for offline self-training and rerankers."""

    per_question: Few = Field(100, description="samples of each training question")
    temperature: Temperature = Field(1.0, description="of the samples")


class OfflineSt(Supervised):
    """Offline self-training: SFT anew on the annotated chains and right warm-up samples."""

    epochs: Count = Field(20, description="length of the run; its best epoch is the model")
    keep: Few = Field(10, description="different right samples per question, at most")


class Steps(Section):
    """Training on samples of the current policy, batch by batch."""

    steps: Count = Field(1000, description="batches of samples")
    questions_per_step: Count = Field(32, description="questions that are sampled in each step")
    samples_per_question: Few = Field(1, description="num_generations in TRL")
    learning_rate: Rate = Field(3e-7, description="of each optimizer step, but for the next two keys")
    lr_warmup_steps: Amount = Field(
        0,
        description="first steps in which the rate rises: AdamW's first ones are as large as it allows",
    )
    lr_schedule: Literal["constant", "linear"] = Field(
        "constant", description="of the rate after that; linear: down towards 0 at the last step"
    )
    weight_decay: Weight = Field(0.0, description="of AdamW")
    max_grad_norm: Limit = Field(1.0, description="gradients of a larger norm are scaled down to it")
    temperature: Temperature = Field(1.0, description="of the samples, and of the policy that learns")
    validate_every_steps: Count = Field(10, description="the best of these steps is kept")
    checkpoint_every_steps: Count = Field(10, description="beside compute.checkpoint_every_minutes")
    samples_logged_per_step: Amount = Field(
        8, description="samples that are kept in samples.jsonl, question by question"
    )


class OnlineSt(Steps):
    """Online self-training: SFT on the policy's own right samples and the annotated chains."""

    update_epochs: Few = Field(2, description="passes over each batch of samples")


class Reranker(Epochs):
    """A classifier of right and wrong chains on top of each model, to choose among its samples."""

    epochs: Count = Field(3, description="length of the run; the best epoch by validation is kept")
    batch_size: Count = Field(24, description="chains per optimizer step")
    learning_rate: Rate = Field(1e-6, description="peak; it rises first and then falls to 0")
    head_learning_rate: Rate | None = Field(None, description="default: learning_rate")
