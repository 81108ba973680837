"""The built-in engine: decode through any transformers causal model, in this process.

Equal prompts share one prefill. Finished rows leave the batch and waiting prompts enter, so that a few
long answers do not make the rest wait. Every row draws from a random stream of its own (its seed and
the token's position), so a sample never depends on which batch, order or process it was decoded in.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reftune.attention import window
from reftune.reading import Reader, trunk_of
from reftune.samplers.decoders import Decoder, PaddedDecoder
from reftune.samplers.shared_prefix import SharedPrefixDecoder
from reftune.samplers.streams import choose
from reftune.types import Sample, UserError

# Finished rows leave once no more than this share still runs: leaving copies the cache, entering also
# costs a forward pass for the new prompts.
KEEP_UNTIL = 0.9
ENTER_FROM = 0.75

Done = Callable[[int, Sample], None]
Group = tuple[tuple[int, ...], list[int]]  # a prompt, and which samples are drawn from it


class BuiltinSampler:
    """Sample from a transformers model in this process.

    Args:
        model: the policy; its weights are read, never changed, and it must be in eval mode.
        eos: ids that end a response.
        max_rows: responses decoded at once.
        value_head: a critic on the last hidden state; its values are then part of the samples, where
            the model's head is plain.
        reader: that of the model, if there is one already.
        context: entered around the model's forward passes, for mixed precision.

    Raises UserError for a model that keeps no key-value cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos: Sequence[int],
        max_rows: int = 512,
        *,
        value_head: nn.Module | None = None,
        reader: Reader | None = None,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            kind = model.config.model_type
            raise UserError(f"a model of type {kind} cannot be sampled from: it has no key-value cache")
        self.model = model
        self.eos = torch.tensor(list(eos), device=model.device)
        self.max_rows = max_rows
        self.reader = reader or Reader(model)
        self.value_head = value_head if self.reader.plain_head else None
        self.context = context

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        done: Done | None = None,
    ) -> list[Sample]:
        """Sample one response per prompt (see `Sampler.sample`)."""
        samples: dict[int, Sample] = {}

        def finish(index: int, sample: Sample) -> None:
            samples[index] = sample
            if done is not None:
                done(index, sample)

        batch = _Batch(self, self._group(prompts), seeds, max_new_tokens, temperature)
        with torch.no_grad(), self.context():
            batch.run(finish)
        return [samples[i] for i in range(len(prompts))]

    def make_decoder(self, longest: int, max_new_tokens: int) -> Decoder:
        """Return an empty batch for prompts of at most `longest` tokens."""
        model = trunk_of(self.model) if self.reader.plain_head else self.model
        if self.reader.packs and longest + max_new_tokens <= window(model.config):
            return SharedPrefixDecoder(model, longest, max_new_tokens)
        return PaddedDecoder(model, max_new_tokens)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits that follow from what a decoder gave, in float32."""
        head = self.model.get_output_embeddings() if self.reader.plain_head else nn.Identity()
        logits: Tensor = head(states)
        return logits.float()

    def _group(self, prompts: Sequence[Sequence[int]]) -> list[Group]:
        """Put samples of equal prompts together, as many as may be decoded at once; shortest first."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(tuple(prompt), []).append(i)
        return [
            (prompt, members[start : start + self.max_rows])
            for prompt, members in sorted(groups.items(), key=lambda group: (len(group[0]), group[0]))
            for start in range(0, len(members), self.max_rows)
        ]


class _Batch:
    """The samples of one call: those that run, in the decoder's rows, and those that wait."""

    def __init__(
        self,
        sampler: BuiltinSampler,
        groups: list[Group],
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        self.sampler, self.temperature, self.max_new_tokens = sampler, temperature, max_new_tokens
        self.waiting = deque(groups)
        self.indices = [i for _, members in groups for i in members]  # the caller's numbers
        self.prompts = [prompt for prompt, members in groups for _ in members]
        device = sampler.model.device
        count = len(self.indices)
        self.streams = torch.tensor([seeds[i] for i in self.indices], dtype=torch.long, device=device)
        # The last column takes what rows write after their end.
        self.tokens = torch.zeros(count, max_new_tokens + 1, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(count, max_new_tokens + 1, device=device)
        self.values = torch.zeros_like(self.logprobs)
        # Of each of the decoder's rows: our sample, its tokens so far, whether EOS has ended it.
        self.rows = torch.zeros(0, dtype=torch.long, device=device)
        self.lengths = torch.zeros_like(self.rows)
        self.finished = torch.zeros_like(self.rows, dtype=torch.bool)
        self.entered = 0

    @property
    def ended(self) -> Tensor:
        """Return which rows draw no more."""
        return self.finished | (self.lengths == self.max_new_tokens)

    def run(self, done: Done) -> None:
        """Decode everything; call `done` for samples soon after they end."""
        longest = max((len(prompt) for prompt, _ in self.waiting), default=0)
        while self.waiting:
            decoder = self.sampler.make_decoder(longest, self.max_new_tokens)
            states = self._enter(decoder)
            while len(self.rows):
                chosen, running = self._draw(states)
                share = ENTER_FROM if self.waiting and decoder.joins else KEEP_UNTIL
                left = running <= share * len(self.rows)
                if left:
                    chosen = self._leave(decoder, chosen, done)
                if running:
                    states = decoder.step(chosen)
                    if left and decoder.joins and self._next_fits():
                        states = torch.cat((states, self._enter(decoder)))

    def _next_fits(self) -> bool:
        room = self.sampler.max_rows - len(self.rows)
        return bool(self.waiting) and len(self.waiting[0][1]) <= room

    def _enter(self, decoder: Decoder) -> Tensor:
        """Let waiting prompts enter while there is room; return what the model says after them."""
        taken: list[Group] = []
        while self._next_fits():
            taken.append(self.waiting.popleft())
            count = len(taken[-1][1])
            self._add(torch.arange(self.entered, self.entered + count, device=self.rows.device))
            self.entered += count
        return decoder.enter([prompt for prompt, _ in taken], [len(members) for _, members in taken])

    def _add(self, fresh: Tensor) -> None:
        self.rows = torch.cat((self.rows, fresh))
        self.lengths = torch.cat((self.lengths, torch.zeros_like(fresh)))
        self.finished = torch.cat((self.finished, torch.zeros_like(fresh, dtype=torch.bool)))

    def _draw(self, states: Tensor) -> tuple[Tensor, int]:
        """Choose every row's next token; return them, and how many rows go on."""
        sampler, rows, running = self.sampler, self.rows, ~self.ended
        streams = self.streams[rows]
        chosen, logprobs = choose(sampler.logits(states), streams, self.lengths, self.temperature)
        column = torch.where(running, self.lengths, self.max_new_tokens)
        self.tokens[rows, column] = chosen
        self.logprobs[rows, column] = logprobs
        if sampler.value_head is not None:
            self.values[rows, column] = sampler.value_head(states.float()).squeeze(-1)
        self.lengths += running
        self.finished |= running & torch.isin(chosen, sampler.eos)
        return chosen, len(rows) - int(self.ended.sum())

    def _leave(self, decoder: Decoder, chosen: Tensor, done: Done) -> Tensor:
        """Drop and report the rows that have ended; return what the others have chosen."""
        ended = self.ended
        self._report(ended, done)
        kept = (~ended).nonzero().squeeze(1)
        self.rows, self.lengths = self.rows[kept], self.lengths[kept]
        self.finished = self.finished[kept]
        if len(kept):
            decoder.keep(kept)
        return chosen[kept]

    def _report(self, ended: Tensor, done: Done) -> None:
        rows = self.rows[ended]
        parts = [rows, self.tokens[rows], self.logprobs[rows], self.values[rows]]
        columns = [part.tolist() for part in (*parts, self.lengths[ended], self.finished[ended])]
        for row, tokens, logprobs, values, n, finished in zip(*columns, strict=True):
            known = None if self.sampler.value_head is None else values[:n]
            prompt = list(self.prompts[row])
            done(self.indices[row], Sample(prompt, tokens[:n], logprobs[:n], finished, known))
