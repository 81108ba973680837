"""What is known of Llama-like backbones: their layers have the same parts in the same places.

So a part of their forward pass can be left out where nobody reads its result. What is not known here
is left to the model itself (`is_known`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel, MistralModel, PreTrainedModel, Qwen2Model, Qwen3Model

from reftune.model.batch import gather_rows
from reftune.model.packing import attend_to

FAMILIES = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # angles that depend on the position alone


def is_known(model: PreTrainedModel) -> bool:
    """Tell whether a backbone is what its class says: nothing wrapped, hooked or put in (LoRA ...)."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    return (
        type(model) in FAMILIES
        and rope.get("rope_type", "default") in STATIC_ROPE
        and all(_is_bare(module) for module in model.modules())
    )


def _is_bare(module: nn.Module) -> bool:
    known = type(module).__module__.startswith(("torch.nn.modules.", "transformers."))
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return known and not hooked


def states_at(model: Any, ids: Tensor, wanted: Tensor) -> Tensor:
    """Return a known backbone's last hidden states at the wanted positions only.

    In the last layer all other positions have nothing to give but their keys and values.

    Args:
        model: a backbone that calls `attention.attend`.
        ids: (batch, time), right-padded; no layer's window is shorter.
        wanted: (batch, positions), columns of `ids`.

    Returns:
        (batch, positions, features).
    """
    positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    states = model.embed_tokens(ids)
    angles = model.rotary_emb(states, positions)
    *layers, last = model.layers
    for layer in layers:
        states = layer(states, position_ids=positions, position_embeddings=angles, use_cache=False)
    states = _finish(last, states, wanted, *angles)
    normed: Tensor = model.norm(states)
    return normed


def _finish(layer: Any, states: Tensor, wanted: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return what a layer makes of the states at the wanted positions."""
    attention = layer.self_attn
    rows = torch.arange(len(states), device=states.device).unsqueeze(1)
    chosen = gather_rows(states.flatten(0, 1), rows * states.shape[1] + wanted)
    normed = layer.input_layernorm(states)
    query = _heads(attention.q_proj(layer.input_layernorm(chosen)), attention, "q_norm")
    key = _heads(attention.k_proj(normed), attention, "k_norm")
    value = _heads(attention.v_proj(normed), attention)
    query = _rotate(query, cos[0, wanted].unsqueeze(1), sin[0, wanted].unsqueeze(1))
    key = _rotate(key, cos.unsqueeze(1), sin.unsqueeze(1))
    visible = torch.arange(states.shape[1], device=states.device) <= wanted[:, None, :, None]
    dropout = attention.attention_dropout if attention.training else 0.0
    attended = attend_to(query, key, value, visible, attention.scaling, dropout)
    chosen = chosen + attention.o_proj(attended.transpose(1, 2).flatten(2))
    finished: Tensor = chosen + layer.mlp(layer.post_attention_layernorm(chosen))
    return finished


def _heads(projected: Tensor, attention: Any, norm: str = "") -> Tensor:
    """Return (batch, heads, positions, features of a head), normed where the family does that."""
    heads = projected.unflatten(-1, (-1, attention.head_dim))
    normed: Tensor = getattr(attention, norm, nn.Identity())(heads)
    return normed.transpose(1, 2)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + features / 2) of every head by the angles of its position."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
