"""Texts behind which nothing of a completion counts: where they end it, and the sampling of it."""

from collections.abc import Callable, Sequence

from reftune.model.prompts import Prompter
from reftune.model.wording import PROGRAM_HEAD
from reftune.problem import Problem
from reftune.sampling.sampler import Sample


def before(text: str, stop: Sequence[str]) -> str:
    """Return a completion up to the first of some texts that stands behind a program's first line."""
    head = len(PROGRAM_HEAD) if text.startswith(PROGRAM_HEAD) else 0
    found = [place for one in stop if (place := text.find(one, head)) >= 0]
    return text[: min(found)] if found else text


def completion(
    prompter: Prompter, problem: Problem, sample: Sample, stop: Sequence[str]
) -> tuple[str, bool]:
    """Return what a sample spells up to the first stop string, and whether it has come to its end."""
    if stop:  # all tokens: the sampler may have ended it behind such a text, without any EOS
        text = prompter.decode(problem, sample.tokens, finished=False)
        if (cut := before(text, stop)) != text:
            return cut, True
    return prompter.decode(problem, sample.tokens, sample.finished), sample.finished


def stopped(prompter: Prompter, stop: Sequence[str]) -> Callable[[list[list[int]]], list[bool]] | None:
    """Return what tells a sampler which responses hold a stop string; None without any."""

    def tell(responses: list[list[int]]) -> list[bool]:
        texts = [prompter.text(tokens) for tokens in responses]
        return [before(text, stop) != text for text in texts]

    return tell if stop else None
