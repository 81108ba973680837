"""Engines that turn prompts into samples, behind one small protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled response as token ids, its EOS included when `finished`.

    `logprobs` are the sampler's own, one per token, under the distribution it sampled from; `values`
    the critic's before each token, where the sampler has read them on the way.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    finished: bool
    values: list[float] | None = None


@runtime_checkable
class Sampler(Protocol):
    """What every engine offers."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        done: Callable[[int, Sample], None] | None = None,
    ) -> list[Sample]:
        """Sample one response per prompt, in order; repeat a prompt to get several.

        Args:
            prompts: token ids.
            seeds: one signed 64-bit number per prompt, the source of that row's randomness.
            max_new_tokens: limit of a response; one that reaches it without EOS is not `finished`.
            temperature: 0 decodes greedily.
            done: called with the number and the sample when one is complete, in any order and from any
                thread, while others may still be decoded.
        """
        ...
