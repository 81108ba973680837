"""The built-in engine: decode through any transformers causal model, in this process.

Equal prompts share one prefill, and their responses one row until they differ. Finished responses leave
the batch and waiting prompts enter, so that a few long answers do not make the rest wait. Every
response draws from a random stream of its own (its seed and the token's position), so a sample never
depends on which batch, order or process it was decoded in.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reftune import progress
from reftune.model.forward import PackedForward, kind_of
from reftune.model.lora import merged
from reftune.model.packing import window
from reftune.problem import UserError
from reftune.sampling.decoders import Decoder, PaddedDecoder
from reftune.sampling.rng import sample_tokens
from reftune.sampling.sampler import Sample
from reftune.sampling.shared_prefix import SharedPrefixDecoder
from reftune.sampling.trial import find_fault

# Finished responses leave once no more than this share still runs: leaving copies the cache, entering
# also costs a forward pass for the new prompts.
RETAIN_UNTIL = 0.9
ADMIT_BELOW = 0.75
ANY_TOKEN = 2**32  # more than any vocabulary has

Finish = Callable[[int, Sample], None]
Group = tuple[tuple[int, ...], list[int]]  # a prompt, and which samples are drawn from it


class BuiltinSampler:
    """Sample from a transformers model in this process.

    Args:
        model: the policy; its weights are read, never changed, and it must be in eval mode.
        eos: ids that end a response.
        max_rows: responses decoded at once.
        value_head: a critic on the last hidden state; its values are then part of the samples, where
            the model's head is plain.
        packed_forward: that of the model, if there is one already.
        context: entered around the model's forward passes, for mixed precision; default: none.

    The decoders that the model's samples come from are tried once. Raises UserError for a model that
    says something else with its cache than without, or keeps none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos: Sequence[int],
        max_rows: int = 512,
        *,
        value_head: nn.Linear | None = None,
        packed_forward: PackedForward | None = None,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            raise UserError(f"{kind_of(model)} cannot be sampled from: it has no key-value cache")
        self.model = model
        self.eos = torch.tensor(list(eos), device=model.device)
        self.max_rows = max_rows
        self.packed_forward = packed_forward or PackedForward(model)
        self.value_head = value_head if self.packed_forward.lm_head_is_linear else None
        self.context = context
        self.choose = sample_tokens
        packs = self.packed_forward.supports_packing
        self.shares_prompts = packs and not find_fault(self, shares_prompts=True)
        if self.shares_prompts and window(model) == math.inf:
            return  # no batch will be padded
        if fault := find_fault(self, shares_prompts=False):
            raise UserError(f"{kind_of(model)} cannot be sampled from: {fault}")

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
    ) -> list[Sample]:
        """Sample one response per prompt (see `Sampler.sample`)."""
        samples: dict[int, Sample] = {}

        def finish(i: int, sample: Sample) -> None:
            samples[i] = sample
            progress.advance()

        batch = _Batch(self, self._group(prompts), seeds, max_new_tokens, temperature)
        with torch.no_grad(), merged(self.model), self.context():
            batch.run(finish)
        return [samples[i] for i in range(len(prompts))]

    @property
    def exact(self) -> bool:
        """Tell whether samples carry the very numbers that the trainer would compute."""
        return self.context is nullcontext and self.model.dtype == torch.float32

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Do nothing: this engine reads the trainer's own weights (see `Sampler.update_weights`)."""

    def make_decoder(self, longest: int, max_new_tokens: int, rows: int) -> Decoder:
        """Return an empty batch for prompts of at most `longest` tokens and at most so many rows."""
        model = self.packed_forward.body(self.model)
        if self.shares_prompts and longest + max_new_tokens <= window(model):
            return SharedPrefixDecoder(model, max_new_tokens, rows)
        return PaddedDecoder(model, max_new_tokens)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits that follow from what a decoder gave, in float32 at least."""
        logits: Tensor = self.packed_forward.head(self.model)(states)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def state_values(self, states: Tensor) -> Tensor:
        """Return what the critic says of the states that a decoder gave, in its own precision."""
        assert self.value_head is not None
        with torch.autocast(states.device.type, enabled=False):
            values: Tensor = self.value_head(states.to(self.value_head.weight.dtype))
        return values.squeeze(-1)

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
        self.seeds = torch.tensor([seeds[i] for i in self.indices], dtype=torch.long, device=device)
        # The last column takes what samples write after their end.
        self.tokens = torch.zeros(count, max_new_tokens + 1, dtype=torch.long, device=device)
        dtype = torch.promote_types(sampler.model.dtype, torch.float32)
        self.logprobs = torch.zeros(count, max_new_tokens + 1, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.logprobs)
        # Of each sample in the decoder: number, tokens so far, whether EOS has ended it, and its row.
        self.numbers = torch.zeros(0, dtype=torch.long, device=device)
        self.lengths = torch.zeros_like(self.numbers)
        self.finished = torch.zeros_like(self.numbers, dtype=torch.bool)
        self.rows = torch.zeros_like(self.numbers)
        self.apart = True  # whether sample i is alone in row i
        self.admitted = 0

    @property
    def ended(self) -> Tensor:
        """Return which samples draw no more."""
        return self.finished | (self.lengths == self.max_new_tokens)

    def run(self, finish: Finish) -> None:
        """Decode everything; hand over samples soon after they end."""
        longest = max((len(prompt) for prompt, _ in self.waiting), default=0)
        most = min(self.sampler.max_rows, len(self.indices))
        while self.waiting:
            decoder = self.sampler.make_decoder(longest, self.max_new_tokens, most)
            states = self._admit(decoder, 0)
            while len(self.numbers):
                chosen, running = self._draw(states)
                share = ADMIT_BELOW if self.waiting and decoder.continuous else RETAIN_UNTIL
                left = running <= share * len(self.numbers)
                count = len(states)
                if left:
                    chosen, count = self._leave(decoder, chosen, finish)
                if running:
                    states = decoder.step(self._branch(decoder, chosen, count))
                    if left and decoder.continuous and self._next_fits():
                        states = torch.cat((states, self._admit(decoder, len(states))))

    def _next_fits(self) -> bool:
        room = self.sampler.max_rows - len(self.numbers)
        return bool(self.waiting) and len(self.waiting[0][1]) <= room

    def _admit(self, decoder: Decoder, count: int) -> Tensor:
        """Let waiting prompts enter while there is room, behind `count` rows; return their states."""
        taken: list[Group] = []
        while self._next_fits():
            taken.append(self.waiting.popleft())
            self._add(len(taken[-1][1]))
        states, rows = decoder.admit(
            [prompt for prompt, _ in taken], [len(members) for _, members in taken]
        )
        self.rows = torch.cat((self.rows, count + rows))
        self.apart = self.apart and len(states) == len(rows)
        return states

    def _add(self, count: int) -> None:
        fresh = torch.arange(self.admitted, self.admitted + count, device=self.numbers.device)
        self.numbers = torch.cat((self.numbers, fresh))
        self.lengths = torch.cat((self.lengths, torch.zeros_like(fresh)))
        self.finished = torch.cat((self.finished, torch.zeros_like(fresh, dtype=torch.bool)))
        self.admitted += count

    def _draw(self, states: Tensor) -> tuple[Tensor, int]:
        """Choose every sample's next token; return them, and how many samples go on."""
        sampler, numbers, running = self.sampler, self.numbers, ~self.ended
        seeds, rows = self.seeds[numbers], None if self.apart else self.rows
        chosen, logprobs = sampler.choose(
            sampler.logits(states), seeds, self.lengths, self.temperature, rows
        )
        column = torch.where(running, self.lengths, self.max_new_tokens)
        self.tokens[numbers, column] = chosen
        self.logprobs[numbers, column] = logprobs
        if sampler.value_head is not None:
            self.values[numbers, column] = sampler.state_values(states)[self.rows]
        self.lengths += running
        self.finished |= running & torch.isin(chosen, sampler.eos)
        return chosen, len(numbers) - int(self.ended.sum())

    def _branch(self, decoder: Decoder, chosen: Tensor, count: int) -> Tensor:
        """Let rows fork where samples have chosen differently; return the next token of every row.

        Args:
            decoder: has `count` rows.
            chosen: (samples,), the next token of each.
        """
        if self.apart:
            return chosen
        running = ~self.ended
        pairs, which = (self.rows * ANY_TOKEN + chosen)[running].unique(return_inverse=True)
        sources, tokens = pairs // ANY_TOKEN, pairs % ANY_TOKEN
        # The first of several tokens goes on in the old row.
        more = torch.zeros_like(sources, dtype=torch.bool)
        more[1:] = sources[1:] == sources[:-1]
        places = torch.where(more, count + more.cumsum(0) - 1, sources)
        forked = sources[more]
        if len(forked):
            decoder.branch(forked)
        self.rows[running] = places[which]
        following = torch.zeros(count + len(forked), dtype=torch.long, device=chosen.device)
        following[places] = tokens  # and some token in rows that nobody reads any more
        return following

    def _leave(self, decoder: Decoder, chosen: Tensor, finish: Finish) -> tuple[Tensor, int]:
        """Drop and report samples that have ended; return what others chose, and how many rows stay."""
        ended = self.ended
        self._report(ended, finish)
        kept = (~ended).nonzero().squeeze(1)
        kept = kept[self.rows[kept].argsort(stable=True)]
        used, self.rows = self.rows[kept].unique(return_inverse=True)
        self.apart = len(used) == len(kept)
        self.numbers, self.lengths = self.numbers[kept], self.lengths[kept]
        self.finished = self.finished[kept]
        if len(kept):
            decoder.retain(used)
        return chosen[kept], len(used)

    def _report(self, ended: Tensor, finish: Finish) -> None:
        numbers = self.numbers[ended]
        parts = [numbers, self.tokens[numbers], self.logprobs[numbers], self.values[numbers]]
        columns = [part.tolist() for part in (*parts, self.lengths[ended], self.finished[ended])]
        for number, tokens, logprobs, values, n, finished in zip(*columns, strict=True):
            known = None if self.sampler.value_head is None else values[:n]
            prompt = list(self.prompts[number])
            finish(self.indices[number], Sample(prompt, tokens[:n], logprobs[:n], finished, known))
