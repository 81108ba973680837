"""Attention that knows which tokens share a prompt, for the models that let us say how they attend.

transformers passes extra arguments of a forward pass on to its attention function. `attend` is that
function: it looks at the structure in `within` (a `Packed` batch here, a sampler's state elsewhere)
and otherwise does what the model did before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from reftune.types import Sequences

NAME = "reftune"
LAYERS = {"full_attention", "sliding_attention"}


@runtime_checkable
class Structure(Protocol):
    """What tells tokens apart: how queries, keys and values of one layer are brought together."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Return the attention's output.

        Args:
            layer: number of the layer.
            query: (rows, heads, tokens, features); `key` and `value` likewise, perhaps of fewer heads.
            scaling: factor of the scores.
            dropout: share of the attention weights to drop.

        Returns:
            (rows, tokens, heads, features).
        """
        ...


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    within: Structure | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention functions do, or within a structure of ours."""
    if within is None:
        others |= {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    _refuse_unknown(others)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return within.attend(module.layer_idx, query, key, value, scaling, dropout), None


def _refuse_unknown(others: dict[str, Any]) -> None:
    """Refuse what would change the result: a soft cap, an attention sink, a position bias ..."""
    harmless = {"position_ids", "use_cache", "is_causal", "output_attentions", "position_embeddings"}
    for name, value in others.items():
        if name not in harmless and value is not None:
            raise NotImplementedError(f"attention with {name}")


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass(frozen=True)
class Packed:
    """Prompts and responses end to end in one row without padding, and how to find one's way in it.

    The last token of a response is left out: nothing is predicted from it.
    """

    ids: Tensor  # (1, tokens)
    positions: Tensor  # (1, tokens)
    prompts: Tensor  # (prompts, width): where in the pack each prompt's tokens stand, right-padded
    responses: Tensor  # (batch, time - 1): likewise
    parents: Tensor  # (batch,)
    visible: Tensor  # (batch, 1, time - 1, width + time - 1): what a response token attends to
    back: Tensor  # (tokens,): where each of the pack's tokens stands in prompts and responses, flattened
    predicting: Tensor  # (batch, time): where in the pack the state that predicts each token stands

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Let prompts see themselves, and responses their prompt and themselves."""
        queries = query[0].transpose(0, 1)
        states = torch.cat((key[0], value[0]), dim=-1).transpose(0, 1)
        sizes = (key.shape[-1], value.shape[-1])

        def see(rows: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
            keys, values = _pick(states, seen).split(sizes, dim=-1)
            return attend_to(_pick(queries, rows), keys, values, mask, scaling, dropout)

        outputs = [see(self.prompts, self.prompts, None)]
        if self.responses.numel():
            seen = torch.cat((self.prompts[self.parents], self.responses), dim=1)
            outputs.append(see(self.responses, seen, self.visible))
        stacked = torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs])
        return _pick(stacked, self.back.unsqueeze(0)).transpose(1, 2)


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """Return entries of (tokens, heads, features) as (rows, heads, tokens, features)."""
    # An embedding, because its gradient is faster than that of indexing.
    picked: Tensor = functional.embedding(index, table.flatten(1))
    rows: Tensor = picked.unflatten(-1, table.shape[1:])
    return rows.transpose(1, 2)


def attend_to(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float, dropout: float
) -> Tensor:
    """Return torch's attention, (rows, heads, tokens, features); without a mask it is causal."""
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1 and mask is not None and queries.is_cuda:  # its fast kernels want no groups then
        keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
    output: Tensor = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, dropout_p=dropout,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )  # fmt: skip
    return output


def pack(sequences: Sequences) -> Packed:
    """Lay prompts and responses end to end."""
    device = sequences.prompts.device
    lengths, inner = sequences.prompt_lengths, (sequences.response_lengths - 1).clamp(min=0)
    width, time = sequences.prompts.shape[1], sequences.responses.shape[1]
    columns, steps = torch.arange(width, device=device), torch.arange(time - 1, device=device)
    real_prompt, real_response = columns < lengths.unsqueeze(1), steps < inner.unsqueeze(1)
    # Prompts come left-padded: turn each row until its first token stands first.
    turned = sequences.prompts.gather(1, (columns + width - lengths.unsqueeze(1)) % width)
    prompt_starts = lengths.cumsum(0) - lengths
    starts = lengths.sum() + inner.cumsum(0) - inner
    parents = sequences.parents
    behind = lengths[parents].unsqueeze(1) + steps
    real = torch.cat((real_prompt.flatten(), real_response.flatten()))
    last = prompt_starts[parents] + lengths[parents] - 1
    responses = torch.where(real_response, starts.unsqueeze(1) + steps, 0)
    causal = (steps <= steps.unsqueeze(1)).expand(len(parents), -1, -1)
    sees_prompt = real_prompt[parents].unsqueeze(1).expand(-1, time - 1, -1)
    return Packed(
        ids=torch.cat((turned[real_prompt], sequences.responses[:, :-1][real_response])).unsqueeze(0),
        positions=torch.cat(
            (columns.expand(len(lengths), -1)[real_prompt], behind[real_response])
        ).unsqueeze(0),
        prompts=torch.where(real_prompt, prompt_starts.unsqueeze(1) + columns, 0),
        responses=responses,
        parents=parents,
        visible=torch.cat((sees_prompt, causal), dim=2).unsqueeze(1),
        back=real.nonzero().squeeze(1),
        predicting=torch.cat((last.unsqueeze(1), responses), dim=1),
    )


def window(config: PreTrainedConfig) -> float:
    """Return over how many tokens every layer of a model sees."""
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ["sliding_attention"]):
        return float("inf")
    return getattr(config, "sliding_window", None) or float("inf")


def take_over(model: PreTrainedModel) -> bool:
    """Make `attend` the model's attention function; tell whether the model lets us.

    It must attend as `attend` does without a structure (sdpa), pass arguments on, and keep nothing but
    keys and values.
    """
    config = model.config
    layers = set(getattr(config, "layer_types", None) or LAYERS)
    if not (type(model)._supports_attention_backend and layers <= LAYERS):
        return False
    if config._attn_implementation == "sdpa":
        config._attn_implementation = NAME
    return bool(config._attn_implementation == NAME)
