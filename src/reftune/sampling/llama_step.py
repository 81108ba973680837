"""One token per row through a Llama-like backbone, with less around the arithmetic than in transformers.

Where a model is small, decoding is bound by the number of calls, not by their arithmetic. The step of
the backbones that `reftune.llama` knows is written down here, with the model's own parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from reftune.model.llama import is_known
from reftune.model.packing import Structure
from reftune.sampling.decoders import last

# tokens (rows,), their positions (rows,), what they attend to -> states (rows, features)
Step = Callable[[Tensor, Tensor, Structure], Tensor]


def step_of(model: PreTrainedModel, positions: int) -> Step:
    """Return the fastest step that is known for a model which calls `attention.attend`.

    Args:
        model: a backbone or a language model.
        positions: how many there may be.
    """
    return LlamaStep(model, positions) if is_known(model) else _step_by_transformers(model)


class LlamaStep:
    """Take a step as the model itself would, up to rounding.

    Args:
        model: a known backbone; its parameters are read, never copied.
        positions: how many there may be.
    """

    def __init__(self, model: Any, positions: int) -> None:
        self.model = model
        every = torch.arange(positions, device=model.device).unsqueeze(0)
        cos, sin = model.rotary_emb(model.embed_tokens.weight, every)
        self.cos, self.sin = cos[0], sin[0].chunk(2, dim=-1)[0].contiguous()  # both halves are equal

    def __call__(self, tokens: Tensor, positions: Tensor, within: Structure) -> Tensor:
        """Return the last hidden states, (rows, features)."""
        states: Tensor = self.model.embed_tokens(tokens)
        angles = [functional.embedding(positions, table).unsqueeze(1) for table in (self.cos, self.sin)]
        for layer in self.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            normed = _norm(states, layer.input_layernorm)
            states.add_(_linear(self._attend(attention, normed, angles, within), attention.o_proj))
            normed = _norm(states, layer.post_attention_layernorm)
            gates = mlp.act_fn(_linear(normed, mlp.gate_proj))
            states.add_(_linear(gates.mul_(_linear(normed, mlp.up_proj)), mlp.down_proj))
        return _norm(states, self.model.norm)

    def _attend(self, attention: Any, normed: Tensor, angles: list[Tensor], within: Structure) -> Tensor:
        size = attention.head_dim
        query, key, value = (
            _linear(normed, projection).unflatten(1, (-1, size))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            query, key = _norm(query, attention.q_norm), _norm(key, attention.k_norm)
        query, key, value = (
            x.unsqueeze(2) for x in (_rotate(query, *angles), _rotate(key, *angles), value)
        )
        return within.attend(attention.layer_idx, query, key, value, attention.scaling, 0.0).flatten(1)


def _step_by_transformers(model: PreTrainedModel) -> Step:
    """Return the step of any model that calls `attention.attend`."""

    def step(tokens: Tensor, positions: Tensor, within: Structure) -> Tensor:
        output = model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=tokens.new_ones(1, 1, 1, 1),  # `attend` needs none
            position_ids=positions.unsqueeze(1),
            use_cache=False,
            within=within,
        )
        return last(output)

    return step


def _linear(states: Tensor, layer: nn.Linear) -> Tensor:
    return functional.linear(states, layer.weight, layer.bias)


def _norm(states: Tensor, layer: Any) -> Tensor:
    """Divide by the root mean square over the features, in float32."""
    exact = states.float()
    exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True).add_(layer.variance_epsilon))
    scaled: Tensor = layer.weight * exact.to(states.dtype)
    return scaled


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + features / 2) of every head by the angles of its position."""
    half = states.shape[-1] // 2
    turned = states * cos
    turned[..., :half].addcmul_(states[..., half:], sin, value=-1)
    turned[..., half:].addcmul_(states[..., :half], sin)
    return turned
