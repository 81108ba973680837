"""What the samples of one call have drawn so far: kept on the device, handed over as they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reftune.sampling.sampler import Sample

if TYPE_CHECKING:
    from reftune.sampling.engine import BuiltinSampler

Finish = Callable[[int, Sample], None]
Group = tuple[tuple[int, ...], list[int]]  # a prompt, and which samples are drawn from it


class Drawn:
    """The tokens of all samples of one call; samples are numbered in the order of their groups.

    Args:
        sampler: whose samples they are.
        groups: prompts with the caller's numbers of their samples; `waiting` begins with all of them.
        seeds: by the caller's numbers.
        max_new_tokens: the limit of a response.
        temperature: of the draws.
    """

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
        self.longest = max((len(prompt) for prompt, _ in groups), default=0)
        self.indices = [i for _, members in groups for i in members]  # the caller's numbers
        self.prompts = [prompt for prompt, members in groups for _ in members]
        device, count = sampler.model.device, len(self.indices)
        self.seeds = torch.tensor([seeds[i] for i in self.indices], dtype=torch.long, device=device)
        # The last column takes what samples write after their end.
        self.tokens = torch.zeros(count, max_new_tokens + 1, dtype=torch.long, device=device)
        dtype = torch.promote_types(sampler.model.dtype, torch.float32)
        self.logprobs = torch.zeros(count, max_new_tokens + 1, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.logprobs)

    def draw(
        self, states: Tensor, numbers: Tensor, lengths: Tensor, running: Tensor, rows: Tensor | None
    ) -> Tensor:
        """Choose the next token of some samples; keep it where they run.

        Args:
            states: what the decoder said, (rows, features).
            numbers: which samples, (samples,).
            lengths: how many tokens each has.
            running: whether each goes on.
            rows: which state each chooses by; default: one each.
        """
        sampler = self.sampler
        chosen, logprobs = sampler.choose(
            sampler.logits(states), self.seeds[numbers], lengths, self.temperature, rows
        )
        column = torch.where(running, lengths, self.max_new_tokens)
        self.tokens[numbers, column] = chosen
        self.logprobs[numbers, column] = logprobs
        if sampler.value_head is not None:
            values = sampler.state_values(states)
            self.values[numbers, column] = values if rows is None else values[rows]
        return chosen

    def enough(self, numbers: Tensor, lengths: Tensor, running: Tensor) -> Tensor:
        """Tell which of these samples run and have enough (see `BuiltinSampler`), (samples,)."""
        found = torch.zeros_like(running)
        if self.sampler.enough is not None and running.any():
            rows, ends = self.tokens[numbers[running]].tolist(), lengths[running].tolist()
            told = self.sampler.enough([row[:n] for row, n in zip(rows, ends, strict=True)])
            found[running] = torch.tensor(told, device=found.device)
        return found

    def report(self, numbers: Tensor, lengths: Tensor, finished: Tensor, finish: Finish) -> None:
        """Hand over samples that have ended."""
        parts = [numbers, self.tokens[numbers], self.logprobs[numbers], self.values[numbers]]
        columns = [part.tolist() for part in (*parts, lengths, finished)]
        for number, tokens, logprobs, values, n, whole in zip(*columns, strict=True):
            known = None if self.sampler.value_head is None else values[:n]
            prompt = list(self.prompts[number])
            finish(self.indices[number], Sample(prompt, tokens[:n], logprobs[:n], whole, known))
