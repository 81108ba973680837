"""What PPO made of each token of the samples that it logs."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from reftune.model.prompts import Prompter
from reftune.training.types import AdvantagesAndReturns, GradedSample, Rollouts

DIGITS = 4


def traced(
    prompter: Prompter, rollouts: Rollouts, estimates: AdvantagesAndReturns, count: int
) -> list[GradedSample]:
    """Return the first `count` samples with their tokens' texts and numbers.

    Of each token: its log-probability, the log-ratio of policy and reference where there is one, the
    critic's value where there is one, and the advantage as the update used it.
    """
    numbers = {"logprobs": rollouts.logprobs, "advantages": estimates.advantages}
    if rollouts.ref_logprobs is not None:
        numbers["log_ratios"] = rollouts.logprobs - rollouts.ref_logprobs
    if (estimates.values * rollouts.mask).any():
        numbers["values"] = estimates.values
    logged = rollouts.samples[:count]
    return [
        replace(graded, trace=_trace(prompter, graded, i, numbers)) for i, graded in enumerate(logged)
    ]


def _trace(
    prompter: Prompter, graded: GradedSample, row: int, numbers: Mapping[str, Tensor]
) -> dict[str, list[str] | list[float]]:
    tokens = graded.sample.tokens
    if not graded.verdict.judged:  # nothing was learnt from it
        return {"tokens": prompter.spell(tokens)}
    mine = {name: tensor[row, : len(tokens)].tolist() for name, tensor in numbers.items()}
    rounded = {name: [round(number, DIGITS) for number in found] for name, found in mine.items()}
    return {"tokens": prompter.spell(tokens), **rounded}
