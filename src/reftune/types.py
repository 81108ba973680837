"""The nouns of reftune: what flows from a question to an update.

problems -> prompts -> samples -> verdicts -> rewards -> advantages -> loss -> update

Every per-token tensor below is response-only, shape (batch, time), right-padded: column t speaks of
response token t in all of them, and `mask` is 1.0 on real tokens (the EOS included), 0.0 on padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

Cot = Literal["natural", "program"]

Row = dict[str, Any]  # an object of a JSON or JSONL file

Outcome = Literal[
    "ok",  # a number came out
    "ok_text",  # a text came out (multiple choice, or a reward that accepts text)
    "syntax_error",
    "no_solution",  # the program defines no callable solution()
    "no_result",  # nothing could be extracted, or solution() returned None
    "not_a_number",
    "non_finite",
    "exception",
    "timeout",
    "memory",
    "blocked",
    "crash",
    "exited",
    "bad_result",
    "too_long",
    "unsupported",
    "sandbox_error",  # our own fault: never charged to the policy
    "truncated",  # the token limit came before the end of the answer
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Answer = float | str

TOLERANCE = 1e-2  # numbers at most this far apart are equal (paper, section 4.1)


def same_number(a: float, b: float) -> bool:
    """Tell whether two numbers are equal within TOLERANCE; grading and voting both ask here."""
    if not math.isfinite(a - b):
        return a == b
    # One unit in the last place keeps 1.01 equal to 1.00 although the binary difference exceeds 0.01.
    return abs(a - b) <= TOLERANCE + math.ulp(max(abs(a), abs(b)))


class UserError(Exception):
    """Report bad input in one sentence that names the place and the fix (exit code 2, no traceback)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its final answer and, for training, one annotated chain of thought.

    `chain` holds the reasoning alone: for programs the whole `def solution(): ...` text, for natural
    language the sentences before the answer trigger. `choices` are the option texts of a multiple
    choice question, whose `answer` is then the letter of the right one.
    """

    id: str
    question: str
    answer: str
    chain: str | None = None
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """What running one program gave: a named outcome, and the value when there is one."""

    outcome: Outcome
    value: Answer | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one completion: outcome, extracted answer, correctness, score (the reward)."""

    outcome: Outcome
    answer: Answer | None
    correct: bool
    score: float


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


@dataclass(frozen=True, slots=True)
class Sequences:
    """Prompts and responses as a model reads them; lengths, never ids, tell what is padding.

    Responses to one prompt often begin alike. Tokens that follow the same prompt and the same response
    so far, and are equal, are one *distinct* token: whatever a model says of them is said once.
    """

    prompts: Int[Tensor, "prompts width"]  # distinct, left-padded
    prompt_lengths: Int[Tensor, " prompts"]
    parents: Int[Tensor, " batch"]  # which prompt each response belongs to
    responses: Int[Tensor, "batch time"]  # right-padded
    response_lengths: Int[Tensor, " batch"]
    places: Int[Tensor, "batch time"]  # which distinct token each is; 0 on padding
    firsts: Int[Tensor, " distinct"]  # where the first of each stands in the flattened responses

    def to(self, device: torch.device) -> Sequences:
        """Return the same on `device`."""
        return Sequences(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One judged sample: the problem, the sampled tokens, the completion they spell, its verdict."""

    problem: Problem
    sample: Sample
    completion: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Rollouts:
    """One global batch of judged and scored samples; rows of one question share a number in `groups`."""

    attempts: list[Attempt]
    groups: Int[Tensor, " batch"]
    scores: Float[Tensor, " batch"]
    mask: Float[Tensor, "batch time"]
    sampler_logprobs: Float[Tensor, "batch time"]
    logprobs: Float[Tensor, "batch time"]
    ref_logprobs: Float[Tensor, "batch time"]
    values: Float[Tensor, "batch time"]


@dataclass(frozen=True, slots=True)
class Targets:
    """What the update aims at: token rewards, whitened advantages, returns for the critic."""

    rewards: Float[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]
