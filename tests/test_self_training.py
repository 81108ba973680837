"""What self-training learns from, and that online self-training is the loss it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional

from precision import CLOSE, float64
from reftune.config import Prompt
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.model.scratch import train_tokenizer
from reftune.problem import Problem, Row, UserError, Verdict
from reftune.sampling.sampler import Sample
from reftune.stages.self_training import half_and_half, own_examples, run_offline_st
from reftune.stages.supervised import Example, train_on
from reftune.training.learner import Learner
from reftune.training.types import GradedSample
from tiny_models import tiny_model
from tiny_stage import ScriptedJudge, make_policy, make_stage

PROBLEM = Problem("p", "2 + 2?", "4", "def solution():\n    return 2 + 2")
PROMPTER = Prompter(
    train_tokenizer(["Question: 2 + 2? Answer reasoning: def solution(): return 4"], 300),
    Prompt(repeat_question=False),
    "program",
)


def row(body: str, correct: bool = True) -> Row:
    completion = f"def solution():\n    {body}"
    return {"id": "p", "completion": completion, "correct": correct}


def spell(example: Example) -> str:
    return str(PROMPTER.tokenizer.decode(example[1], skip_special_tokens=True))


def test_different_right_samples_are_taken_in_their_order_up_to_a_number() -> None:
    samples = [row("return 5", False), row("return 2 + 2"), row("return 4"), row("return 2 * 2")]
    bodies = [
        spell(example).removeprefix("def solution():\n    ")
        for example in own_examples(PROMPTER, [PROBLEM], {"p": samples}, 2)
    ]
    assert bodies == ["return 4", "return 2 * 2"]  # the wrong one and the annotated one are left out
    assert len(own_examples(PROMPTER, [PROBLEM], {"p": samples}, 1)) == 1
    assert own_examples(PROMPTER, [PROBLEM], {"q": samples}, 2) == []


def test_a_question_without_annotation_gives_its_samples_all_the_same() -> None:
    bare = Problem("p", "2 + 2?", "4")
    assert len(own_examples(PROMPTER, [bare], {"p": [row("return 2 + 2"), row("return 4")]}, 5)) == 2


def test_a_sample_is_learnt_from_as_it_would_have_been_annotated() -> None:
    [own] = own_examples(PROMPTER, [Problem("p", "2 + 2?", "4")], {"p": [row("return 2 + 2")]}, 5)
    assert own == PROMPTER.encode_example(PROBLEM)


def graded_sample(tokens: list[int], correct: bool) -> GradedSample:
    sample = Sample([5, 6], tokens, [0.0] * len(tokens), True)
    return GradedSample(PROBLEM, sample, "", Verdict("ok", 4.0, correct, float(correct)))


def test_both_halves_weigh_the_same_however_long_they_are() -> None:
    graded = [graded_sample([7, 8, 9], True), graded_sample([7], False), graded_sample([7, 1], True)]
    batch, weights = half_and_half(PROMPTER, [PROBLEM], graded)
    gold = PROMPTER.encode_example(PROBLEM)
    assert batch == [([5, 6], [7, 8, 9]), ([5, 6], [7, 1]), gold]
    assert weights == [0.1, 0.1, 0.5 / len(gold[1])]


def test_without_a_right_sample_the_annotated_half_stands_alone_with_its_half() -> None:
    gold = PROMPTER.encode_example(PROBLEM)
    assert half_and_half(PROMPTER, [PROBLEM], [graded_sample([7], False)]) == (
        [gold],
        [0.5 / len(gold[1])],
    )
    bare = Problem("p", "2 + 2?", "4")
    assert half_and_half(PROMPTER, [bare], [graded_sample([7], False)]) == ([], [])


def test_where_some_questions_have_no_chain_their_right_samples_count_like_the_others() -> None:
    bare, gold = Problem("b", "3 + 1?", "4"), PROMPTER.encode_example(PROBLEM)
    graded = [graded_sample([7, 8, 9], True), graded_sample([7], False)]  # of bare, and of PROBLEM
    batch, weights = half_and_half(PROMPTER, [bare, PROBLEM], graded)
    assert batch == [([5, 6], [7, 8, 9]), gold]
    assert weights == [0.5 / 3, 0.5 / len(gold[1])]
    assert half_and_half(PROMPTER, [bare], graded) == ([([5, 6], [7, 8, 9])], [0.5 / 3])


BARE = [Problem(f"t{i}", f"what is {i}?", f"{i}") for i in range(2)]


def test_without_chains_offline_self_training_learns_from_right_samples_alone(tmp_path: Path) -> None:
    settings = {"epochs": 1, "batch_size": 2}
    stage = make_stage(tmp_path, "offline_st", ScriptedJudge(1), offline_st=settings)
    right = {"t0": [row("1"), row("2", False)], "t1": [row("3")]}
    result = run_offline_st(replace(stage, train=BARE), make_policy(), right)
    assert (result["annotated_examples"], result["sampled_examples"]) == (0, 2)


def test_offline_self_training_without_chain_and_right_sample_has_nothing_to_learn_from(
    tmp_path: Path,
) -> None:
    stage = replace(make_stage(tmp_path, "offline_st"), train=BARE)
    with pytest.raises(UserError) as error:
        run_offline_st(stage, make_policy(), {"t0": [row("1", False)], "v0": [row("2")]})
    assert str(error.value) == (
        "offline_st: nothing to learn from: no question has a chain, and no warm-up sample of a training"
        " question is right; raise warmup_samples.per_question under a new --name"
    )


@float64()
def test_the_loss_is_half_of_each_mean_cross_entropy() -> None:
    own = [([3, 4], [5, 6, 7, 1]), ([3], [8, 1])]
    gold = [([9, 3, 4], [10, 1])]
    weights = [0.5 / 6, 0.5 / 6, 0.5 / 2]
    model = tiny_model().eval()
    expected = 0.5 * _mean_cross_entropy(model, own) + 0.5 * _mean_cross_entropy(model, gold)
    policy = PolicyWithValue(model)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    learner = Learner(policy, optimizer, Accelerator(cpu=True), 1000, 1.0)
    learner.model.eval()
    assert abs(train_on(learner, own + gold, weights)["loss"] - expected) < CLOSE


def _mean_cross_entropy(model: torch.nn.Module, examples: list[Example]) -> float:
    """Do what transformers does with labels: one row at a time, averaged over all target tokens."""
    losses = []
    for prompt, response in examples:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        losses.append(functional.cross_entropy(logits, torch.tensor(response), reduction="none"))
    return float(torch.cat(losses).mean())
