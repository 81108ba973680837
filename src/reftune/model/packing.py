"""Attention that knows which tokens share a prompt and a beginning, where the model lets us.

transformers passes extra arguments of a forward pass on to its attention function. `attend` is that
function: it looks at the structure in `within` (a `Packed` batch here, a sampler's state elsewhere)
and otherwise does what the model did before.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from reftune.model.batch import Sequences, gather_rows

NAME = "reftune"
POSITIONS = ("max_position_embeddings", "max_target_positions", "max_seq_len")  # as configs call them
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
        if name not in harmless and value is not None and value is not False:
            raise NotImplementedError(f"attention with {name}")


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass(frozen=True)
class Packed:
    """Prompts and distinct response tokens end to end in one row without padding.

    Tokens that end every response they are in are left out: nothing is predicted from them.
    """

    ids: Tensor  # (1, tokens)
    positions: Tensor  # (1, tokens)
    prompts: Tensor  # (prompts, width): where in the pack each prompt's tokens stand, right-padded
    responses: Tensor  # (rows, time - 1): likewise, of enough responses to have every token in one
    prompt_index: Tensor  # (rows,): their prompts
    attention_mask: Tensor  # (rows, 1, time - 1, width + time - 1): what a response token attends to
    unpack_index: Tensor  # (tokens,): where each of them stands in prompts and responses, flattened
    logit_index: Tensor  # (distinct,): where in the pack the state that predicts each token stands

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Let prompts see themselves, and responses their prompt and themselves."""
        queries = query[0].transpose(0, 1)
        states = torch.cat((key[0], value[0]), dim=-1).transpose(0, 1)
        sizes = (key.shape[-1], value.shape[-1])

        def see(rows: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
            keys, values = _rows_of(states, seen).split(sizes, dim=-1)
            return attend_to(_rows_of(queries, rows), keys, values, mask, scaling, dropout)

        outputs = [see(self.prompts, self.prompts, None)]
        if self.responses.numel():
            seen = torch.cat((self.prompts[self.prompt_index], self.responses), dim=1)
            outputs.append(see(self.responses, seen, self.attention_mask))
        stacked = torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs])
        return _rows_of(stacked, self.unpack_index.unsqueeze(0)).transpose(1, 2)


def _rows_of(table: Tensor, index: Tensor) -> Tensor:
    """Return entries of (tokens, heads, features) as (rows, heads, tokens, features)."""
    rows: Tensor = gather_rows(table.flatten(1), index).unflatten(-1, table.shape[1:])
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
    """Lay prompts and distinct response tokens end to end."""
    firsts, lengths = sequences.first_occurrence, sequences.prompt_lengths
    time = sequences.node_index.shape[1]
    columns = torch.arange(sequences.prompts.shape[1], device=firsts.device)
    real = columns < lengths.unsqueeze(1)
    starts = lengths.cumsum(0) - lengths
    # Prompts come left-padded: turn each row until its first token stands first.
    turned = sequences.prompts.gather(1, (columns - lengths.unsqueeze(1)) % len(columns))
    row, step = firsts // time, firsts % time
    prompt = sequences.prompt_index[row]
    steps = torch.arange(1, time, device=firsts.device)
    followed = steps < sequences.response_lengths.unsqueeze(1)  # by another token of this response
    # Of the distinct tokens: which ones the pack holds, where they stand in it, and what stands before.
    inner = torch.zeros_like(firsts, dtype=torch.bool)
    inner[sequences.node_index[:, :-1][followed]] = True
    stands = lengths.sum() + inner.cumsum(0) - 1
    before = stands[sequences.node_index.flatten()[(firsts - 1).clamp(min=0)]]
    # Other responses than these bring no token that is not in one of them. The last token of one may
    # stand in the pack, too, where a longer response goes on from it.
    rows, owner = row[inner].unique(return_inverse=True)
    real_tokens = steps <= sequences.response_lengths[rows].unsqueeze(1)
    held = inner[sequences.node_index[rows, :-1]] & real_tokens
    ids = (turned[real], sequences.responses.flatten()[firsts[inner]])
    positions = (columns.expand_as(real)[real], (lengths[prompt] + step)[inner])
    back = (real.flatten().nonzero().squeeze(1), real.numel() + owner * (time - 1) + step[inner])
    return Packed(
        ids=torch.cat(ids).unsqueeze(0),
        positions=torch.cat(positions).unsqueeze(0),
        prompts=torch.where(real, starts.unsqueeze(1) + columns, 0),
        responses=torch.where(held, stands[sequences.node_index[rows, :-1]], 0),
        prompt_index=sequences.prompt_index[rows],
        attention_mask=_visible(real[sequences.prompt_index[rows]], time - 1),
        unpack_index=torch.cat(back),
        logit_index=torch.where(step == 0, (starts + lengths - 1)[prompt], before),
    )


def _visible(prompts: Tensor, time: int) -> Tensor:
    """Let each of `time` response tokens see its prompt's real tokens, and the response up to itself."""
    causal = torch.ones(time, time, dtype=torch.bool, device=prompts.device).tril()
    seen = (prompts.unsqueeze(1).expand(-1, time, -1), causal.expand(len(prompts), -1, -1))
    return torch.cat(seen, dim=2).unsqueeze(1)


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the settings of a model's language part: those of a multimodal one are nested."""
    config: PreTrainedConfig = model.config.get_text_config(decoder=True)
    return config


def position_limit(config: PreTrainedConfig) -> float:
    """Return how long a text may be: longer ones have no positions, or say otherwise in a batch.

    Some rotary embeddings ("longrope") turn by other angles where any row of a batch is longer.
    """
    config = config.get_text_config(decoder=True)
    rotary: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    by_layer = [x for x in rotary.values() if isinstance(x, dict)]
    angles = [x for x in (rotary, *by_layer) if x.get("rope_type") == "longrope"]
    limits = [x.get("original_max_position_embeddings") for x in angles]
    limits += [getattr(config, name, None) for name in POSITIONS]
    return min((limit for limit in limits if limit), default=math.inf)


def window(model: PreTrainedModel) -> float:
    """Return over how many tokens every layer of a model sees."""
    config = text_config(model)
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ["sliding_attention"]):
        return math.inf
    return getattr(config, "sliding_window", None) or math.inf


def take_over(model: PreTrainedModel) -> bool:
    """Make `attend` the model's attention function; tell whether the model lets us.

    It must attend as `attend` does without a structure (sdpa), pass arguments on, and keep nothing but
    keys and values.
    """
    config = text_config(model)
    layers = set(getattr(config, "layer_types", None) or LAYERS)
    if not (type(model)._supports_attention_backend and layers <= LAYERS):
        return False
    if config._attn_implementation == "sdpa":
        config._attn_implementation = NAME
    return bool(config._attn_implementation == NAME)
