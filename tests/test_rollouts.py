"""Sampling, judging and scoring as one: nothing is read twice, and judging does not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from reftune.config import Prompt
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.model.scratch import train_tokenizer
from reftune.problem import Problem, UserError, Verdict
from reftune.sampling.sampler import Sample
from reftune.training import rollouts as module
from reftune.training.cpu_threads import CpuThreads
from reftune.training.rollouts import Generator, collect, make_generator
from tiny_models import tiny_model

PROBLEMS = [Problem(str(i), f"what is {i}?", str(i)) for i in range(4)]


def make_prompter() -> Prompter:
    tokenizer = train_tokenizer(["what is it? Question: Answer reasoning:"], 300)
    return Prompter(tokenizer, Prompt(max_new_tokens=6), "natural")


def judge(problems: Sequence[Problem], texts: Sequence[str], finished: Sequence[bool]) -> list[Verdict]:
    return [Verdict("ok", None, len(text) % 2 == 1, float(len(text) % 2)) for text in texts]


def make_policies(critic: str) -> tuple[PolicyWithValue, PolicyWithValue]:
    policy = PolicyWithValue(tiny_model(vocab_size=300), critic)
    if policy.value_head is not None:
        torch.nn.init.normal_(policy.value_head.weight)
    return policy, PolicyWithValue(tiny_model(seed=1, vocab_size=300))


@pytest.mark.parametrize("critic", ["none", "shared", "separate"])
def test_the_samplers_numbers_are_taken_where_they_are_the_trainers(critic: str) -> None:
    policy, reference = make_policies(critic)
    generator = make_generator(policy, make_prompter(), judge, Accelerator(cpu=True), 512)
    reads: list[int] = []
    policy.register_forward_hook(lambda *_: reads.append(1))
    taken = collect(generator, policy, reference, PROBLEMS, 3, 1.0, 4096, "key")
    assert bool(reads) == (critic == "separate")  # whose values the sampler cannot know
    reads.clear()
    read = collect(replace(generator, exact=False), policy, reference, PROBLEMS, 3, 1.0, 4096, "key")
    assert reads
    for name in ("mask", "sampler_logprobs", "logprobs", "ref_logprobs", "values"):
        torch.testing.assert_close(getattr(taken, name), getattr(read, name), atol=1e-4, rtol=0)
    assert bool(taken.values.any()) == (critic != "none")


def test_samples_are_judged_while_others_are_still_being_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "JUDGED_AT_ONCE", 2)
    judged = threading.Event()

    class Slow:
        """A sampler whose last sample is not complete before the first ones are judged."""

        def sample(
            self,
            prompts: Sequence[Sequence[int]],
            seeds: Sequence[int],
            *,
            done: Callable[[int, Sample], None],
            **settings: float,
        ) -> list[Sample]:
            samples = [Sample(list(p), [65], [0.0], True) for p in prompts]
            for i in (3, 1):
                done(i, samples[i])
            assert judged.wait(timeout=20)
            for i in (0, 2):
                done(i, samples[i])
            return samples

    def notice(
        problems: Sequence[Problem], texts: Sequence[str], finished: Sequence[bool]
    ) -> list[Verdict]:
        judged.set()
        return [Verdict("ok", None, True, float(problem.answer)) for problem in problems]

    generator = Generator(Slow(), notice, make_prompter(), Accelerator(cpu=True), CpuThreads())
    graded = generator.generate(PROBLEMS, 1, 1.0, "key")
    assert [a.verdict.score for a in graded] == [0.0, 1.0, 2.0, 3.0]


def test_what_the_judge_raises_reaches_the_caller() -> None:
    def refuse(*_: object) -> list[Verdict]:
        raise UserError("no such reward")

    policy, _ = make_policies("none")
    generator = make_generator(policy, make_prompter(), refuse, Accelerator(cpu=True), 512)
    with pytest.raises(UserError, match="no such reward"):
        generator.generate(PROBLEMS, 2, 1.0, "key")
