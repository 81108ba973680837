"""Decode rows that share prompts: a prompt's keys and values are kept once for all its responses.

Responses are one row until they differ. The model must call `packing.attend`
(`PackedForward.supports_packing`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from reftune.sampling.decoders import PREFILL_TOKENS, Tokens, last, prefill, repeat_index


@dataclass
class _Layer:
    """Keys and values of one layer: of each prompt, and of each row's response."""

    prompts: list[Tensor]  # (prompts, heads, width, features), right-aligned
    responses: list[Tensor]  # (most rows, heads, capacity, features), of which the first are in use


class SharedPrefixDecoder:
    """Attend to a prompt's keys with the queries of all its responses at once.

    Args:
        model: a backbone or language model that calls `packing.attend`.
        max_new_tokens: how long a response may become.
        rows: how many there may be at once.
    """

    def __init__(self, model: PreTrainedModel, max_new_tokens: int, rows: int) -> None:
        self.model, self.rows = model, rows
        self.capacity = max(1, max_new_tokens - 1)
        self.layers: list[_Layer] = []
        self.written = 0  # tokens of each response so far

    def admit(self, prompts: Sequence[Tokens], repeats: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `Decoder.admit`."""
        size = max(1, PREFILL_TOKENS // max(map(len, prompts)))
        pieces = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        read = [prefill(self.model, piece, DynamicCache()) for piece in pieces]
        self._store([cache for _, cache, _ in read])
        self.lengths = torch.cat([lengths for _, _, lengths in read])  # (prompts,)
        self.prompt_index = torch.arange(len(prompts), device=self.model.device)  # (rows,)
        self._find_padding()
        self._arrange()
        return torch.cat([output for output, _, _ in read]), repeat_index(repeats, self.model.device)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Decoder.step`."""
        positions = self.lengths[self.prompt_index] + self.written
        self.written += 1
        return last(
            self.model(
                input_ids=tokens.unsqueeze(1),
                attention_mask=tokens.new_ones(1, 1, 1, 1),  # `attend` needs none
                position_ids=positions.unsqueeze(1),
                use_cache=False,
                within=self,
            )
        )

    def branch(self, rows: Tensor) -> None:
        """See `Decoder.branch`."""
        self._copy(rows, len(self.prompt_index))
        self.prompt_index = torch.cat((self.prompt_index, self.prompt_index[rows]))
        self._arrange()

    def retain(self, rows: Tensor) -> None:
        """See `Decoder.retain`."""
        self._copy(rows, 0)
        used, self.prompt_index = self.prompt_index[rows].unique(return_inverse=True)
        if len(used) < len(self.lengths):
            for layer in self.layers:
                layer.prompts = [states[used] for states in layer.prompts]
            self.lengths = self.lengths[used]
            self._find_padding()
        self._arrange()

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Let each row's token see its prompt and its response (see `packing.Structure`)."""
        prompt_keys, prompt_values = self.layers[layer].prompts
        keys, values = (states[: len(query)] for states in self.layers[layer].responses)
        keys[:, :, self.written - 1] = key[:, :, 0]
        values[:, :, self.written - 1] = value[:, :, 0]
        keys, values = keys[:, :, : self.written], values[:, :, : self.written]
        queries = (query * scaling).unflatten(1, (key.shape[1], -1)).squeeze(3)
        own = queries @ keys.transpose(2, 3)
        shared = self._per_question(queries) @ prompt_keys.transpose(2, 3)
        if self.padding is not None:
            shared.add_(self.padding)
        shared = self._per_row(shared)
        scores = torch.cat((own, shared), dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        own, shared = weights.split((self.written, weights.shape[-1] - self.written), dim=-1)
        output: Tensor = own @ values + self._per_row(self._per_question(shared) @ prompt_values)
        return output.flatten(1, 2).unsqueeze(1)

    def _copy(self, rows: Tensor, start: int) -> None:
        """Write what these rows' responses are so far to the rows from `start` on."""
        for layer in self.layers:
            for states in layer.responses:
                copied = states[:, :, : self.written].index_select(0, rows)
                states[start : start + len(rows), :, : self.written] = copied

    def _arrange(self) -> None:
        """Find for every prompt its rows (`members`) and for every row its place among them."""
        count = torch.bincount(self.prompt_index, minlength=len(self.lengths))
        order = self.prompt_index.argsort(stable=True)
        numbers = torch.arange(len(order), device=order.device)
        self.most = int(count.max())
        self.slots = torch.empty_like(order)
        first = (count.cumsum(0) - count)[self.prompt_index[order]]
        self.slots[order] = self.prompt_index[order] * self.most + numbers - first
        self.members = torch.zeros(len(count) * self.most, dtype=torch.long, device=order.device)
        self.members[self.slots] = numbers
        # Rows side by side, equally many of each question: nothing has to be moved.
        self.in_place = torch.equal(self.members, numbers)

    def _find_padding(self) -> None:
        """Find what hides the columns of prompts that are shorter than the longest.

        It is added to scores, which is faster than filling these in.
        """
        width = self.layers[0].prompts[0].shape[2]
        padding = torch.arange(width, device=self.lengths.device) < width - self.lengths.unsqueeze(1)
        hidden = torch.zeros_like(padding, dtype=self.model.dtype).masked_fill_(padding, -torch.inf)
        self.padding = hidden[:, None, None] if padding.any() else None

    def _per_question(self, rows: Tensor) -> Tensor:
        """Put (rows, heads, group, x) together as (prompts, heads, most * group, x)."""
        moved = rows if self.in_place else rows.index_select(0, self.members)
        grouped: Tensor = moved.unflatten(0, (-1, self.most))
        return grouped.transpose(1, 2).flatten(2, 3)

    def _per_row(self, grouped: Tensor) -> Tensor:
        """Take (prompts, heads, most * group, x) apart again."""
        rows: Tensor = grouped.unflatten(2, (self.most, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self.in_place else rows.index_select(0, self.slots)

    def _store(self, caches: Sequence[DynamicCache]) -> None:
        """Move prompts out of caches, and make room for responses."""
        for number in range(len(caches[0].layers)):
            prompts = _taken_out(caches, number)
            self.layers.append(_Layer(prompts, [self._room(states) for states in prompts]))

    def _room(self, states: Tensor) -> Tensor:
        # Zeros, not just room: what is masked has the weight 0, and 0 * nan is nan.
        return states.new_zeros(self.rows, states.shape[1], self.capacity, states.shape[3])


def _taken_out(caches: Sequence[DynamicCache], number: int) -> list[Tensor]:
    """Return keys and values of one layer of all caches, which keep them no longer: they are large."""
    layers: list[Any] = [cache.layers[number] for cache in caches]
    states = [_stack(*(getattr(layer, name) for layer in layers)) for name in ("keys", "values")]
    for layer in layers:
        layer.keys = layer.values = None
    return states


def _stack(*states: Tensor) -> Tensor:
    """Stack batches of states whose tokens are right-aligned."""
    width = max(x.shape[2] for x in states)
    return torch.cat([functional.pad(x, (0, 0, width - x.shape[2], 0)) for x in states])
