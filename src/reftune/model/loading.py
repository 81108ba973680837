"""Load language models and tokenizers, or make new ones."""

import json
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from reftune.config import Lora, Model
from reftune.model.forward import first_line, kind_of
from reftune.model.gguf import gguf_architecture, is_gguf, load_gguf, load_gguf_tokenizer
from reftune.model.lora import add_adapter, without_adapter
from reftune.model.packing import text_config
from reftune.model.policy import PolicyWithValue
from reftune.model.scratch import new_model
from reftune.model.value_head import ValueHead
from reftune.problem import UserError

logging.disable_progress_bar()  # our own progress is on the screen
SPEAKING = (OSError, ValueError, RuntimeError, ImportError, StrictDataclassError)  # meant for people


def load_model(name: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a causal language model by name, from a directory or a GGUF file; default: in float32.

    Raises UserError where there is none, or weights are missing, damaged or of another shape.
    """
    options = {"dtype": dtype or torch.float32, "trust_remote_code": False}
    with _told(name):
        load: Any = load_gguf if is_gguf(name) else AutoModelForCausalLM.from_pretrained
        model, loading = load(str(name), output_loading_info=True, **options)
    if loading["missing_keys"]:  # transformers starts them at random
        first, *others = sorted(loading["missing_keys"])
        raise _refusal(name, f"the weights of {first} and {len(others)} others are missing")
    assert isinstance(model, PreTrainedModel)
    for token in end_tokens(model):
        if not isinstance(token, int):
            raise _refusal(name, f"generation_config.json: eos_token_id = {token!r} is not a number")
    return model


def load_architecture(name: str | Path) -> PreTrainedConfig:
    """Load what a model is made like, without its weights; raise UserError where that is impossible."""
    with _told(name):
        if is_gguf(name):
            return gguf_architecture(str(name))
        config: PreTrainedConfig = AutoConfig.from_pretrained(str(name), trust_remote_code=False)
    return config


def saved_dtype(name: str) -> str:
    """Return the precision in which a model's weights are saved; float32 where nothing says so."""
    return str(load_architecture(name).dtype or torch.float32).removeprefix("torch.")


def end_tokens(model: PreTrainedModel) -> list[Any]:
    """Return the ids that end a text by the settings that a model is shipped with, perhaps several."""
    settings = model.generation_config
    ends = None if settings is None else settings.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def response_ends(model: PreTrainedModel, eos: int) -> list[int]:
    """Return the ids that end a response: the tokenizer's, and those that the model is shipped with."""
    return sorted({eos, *end_tokens(model)})


def load_tokenizer(
    name: str | Path, eos_token: str | None = None, *, ends: bool = True
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        name: Hugging Face name, directory or GGUF file.
        eos_token: what ends a text; default: what the tokenizer says.
        ends: whether it must say so.

    Raises UserError where it is missing, damaged, or cannot end a response.
    """
    refuse_run(name)
    with _told(name, "its tokenizer: "):
        if is_gguf(name):
            tokenizer = load_gguf_tokenizer(str(name))
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise UserError(f'model.eos_token: "{eos_token}" is no token of {name}')
        tokenizer.eos_token = eos_token
    if ends and tokenizer.eos_token_id is None:
        raise UserError(
            f"{name}: the tokenizer has no EOS token; set model.eos_token to the token that ends a text,"
            ' for example "</s>"'
        )
    return tokenizer


def load_both(
    name: str | Path, eos_token: str | None = None, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer; for the arguments see `load_model` and `load_tokenizer`.

    Raises UserError as these two do, and where the tokenizer has tokens that the model does not know.
    """
    tokenizer, model = load_tokenizer(name, eos_token), load_model(name, dtype)  # the small one first
    parts: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    known = min(part.weight.shape[0] for part in parts)
    highest = max(tokenizer.get_vocab().values())
    if highest >= known:
        raise UserError(
            f"{name}: its tokenizer does not fit its weights: it has {len(tokenizer)} tokens with ids up"
            f" to {highest}, the model knows {known} (ids up to {known - 1}); remove what was added to"
            " the tokenizer, or enlarge the model (resize_token_embeddings)"
        )
    return model, tokenizer


def build_model(
    settings: Model, texts: Iterable[str], seed: int, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and tokenizer that a run starts from: loaded, or new and trained on `texts`.

    `dtype` is that of the weights; default: float32.

    Raises UserError for an unknown scratch size or a model that cannot be loaded.
    """
    dtype = dtype or torch.float32
    if settings.name is not None:
        return load_both(settings.name, settings.eos_token, dtype)
    model, tokenizer = new_model(settings, texts, seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model, tokenizer


def training_dtype(dtype: str) -> torch.dtype:
    """Return the type of weights that train in a run's precision; those in float16 train in float32."""
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def load_policy(
    name: str | Path,
    settings: Model,
    *,
    critic: bool = False,
    trainable: bool = False,
    lora: Lora | None = None,
    device: torch.device | None = None,
) -> PolicyWithValue:
    """Load a language model as a policy: to train it in `training_dtype`, else in the run's precision.

    Args:
        name: Hugging Face name, directory or GGUF file.
        settings, critic, trainable, lora, device: as for `make_policy`.

    Raises UserError as `load_model` does.
    """
    dtype = training_dtype(settings.dtype) if trainable else getattr(torch, settings.dtype)
    model = load_model(name, dtype)
    return make_policy(model, settings, critic=critic, trainable=trainable, lora=lora, device=device)


def make_policy(
    model: PreTrainedModel,
    settings: Model,
    *,
    critic: bool = False,
    trainable: bool = False,
    lora: Lora | None = None,
    device: torch.device | None = None,
) -> PolicyWithValue:
    """Return a language model as a policy; every policy of a run is built here.

    Args:
        model: the language model, which is used and not copied.
        settings: of the section [model]; they say what kind of critic there is.
        critic: whether there is one.
        trainable: whether the weights get gradients; those that no text reaches never do.
        lora: of the section [lora]; whether an adapter is trained instead.
        device: where it goes; default: where it is.
    """
    model.eval()
    set_trainable(model, trainable, lora)
    model = model if device is None else model.to(device)  # type: ignore[arg-type]
    if not critic:
        return PolicyWithValue(model, float32_head=settings.float32_head)
    low, high = settings.value_span
    shape = (settings.value_hidden_size, settings.value_targets, (low, high))
    return PolicyWithValue(
        model, settings.value_model, lambda width: ValueHead(width, *shape),
        float32_head=settings.float32_head,
    )  # fmt: skip


def set_trainable(model: PreTrainedModel, trainable: bool, lora: Lora | None = None) -> None:
    """Say whether weights get gradients: those that read and write text, not a composite model's towers.

    Else processes that share the work would wait for gradients that never come. With LoRA the model
    gets an adapter, which alone is trained. Raises UserError where weights are quantised: they have no
    gradients.
    """
    if trainable and getattr(model, "is_quantized", False):
        raise UserError(f"{kind_of(model)} cannot be trained: its weights are quantised")
    model.requires_grad_(False)
    if trainable and lora is not None and lora.rank:
        add_adapter(model, lora)
        return
    composite = text_config(model) is not model.config
    parts = (model.get_decoder(), model.get_output_embeddings()) if composite else (model,)
    for part in parts:
        part.requires_grad_(trainable)


def reference_of(policy: PolicyWithValue) -> PolicyWithValue:
    """Return what a policy with an adapter started from, frozen; it takes no memory of its own."""
    float32_head = policy.packed_forward.float32_head
    return PolicyWithValue(without_adapter(policy.policy), float32_head=float32_head)


def refuse_run(name: str | Path) -> None:
    """Raise UserError, with the models that it holds, for the directory of a run."""
    if os.path.isfile(os.path.join(name, "config.toml")):
        models = sorted(str(path.parent) for path in Path(name).glob("*/model/config.json"))
        hint = f"its models are {', '.join(models)}" if models else "it has no model yet"
        raise UserError(f"{name}: is the directory of a run, not of a model; {hint}")


@contextmanager
def _told(name: str | Path, part: str = "") -> Iterator[None]:
    """Turn whatever the libraries raise of files that they cannot use into one sentence.

    Nothing of ours belongs inside: the errors come in all types, and our own must not hide among them.
    """
    try:
        if _is_nowhere(name):  # the hub would be asked for it again and again
            raise FileNotFoundError
        yield
    except UserError as error:  # of what stands in the file
        raise _refusal(name, str(error)) from error
    except Exception as error:
        raise _refusal(name, part + _reason(name, error)) from error


def _is_nowhere(name: str | Path) -> bool:
    """Tell whether a name means a place here, and nothing is there; a hub's has one slash at most."""
    first, *others = Path(name).parts or ("",)
    here = len(others) > 1 or (bool(others) and os.path.isdir(first))
    here = here or str(name).startswith((".", "/"))
    return here and not is_gguf(name) and not os.path.exists(name)


def _refusal(name: str | Path, reason: str) -> UserError:
    return UserError(f"{name}: cannot be loaded: {reason}")


def _reason(name: str | Path, error: Exception) -> str:
    """Return the gist of a loading error, in words that fit a path, too."""
    if os.path.isfile(name) and not is_gguf(name):
        return "it is a file, neither a model's directory nor named *.gguf"
    if _is_nowhere(name):
        return "no such directory"
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        return "it is a directory without config.json, and so none of a model"
    if "ignore_mismatched_sizes" in str(error):  # an option of theirs
        return "weights have other shapes than config.json says"
    if isinstance(error, json.JSONDecodeError):
        return f"one of its JSON files is damaged ({error})"
    if isinstance(error, pickle.UnpicklingError):
        return "its pickled weights hold more than tensors, or are damaged; use safetensors"
    if isinstance(error, SPEAKING):
        return first_line(error)
    return f"its files are damaged, or unknown to this version of transformers ({first_line(error)})"
