"""A sampler in front of vLLM, wherever its engine is."""

import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from reftune import progress
from reftune.problem import UserError
from reftune.sampling.sampler import Sample

SETTING = 'compute.sampler = "vllm"'  # how errors begin


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is built for; it takes the weights of any model of this architecture.

    Args:
        architecture: the model's config.json.
        dtype: of the engine's weights.
        longest: tokens of a prompt with its response.
        rows: responses decoded at once.
    """

    architecture: str
    dtype: str
    longest: int
    rows: int


@dataclass(frozen=True)
class Draw:
    """Responses to draw: one for each prompt, from the random numbers of its seed."""

    prompts: list[list[int]]
    seeds: list[int]
    ends: list[int]  # ids that end a response
    max_new_tokens: int
    temperature: float


@dataclass(frozen=True)
class Drawn:
    """Response number `index` of a draw: its ids, the end included, and their log-probabilities."""

    index: int
    tokens: list[int]
    logprobs: list[float]


@runtime_checkable
class Engine(Protocol):
    """What draws from weights that it is given; several processes may share one."""

    def load(self, weights: Iterable[tuple[str, Tensor]], version: str) -> None:
        """Take over weights, in the names of transformers' `state_dict`, and forget what others said."""
        ...

    def draw(self, draw: Draw, version: str) -> Iterator[Drawn]:
        """Draw responses from the weights of this version, in the order in which they are finished."""
        ...


class VllmSampler:
    """Sample from an engine of vLLM.

    Its numbers are never quite the trainer's, who reads every sample once more. The same seed gives the
    same response as long as rounding does, which batches of other sizes may change.

    Args:
        engine: where samples come from.
        ends: ids that end a response.
        tied: by the name of a weight, what others are called that are tied to it, such as a head that is
            the embedding: they are sent, too. An engine may keep a copy, and speak on with the old one.
        name: of this sampler's weights among all that an engine may hold; processes that work together
            have the same.
    """

    exact = False

    def __init__(
        self,
        engine: Engine,
        ends: Sequence[int],
        tied: Mapping[str, Sequence[str]] | None = None,
        name: str = "policy",
    ) -> None:
        self.engine, self.ends, self.tied = engine, list(ends), tied or {}
        self.name, self.updates = name, 0

    @staticmethod
    def new_name() -> str:
        """Return a name that no other sampler has."""
        return uuid.uuid4().hex

    @property
    def version(self) -> str:
        """Return what the weights are called that were sent last."""
        return f"{self.name}:{self.updates}"

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Send the policy's weights to the engine (see `Sampler.update_weights`)."""
        self.updates += 1
        self.engine.load(self._with_tied(weights), self.version)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
    ) -> list[Sample]:
        """Sample one response per prompt (see `Sampler.sample`)."""
        if not prompts:
            return []
        asked = [list(prompt) for prompt in prompts]
        draw = Draw(asked, list(seeds), self.ends, max_new_tokens, temperature)
        samples: dict[int, Sample] = {}
        for drawn in self.engine.draw(draw, self.version):
            samples[drawn.index] = self._sample(asked[drawn.index], drawn)
            progress.advance()
        return [samples[i] for i in range(len(asked))]

    def _with_tied(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, weight in weights:
            yield name, weight
            for other in self.tied.get(name, ()):
                yield other, weight

    def _sample(self, prompt: list[int], drawn: Drawn) -> Sample:
        if not all(map(math.isfinite, drawn.logprobs)):
            raise UserError(f"{SETTING}: a sample has no finite log-probability; is the model's loss?")
        return Sample(prompt, drawn.tokens, drawn.logprobs, drawn.tokens[-1] in self.ends)


def checked(version: str, held: str, who: str) -> None:
    """Raise UserError unless an engine holds the weights that are asked for."""
    if version != held:
        raise UserError(
            f"{SETTING}: {who} holds weights of another model than the one that is asked; ask one model"
            " after the other"
        )
