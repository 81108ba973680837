"""Load language models and tokenizers, or make new ones."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from reftune.config import Model
from reftune.model.packing import text_config
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
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


def load_policy(
    name: str | Path,
    settings: Model,
    *,
    critic: bool = False,
    trainable: bool = False,
    device: torch.device | None = None,
) -> PolicyWithValue:
    """Load a language model as a policy: in float32 to train it, else in the run's precision.

    Args:
        name: Hugging Face name or directory.
        settings, critic, trainable, device: as for `make_policy`.

    Raises UserError as `load_model` does.
    """
    half = settings.dtype == "bfloat16" and not trainable
    model = load_model(name, torch.bfloat16 if half else torch.float32)
    return make_policy(model, settings, critic=critic, trainable=trainable, device=device)


def make_policy(
    model: PreTrainedModel,
    settings: Model,
    *,
    critic: bool = False,
    trainable: bool = False,
    device: torch.device | None = None,
) -> PolicyWithValue:
    """Return a language model as a policy; every policy of a run is built here.

    Args:
        model: the language model, which is used and not copied.
        settings: of the section [model]; they say what kind of critic there is.
        critic: whether there is one.
        trainable: whether the weights get gradients; those that no text reaches never do.
        device: where it goes; default: where it is.
    """
    model.eval()
    set_trainable(model, trainable)
    model = model if device is None else model.to(device)  # type: ignore[arg-type]
    return PolicyWithValue(model, settings.value_model if critic else "none")


def set_trainable(model: PreTrainedModel, trainable: bool) -> None:
    """Say whether weights get gradients: those that read and write text, not a composite model's towers.

    Else processes that share the work would wait for gradients that never come.
    """
    model.requires_grad_(False)
    composite = text_config(model) is not model.config
    parts = (model.get_decoder(), model.get_output_embeddings()) if composite else (model,)
    for part in parts:
        part.requires_grad_(trainable)


def save_policy(policy: PolicyWithValue, directory: Path, dtype: str = "float32") -> None:
    """Write the language model of a policy as a Hugging Face model directory, in the run's precision.

    The critic is left out: nobody reads it, and inference engines refuse weights that they do not know.
    """
    model, weights = policy.policy, policy.policy.state_dict()
    if dtype != "float32":
        cast: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights stay one
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                key = (tensor.data_ptr(), tensor.shape)
                cast.setdefault(key, tensor.to(getattr(torch, dtype)))
                weights[name] = cast[key]
    model.save_pretrained(directory, state_dict=weights)
    if dtype != "float32":
        model.config.dtype = dtype
        model.config.save_pretrained(directory)


def save_generation(model: PreTrainedModel, prompter: Prompter, directory: Path) -> None:
    """Let whoever generates with a saved model do as its evaluation does: greedily, up to its ends.

    The base model's settings may hold a temperature, penalties or an end that it was not trained on.
    """
    ends = end_tokens(model, prompter.eos)
    pad = model.generation_config.pad_token_id if model.generation_config else None
    GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else ends[0],
        bos_token_id=prompter.tokenizer.bos_token_id,
        pad_token_id=prompter.eos if pad is None else pad,
        max_new_tokens=prompter.settings.max_new_tokens,
    ).save_pretrained(directory)


def end_tokens(model: PreTrainedModel, eos: int) -> list[int]:
    """Return the ids that end a response: the tokenizer's, and those that the model is shipped with."""
    settings = model.generation_config
    ends = settings.eos_token_id if settings is not None else None
    return sorted({eos, *(ends if isinstance(ends, list) else [] if ends is None else [ends])})


def _reason(name: str | Path, error: Exception) -> str:
    """Return the first line of a loading error, in words that fit a path, too."""
    if len(Path(name).parts) > 2 and not Path(name).exists():  # the hub's names have one slash at most
        return "no such directory"
    return str(error).strip().split("\n")[0]
