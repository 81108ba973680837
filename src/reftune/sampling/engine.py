"""The built-in engine: decode through any transformers causal model, in this process.

Equal prompts share one prefill, and their responses one row until they differ. Finished responses leave
the batch, and the next batch begins when all have left. Every response draws from a random stream of
its own (its seed and the token's position), so a sample never depends on which batch, order or process
it was decoded in.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reftune import progress
from reftune.launcher import tell_once
from reftune.model.forward import PackedForward, kind_of
from reftune.model.lora import merged
from reftune.model.packing import window
from reftune.model.value_head import ValueHead
from reftune.problem import UserError
from reftune.sampling.decoders import Decoder, PaddedDecoder
from reftune.sampling.drawn import Drawn, Finish, Group
from reftune.sampling.rng import nucleus_tokens, sample_tokens
from reftune.sampling.sampler import Sample
from reftune.sampling.shared_prefix import SharedPrefixDecoder
from reftune.sampling.static_batch import LOOK_EVERY, CacheLayer, StaticBatch, pays_on
from reftune.sampling.trial import find_fault

RETAIN_UNTIL = 0.9  # share that still runs when finished responses leave, which copies the cache
ANY_TOKEN = 2**32  # more than any vocabulary has


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
        top_p: leaves out unlikely tokens (see `rng.nucleus_tokens`). Nothing may be trained on such
            samples: their log-probabilities are those of the whole distribution.
        enough: tells of responses whether each has all that is wanted. It is asked every few tokens, and
            ends those that have, which are then called finished.

    The decoders that the model's samples come from are tried once. Raises UserError for a model that
    says something else with its cache than without, or keeps none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos: Sequence[int],
        max_rows: int = 512,
        *,
        value_head: ValueHead | None = None,
        packed_forward: PackedForward | None = None,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
        top_p: float = 1.0,
        enough: Callable[[list[list[int]]], list[bool]] | None = None,
    ) -> None:
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            raise UserError(f"{kind_of(model)} cannot be sampled from: it has no key-value cache")
        self.model = model
        self.eos = torch.tensor(list(eos), device=model.device)
        self.max_rows = max_rows
        self.packed_forward = packed_forward or PackedForward(model)
        self.value_head = value_head if self.packed_forward.lm_head_is_linear else None
        self.context = context
        self.choose = sample_tokens if top_p == 1 else partial(nucleus_tokens, top_p=top_p)
        self.enough = enough
        packs = self.packed_forward.supports_packing
        self.static = packs and pays_on(model.device)
        self.captures = model.device.type == "cuda"  # steps as graphs; not where that has failed
        self.cache_layers: list[tuple[CacheLayer, CacheLayer]] = []  # found out when it is needed
        if self.static and (fault := find_fault(self, shares_prompts=True)):
            self.static = False
            tell_once(f"{kind_of(model)} samples slowly, without CUDA graphs: {fault}")
        self.shares_prompts = self.static or (packs and not find_fault(self, shares_prompts=True))
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

        drawn = Drawn(self, self._group(prompts), seeds, max_new_tokens, temperature)
        static = self.static and self._shares_prompts(drawn.longest + max_new_tokens)
        with torch.no_grad(), merged(self.model), self.context():
            (StaticBatch if static else _Batch)(drawn).run(finish)
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
        if self._shares_prompts(longest + max_new_tokens):
            return SharedPrefixDecoder(model, max_new_tokens, rows)
        return PaddedDecoder(model, max_new_tokens)

    def _shares_prompts(self, length: int) -> bool:
        return self.shares_prompts and length <= window(self.model)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits that follow from what a decoder gave, in float32 at least."""
        logits: Tensor = self.packed_forward.head(self.model)(states)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def state_values(self, states: Tensor) -> Tensor:
        """Return what the critic says of the states that a decoder gave, in its own precision."""
        assert self.value_head is not None
        return self.value_head.value(self.value_head(states))

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

    def __init__(self, drawn: Drawn) -> None:
        self.drawn, self.sampler, self.waiting = drawn, drawn.sampler, drawn.waiting
        device = drawn.tokens.device
        # Of each sample in the decoder: number, tokens so far, whether EOS has ended it, and its row.
        self.numbers = torch.zeros(0, dtype=torch.long, device=device)
        self.lengths = torch.zeros_like(self.numbers)
        self.finished = torch.zeros_like(self.numbers, dtype=torch.bool)
        self.rows = torch.zeros_like(self.numbers)
        self.apart = True  # whether sample i is alone in row i
        self.admitted = self.steps = 0

    @property
    def ended(self) -> Tensor:
        """Return which samples draw no more."""
        return self.finished | (self.lengths == self.drawn.max_new_tokens)

    def run(self, finish: Finish) -> None:
        """Decode everything; hand over samples soon after they end."""
        drawn, sampler = self.drawn, self.sampler
        most = min(sampler.max_rows, len(drawn.indices))
        while self.waiting:
            decoder = sampler.make_decoder(drawn.longest, drawn.max_new_tokens, most)
            states = self._admit(decoder)
            while len(self.numbers):
                chosen, running = self._draw(states)
                count = len(states)
                if running <= RETAIN_UNTIL * len(self.numbers):
                    chosen, count = self._leave(decoder, chosen, finish)
                if running:
                    states = decoder.step(self._branch(decoder, chosen, count))

    def _admit(self, decoder: Decoder) -> Tensor:
        """Let as many waiting prompts enter as there is room for; return their states."""
        taken: list[Group] = []
        size = 0
        while self.waiting and size + len(self.waiting[0][1]) <= self.sampler.max_rows:
            taken.append(self.waiting.popleft())
            size += len(taken[-1][1])
        states, self.rows = decoder.admit(
            [prompt for prompt, _ in taken], [len(members) for _, members in taken]
        )
        self.apart = len(states) == size
        self.numbers = torch.arange(self.admitted, self.admitted + size, device=states.device)
        self.lengths = torch.zeros_like(self.numbers)
        self.finished = torch.zeros_like(self.numbers, dtype=torch.bool)
        self.admitted += size
        return states

    def _draw(self, states: Tensor) -> tuple[Tensor, int]:
        """Choose every sample's next token; return them, and how many samples go on."""
        running, rows = ~self.ended, None if self.apart else self.rows
        chosen = self.drawn.draw(states, self.numbers, self.lengths, running, rows)
        self.lengths += running
        self.finished |= running & torch.isin(chosen, self.sampler.eos)
        self.steps += 1
        if self.steps % LOOK_EVERY == 0:
            self.finished |= self.drawn.enough(self.numbers, self.lengths, ~self.ended)
        return chosen, len(chosen) - int(self.ended.sum())

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
        self.drawn.report(self.numbers[ended], self.lengths[ended], self.finished[ended], finish)
        kept = (~ended).nonzero().squeeze(1)
        kept = kept[self.rows[kept].argsort(stable=True)]
        used, self.rows = self.rows[kept].unique(return_inverse=True)
        self.apart = len(used) == len(kept)
        self.numbers, self.lengths = self.numbers[kept], self.lengths[kept]
        self.finished = self.finished[kept]
        if len(kept):
            decoder.retain(used)
        return chosen[kept], len(used)
