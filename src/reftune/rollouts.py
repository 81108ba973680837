"""Questions to rollouts: sample, judge, score with the policy and the frozen reference.

Problems are dealt to processes, and what comes back is gathered: after this module every process
holds the same whole batch of (small) results, and only models' forward passes are shared out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from reftune.batches import collate, cut, deal, length_mask, pad
from reftune.models import PolicyWithValue, TokenScores
from reftune.prompts import Prompter
from reftune.rewards import Judge
from reftune.samplers import Sampler
from reftune.samplers.builtin import BuiltinSampler
from reftune.types import Attempt, Problem, Rollouts, UserError


@dataclass(frozen=True)
class Actor:
    """All that turns problems into judged samples."""

    sampler: Sampler
    judge: Judge
    prompter: Prompter
    accelerator: Accelerator

    def attempt(
        self, problems: Sequence[Problem], samples: int, temperature: float, *key: object
    ) -> list[Attempt]:
        """Sample each problem `samples` times and judge the results, in the order of the problems.

        Args:
            problems: the questions, the same list on every process.
            samples: responses per question.
            temperature: 0 decodes greedily.
            key: names the source of randomness, for example (seed, "ppo", step).
        """
        accelerator = self.accelerator
        indices = range(accelerator.process_index, len(problems), accelerator.num_processes)
        rows = [(i, k) for i in indices for k in range(samples)]
        prompts = {i: self.prompter.encode_prompt(problems[i]) for i in indices}
        with accelerator.autocast():
            sampled = self.sampler.sample(
                [prompts[i] for i, _ in rows],
                [stream_seed(*key, i, k) for i, k in rows],
                max_new_tokens=self.prompter.settings.max_new_tokens,
                temperature=temperature,
            )
        asked = [problems[i] for i, _ in rows]
        texts = [self.prompter.decode(p, s) for p, s in zip(asked, sampled, strict=True)]
        verdicts = self.judge(asked, texts, [s.finished for s in sampled])
        if verdicts and all(verdict.outcome == "sandbox_error" for verdict in verdicts):
            raise UserError(
                "the sandbox could run none of the programs; is pydantic-monty installed whole?"
            )
        mine = list(zip(rows, map(Attempt, asked, sampled, texts, verdicts), strict=True))
        gathered = gather_object(mine) if accelerator.num_processes > 1 else mine
        return [attempt for _, attempt in sorted(gathered, key=lambda pair: pair[0])]


def make_actor(
    policy: PolicyWithValue, prompter: Prompter, judge: Judge, accelerator: Accelerator, max_rows: int
) -> Actor:
    """Return an actor whose built-in sampler always reads the current weights of `policy`."""
    ends = policy.policy.generation_config.eos_token_id if policy.policy.generation_config else None
    eos = {prompter.eos, *(ends if isinstance(ends, list) else [] if ends is None else [ends])}
    sampler = BuiltinSampler(policy.policy, sorted(eos), max_rows)
    return Actor(sampler, judge, prompter, accelerator)


def collect(
    actor: Actor,
    policy: PolicyWithValue,
    reference: PolicyWithValue,
    problems: Sequence[Problem],
    samples: int,
    temperature: float,
    token_budget: int,
    *key: object,
) -> Rollouts:
    """Sample, judge and score one batch (PAPER sections 3 and 4).

    Rows that our own infrastructure failed to judge keep an empty mask: they teach nothing.
    """
    attempts = actor.attempt(problems, samples, temperature, *key)
    kept = [0 if a.verdict.outcome == "sandbox_error" else len(a.sample.tokens) for a in attempts]
    mask = length_mask(kept, width=max(len(a.sample.tokens) for a in attempts))
    scored = score(policy, attempts, temperature, token_budget, actor.accelerator)
    ref_scored = score(reference, attempts, temperature, token_budget, actor.accelerator)
    return Rollouts(
        attempts=attempts,
        groups=torch.tensor(question_groups(attempts)),
        scores=torch.tensor([a.verdict.score for a in attempts]),
        mask=mask,
        sampler_logprobs=pad([a.sample.logprobs for a in attempts]),
        logprobs=scored.logprobs,
        ref_logprobs=ref_scored.logprobs,
        values=scored.values,
        entropies=scored.entropies,
    )


@torch.no_grad()
def score(
    model: PolicyWithValue,
    attempts: Sequence[Attempt],
    temperature: float,
    token_budget: int,
    accelerator: Accelerator,
) -> TokenScores:
    """Score every response with `model`, each process a share; the result is whole on all of them."""
    samples = [a.sample for a in attempts]
    groups = question_groups(attempts)
    lengths = [len(s.prompt) + len(s.tokens) for s in samples]
    time = max(len(s.tokens) for s in samples)
    totals = torch.zeros(3, len(samples), time, device=accelerator.device)
    processes = accelerator.num_processes
    for rows in cut(range(len(samples)), lengths, token_budget, processes, groups):
        mine, weights = deal(rows, accelerator.process_index, processes)
        if not any(weights):
            continue
        batch = collate([samples[i].prompt for i in mine], [samples[i].tokens for i in mine])
        with accelerator.autocast():
            scores = model(batch.to(accelerator.device), temperature)
        totals[:, mine, : scores.logprobs.shape[1]] = torch.stack(tuple(scores))
    whole = accelerator.reduce(totals, reduction="sum") if accelerator.num_processes > 1 else totals
    assert isinstance(whole, Tensor)
    return TokenScores(*whole.cpu())


def question_groups(attempts: Sequence[Attempt]) -> list[int]:
    """Number the attempts by question: equal numbers answer the same one."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(a.problem.id, len(numbers)) for a in attempts]


def accuracy(attempts: Sequence[Attempt]) -> float:
    """Return the share of correct attempts among those that our infrastructure could judge."""
    judged = [a.verdict.correct for a in attempts if a.verdict.outcome != "sandbox_error"]
    return sum(judged) / max(1, len(judged))


def attempt_rows(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Return attempts as rows of a JSONL file."""
    return [
        {
            "id": a.problem.id, "question": a.problem.question, "answer": a.problem.answer,
            "completion": a.completion, "outcome": a.verdict.outcome, "value": a.verdict.answer,
            "correct": a.verdict.correct, "score": a.verdict.score,
        }
        for a in attempts
    ]  # fmt: skip


def stream_seed(*key: object) -> int:
    """Return a signed 64-bit number that depends on `key` alone."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
