"""Sampler and trainer are compared with the model's own forward pass on prompts as long as the run's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reftune.config import Compute, Prompt
from reftune.model import forward
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.problem import Problem, UserError
from reftune.sampling import engine
from reftune.stages.stage import Stage
from reftune.training.rollouts import Generator
from tiny_models import WINDOW, random_model
from tiny_stage import PROMPTER, TOKENIZER, VOCAB, make_stage

SHORT = [Problem("a", "is", "1"), Problem("b", "it", "1"), Problem("c", "is", "1")]
LONG = [Problem(f"{n}", f"what is {n} of {n}? it is", "1") for n in range(5)]
Patch = pytest.MonkeyPatch


def policy_of(family: str = "mistral", dtype: torch.dtype = torch.float32) -> PolicyWithValue:
    model = random_model(family)
    model.resize_token_embeddings(VOCAB, mean_resizing=False)
    return PolicyWithValue(model.to(dtype), "shared")


def stage_of(folder: Path, problems: list[Problem], most: int = 3) -> Stage:
    stage = make_stage(folder, compute=Compute(sampler_rows=5))
    prompter = Prompter(TOKENIZER, Prompt(template="{question}", max_new_tokens=most), "natural")
    return Stage("sft", stage.config, prompter, stage.judge, problems, problems, stage.accelerator)


def wider_sampler(patch: Patch) -> None:
    patch.setattr(engine, "window", lambda model: float("inf"))


def wider_trainer(patch: Patch) -> None:
    patch.setattr(forward, "window", lambda model: float("inf"))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gemma2", "qwen3_next", "codegen"])
@pytest.mark.parametrize("problems", [SHORT, LONG], ids=["short", "long"])
def test_models_that_are_right_pass(tmp_path: Path, family: str, problems: list[Problem]) -> None:
    assert isinstance(stage_of(tmp_path, problems).generator(policy_of(family)), Generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_16_bits_is_none(tmp_path: Path, dtype: torch.dtype) -> None:
    stage_of(tmp_path, LONG).generator(policy_of(dtype=dtype))


@pytest.mark.parametrize(
    ("broken", "who"), [(wider_sampler, "the sampler"), (wider_trainer, "the trainer")]
)
def test_a_model_that_is_wrong_for_long_prompts_alone_is_refused(
    tmp_path: Path, broken: Callable[[Patch], None], who: str, monkeypatch: Patch
) -> None:
    assert max(len(PROMPTER.encode_prompt(problem)) for problem in SHORT) + 3 <= WINDOW
    assert min(len(PROMPTER.encode_prompt(problem)) for problem in LONG) > WINDOW
    broken(monkeypatch)
    policy = policy_of()
    stage_of(tmp_path, SHORT).generator(policy)
    with pytest.raises(
        UserError, match=rf"^a model of type mistral cannot be used: .* {who} and the mod"
    ):
        stage_of(tmp_path, LONG).generator(policy)


def test_a_sampler_that_is_wrong_for_long_responses_alone_is_refused(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """Eight tokens are drawn, but decoded as if there were forty: in another way, here a wrong one."""
    step = engine.PaddedDecoder.step
    monkeypatch.setattr(engine.PaddedDecoder, "step", lambda self, ids: step(self, ids) + 1.0)
    monkeypatch.setattr(engine, "find_fault", lambda sampler, shares_prompts: "")
    stage_of(tmp_path, SHORT, most=1).generator(policy_of())
    with pytest.raises(UserError, match="the sampler and the model's own forward pass differ by"):
        stage_of(tmp_path, SHORT, most=40).generator(policy_of())


def test_numbers_that_are_none_are_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    policy = policy_of()
    read = PolicyWithValue.forward

    def forward_of(self: Any, *given: Any) -> Any:
        stats = read(self, *given)
        return stats._replace(logprobs=stats.logprobs * float("nan"))

    monkeypatch.setattr(PolicyWithValue, "forward", forward_of)
    with pytest.raises(UserError, match=r"the trainer and .* differ by nan"):
        stage_of(tmp_path, SHORT).generator(policy)


def test_the_first_distinct_prompts_are_read_with_two_samples_each(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    seen: list[list[list[int]]] = []
    sample = engine.BuiltinSampler.sample

    def sampled(self: Any, prompts: Any, seeds: Any, **given: Any) -> Any:
        seen.append(prompts)
        found = sample(self, prompts, seeds, **given)
        assert all(1 <= len(x.tokens) <= 8 for x in found)
        return found

    policy, stage = policy_of("llama"), stage_of(tmp_path, [*SHORT, *LONG], most=40)
    stage.generator(policy)
    monkeypatch.setattr(engine.BuiltinSampler, "sample", sampled)
    stage.generator(policy)
    texts = [PROMPTER.encode_prompt(problem) for problem in (SHORT[0], SHORT[1], LONG[0], LONG[1])]
    assert seen[-1] == [text for text in texts for _ in range(2)]


def test_nothing_is_drawn_from_the_runs_random_numbers_and_nothing_is_left_changed(
    tmp_path: Path,
) -> None:
    policy = policy_of("llama")
    policy.train()
    before: list[Tensor] = [torch.get_rng_state(), *(p.clone() for p in policy.parameters())]
    generator = stage_of(tmp_path, LONG).generator(policy)
    after = [torch.get_rng_state(), *policy.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in policy.parameters())
    assert policy.training
    assert isinstance(generator.sampler, engine.BuiltinSampler)
    assert generator.sampler.value_head is policy.value_head


def test_it_takes_no_time_worth_mentioning(tmp_path: Path) -> None:
    policy, stage = policy_of("llama"), stage_of(tmp_path, LONG)
    stage.generator(policy)
    started = time.process_time()
    stage.generator(policy)
    assert time.process_time() - started < 2.0
