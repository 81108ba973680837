"""Questions to rollouts: sample, judge, read with the policy and the frozen reference.

Problems are dealt to processes, and what comes back is gathered: after this module every process
holds the same whole batch of (small) results, and only models' forward passes are shared out.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from reftune.config import Compute
from reftune.grading.judge import Judge
from reftune.heap import give_back_freed_memory
from reftune.interrupts import Stopped, breakable, received, stop
from reftune.model.batch import collate, length_mask, pad
from reftune.model.policy import PolicyWithValue, TokenStats
from reftune.model.prompts import Prompter
from reftune.model.sharding import sharded
from reftune.problem import GradedRow, Problem, UserError
from reftune.progress import counting
from reftune.sampling.sampler import Sample, Sampler
from reftune.training.samplers import current_weights, make_sampler
from reftune.training.sharded_map import sharded_map
from reftune.training.stop_strings import completion
from reftune.training.types import GradedSample, Rollouts

Key = Sequence[object]  # names a source of randomness, for example (seed, "ppo", step)


@dataclass(frozen=True)
class Generator:
    """All that turns problems into graded samples."""

    sampler: Sampler
    judge: Judge
    prompter: Prompter
    accelerator: Accelerator
    stop: tuple[str, ...] = ()  # texts at which a completion is cut before it is judged

    def generate(
        self,
        problems: Sequence[Problem],
        samples: int,
        temperature: float,
        *,
        key: Key,
        first: int = 0,
    ) -> list[GradedSample]:
        """Sample each problem `samples` times and judge the results, in the order of the problems.

        Args:
            problems: the questions, the same list on every process.
            samples: responses per question.
            temperature: 0 decodes greedily.
            key: names the source of randomness.
            first: number of the first problem, where these are a piece of a longer list: its samples
                do not depend on how it is cut.

        A signal that asks the program to end breaks this off (see `interrupts`): at once, and where
        other processes have a share, when they have done theirs. Raises UserError where the sandbox
        could run none of the programs.
        """
        accelerator = self.accelerator
        indices = range(accelerator.process_index, len(problems), accelerator.num_processes)
        rows = [(first + i, k) for i in indices for k in range(samples)]
        asked = [problems[i] for i in indices for _ in range(samples)]
        try:
            with breakable():
                drawn = self._grade(asked, self._sample(asked, rows, temperature, key))
            mine: list[Any] = list(zip(rows, drawn, strict=True))
        except Stopped:
            if accelerator.num_processes == 1:
                raise
            mine = [received()]  # in place of samples: the others wait for something
        gathered = gather_object(mine) if accelerator.num_processes > 1 else mine
        for signal in gathered:
            if isinstance(signal, int):
                stop(signal)
        return [sample for _, sample in sorted(gathered, key=lambda pair: pair[0])]

    def update_weights(self, policy: PolicyWithValue) -> None:
        """Let the sampler take over the weights of the policy's language model (all processes)."""
        self.sampler.update_weights(current_weights(policy))

    def _sample(
        self, problems: Sequence[Problem], rows: Sequence[tuple[int, int]], temperature: float, key: Key
    ) -> list[Sample]:
        """Draw sample k of problem number i for each (i, k)."""
        prompts = {problem: self.prompter.encode_prompt(problem) for problem in problems}
        give_back_freed_memory()  # of training
        with counting("sampling", len(rows)):  # the sampler advances it
            samples = self.sampler.sample(
                [prompts[problem] for problem in problems],
                [sequence_seed(*key, i, k) for i, k in rows],
                max_new_tokens=self.prompter.settings.max_new_tokens,
                temperature=temperature,
            )
        give_back_freed_memory()  # of the sampler's cache
        return samples

    def _grade(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> list[GradedSample]:
        pairs = list(zip(problems, samples, strict=True))
        read = [completion(self.prompter, problem, s, self.stop) for problem, s in pairs]
        texts, finished = [text for text, _ in read], [ended for _, ended in read]
        with counting("judging"):
            tokens = [len(s.tokens) for s in samples]
            verdicts = self.judge(problems, texts, finished, tokens)
        if verdicts and all(verdict.status == "sandbox_error" for verdict in verdicts):
            raise UserError(
                "the sandbox could run none of the programs; is pydantic-monty installed whole?"
            )
        graded = zip(pairs, texts, verdicts, strict=True)
        return [GradedSample(problem, s, text, verdict) for (problem, s), text, verdict in graded]


def make_generator(
    policy: PolicyWithValue,
    prompter: Prompter,
    judge: Judge,
    accelerator: Accelerator,
    compute: Compute,
    stop: tuple[str, ...] = (),
) -> Generator:
    """Return a generator that samples from `policy`; for the arguments see `make_sampler`.

    The built-in sampler always reads the policy's current weights, as long as they are whole in this
    process; others have those of now, until `Generator.update_weights`.
    """
    sampler = make_sampler(policy, prompter, accelerator, compute, stop)
    return Generator(sampler, judge, prompter, accelerator, stop)


def read_batch(
    generator: Generator,
    policy: PolicyWithValue,
    reference: PolicyWithValue | None,
    graded: list[GradedSample],
    *,
    temperature: float,
    token_budget: int,
    moved: bool = False,
) -> Rollouts:
    """Read the samples of one batch.

    The policy reads the samples once more only where the sampler's numbers are not the trainer's.
    Rows that our own infrastructure failed to judge keep an empty mask: they teach nothing.

    Args:
        reference: the frozen model that the KL penalty holds the policy near; without it `ref_logprobs`
            is None.
        token_budget: padded tokens of a micro-batch.
        moved: whether the policy has learnt since it was sampled from.
    """
    lengths = [len(g.sample.tokens) if g.verdict.judged else 0 for g in graded]
    reading = (graded, temperature, token_budget, generator.accelerator)
    sampler_logprobs = pad([g.sample.logprobs for g in graded])
    values_known = policy.value_head is None or all(g.sample.values is not None for g in graded)
    if generator.sampler.exact and values_known and not moved:
        logprobs = sampler_logprobs
        values = pad([g.sample.values or [0.0] * len(g.sample.tokens) for g in graded])
    else:
        stats = compute_logprobs(policy, *reading)
        logprobs, values = stats.logprobs, stats.values
    ref_logprobs = None
    if reference is not None:
        with visiting(reference, generator.accelerator.device):
            ref_logprobs = compute_logprobs(reference, *reading).logprobs
    return Rollouts(
        samples=graded,
        groups=torch.tensor(question_groups(graded)),
        rewards=torch.tensor([g.verdict.reward for g in graded]),
        mask=length_mask(lengths, width=max(len(g.sample.tokens) for g in graded)),
        sampler_logprobs=sampler_logprobs,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
    )


@contextmanager
def visiting(model: PolicyWithValue, device: torch.device) -> Iterator[None]:
    """Let a model be on a device for a while, if it rests elsewhere; parts of one come by themselves."""
    if sharded(model) is not None:
        yield
        return
    home = model.policy.device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def compute_logprobs(
    model: PolicyWithValue,
    graded: Sequence[GradedSample],
    temperature: float,
    token_budget: int,
    accelerator: Accelerator,
) -> TokenStats:
    """Read every response with `model`, each process a share; the result is whole on all of them.

    Returns log-probabilities, entropies and values, (batch, time) each, on the CPU.
    """
    samples = [g.sample for g in graded]
    lengths = [len(s.prompt) + len(s.tokens) for s in samples]
    time = max(len(s.tokens) for s in samples)
    totals = torch.zeros(3, len(samples), time, device=accelerator.device)

    def read(rows: list[int]) -> None:
        batch = collate([samples[i].prompt for i in rows], [samples[i].tokens for i in rows])
        stats = model(batch.to(accelerator.device), temperature)
        totals[:, rows, : stats.logprobs.shape[1]] = torch.stack(stats[:3]).to(totals.dtype)

    whole = sharded_map(totals, read, lengths, token_budget, accelerator, question_groups(graded))
    return TokenStats(*whole.cpu())


def question_groups(graded: Sequence[GradedSample]) -> list[int]:
    """Number the samples by question: equal numbers answer the same one."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(g.problem.id, len(numbers)) for g in graded]


def mean_parts(graded: Sequence[GradedSample]) -> dict[str, float]:
    """Return the mean of each named part of the user's own reward, as metrics `reward/PART`."""
    judged = [g.verdict.parts for g in graded if g.verdict.judged and g.verdict.parts]
    names = {name: None for parts in judged for name in parts}
    return {f"reward/{n}": sum(parts.get(n, 0.0) for parts in judged) / len(judged) for n in names}


def accuracy(graded: Sequence[GradedSample]) -> float:
    """Return the share of correct samples among those that our infrastructure could judge."""
    judged = [g.verdict.correct for g in graded if g.verdict.judged]
    return sum(judged) / max(1, len(judged))


def accuracies(graded: Sequence[GradedSample]) -> dict[str, float]:
    """Return the accuracy on all questions and, of several sources, on each one's, as metrics."""
    sources = dict.fromkeys(g.problem.source for g in graded if g.problem.source)
    return {"accuracy": accuracy(graded)} | {
        f"accuracy/{source}": accuracy([g for g in graded if g.problem.source == source])
        for source in sources
    }


def group_shares(graded: Sequence[GradedSample]) -> dict[str, float]:
    """Return the shares of questions with all samples right, and all wrong, of those with several."""
    groups = defaultdict(list)
    for g in graded:
        if g.verdict.judged:
            groups[g.problem.id].append(g.verdict.correct)
    compared = [group for group in groups.values() if len(group) > 1]
    if not compared:
        return {}
    right, wrong = sum(map(all, compared)), sum(not any(group) for group in compared)
    return {"groups_all_right": right / len(compared), "groups_all_wrong": wrong / len(compared)}


def graded_rows(graded: Sequence[GradedSample]) -> list[GradedRow]:
    """Return graded samples as rows of a JSONL file."""
    return [_row(g) for g in graded]


def _row(g: GradedSample) -> GradedRow:
    row = {
        "id": g.problem.id, "question": g.problem.question, "answer": g.problem.answer,
        "completion": g.completion, "status": g.verdict.status, "value": g.verdict.answer,
        "correct": g.verdict.correct, "reward": g.verdict.reward, **g.trace,
    }  # fmt: skip
    return cast(GradedRow, row | ({"source": g.problem.source} if g.problem.source else {}))


def sequence_seed(*key: object) -> int:
    """Return a signed 64-bit number that depends on `key` alone."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
