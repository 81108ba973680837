"""What every engine that turns prompts into samples offers, behind one small protocol."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


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
    """An engine that samples from the policy."""

    @property
    def exact(self) -> bool:
        """Tell whether samples carry the very numbers that the trainer would compute.

        Then nothing is read a second time. Else the trainer computes log-probabilities and values
        itself, and importance sampling makes up for the difference.
        """
        ...

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the policy's weights; called after every update and after a resume.

        Args:
            weights: names and tensors of the whole language model, as its `named_parameters` has them,
                with an adapter added. An engine that reads the trainer's own need not look at them.
        """
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
    ) -> list[Sample]:
        """Sample one response per prompt, in order; repeat a prompt to get several.

        Args:
            prompts: token ids.
            seeds: one signed 64-bit number per prompt, the source of that row's randomness.
            max_new_tokens: limit of a response; one that reaches it without EOS is not `finished`.
            temperature: 0 decodes greedily.

        An engine may tell `progress.advance` of each response that is finished, for the screen.
        """
        ...
