"""LoRA: train an adapter, a low-rank update of linear layers, and leave a model's weights as they are.

peft makes and reads adapters; whatever else is done with one is here. An adapter lies inside the layers
of a model, which keeps its class and is used like any other (Hu et al. 2021, arXiv:2106.09685).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reftune.config import Lora
from reftune.model.forward import first_line, kind_of
from reftune.model.packing import text_config
from reftune.problem import UserError

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import Linear

ADAPTER = "default"  # peft's name for a model's only adapter
ALL = ["all"]
NAMES_SHOWN = 12


def add_adapter(model: PreTrainedModel, settings: Lora) -> None:
    """Put a new adapter into a model, which changes nothing yet; from then on it alone gets gradients.

    Its weights are in float32, also where the model's are in 16 bits. Raises UserError where peft is
    missing, or `settings.targets` names no linear layer of the language model.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError:
        raise UserError("lora.rank: LoRA needs peft; `pip install 'reftune[lora]'`") from None
    config = _config(model, settings)
    try:
        with warnings.catch_warnings(action="ignore"):
            inject_adapter_in_model(config, model, ADAPTER)
    except ValueError as error:
        raise UserError(f"lora.targets: {first_line(error)}") from error
    if config.target_parameters:  # peft knows these names from a time when experts were layers
        raise UserError(
            f"lora.targets: of {kind_of(model)} neither its experts nor layers that are called alike can"
            f" be adapted; choose among {_endings(config.target_modules or ())}"
        )
    for parameter in model.parameters():
        if parameter.requires_grad:  # peft makes it like the weight beside it
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    model.eval()  # new layers are in train mode


def has_adapter(model: nn.Module) -> bool:
    """Tell whether a model has an adapter."""
    return hasattr(model, "peft_config")


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Let a model compute with the adapter added to its weights for a while: the same, at full speed.

    The sums are computed in float32 and rounded once; the weights themselves come back as they were.
    """
    layers = [layer for _, layer in adapted_layers(model)]
    weights: list[Any] = [layer.base_layer.weight for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            layer.base_layer.weight = nn.Parameter(_merged_weight(layer, weight), requires_grad=False)
            layer.merged_adapters.append(ADAPTER)
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.base_layer.weight = weight
            layer.merged_adapters.clear()


def without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model that an adapter was put into: its weights are the very same, not a copy."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    bare = copy.deepcopy(model, shared)
    for name, layer in adapted_layers(bare):
        bare.set_submodule(name, layer.base_layer)
    del bare.peft_config
    return bare


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Let a model compute without its adapter for a while."""
    layers = [layer for _, layer in adapted_layers(model)]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def plain_weights(model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
    """Return a model's weights by their usual names, with the adapter added if there is one."""
    return _merged_weights(model) if has_adapter(model) else model.named_parameters()


def save_adapter(model: PreTrainedModel, directory: Path) -> None:
    """Write a model's adapter in peft's format, for `peft.PeftModel.from_pretrained`."""
    weights = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if f".{ADAPTER}." in name
    }
    model.peft_config[ADAPTER].save_pretrained(str(directory))
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    with merged(model):
        yield from without_adapter(model).named_parameters()


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor, Callable[[Tensor], Tensor]]]:
    """Yield each weight but an adapter's, its name, and what adds the adapter to it."""
    layers = {id(layer.base_layer.weight): layer for _, layer in adapted_layers(model)}
    for name, weight in model.named_parameters():
        if f".{ADAPTER}." not in name:
            layer = layers.get(id(weight))
            yield name, weight, _unchanged if layer is None else partial(_merged_weight, layer)


def bare_name(name: str) -> str:
    """Return the name that a weight has in a model without an adapter."""
    return name.replace(".base_layer.", ".")


def _unchanged(weight: Tensor) -> Tensor:
    return weight


def _merged_weight(layer: Linear, weight: Tensor) -> Tensor:
    with torch.no_grad():
        total: Tensor = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return (total + layer.get_delta_weight(ADAPTER)).to(weight.dtype)


def adapted_layers(model: nn.Module) -> list[tuple[str, Linear]]:
    """Return the layers with an adapter, by name; a model in which peft was at work has loaded it."""
    if not has_adapter(model):
        return []
    from peft.tuners.lora import Linear

    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear)]


def _config(model: PreTrainedModel, settings: Lora) -> LoraConfig:
    from peft import LoraConfig

    layers = _linear_layers(model)
    alpha: Any = 2 * settings.rank if settings.alpha is None else settings.alpha
    return LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=_chosen(layers, settings.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path or None,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
    )


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear layers of the language model, by name, without the one that makes logits."""
    composite = text_config(model) is not model.config
    text = {id(module) for module in (model.get_decoder() if composite else model).modules()}
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) in text and module is not head
    }


def _chosen(layers: dict[str, nn.Module], targets: list[str]) -> list[str]:
    """Return the names of the layers that are meant, wholly or by their ends."""
    if targets == ALL:
        return list(layers)
    chosen = []
    for target in targets:
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not found:
            told = f'lora.targets: the model has no linear layer "{target}" to adapt'
            raise UserError(f"{told}; it has {_endings(layers)}")
        chosen += found
    return chosen


def _endings(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names})[:NAMES_SHOWN])
