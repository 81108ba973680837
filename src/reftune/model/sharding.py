"""One model over several processes: each keeps a part of every large weight (FSDP2).

torch's `fully_shard` gathers the weights of a layer when it is run and frees them behind it. accelerate
calls the same function, but on GPUs alone. Small parts stay whole on every process: a critic's or
classifier's head, and adapters. Whatever leaves the processes, for a sampler, an export or a checkpoint,
is gathered weight by weight, and all of them have to take part in that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from reftune.model.lora import bare_name, has_adapter, merged_weights, without_adapter
from reftune.problem import UserError

HEADS = ("value_", "class_")  # parameters beside the language model: a critic's, a reranker's


@dataclass(frozen=True)
class Sharded:
    """How a module lies on its processes.

    `skeleton` is its language model without numbers and without an adapter; `dtype` what the weights
    that learn compute in, their parts being in float32.
    """

    skeleton: PreTrainedModel | None
    dtype: torch.dtype


def shard(module: nn.Module, device: torch.device, *, rests_on_cpu: bool = False) -> None:
    """Keep a part of a module on each process, on its device; the module is used as before.

    Weights in 16 bits that learn are kept as float32, compute in 16 bits, and have gradients that are
    added up over the processes in float32: what an optimizer's masters are in one process.

    Args:
        module: on the CPU, whole and the same in every process; its layers are gathered one by one.
        device: of this process.
        rests_on_cpu: whether the parts stay in the CPU's memory while they are not used.

    Raises UserError where two of its parts share weights in a way that cannot be cut.
    """
    _refuse_shared(module)
    whole = set(kept_whole(module))
    learning = {p.dtype for p in module.parameters() if p.requires_grad and p.dtype.itemsize < 4}
    dtype = next(iter(learning), torch.float32)
    state = Sharded(_skeleton(getattr(module, "policy", None)), dtype)
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "reshard_after_forward": True,
        "ignored_params": whole,
        "mp_policy": plain,
        "offload_policy": CPUOffloadPolicy() if rests_on_cpu else OffloadPolicy(),
    }
    if (head := getattr(module, "value_head", None)) is not None and head.weight not in whole:
        fully_shard(head, **options)  # it computes in float32, whatever the rest does
    if learning:
        options["mp_policy"] = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for unit in (*reversed(layers), module):  # inner ones first
        for parameter in unit.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        fully_shard(unit, **options)
    module.sharded = state  # type: ignore[assignment]  # no parameter, no module


def sharded(module: nn.Module) -> Sharded | None:
    """Return how a module lies on its processes; None where it is whole on each."""
    found = getattr(module, "sharded", None)
    return found if isinstance(found, Sharded) else None


def kept_whole(module: nn.Module) -> list[nn.Parameter]:
    """Return what every process keeps whole: heads, and whatever an adapter learns."""
    named = list(module.named_parameters())
    if any(has_adapter(part) for part in module.modules()):
        return [parameter for _, parameter in named if parameter.requires_grad]
    if getattr(module, "value_backbone", None) is not None:
        return []  # an optimizer steps the critic as one, and cannot mix
    return [parameter for name, parameter in named if name.startswith(HEADS)]


def is_part(tensor: Tensor) -> bool:
    """Tell whether a tensor is what one process keeps of a whole."""
    return isinstance(tensor, DTensor)


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor as a whole, on the device; every process has to ask for it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return of a whole tensor what this process keeps of `like`."""
    if not isinstance(like, DTensor):
        return whole
    placed = whole.to(like.device, like.dtype)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def gathered_weights(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the whole weights of a sharded policy's language model, by their usual names, one by one.

    They are in the precision that they compute in, with an adapter added. Every process has to go
    through all of them.
    """
    state, model = sharded(policy), policy.policy
    assert state is not None
    assert isinstance(model, PreTrainedModel)
    for name, weight, merge in merged_weights(model):
        cast = weight.detach().to(state.dtype) if weight.requires_grad else weight
        yield bare_name(name), merge(gathered(cast))


def whole_state(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return tensors as wholes on the CPU, those that are one as one; nothing where `keep` is off.

    Every process has to take part, whether it keeps them or not.
    """
    found: dict[str, Tensor] = {}
    same: dict[int, Tensor] = {}  # by the identity of what was gathered
    for name, tensor in tensors.items():
        if id(tensor) not in same:
            whole = gathered(tensor)
            same[id(tensor)] = whole.cpu() if keep else whole.new_empty(0)
        found[name] = same[id(tensor)]
    return found if keep else {}


def whole_copy(policy: nn.Module, device: torch.device) -> PreTrainedModel:
    """Return a whole copy of a sharded policy's language model, on a device; all processes together."""
    state = sharded(policy)
    assert state is not None
    assert state.skeleton is not None
    placed: dict[int, Any] = {
        id(p): nn.Parameter(torch.zeros_like(p, device=device), requires_grad=False)
        for p in state.skeleton.parameters()
    }
    placed |= {id(b): b.to(device) for b in state.skeleton.buffers()}
    model = copy.deepcopy(state.skeleton, placed)
    take_over_weights(model, gathered_weights(policy))
    return model


def take_over_weights(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy weights into a model by their names; all of its own must be among them."""
    own = dict(model.named_parameters())
    for name, weight in weights:
        own.pop(name).data.copy_(weight)
    assert not own, f"these weights did not follow: {sorted(own)[:3]}"


def _skeleton(model: nn.Module | None) -> PreTrainedModel | None:
    """Return a language model without numbers and without an adapter, its buffers aside."""
    if not isinstance(model, PreTrainedModel):
        return None
    bare = without_adapter(model) if has_adapter(model) else model
    empty: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in bare.parameters()
    }
    return copy.deepcopy(bare, empty)


def _refuse_shared(module: nn.Module) -> None:
    """Refuse a critic's own backbone that shares frozen weights with the policy: two layers of one."""
    backbone, policy = getattr(module, "value_backbone", None), getattr(module, "policy", None)
    if backbone is None or policy is None:
        return
    if {id(p) for p in backbone.parameters()} & {id(p) for p in policy.parameters()}:
        raise UserError(
            'model.value_model = "separate" shares frozen weights with the policy (LoRA), which'
            ' compute.sharding cannot cut; set model.value_model = "shared", or leave one of them out'
        )
