"""Decode rows that share prompts: a prompt's keys and values are kept once for all its responses.

Responses are one row until they differ. New prompts may enter while others run. The model must call
`packing.attend` (`PackedForward.supports_packing`).
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

    Responses lie in a ring: what is decoded in one step stands in one column, whenever a row entered.

    Args:
        model: a backbone or language model that calls `packing.attend`.
        max_new_tokens: how long a response may become.
        rows: how many there may be at once.
    """

    continuous = True

    def __init__(self, model: PreTrainedModel, max_new_tokens: int, rows: int) -> None:
        self.model, self.rows = model, rows
        self.capacity = max(1, max_new_tokens - 1)
        self.layers: list[_Layer] = []
        self.clock = 0  # steps that the oldest row has made
        device = model.device
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)  # (prompts,)
        self.prompt_index = torch.zeros(0, dtype=torch.long, device=device)  # (rows,)
        self.admitted = torch.zeros(0, dtype=torch.long, device=device)  # (rows,), by the clock
        self.joined = False  # whether rows entered at different times

    def admit(self, prompts: Sequence[Tokens], repeats: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `Decoder.admit`."""
        self._rewind()
        self.joined = self.clock > 0
        size = max(1, PREFILL_TOKENS // max(map(len, prompts)))
        pieces = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        read = [prefill(self.model, piece, DynamicCache()) for piece in pieces]
        self._store([cache for _, cache, _ in read])
        known = len(self.lengths)
        self.lengths = torch.cat((self.lengths, *(lengths for _, _, lengths in read)))
        new = torch.arange(known, len(self.lengths), device=self.model.device)
        self.prompt_index = torch.cat((self.prompt_index, new))
        self.admitted = torch.cat((self.admitted, torch.full_like(new, self.clock)))
        self._find_padding()
        self._arrange()
        return torch.cat([output for output, _, _ in read]), repeat_index(repeats, self.model.device)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Decoder.step`."""
        drawn = self.clock - self.admitted  # tokens of each response before this one
        self.column = self.clock % self.capacity
        self.columns = min(self.clock + 1, self.capacity)
        self.hidden = self._unwritten(drawn) if self.joined else None
        # Rows that have ended may stay for a while: their positions must not run out of the model's.
        positions = self.lengths[self.prompt_index] + drawn.clamp(max=self.capacity - 1)
        states = last(
            self.model(
                input_ids=tokens.unsqueeze(1),
                attention_mask=tokens.new_ones(1, 1, 1, 1),  # `attend` needs none
                position_ids=positions.unsqueeze(1),
                use_cache=False,
                within=self,
            )
        )
        self.clock += 1
        return states

    def branch(self, rows: Tensor) -> None:
        """See `Decoder.branch`."""
        self._copy(rows, len(self.prompt_index))
        self.prompt_index = torch.cat((self.prompt_index, self.prompt_index[rows]))
        self.admitted = torch.cat((self.admitted, self.admitted[rows]))
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
        self.admitted = self.admitted[rows]
        self._arrange()

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Let each row's token see its prompt and its response (see `packing.Structure`)."""
        prompt_keys, prompt_values = self.layers[layer].prompts
        keys, values = (states[: len(query)] for states in self.layers[layer].responses)
        keys[:, :, self.column] = key[:, :, 0]
        values[:, :, self.column] = value[:, :, 0]
        keys, values = keys[:, :, : self.columns], values[:, :, : self.columns]
        queries = (query * scaling).unflatten(1, (key.shape[1], -1)).squeeze(3)
        own = queries @ keys.transpose(2, 3)
        if self.hidden is not None:
            own.add_(self.hidden)
        shared = self._per_question(queries) @ prompt_keys.transpose(2, 3)
        if self.padding is not None:
            shared.add_(self.padding)
        shared = self._per_row(shared)
        scores = torch.cat((own, shared), dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        own, shared = weights.split((self.columns, weights.shape[-1] - self.columns), dim=-1)
        output: Tensor = own @ values + self._per_row(self._per_question(shared) @ prompt_values)
        return output.flatten(1, 2).unsqueeze(1)

    def _copy(self, rows: Tensor, start: int) -> None:
        """Write what these rows' responses are so far to the rows from `start` on."""
        written = min(self.clock, self.capacity)
        for layer in self.layers:
            for states in layer.responses:
                copied = states[:, :, :written].index_select(0, rows)
                states[start : start + len(rows), :, :written] = copied

    def _unwritten(self, drawn: Tensor) -> Tensor:
        """Return -inf for the columns of the ring that are older than each row's response, else 0."""
        age = (self.column - torch.arange(self.columns, device=drawn.device)) % self.capacity
        return self._minus_infinity(age > drawn.unsqueeze(1))

    def _rewind(self) -> None:
        """Set the clock back to the age of the oldest row, so that no column is older than that."""
        if len(self.prompt_index) == 0:
            return
        start, rows = int(self.admitted.min()), len(self.prompt_index)
        columns = torch.arange(start, self.clock, device=self.admitted.device) % self.capacity
        for layer in self.layers:
            for states in layer.responses:
                states[:rows, :, : len(columns)] = states[:rows].index_select(2, columns)
        self.clock, self.admitted = self.clock - start, self.admitted - start

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
        """Find what hides the columns of prompts that are shorter than the longest."""
        width = self.layers[0].prompts[0].shape[2]
        padding = torch.arange(width, device=self.lengths.device) < width - self.lengths.unsqueeze(1)
        self.padding = self._minus_infinity(padding) if padding.any() else None

    def _minus_infinity(self, hidden: Tensor) -> Tensor:
        """Return what hides columns when added to scores, which is faster than filling these in."""
        minus = torch.zeros_like(hidden, dtype=self.model.dtype).masked_fill_(hidden, -torch.inf)
        return minus[:, None, None]

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
        """Move prompts out of caches; the first time, make room for responses."""
        for number in range(len(caches[0].layers)):
            new = _taken_out(caches, number)
            if number == len(self.layers):
                self.layers.append(_Layer(new, [self._room(states) for states in new]))
            else:
                layer = self.layers[number]
                layer.prompts = [_stack(*pair) for pair in zip(layer.prompts, new, strict=True)]

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
