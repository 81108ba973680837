"""Gradient checkpointing: layers keep their inputs alone, and backward computes the rest once more.

It takes a third more arithmetic, and little of a layer's activations is kept (Chen et al. 2016).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from reftune.model.forward import kind_of
from reftune.problem import UserError


def checkpointed_layers(model: nn.Module) -> list[nn.Module]:
    """Prepare the layers of all language models inside a module for `checkpointing`, and return them.

    Raises UserError for a model whose layers cannot do it.
    """
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for one in models:
        if not (layers and one.supports_gradient_checkpointing):
            raise UserError(
                f"compute.gradient_checkpointing: {kind_of(one)} cannot do it; leave the key out"
            )
    for layer in layers:  # what transformers' own methods do, whose names differ between versions
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return layers


@contextmanager
def checkpointing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers checkpoint for a while.

    transformers' layers do so only in training mode, and without their cache, so that it must be off
    while samples are drawn. The layers alone change their mode and nothing inside of them: in PPO no
    dropout may begin.
    """
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.training = training
