"""The recipe in one file takes the steps that the product takes, given the same samples."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from made_rollouts import graded_sample
from recipes import ppo_minimal
from recipes.ppo_minimal import Args
from reftune.config import Config, Model, Ppo, Prompt, Synthetic
from reftune.data.problems import write_problems
from reftune.data.synthetic.generator import generate
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.model.scratch import new_model
from reftune.problem import Cot, Verdict
from reftune.stages.ppo.targets import compute_advantages
from reftune.stages.ppo.update import update
from reftune.training.learner import Learner
from reftune.training.optimizer import make_optimizer
from reftune.training.rollouts import compute_logprobs, question_groups
from reftune.training.types import GradedSample, Rollouts
from tiny_models import EOS, tiny_model

# question, prompt, response, reward; without an EOS at its end a response was cut off
SAMPLES = [
    ("a", [3, 4, 5], [10, 11, 12, 13, EOS], 1.0),
    ("a", [3, 4, 5], [10, 11, EOS], 0.1),
    ("a", [3, 4, 5], [10, 14, 14, 15, 10, 11, 20, 21], 0.0),
    ("b", [6, 7, 3, 4, 8, 9], [EOS], 0.0),
    ("b", [6, 7, 3, 4, 8, 9], [30, 31, 32, 33, 34, 35, EOS], 1.0),
    ("c", [9], [40, 41], 0.0),
]
# The gradient is cut to a fifth or less.
ARGS = Args(
    model="", temperature=0.7, ppo_epochs=1, learning_rate=1e-3, value_head_learning_rate=1e-2,
    max_grad_norm=0.5, kl_coef=0.2, gamma=0.9, gae_lambda=0.8, clip_range=0.1, value_clip_range=0.15,
    value_coef=0.7,
)  # fmt: skip


class Step:
    """Loss, gradients (after clipping) and new weights of one optimizer step."""

    def __init__(self, loss: float, language_model: nn.Module, value_head: nn.Module) -> None:
        named = [*language_model.named_parameters(), *value_head.named_parameters("value_head")]
        self.loss = loss
        self.weights = {name: p.detach().double().clone() for name, p in named}
        self.gradients = {name: p.grad.double().clone() for name, p in named if p.grad is not None}


def product_step(
    model: PreTrainedModel, reference: PreTrainedModel, head: nn.Linear, drift: list[Tensor], args: Args
) -> Step:
    """Take the product's step; the weights move by `drift` between scoring and learning."""
    names = [name for name in Ppo.model_fields if hasattr(args, name)]
    assert len(names) == 14
    ppo = Ppo(**{name: getattr(args, name) for name in names})
    config = Config(name="test", model=Model(scratch="tiny"), ppo=ppo)
    policy, accelerator = PolicyWithValue(model, "shared").eval(), Accelerator(cpu=True)
    assert policy.value_head is not None
    policy.value_head.load_state_dict(head.state_dict())
    graded = [
        graded_sample(question, response, reward, prompt=prompt, finished=response[-1] == EOS)
        for question, prompt, response, reward in SAMPLES
    ]
    rollouts = read_with_the_product(graded, policy, PolicyWithValue(reference), args.temperature)
    estimates = compute_advantages(rollouts, config.ppo)
    move([*model.parameters(), *policy.value_head.parameters()], drift)
    optimizer = make_optimizer(policy, args.learning_rate, 0.0, args.value_head_learning_rate)
    learner = Learner(policy, optimizer, accelerator, 4096, args.max_grad_norm)
    told = update(learner, rollouts, estimates, config, 1)
    return Step(told["loss"], model, policy.value_head)


def read_with_the_product(
    graded: list[GradedSample], policy: PolicyWithValue, reference: PolicyWithValue, temperature: float
) -> Rollouts:
    """Return rollouts as `read_batch` makes them of samples from an engine of its own."""
    reading = (graded, temperature, 4096, Accelerator(cpu=True))
    stats = compute_logprobs(policy, *reading)
    logprobs, values = stats.logprobs, stats.values
    lengths = torch.tensor([len(g.sample.tokens) for g in graded])
    return Rollouts(
        samples=graded,
        groups=torch.tensor(question_groups(graded)),
        rewards=torch.tensor([g.verdict.reward for g in graded]),
        mask=(torch.arange(logprobs.shape[1]) < lengths[:, None]).float(),
        sampler_logprobs=logprobs,
        logprobs=logprobs,
        ref_logprobs=compute_logprobs(reference, *reading).logprobs,
        values=values,
    )


def recipe_step(
    model: PreTrainedModel, reference: PreTrainedModel, head: nn.Linear, drift: list[Tensor], args: Args
) -> Step:
    """Take the recipe's step, likewise."""
    head = copy.deepcopy(head).double()
    _, prompts, responses, rewards = zip(*SAMPLES, strict=True)
    batch = ppo_minimal.make_batch(
        model, reference, head, prompts, responses, torch.tensor(rewards), args
    )
    move([*model.parameters(), *head.parameters()], drift)
    optimizer = ppo_minimal.make_optimizer(model, head, args)
    (loss,) = ppo_minimal.update(model, head, optimizer, batch, args)
    return Step(loss, model, head)


def move(parameters: list[nn.Parameter], drift: list[Tensor]) -> None:
    for parameter, change in zip(parameters, drift, strict=True):
        parameter.data += change


# Without drift no clip has anything to do: the ratio is 1, and the values are the old ones.
@pytest.mark.parametrize("drift", [0.0, 0.01])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.usefixtures("kept_gradients")
def test_a_step_of_the_recipe_is_the_products(family: str, drift: float) -> None:
    model, reference = tiny_model(family).double(), tiny_model(family).double()
    generator = torch.Generator().manual_seed(7)
    move(list(reference.parameters()), noise(reference, 0.02, generator))
    head = nn.Linear(32, 1)
    head.weight.data.normal_(0, 0.1, generator=generator)
    head.bias.data.fill_(0.3)
    changes = noise(model, drift, generator) + noise(head, drift, generator)
    product = product_step(copy.deepcopy(model), reference, head, changes, ARGS)
    recipe = recipe_step(copy.deepcopy(model), reference, head, changes, ARGS)

    # All is float64 but the product's value head and what it noted of the samples, log-probabilities and
    # values: float32, where a number of 5 is off by 3e-7.
    assert recipe.loss == pytest.approx(product.loss, rel=1e-5)
    assert recipe.gradients.keys() == product.gradients.keys() == recipe.weights.keys()
    norm = math.sqrt(sum(float(g.square().sum()) for g in product.gradients.values()))
    assert norm == pytest.approx(ARGS.max_grad_norm, rel=1e-5), "there was something to clip"
    for name, expected in product.gradients.items():
        torch.testing.assert_close(recipe.gradients[name], expected, rtol=1e-5, atol=1e-6 * norm)
        # Adam's first step is rate * g / (|g| + 1e-8): nearly the sign of g. Where |g| is above 1e-4 of
        # the norm, an error of 1e-6 of the norm changes the step by 2e-6 of the rate.
        rate = ARGS.value_head_learning_rate if "value_head" in name else ARGS.learning_rate
        sure = expected.abs() > 1e-4 * norm
        assert sure.any(), name
        found, wanted = recipe.weights[name][sure], product.weights[name][sure]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * rate)


def noise(module: nn.Module, scale: float, generator: torch.Generator) -> list[Tensor]:
    return [scale * torch.randn(p.shape, generator=generator) for p in module.parameters()]


def test_samples_are_the_policys_up_to_their_eos_whatever_the_padding() -> None:
    model, prompts = tiny_model(seed=1), [[3, 4, 5, 6, 7, 8], [9], [10, 11], [12, 13, 14]]
    args = replace(ARGS, temperature=1e-4, max_new_tokens=12)  # always the likeliest token
    alone = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and EOS not in ids:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        alone.append(ids[len(prompt) :])
    assert {response[-1] == EOS for response in alone} == {True, False}
    assert ppo_minimal.sample(model, prompts, EOS, args) == alone


def test_samples_come_from_the_distribution_that_is_scored() -> None:
    torch.manual_seed(0)
    model, count = tiny_model(seed=1), 10_000
    model.generation_config.top_k = 3  # as models are shipped with
    args = replace(ARGS, temperature=3.0, max_new_tokens=1)
    sampled = [tokens for (tokens,) in ppo_minimal.sample(model, [[9, 8]] * count, EOS, args)]
    logits = model(input_ids=torch.tensor([[9, 8]])).logits[0, -1]
    expected = count * torch.softmax(logits / 3, dim=-1)
    found = torch.tensor(sampled).bincount(minlength=60)
    assert ((found - expected).abs() < 4 * expected.sqrt()).all()
    assert expected.min() > 16  # so a token that never comes would be noticed


@pytest.mark.parametrize("cot", ["program", "natural"])
def test_the_recipe_asks_and_reads_as_the_product_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cot: Cot
) -> None:
    problems = generate(Synthetic(), 12, 3, cot)
    (tmp_path / "data").mkdir()
    write_problems(tmp_path / "data/train.jsonl", problems)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    settings = Model(scratch="tiny", vocab_size=260, scratch_overrides=size)
    model, tokenizer = new_model(settings, [p.question for p in problems], 1)
    prompter = Prompter(tokenizer, Prompt(repeat_question=False), cot)
    model.save_pretrained(tmp_path / "warmup/model")
    prompter.save(tmp_path / "warmup/model")
    expected, graded, batches = [], [], []

    def sample(policy: object, prompts: list[list[int]], eos: int, args: Args) -> list[list[int]]:
        asked = {tuple(prompter.encode_prompt(problem)): problem for problem in problems}
        rest = [tokenizer(f"    return {k}\n").input_ids for k in range(len(prompts))]
        responses = [ids + [eos] * (k % 4 != 0) for k, ids in enumerate(rest)]  # a quarter is cut off
        for prompt, response in zip(prompts, responses, strict=True):
            problem = asked[tuple(prompt)]
            text = prompter.decode(problem, response, response[-1] == eos)
            expected.append((text, problem.answer))
        return responses

    def grade(completions: list[str], answers: list[str], *, cot: Cot) -> list[Verdict]:
        graded.extend(zip(completions, answers, strict=True))
        return [Verdict("ok", 1.0, True, 1.0) for _ in completions]

    def make_batch(policy: nn.Module, *args: Any) -> ppo_minimal.Batch:
        assert not policy.training  # no dropout
        batches.append(original_make_batch(policy, *args))
        return batches[-1]

    original_make_batch = ppo_minimal.make_batch
    monkeypatch.setattr(ppo_minimal, "make_batch", make_batch)
    monkeypatch.setattr(ppo_minimal, "sample", sample)
    monkeypatch.setattr(ppo_minimal, "grade", grade)
    ppo_minimal.main(
        replace(Args(str(tmp_path / "warmup/model"), cot=cot), steps=2, questions_per_step=6)
    )
    first, second = capsys.readouterr().out.splitlines()
    assert graded == expected
    assert len(graded) == 2 * 6 * 8
    assert first.startswith("step 1  reward 0.750  right 75.0%  KL 0.000 ")
    assert "KL 0.000" not in second
    assert [batch.values.any().item() for batch in batches] == [False, True]
    assert len({answer for _, answer in graded}) > 3
