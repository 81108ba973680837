"""What a model needs, asked of the model itself: it is built without its numbers, whatever it is."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from reftune.config import Config
from reftune.model.forward import backbone_of
from reftune.model.loading import load_architecture, set_trainable, training_dtype
from reftune.model.lora import adapted_layers

TOKENS = 128  # of the text whose activations are counted


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model from which memory and time follow; all bytes are those of its precision."""

    weights: int  # numbers in all weights
    trained: int  # numbers that get gradients: all, or an adapter's
    trained_bytes: int  # of each of them
    largest_trained: int  # numbers in the largest of them
    adapted: int  # numbers in the weights that an adapter is added to
    width: int  # numbers in a state
    layers: int
    vocabulary: int
    cache_width: int  # numbers kept per token and layer, keys and values
    activation_bytes: int  # that backward needs per token, all layers
    bytes_each: int  # of a weight
    outside: int = 0  # numbers in the weights outside of layers: embeddings and head
    critic: int = 0  # numbers that a critic of its own has for itself: those of the backbone that learn

    @property
    def of_a_layer(self) -> int:
        """Return the numbers in the weights of a layer."""
        return (self.weights - self.outside) // self.layers

    @property
    def cache_bytes(self) -> int:
        """Return the bytes of one token's keys and values."""
        return self.layers * self.cache_width * self.bytes_each


def given_shape(config: Config) -> Shape | None:
    """Return the sizes of the model that is given, activations only where these decide something.

    None for a new model, which is small; where it is not there, or of a kind that cannot be built
    without its weights, whoever loads it says what is wrong.
    """
    if config.model.name is None:
        return None
    is_open = config.compute.tokens_per_microbatch is None
    try:
        return shape_of(load_architecture(config.model.name), config, activations=is_open)
    except Exception:
        return None


def shape_of(architecture: PreTrainedConfig, config: Config, *, activations: bool = True) -> Shape:
    """Return the sizes of a model as a run would train it; its weights are neither read nor stored.

    `activations` says whether these are counted, too, which takes a second or several.
    """
    dtype = training_dtype(config.model.dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture, dtype=dtype)
        whole = sum(p.numel() for p in model.parameters())
        layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
        inside = sum({id(p): p.numel() for layer in layers for p in layer.parameters()}.values())
        set_trainable(model, True, config.lora)
    kept = _activation_bytes(model) if activations else 0
    text = architecture.get_text_config(decoder=True)
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    trained = [p for p in model.parameters() if p.requires_grad]
    return Shape(
        weights=whole,
        trained=sum(p.numel() for p in trained),
        trained_bytes=max(p.dtype.itemsize for p in trained),
        largest_trained=max(p.numel() for p in trained),
        adapted=sum(_size(layer) for _, layer in adapted_layers(model)),
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        cache_width=2 * groups * width,
        activation_bytes=kept,
        bytes_each=dtype.itemsize,
        outside=whole - inside,
        critic=sum(p.numel() for p in backbone_of(model).parameters() if p.requires_grad),
    )


def _give_storage(model: PreTrainedModel) -> None:
    """Let weights on no device stand on the CPU, which a forward pass asks for; they have no numbers."""
    placed: dict[int, Any] = {}  # tied weights stay one
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, weight in table.items():
                if weight is not None and id(weight) not in placed:
                    empty = torch.empty_like(weight, device="cpu")
                    kept = nn.Parameter(empty, weight.requires_grad)
                    placed[id(weight)] = kept if isinstance(weight, nn.Parameter) else empty
                table[name] = None if weight is None else placed[id(weight)]


def _activation_bytes(model: PreTrainedModel) -> int:
    """Return what a forward pass keeps for backward per token: every tensor once, weights aside."""
    kept: dict[int, torch.UntypedStorage] = {}  # by their addresses, which therefore stay in use

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        _give_storage(model)
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            backbone_of(model)(input_ids=ids, use_cache=False)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        return sum(x.nbytes() for address, x in kept.items() if address not in weights) // TOKENS


def _size(layer: Any) -> int:
    size: int = layer.base_layer.weight.numel()
    return size
