"""Decode a batch of rows token by token: what every decoder offers, and one for any model.

`shared_prefix.py` has the faster one, for models that let us say how they attend.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

Tokens = Sequence[int]

# Of all prompts that are read at once: more are no faster, and what a layer needs for them may be large.
PREFILL_TOKENS = 8192


@runtime_checkable
class Decoder(Protocol):
    """A batch of rows. Results are the model's states (or logits), (rows, features)."""

    def admit(self, prompts: Sequence[Tokens], repeats: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read prompts, each for so many responses; once, at the beginning.

        Returns what the model says in the new rows, and in which of them each response begins: all in a
        row of its own, or those to one prompt together.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row; return what the model says next."""
        ...

    def branch(self, rows: Tensor) -> None:
        """Add rows that go on from where these are."""
        ...

    def retain(self, rows: Tensor) -> None:
        """Drop all rows but these, which are given in ascending order."""
        ...


class PaddedDecoder:
    """Decode left-padded rows through a transformers cache."""

    def __init__(self, model: PreTrainedModel, max_new_tokens: int) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens

    def admit(self, prompts: Sequence[Tokens], repeats: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `Decoder.admit`."""
        width = max(map(len, prompts))
        cache = DynamicCache(config=self.model.config)
        # A layer with a window keeps everything, too: its mask hides what is beyond, and not every model
        # whose settings have a window uses it (Moshi).
        everything = (DynamicLayer, DynamicSlidingWindowLayer)
        cache.layers = [
            PreallocatedLayer(width + self.max_new_tokens) if type(layer) in everything else layer
            for layer in cache.layers
        ]
        device = self.model.device
        output, self.cache, lengths = prefill(self.model, prompts, cache)
        self.attended = (torch.arange(width, device=device) >= width - lengths.unsqueeze(1)).long()
        parents = repeat_index(repeats, device)
        if len(parents) > len(prompts):
            self.retain(parents)
        return output[parents], torch.arange(len(parents), device=device)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Decoder.step`."""
        self.attended = torch.cat((self.attended, torch.ones_like(tokens).unsqueeze(1)), dim=1)
        output = self.model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=self.attended,
            position_ids=self.attended.sum(1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
            **_only_last(self.model),
        )
        return last(output)

    def branch(self, rows: Tensor) -> None:
        """See `Decoder.branch`."""
        raise AssertionError("every response has a row of its own here")

    def retain(self, rows: Tensor) -> None:
        """See `Decoder.retain`."""
        self.attended = self.attended[rows]
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]  # it asks for the legacy LongTensor


class PreallocatedLayer(DynamicLayer):
    """Cache of one layer that is written in place instead of being copied for every token."""

    def __init__(self, capacity: int) -> None:
        DynamicLayer.__init__(self)
        self.capacity = capacity
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append the new states and return views of all states so far."""
        start, self.length = self.length, self.length + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = self._room(key_states), self._room(value_states)
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        """Return the number of positions written."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep (or repeat) rows, copying only what is written."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(beam_idx), *old.shape[1:])
            new[:, :, : self.length] = old[:, :, : self.length].index_select(0, beam_idx)
            setattr(self, name, new)

    def _room(self, states: Tensor) -> Tensor:
        batch, heads, _, dim = states.shape
        return states.new_empty(batch, heads, self.capacity, dim)


def repeat_index(repeats: Sequence[int], device: torch.device) -> Tensor:
    """Return which prompt each row belongs to, where prompt i has `repeats[i]` rows."""
    return torch.arange(len(repeats), device=device).repeat_interleave(
        torch.tensor(list(repeats), device=device)
    )


def prefill(
    model: PreTrainedModel, prompts: Sequence[Tokens], cache: DynamicCache
) -> tuple[Tensor, DynamicCache, Tensor]:
    """Read left-padded prompts; return what the model says after them, the cache and their lengths."""
    device, width = model.device, max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    columns = torch.arange(width, device=device) - (width - lengths).unsqueeze(1)
    output = model(
        input_ids=ids,
        attention_mask=(columns >= 0).long(),
        position_ids=columns.clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        **_only_last(model),
    )
    return last(output), cache, lengths


def _only_last(model: PreTrainedModel) -> dict[str, int]:
    """Return the argument that keeps a language model from computing logits that nobody reads."""
    return {"logits_to_keep": 1} if model.get_output_embeddings() is not None else {}


def last(output: Any) -> Tensor:
    """Return the states (or logits) at the last position of a model's output."""
    states = getattr(output, "last_hidden_state", None)
    states = output.logits if states is None else states
    assert isinstance(states, Tensor)
    return states[:, -1]
