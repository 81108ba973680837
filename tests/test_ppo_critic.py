"""The critic of PPO from step to step: what it remembers, when it learns alone, in which units."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from made_rollouts import RUBBISH, graded_sample, make_rollouts, padded
from precision import CLOSE, float64
from reftune.config import Config, Ppo
from reftune.config.files import parse_config
from reftune.model.batch import collate
from reftune.model.policy import PolicyWithValue, TokenStats
from reftune.model.value_head import ValueHead
from reftune.stages.ppo.critic import (
    Beside,
    critic_loss,
    learns_alone,
    note_pretraining,
    set_units,
    value_head,
)
from reftune.stages.ppo.targets import compute_advantages
from reftune.stages.ppo.update import value_passes
from reftune.training.learner import Learner, LossFn
from reftune.training.losses import two_hot_loss, value_loss
from reftune.training.optimizer import make_optimizer
from reftune.training.types import AdvantagesAndReturns, Rollouts
from reftune.training.value_features import group, surprise
from tiny_models import tiny_model

FEATURED = Ppo(value_features=["surprise", "group"], samples_per_question=3, gae_lambda=1.0, kl_coef=0.1)


def drawn(seed: int) -> Rollouts:
    """Return random rollouts of two questions, one sample of which nobody judged."""
    rng = random.Random(seed)
    graded, logprobs, values = [], [], []
    for i in range(6):
        tokens = [rng.randrange(2) for _ in range(rng.randint(1, 4))]
        status = "sandbox_error" if i == 4 else "ok"
        graded.append(graded_sample(f"q{i // 3}", tokens, rng.choice((0.0, 1.0)), status=status))  # type: ignore[arg-type]
        logprobs.append([-rng.random() for _ in tokens])
        values.append([rng.gauss(0, 1) for _ in tokens])
    reference = [[x - 0.3 for x in row] for row in logprobs]
    return make_rollouts(graded, logprobs, reference=reference, values=values)


def take(rollouts: Rollouts, ppo: Ppo, memory: dict[str, Any]) -> tuple[Beside, AdvantagesAndReturns]:
    beside = Beside(rollouts, ppo, memory)
    estimates = compute_advantages(rollouts, ppo, beside.values)
    beside.learn(rollouts, estimates, memory)
    return beside, estimates


def test_without_features_nothing_is_said_and_nothing_remembered() -> None:
    memory: dict[str, Any] = {}
    assert take(drawn(1), Ppo(), memory)[0].values is None
    assert memory == {}


def test_at_first_values_are_the_mean_reward_of_the_questions_other_samples() -> None:
    graded = [graded_sample("a", [5, 6], reward) for reward in (1.0, 0.5, 0.0)]
    beside = Beside(make_rollouts(graded, [[-1.0, -2.0]] * 3), FEATURED, {})
    assert beside.values is not None
    torch.testing.assert_close(beside.values, torch.tensor([[0.25] * 2, [0.5] * 2, [0.75] * 2]))


def test_values_are_those_of_a_regression_on_what_followed_in_the_steps_before() -> None:
    memory: dict[str, Any] = {}
    squares, products = 10 * np.eye(7), 10 * np.array([0.0, 0, 0, 1, 0, 0, 0])
    for step in range(4):
        rollouts = drawn(step)
        memory = json.loads(json.dumps(memory))  # as in a checkpoint
        beside, estimates = take(rollouts, FEATURED, memory)
        known = torch.cat(
            [surprise(rollouts, {}), group(rollouts, {}), rollouts.mask.unsqueeze(2)], dim=2
        ).numpy()
        expected = known @ np.linalg.solve(squares, products)
        assert beside.values is not None
        np.testing.assert_allclose(beside.values.numpy(), expected, atol=1e-5)
        # the head's values are what it need not explain; rewards are what followed, gamma being 1
        followed = estimates.token_rewards.flip(1).cumsum(1).flip(1)
        x = known[rollouts.mask.bool().numpy()]
        y = (followed - rollouts.values)[rollouts.mask.bool()].numpy()
        # centred on the first weights: (S + 10) w = P + 10 w0
        fading = 0.7
        squares = fading * (squares - 10 * np.eye(7)) + x.T @ x + 10 * np.eye(7)
        first = 10 * np.array([0.0, 0, 0, 1, 0, 0, 0])
        products = fading * (products - first) + x.T @ y + first
    assert list(memory) == ["value_regression"]


def test_success_rates_are_those_of_the_steps_before() -> None:
    ppo, memory = Ppo(value_features=["success_rate"]), dict[str, Any]()
    graded = [graded_sample("a", [5], reward) for reward in (1.0, 1.0, 0.0, 1.0)]
    rollouts = make_rollouts(graded, [[-1.0]] * 4)
    first, _ = take(rollouts, ppo, memory)
    assert not first.known[:, :, :2].any(), "nothing is known of it yet"
    memory["rates"] = {"a": [0.75, 0]}  # as `Agenda.keep` leaves it behind the step
    second, _ = take(rollouts, ppo, memory)
    torch.testing.assert_close(second.known[0, 0], torch.tensor([0.75, 1, 1], dtype=torch.float64))


def test_the_critic_learns_alone_in_the_first_steps_until_it_is_pretrained() -> None:
    ppo = Ppo(value_pretraining_steps=3)
    assert [learns_alone(step, ppo, {}) for step in (1, 3, 4)] == [True, True, False]
    assert not learns_alone(2, ppo, {"pretrained": 1})
    assert not learns_alone(1, Ppo(), {})


@pytest.mark.parametrize(
    ("explained", "end"),
    [
        ([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 6),  # it learns on until the cap
        ([0.0, 0.1, 0.2, 0.205, 0.208, 0.5], 5),  # 0.2 + 0.01 in neither of two steps
        ([0.0, 0.1, 0.2, 0.205, 0.215, 0.3], 6),  # in the second of them
        ([0.5, 0.1, 0.2, 0.6, 0.7, 0.8], 3),  # it gets worse
        ([0.3, 0.1, 0.4, 0.2, 0.3, 0.3], 5),  # the best of all steps before counts
        ([-2.0, -1.0, -0.5, -0.5, -0.5, 0.0], 5),
    ],
)
def test_pretraining_ends_where_explained_variance_is_flat(explained: list[float], end: int) -> None:
    ppo, memory = Ppo(value_pretraining_steps=6), dict[str, Any]()
    for step in range(1, 7):
        if not learns_alone(step, ppo, memory):
            break
        note_pretraining(step, explained[step - 1], ppo, memory)
        memory = json.loads(json.dumps(memory))
    assert memory == {"pretraining": explained[:end], "pretrained": end}


def test_units_follow_the_running_mean_and_deviation_of_returns_by_hand() -> None:
    head, memory = ValueHead(1, 0, "normalised"), dict[str, Any]()
    head.weight.data.fill_(3.0)
    state, mask = torch.tensor([[2.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    set_units(head, torch.tensor([[1.0, 5.0], [3.0, 99.0]]), mask, memory)
    first = [3.0, (8 / 3) ** 0.5]  # of 1, 5, 3
    assert memory["units"] == pytest.approx(first)
    set_units(head, torch.tensor([[2.0, 2.0], [2.0, 99.0]]), mask, memory)
    expected = [0.9 * 3 + 0.1 * 2, 0.9 * first[1]]
    assert memory["units"] == pytest.approx(expected)
    assert [head.mean.item(), head.deviation.item()] == pytest.approx(expected)
    assert head.value(head(state)).item() == pytest.approx(6.0)  # what it said before


def test_units_are_never_so_small_that_numbers_explode() -> None:
    head, memory = ValueHead(1, 0, "normalised"), dict[str, Any]()
    set_units(head, torch.ones(2, 2), torch.ones(2, 2), memory)
    assert head.deviation.item() == pytest.approx(1e-3)
    assert memory["units"] == [1.0, 0.0]


def test_units_stay_where_there_is_nothing_to_go_by() -> None:
    memory: dict[str, Any] = {}
    normalised = ValueHead(1, 0, "normalised")
    set_units(normalised, torch.ones(1, 2), torch.zeros(1, 2), memory)
    set_units(None, torch.ones(1, 2), torch.ones(1, 2), memory)
    for targets in ("plain", "two_hot"):
        set_units(ValueHead(1, 0, targets), torch.ones(1, 2), torch.ones(1, 2), memory)  # type: ignore[arg-type]
    assert (normalised.mean.item(), normalised.deviation.item(), memory) == (0.0, 1.0, {})


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers])


def test_each_kind_of_target_has_its_loss() -> None:
    nothing = torch.zeros(1, 2)
    outputs = torch.arange(102.0).reshape(1, 2, 51).sin()
    stats = TokenStats(nothing, nothing, row(3.0, 1.0), outputs)
    given = (row(2.0, 1.0), row(5.0, 0.5), row(1.0, 1.0))
    plain = value_loss(stats.values, *given, 0.2)
    for head in (None, ValueHead(1)):
        torch.testing.assert_close(critic_loss(head, stats, *given, 0.2), plain)
    head = ValueHead(1, 0, "normalised")
    head.renormalise(0.7, 2.0)
    # In units of 2: 1.5 from 1 towards 2.5, which is cut at 1.2, and 0.5 from 0.5 towards 0.25:
    # 1.3^2 / 2 and 0.25^2 / 2; the mean moves all of them
    found = critic_loss(head, stats, *given, 0.2)
    torch.testing.assert_close(found, row(1.69 / 2, 0.0625 / 2))
    head = ValueHead(1, 0, "two_hot", (0.0, 6.0))
    expected = two_hot_loss(outputs, given[1], given[2], torch.linspace(0, 6, 51))
    torch.testing.assert_close(critic_loss(head, stats, *given, 0.2), expected)


def test_the_head_is_found_behind_a_wrapper() -> None:
    policy = PolicyWithValue(tiny_model("gpt2"), "shared")
    wrapped = torch.nn.Module()
    wrapped.module = policy
    assert value_head(policy) is value_head(wrapped) is policy.value_head
    assert value_head(PolicyWithValue(tiny_model("gpt2"))) is None


# prompt, response; the fourth is one that nobody judged
TEXTS = [
    ([3, 4, 5], [10, 11, 12, 13]),
    ([3, 4, 5], [10, 11, 20]),
    ([3, 4, 5], [14]),
    ([6, 7], [10, 15, 16]),
    ([6, 7], [18, 19]),
]
JUDGED = [0, 1, 2, 4]


class Recorder(Learner):
    """A learner that notes the rows, the rates and the loss of each optimizer step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rows: list[list[int]] = []
        self.rates: list[list[float]] = []
        self.told: list[dict[str, float]] = []

    def step(
        self, rows: Sequence[int], lengths: Sequence[int], loss_fn: LossFn, groups: Any = None
    ) -> dict[str, float]:
        self.rows.append(list(rows))
        self.rates.append([group["lr"] for group in self.optimizer.param_groups])
        assert list(lengths) == [len(prompt) + len(response) for prompt, response in TEXTS]
        assert groups == [0, 0, 0, 1, 1]
        self.told.append(super().step(rows, lengths, loss_fn, groups))
        return self.told[-1]


def make_policy(targets: str = "plain", critic: str = "shared") -> PolicyWithValue:
    policy = PolicyWithValue(tiny_model("gpt2"), critic, lambda width: ValueHead(width, 0, targets))  # type: ignore[arg-type]
    assert policy.value_head is not None
    torch.manual_seed(5)
    policy.value_head.weight.data += 0.1 * torch.randn_like(policy.value_head.weight)
    return policy


def make_batch() -> tuple[Rollouts, AdvantagesAndReturns]:
    graded = [
        graded_sample("a" if i < 3 else "b", response, 1.0, prompt=prompt,
                      status="sandbox_error" if i == 3 else "ok")
        for i, (prompt, response) in enumerate(TEXTS)
    ]  # fmt: skip
    rng = random.Random(0)
    rows = [[rng.gauss(0, 0.3) for _ in response] for _, response in TEXTS]
    rollouts = make_rollouts(graded, rows, values=[[0.5 * x for x in row] for row in rows])
    returns = padded([[rng.random() for _ in response] for _, response in TEXTS])
    rubbish = torch.full_like(returns, RUBBISH)
    return rollouts, AdvantagesAndReturns(rubbish, rubbish, returns, rubbish, rubbish)


def settings(*more: str) -> Config:
    given = ["model.scratch=tiny", "ppo.value_coef=0.6", "ppo.value_clip_range=0.15", *more]
    return parse_config({}, given, "test")


def make_learner(policy: PolicyWithValue, budget: int = 4096, *, shared_out: bool = False) -> Recorder:
    optimizer = make_optimizer(policy, 1e-3, 0.0, 1e-2)
    model = DistributedDataParallel(policy) if shared_out else policy
    learner = Recorder(model, optimizer, Accelerator(cpu=True), budget, 1e9)
    learner.model.eval()
    return learner


def mean_value_loss(policy: PolicyWithValue, rows: Sequence[int]) -> float:
    """Return the mean over responses of the clipped value loss, token by token."""
    rollouts, targets = make_batch()
    total = 0.0
    for i in rows:
        prompt, response = TEXTS[i]
        with torch.no_grad():
            values = policy(collate([prompt], [response])).values[0].tolist()
        for t, value in enumerate(values):
            old, aim = rollouts.values[i, t].item(), targets.returns[i, t].item()
            near = min(max(value, old - 0.15), old + 0.15)
            total += max((value - aim) ** 2, (near - aim) ** 2) / 2 / len(values) / len(rows)
    return total


@pytest.mark.parametrize("budget", [4096, 8])
@float64()
def test_a_pass_has_the_clipped_value_loss_of_the_judged_samples(budget: int) -> None:
    policy = make_policy()
    expected = 0.6 * mean_value_loss(policy, JUDGED)
    learner = make_learner(policy, budget)
    value_passes(learner, *make_batch(), settings("ppo.value_epochs=1"), 1)
    assert [sorted(rows) for rows in learner.rows] == [JUDGED]
    assert learner.told[0]["loss"] == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_in_value_passes_the_critic_learns_and_the_policy_rests(critic: str) -> None:
    policy = make_policy(critic=critic)
    before, loss = copy.deepcopy(policy.state_dict()), mean_value_loss(policy, JUDGED)
    learner = make_learner(policy)
    learner.set_learning_rates(0.5, 0.5)  # of the update before
    value_passes(learner, *make_batch(), settings("ppo.value_epochs=6", "ppo.minibatch_size=3"), 1)
    for name, parameter in policy.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == name.startswith("value_head") or name.startswith("value_backbone"), name
    assert mean_value_loss(policy, JUDGED) < loss
    assert learner.rates == [[0.0, 1e-2]] * 12
    # Each pass is over all that was judged, its questions in an order of its own.
    passes = [learner.rows[i] + learner.rows[i + 1] for i in range(0, 12, 2)]
    assert [len(rows) for rows in learner.rows] == [3, 1] * 6
    assert all(sorted(rows) == JUDGED for rows in passes)
    assert len(set(map(tuple, passes))) == 2


@pytest.mark.parametrize(
    ("family", "critic"), [("llama", "shared"), ("llama", "separate"), ("gemma2", "shared")]
)
@float64()
def test_values_alone_are_those_of_a_whole_pass_without_a_logit(family: str, critic: str) -> None:
    """Gemma 2 caps its logits: its body is the whole model, and the critic reads its backbone."""
    policy, logits = PolicyWithValue(tiny_model(family), critic), []
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    prompts, responses = zip(*TEXTS, strict=True)
    batch = collate(prompts, responses)
    whole = policy(batch)
    head = policy.policy.get_output_embeddings()
    handle = head.register_forward_hook(lambda *_: logits.append(1))
    alone = policy(batch, values_only=True)
    assert not logits, "of the policy nothing is said"
    policy(batch)
    assert logits
    handle.remove()
    torch.testing.assert_close(alone.values, whole.values)
    torch.testing.assert_close(alone.value_outputs, whole.value_outputs)
    assert not alone.logprobs.any()
    assert not alone.entropies.any()


def test_value_passes_compute_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(make_policy())
    monkeypatch.setattr(PolicyWithValue, "_stats", None)
    value_passes(learner, *make_batch(), settings("ppo.value_epochs=1"), 1)
    assert learner.rows


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_value_passes_work_where_the_model_is_shared_out(critic: str, tmp_path: Path) -> None:
    """DDP stops at the second pass unless each weight got a gradient in the first, be it 0."""
    alone, policy = make_policy(critic=critic), make_policy(critic=critic)
    learner, passes = make_learner(alone), settings("ppo.value_epochs=3")
    value_passes(learner, *make_batch(), passes, 1)
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        value_passes(make_learner(policy, shared_out=True), *make_batch(), passes, 1)
    finally:
        torch.distributed.destroy_process_group()
    for found, expected in zip(policy.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_value_passes_of_another_step_have_other_orders_and_a_repeated_one_has_the_same() -> None:
    def orders(step: int, *more: str) -> list[list[int]]:
        learner = make_learner(make_policy())
        value_passes(learner, *make_batch(), settings("ppo.value_epochs=4", *more), step)
        return learner.rows

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    assert orders(1) != orders(1, "seed=43")


def test_without_value_passes_or_anything_judged_nothing_is_learnt() -> None:
    learner = make_learner(make_policy())
    value_passes(learner, *make_batch(), settings(), 1)
    rollouts, targets = make_batch()
    rollouts.mask[:] = 0
    value_passes(learner, rollouts, targets, settings("ppo.value_epochs=2"), 1)
    assert learner.rows == []


@pytest.mark.parametrize("targets", ["normalised", "two_hot"])
def test_value_passes_teach_every_kind_of_head(targets: str) -> None:
    policy, (rollouts, estimates) = make_policy(targets), make_batch()
    set_units(policy.value_head, estimates.returns, rollouts.mask, {})

    def error() -> float:
        with torch.no_grad():
            values = policy(collate(*(list(part) for part in zip(*TEXTS, strict=True)))).values
        return float(((values - estimates.returns) * rollouts.mask).square().sum())

    before, learner = error(), make_learner(policy)
    value_passes(
        learner, rollouts, estimates, settings("ppo.value_epochs=40", "ppo.value_clip_range=9"), 1
    )
    assert error() < 0.6 * before
