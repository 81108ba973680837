"""Write models as Hugging Face directories."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from reftune.model.loading import response_ends
from reftune.model.lora import has_adapter, merged, save_adapter, without_adapter
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.model.sharding import gathered_weights, sharded

ADAPTER_FOLDER = "adapter"  # in a model's directory, beside the weights that it is part of


def whole_weights(policy: PolicyWithValue, *, keep: bool) -> dict[str, Tensor] | None:
    """Return the weights of a sharded policy for `save_policy`; None where it is whole.

    All processes have to take part; those that do not save keep nothing.
    """
    if sharded(policy) is None:
        return None
    found = {}
    for name, weight in gathered_weights(policy):
        if keep:
            found[name] = weight.cpu()
    return found


def save_policy(
    policy: PolicyWithValue,
    directory: Path,
    dtype: str = "float32",
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write the language model of a policy as a Hugging Face model directory, in the run's precision.

    An adapter is part of the weights there, and is also written by itself, into `adapter/`. The critic
    is left out: nobody reads it, and inference engines refuse weights that they do not know.

    Args:
        policy: whose language model it is.
        directory: where it goes.
        dtype: precision of what is written.
        weights: of a sharded policy, from `whole_weights`.
    """
    model, state = policy.policy, sharded(policy)
    if state is not None:
        assert weights is not None
        assert state.skeleton is not None
        _save(state.skeleton, directory, dtype, weights)
    else:
        with merged(model):
            _save(without_adapter(model) if has_adapter(model) else model, directory, dtype)
    if has_adapter(model):
        save_adapter(model, directory / ADAPTER_FOLDER)


def _save(
    model: PreTrainedModel, directory: Path, dtype: str, given: dict[str, Tensor] | None = None
) -> None:
    weights = model.state_dict()
    if given is not None:  # of a model without numbers, its buffers aside
        weights = {name: given.get(name, x) for name, x in weights.items()}
        weights = {name: x for name, x in weights.items() if x.device.type != "meta"}
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
    ends = response_ends(model, prompter.eos)
    pad = model.generation_config.pad_token_id if model.generation_config else None
    GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else ends[0],
        bos_token_id=prompter.tokenizer.bos_token_id,
        pad_token_id=prompter.eos if pad is None else pad,
        max_new_tokens=prompter.settings.max_new_tokens,
    ).save_pretrained(directory)
