"""Run a model over prompts and given responses, and return its states at the response positions.

A question's prompt is read once per batch, however many responses it has: with eight samples per
question that is less than half of the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from reftune.types import Sequences


def read_responses(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Return the model's output at the positions that predict each response token.

    Args:
        model: a trunk, whose last hidden states are returned, or a causal language model, whose
            logits are.
        sequences: prompts and responses.

    Returns:
        (batch, time, features); columns beyond a response's length hold no meaning.
    """
    if len(sequences.prompts) == len(sequences.responses):
        return _read_rows(model, sequences)
    return _read_behind_shared_prompts(model, sequences)


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep (or repeat) rows of a cache, be it of keys and values or of recurrent states."""
    cache.reorder_cache(rows)  # type: ignore[arg-type]  # it asks for the legacy LongTensor


def _read_rows(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Read prompt and response as one right-padded row each.

    Attention is causal, so no real token ever sees the padding, and no mask is needed.
    """
    width, time = sequences.prompts.shape[1], sequences.responses.shape[1]
    joined = torch.cat((sequences.prompts[sequences.parents], sequences.responses), dim=1)
    lengths = sequences.prompt_lengths[sequences.parents].unsqueeze(1)
    columns = torch.arange(width + time, device=joined.device)
    ids = joined.gather(1, (columns + width - lengths).clamp(max=width + time - 1))
    longest = int((lengths.squeeze(1) + sequences.response_lengths).max())
    positions = columns[:longest].expand(len(ids), -1)
    states = _states(model(input_ids=ids[:, :longest], position_ids=positions, use_cache=False))
    index = (lengths - 1 + columns[:time]).clamp(max=longest - 1)
    return states.gather(1, index.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def _read_behind_shared_prompts(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Read each distinct prompt once, then all responses behind their prompt's keys and values."""
    prompts, parents = sequences.prompts, sequences.parents
    columns = torch.arange(prompts.shape[1], device=prompts.device)
    starts = (prompts.shape[1] - sequences.prompt_lengths).unsqueeze(1)
    attended = (columns >= starts).long()
    cache = DynamicCache(config=model.config)
    last_of_prompt = _states(
        model(
            input_ids=prompts,
            attention_mask=attended,
            position_ids=(columns - starts).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
    )[:, -1:]
    select_rows(cache, parents)
    inputs = sequences.responses[:, :-1]  # nothing is predicted from the last token
    if inputs.shape[1] == 0:
        return last_of_prompt[parents]
    offsets = torch.arange(inputs.shape[1], device=inputs.device)
    inside = _states(
        model(
            input_ids=inputs,
            attention_mask=torch.cat((attended[parents], torch.ones_like(inputs)), dim=1),
            position_ids=sequences.prompt_lengths[parents].unsqueeze(1) + offsets,
            past_key_values=cache,
            use_cache=True,
        )
    )
    return torch.cat((last_of_prompt[parents], inside), dim=1)


def _states(output: object) -> Tensor:
    states = getattr(output, "last_hidden_state", None)
    if states is None:
        states = output.logits  # type: ignore[attr-defined]
    assert isinstance(states, Tensor)
    return states
