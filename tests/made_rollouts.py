"""Rollouts made up by hand, for tests of what PPO makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reftune.problem import Problem, Status, Verdict
from reftune.sampling.sampler import Sample
from reftune.training.rollouts import question_groups
from reftune.training.types import GradedSample, Rollouts

RUBBISH = 7.0  # what stands on padding, and in rows that nobody judged: it may decide nothing


def graded_sample(
    question: str,
    tokens: Sequence[int],
    reward: float,
    *,
    prompt: Sequence[int] = (3, 4),
    status: Status = "ok",
    finished: bool = True,
) -> GradedSample:
    """Return a sample of `question`, correct where its reward is 1."""
    sample = Sample(list(prompt), list(tokens), [0.0] * len(tokens), finished)
    return GradedSample(
        Problem(question, "?", "1"), sample, "", Verdict(status, None, reward == 1, reward)
    )


def make_rollouts(
    graded: list[GradedSample],
    logprobs: Sequence[Sequence[float]],
    *,
    reference: Sequence[Sequence[float]] | None = None,
    sampler: Sequence[Sequence[float]] | None = None,
    values: Sequence[Sequence[float]] | None = None,
) -> Rollouts:
    """Return rollouts in float64; log-probabilities that are not given are the policy's, values 0."""
    lengths = [len(a.sample.tokens) for a in graded]
    mask = torch.zeros(len(graded), max(lengths), dtype=torch.float64)
    for row, (a, length) in enumerate(zip(graded, lengths, strict=True)):
        mask[row, :length] = float(a.verdict.status != "sandbox_error")
    return Rollouts(
        samples=graded,
        groups=torch.tensor(question_groups(graded)),
        rewards=torch.tensor([a.verdict.reward for a in graded], dtype=torch.float64),
        mask=mask,
        sampler_logprobs=padded(sampler or logprobs),
        logprobs=padded(logprobs),
        ref_logprobs=padded(reference or logprobs),
        values=padded(values or [[0.0] * n for n in lengths]),
    )


def padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """Stack rows of numbers, with rubbish behind the shorter ones."""
    width = max(map(len, rows))
    filled = [[*row, *[RUBBISH] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.float64)
