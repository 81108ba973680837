"""The built-in engine: decode with a key-value cache through any transformers causal model.

Equal prompts share one prefill. Finished rows leave the batch, so that a few long answers do not
make the rest wait. Every row draws from a random stream of its own (its seed and the token's
position), so a sample never depends on which batch, order or process it was decoded in.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from reftune.reading import select_rows
from reftune.types import Sample, UserError

KEEP_UNTIL = 0.75  # rows are dropped once this share is still running: dropping copies the cache


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


class BuiltinSampler:
    """Sample from a transformers model in this process.

    Args:
        model: the policy; it is read, never changed, and must be in eval mode.
        eos: ids that end a response.
        max_rows: responses decoded at once.

    Raises UserError for a model that keeps no key-value cache.
    """

    def __init__(self, model: PreTrainedModel, eos: Sequence[int], max_rows: int = 512) -> None:
        self.model = model
        self.eos = torch.tensor(list(eos), device=model.device)
        self.max_rows = max_rows
        accepted = inspect.signature(model.forward).parameters
        if "past_key_values" not in accepted:
            kind = model.config.model_type
            raise UserError(f"a model of type {kind} cannot be sampled from: it has no key-value cache")
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
    ) -> list[Sample]:
        """Sample one response per prompt (see `Sampler.sample`)."""
        samples: list[Sample | None] = [None] * len(prompts)
        for rows in self._chunks(prompts):
            decoded = self._decode(
                [prompts[i] for i in rows], [seeds[i] for i in rows], max_new_tokens, temperature
            )
            for i, sample in zip(rows, decoded, strict=True):
                samples[i] = sample
        return [s for s in samples if s is not None]

    def _chunks(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield rows of similar prompt length together, equal prompts side by side."""
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i], i))
        for start in range(0, len(order), self.max_rows):
            yield order[start : start + self.max_rows]

    def _decode(
        self, prompts: list[Sequence[int]], seeds: list[int], max_new_tokens: int, temperature: float
    ) -> list[Sample]:
        device = self.model.device
        logits, cache, attended = self._prefill(prompts, max_new_tokens)
        streams = torch.tensor(seeds, device=device)
        tokens = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(prompts), max_new_tokens, device=device)
        lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        rows = torch.arange(len(prompts), device=device)  # which prompt each decoded row belongs to
        for t in range(max_new_tokens):
            chosen, chosen_logprobs = choose(logits, streams[rows], t, temperature)
            tokens[rows, t], logprobs[rows, t] = chosen, chosen_logprobs
            lengths[rows] += ~ended[rows]
            ended[rows] |= torch.isin(chosen, self.eos)
            running = ~ended[rows]
            alive = int(running.sum())
            if alive == 0 or t == max_new_tokens - 1:
                break
            if alive <= KEEP_UNTIL * len(rows):
                keep = running.nonzero().squeeze(1)
                rows, chosen, attended = rows[keep], chosen[keep], attended[keep]
                select_rows(cache, keep)
            attended = torch.cat((attended, attended.new_ones(len(rows), 1)), dim=1)
            logits = self._forward(chosen.unsqueeze(1), attended, cache)
        return _collect(prompts, tokens, logprobs, lengths, ended)

    def _prefill(
        self, prompts: list[Sequence[int]], max_new_tokens: int
    ) -> tuple[Tensor, DynamicCache, Tensor]:
        """Read every distinct prompt once, left-padded, then give each row its own copy."""
        distinct = list(dict.fromkeys(tuple(p) for p in prompts))
        place = {prompt: i for i, prompt in enumerate(distinct)}
        width = max(map(len, distinct))
        ids = torch.zeros(len(distinct), width, dtype=torch.long)
        attended = torch.zeros(len(distinct), width, dtype=torch.long)
        for i, prompt in enumerate(distinct):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            attended[i, width - len(prompt) :] = 1
        device = self.model.device
        ids, attended = ids.to(device), attended.to(device)
        cache = DynamicCache(config=self.model.config)
        cache.layers = [
            PreallocatedLayer(width + max_new_tokens) if type(layer) is DynamicLayer else layer
            for layer in cache.layers
        ]
        logits = self._forward(ids, attended, cache)
        if len(distinct) == len(prompts):
            return logits, cache, attended
        parents = torch.tensor([place[tuple(p)] for p in prompts], device=device)
        select_rows(cache, parents)
        return logits[parents], cache, attended[parents]

    def _forward(self, ids: Tensor, attended: Tensor, cache: DynamicCache) -> Tensor:
        """Return the logits after the last column of `ids`, in float32."""
        positions = (attended.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids,
            attention_mask=attended,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


def choose(logits: Tensor, streams: Tensor, t: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Choose a token per row by inverting the cumulative distribution at the row's t-th random number.

    Args:
        logits: (rows, vocab), float32.
        streams: (rows,), the seeds.
        t: position of the token in its response.
        temperature: 0 takes the most likely token.

    Returns:
        Token ids and their log-probabilities under the distribution they were drawn from, (rows,) each.
    """
    logprobs = torch.log_softmax(logits / temperature if temperature else logits, dim=-1)
    if temperature:
        cumulative = logprobs.exp().cumsum(-1)
        total = cumulative[:, -1:]
        threshold = uniform(streams, t).to(logprobs.dtype).unsqueeze(1) * total
        # Rounded to `total` it would choose the last token, however unlikely: stay below.
        threshold = threshold.minimum(total.nextafter(torch.zeros_like(total)))
        chosen = (cumulative <= threshold).sum(-1)
    else:
        chosen = logprobs.argmax(-1)
    return chosen, logprobs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def uniform(streams: Tensor, t: int) -> Tensor:
    """Return the t-th number of each stream, uniform in [0, 1), as float64.

    This is SplitMix64 (Steele et al. 2014), whose output can be computed for any t at once.
    """
    z = streams + _signed((t + 1) * 0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return _shift(z ^ _shift(z, 31), 11).double() * 2.0**-53


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift signed 64-bit numbers right as if they were unsigned."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """Return the signed 64-bit number with the same low bits."""
    return (number + 2**63) % 2**64 - 2**63


def _collect(
    prompts: list[Sequence[int]], tokens: Tensor, logprobs: Tensor, lengths: Tensor, ended: Tensor
) -> list[Sample]:
    columns = zip(
        prompts, tokens.tolist(), logprobs.tolist(), lengths.tolist(), ended.tolist(), strict=True
    )
    return [Sample(list(p), row[:n], lp[:n], done) for p, row, lp, n, done in columns]
