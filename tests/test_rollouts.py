"""Sampling, judging and scoring as one: nothing is read twice, and judging does not wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from reftune.config import Prompt
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.model.scratch import train_tokenizer
from reftune.problem import Problem, UserError, Verdict
from reftune.training.rollouts import collect, make_generator
from tiny_models import tiny_model

SETTINGS: dict[str, Any] = {"samples": 3, "temperature": 1.0, "token_budget": 4096, "key": ("key",)}
PROBLEMS = [Problem(str(i), f"what is {i}?", str(i)) for i in range(4)]


class Inexact:
    """A sampler whose numbers are not the trainer's."""

    exact = False

    def __init__(self, sampler: Sampler) -> None:
        self.sample, self.update_weights = sampler.sample, sampler.update_weights


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
    taken = collect(generator, policy, reference, PROBLEMS, **SETTINGS)
    assert bool(reads) == (critic == "separate")  # whose values the sampler cannot know
    reads.clear()
    other = replace(generator, sampler=Inexact(generator.sampler))
    read = collect(other, policy, reference, PROBLEMS, **SETTINGS)
    assert reads
    for name in ("mask", "sampler_logprobs", "logprobs", "ref_logprobs", "values"):
        torch.testing.assert_close(getattr(taken, name), getattr(read, name), atol=1e-4, rtol=0)
    assert bool(taken.values.any()) == (critic != "none")


def test_what_the_judge_raises_reaches_the_caller() -> None:
    def refuse(*_: object) -> list[Verdict]:
        raise UserError("no such reward")

    policy, _ = make_policies("none")
    generator = make_generator(policy, make_prompter(), refuse, Accelerator(cpu=True), 512)
    with pytest.raises(UserError, match="no such reward"):
        generator.generate(PROBLEMS, 2, 1.0, key=("key",))
