"""Questions to rollouts: sample, judge, score with the policy and the frozen reference.

Problems are dealt to processes, and what comes back is gathered: after this module every process
holds the same whole batch of (small) results, and only models' forward passes are shared out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from reftune.grading.judge import Judge
from reftune.model.batch import collate, length_mask, pad
from reftune.model.policy import PolicyWithValue, TokenStats
from reftune.model.prompts import Prompter
from reftune.problem import Problem, UserError
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.sampler import Sample, Sampler
from reftune.training.cpu_threads import CpuThreads, make_cpu_threads
from reftune.training.sharded_map import fill
from reftune.training.types import GradedSample, Rollouts

JUDGED_AT_ONCE = 256  # each bunch wakes the sandbox's workers, which takes cores from a decoder on CPUs


@dataclass(frozen=True)
class Generator:
    """All that turns problems into judged samples.

    `exact` says that the sampler's log-probabilities and values are those that the trainer would find.
    """

    sampler: Sampler
    judge: Judge
    prompter: Prompter
    accelerator: Accelerator
    cpu_threads: CpuThreads
    exact: bool = False

    def generate(
        self, problems: Sequence[Problem], samples: int, temperature: float, *key: object
    ) -> list[GradedSample]:
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
        judging = Judging(self.judge, self.prompter, [problems[i] for i, _ in rows])
        with judging:
            self.sampler.sample(
                [prompts[i] for i, _ in rows],
                [sequence_seed(*key, i, k) for i, k in rows],
                max_new_tokens=self.prompter.settings.max_new_tokens,
                temperature=temperature,
                done=judging.put,
            )
        mine = [(row, judging.samples[number]) for number, row in enumerate(rows)]
        if mine and all(graded.verdict.status == "sandbox_error" for _, graded in mine):
            raise UserError(
                "the sandbox could run none of the programs; is pydantic-monty installed whole?"
            )
        gathered = gather_object(mine) if accelerator.num_processes > 1 else mine
        return [graded for _, graded in sorted(gathered, key=lambda pair: pair[0])]


class Judging:
    """Judge samples in a thread of its own, while others are still being decoded.

    Args:
        judge: gets the samples in bunches.
        problems: which problem each sample number answers.

    As a context it waits for the last verdict; then `graded` has every sample that was put in.
    """

    def __init__(self, judge: Judge, prompter: Prompter, problems: Sequence[Problem]) -> None:
        self.samples: dict[int, GradedSample] = {}
        self._judge, self._prompter, self._problems = judge, prompter, problems
        self._queue: SimpleQueue[tuple[int, Sample] | None] = SimpleQueue()
        self._thread = ThreadPoolExecutor(1, "judge")

    def put(self, number: int, sample: Sample) -> None:
        """Hand over a sample."""
        self._queue.put((number, sample))

    def __enter__(self) -> None:
        self._done = self._thread.submit(self._run)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._queue.put(None)
        self._thread.shutdown(wait=error is None)
        if error is None:
            self._done.result()

    def _run(self) -> None:
        waiting: list[tuple[int, Sample]] = []
        while (item := self._queue.get()) is not None:
            waiting.append(item)
            if len(waiting) == JUDGED_AT_ONCE:
                self._judge_all(waiting)
                waiting = []
        if waiting:
            self._judge_all(waiting)

    def _judge_all(self, items: list[tuple[int, Sample]]) -> None:
        asked = [self._problems[number] for number, _ in items]
        texts = [
            self._prompter.decode(p, s.tokens, s.finished)
            for p, (_, s) in zip(asked, items, strict=True)
        ]
        verdicts = self._judge(asked, texts, [sample.finished for _, sample in items])
        for (number, sample), problem, text, verdict in zip(items, asked, texts, verdicts, strict=True):
            self.samples[number] = GradedSample(problem, sample, text, verdict)


def make_generator(
    policy: PolicyWithValue, prompter: Prompter, judge: Judge, accelerator: Accelerator, max_rows: int
) -> Generator:
    """Return an generator whose built-in sampler always reads the current weights of `policy`."""
    ends = policy.policy.generation_config.eos_token_id if policy.policy.generation_config else None
    eos = {prompter.eos, *(ends if isinstance(ends, list) else [] if ends is None else [ends])}
    sampler = BuiltinSampler(
        policy.policy, sorted(eos), max_rows,
        packed_forward=policy.packed_forward, context=accelerator.autocast,
        value_head=policy.value_head if policy.value_backbone is None else None,
    )  # fmt: skip
    exact = accelerator.mixed_precision == "no" and policy.policy.dtype == torch.float32
    return Generator(sampler, judge, prompter, accelerator, make_cpu_threads(policy, accelerator), exact)


def collect(
    generator: Generator,
    policy: PolicyWithValue,
    reference: PolicyWithValue,
    problems: Sequence[Problem],
    samples: int,
    temperature: float,
    token_budget: int,
    *key: object,
) -> Rollouts:
    """Sample, judge and score one batch (PAPER sections 3 and 4).

    The policy reads the samples once more only where the sampler's numbers are not the trainer's.
    Rows that our own infrastructure failed to judge keep an empty mask: they teach nothing.
    """
    graded = generator.generate(problems, samples, temperature, *key)
    kept = [0 if a.verdict.status == "sandbox_error" else len(a.sample.tokens) for a in graded]
    mask = length_mask(kept, width=max(len(a.sample.tokens) for a in graded))
    scoring = (graded, temperature, token_budget, generator.accelerator, generator.cpu_threads)
    sampler_logprobs = pad([a.sample.logprobs for a in graded])
    known = generator.exact and all(
        policy.value_head is None or a.sample.values is not None for a in graded
    )
    if known:
        logprobs = sampler_logprobs
        values = pad([a.sample.values or [0.0] * len(a.sample.tokens) for a in graded])
    else:
        logprobs, _, values = score(policy, *scoring)
    return Rollouts(
        samples=graded,
        groups=torch.tensor(question_groups(graded)),
        scores=torch.tensor([a.verdict.score for a in graded]),
        mask=mask,
        sampler_logprobs=sampler_logprobs,
        logprobs=logprobs,
        ref_logprobs=score(reference, *scoring).logprobs,
        values=values,
    )


def score(
    model: PolicyWithValue,
    graded: Sequence[GradedSample],
    temperature: float,
    token_budget: int,
    accelerator: Accelerator,
    cpu_threads: CpuThreads | None = None,
) -> TokenStats:
    """Score every response with `model`, each process a share; the result is whole on all of them."""
    samples = [a.sample for a in graded]
    lengths = [len(s.prompt) + len(s.tokens) for s in samples]
    time = max(len(s.tokens) for s in samples)
    totals = torch.zeros(3, len(samples), time, device=accelerator.device)

    def read(rows: list[int]) -> None:
        batch = collate([samples[i].prompt for i in rows], [samples[i].tokens for i in rows])
        scores = model(batch.to(accelerator.device), temperature)
        totals[:, rows, : scores.logprobs.shape[1]] = torch.stack(tuple(scores))

    groups = question_groups(graded)
    whole = fill(totals, read, lengths, token_budget, accelerator, cpu_threads or CpuThreads(), groups)
    return TokenStats(*whole.cpu())


def question_groups(graded: Sequence[GradedSample]) -> list[int]:
    """Number the graded by question: equal numbers answer the same one."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(a.problem.id, len(numbers)) for a in graded]


def accuracy(graded: Sequence[GradedSample]) -> float:
    """Return the share of correct graded among those that our infrastructure could judge."""
    judged = [a.verdict.correct for a in graded if a.verdict.status != "sandbox_error"]
    return sum(judged) / max(1, len(judged))


def graded_rows(graded: Sequence[GradedSample]) -> list[dict[str, Any]]:
    """Return graded as rows of a JSONL file."""
    return [
        {
            "id": a.problem.id, "question": a.problem.question, "answer": a.problem.answer,
            "completion": a.completion, "status": a.verdict.status, "value": a.verdict.answer,
            "correct": a.verdict.correct, "score": a.verdict.score,
        }
        for a in graded
    ]  # fmt: skip


def sequence_seed(*key: object) -> int:
    """Return a signed 64-bit number that depends on `key` alone."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
