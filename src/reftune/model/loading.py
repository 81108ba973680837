"""Load language models and tokenizers, or make new ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from reftune.config import Model
from reftune.model.scratch import new_model
from reftune.problem import UserError

logging.disable_progress_bar()  # our own progress is on the screen


def load_model(name: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model by Hugging Face name or from a directory.

    Raises UserError where there is none, or weights are missing, damaged or of another shape.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(name), dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = _reason(name, error)
        raise UserError(f"{name}: cannot load a causal language model: {reason}") from None
    model, loading = loaded
    if loading["missing_keys"]:  # transformers starts them at random
        first, *others = sorted(loading["missing_keys"])
        raise UserError(f"{name}: the weights of {first} and {len(others)} others are missing")
    assert isinstance(model, PreTrainedModel)
    return model


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; it must have an EOS token.

    Raises UserError where it is missing or cannot end a response.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{name}: cannot load a tokenizer: {_reason(name, error)}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{name}: the tokenizer has no EOS token; set eos_token in tokenizer_config.json"
        )
    return tokenizer


def build_model(
    settings: Model, texts: Iterable[str], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and tokenizer that a run starts from: loaded, or new and trained on `texts`.

    Raises UserError for an unknown scratch size or a model that cannot be loaded.
    """
    if settings.name is not None:
        return load_model(settings.name), load_tokenizer(settings.name)
    return new_model(settings, texts, seed)


def _reason(name: str | Path, error: Exception) -> str:
    """Return the first line of a loading error, in words that fit a path, too."""
    if len(Path(name).parts) > 2 and not Path(name).exists():  # the hub's names have one slash at most
        return "no such directory"
    return str(error).strip().split("\n")[0]
