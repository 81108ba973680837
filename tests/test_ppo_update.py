"""The update against a plain twin: every response read alone, losses in loops over tokens."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from made_rollouts import graded_sample, make_rollouts, padded
from precision import CLOSE, float64
from reftune.config import Config, Ppo
from reftune.config.files import parse_config
from reftune.config.ppo import KINDS
from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.sampling.sampler import Sample
from reftune.stages.ppo.loss import counted_and_read
from reftune.stages.ppo.targets import compute_advantages
from reftune.stages.ppo.update import update
from reftune.training.learner import Learner, LossFn
from reftune.training.losses import KL_LOSSES, POLICY_LOSSES
from reftune.training.types import AdvantagesAndReturns, Rollouts
from tiny_models import tiny_model

# prompt, response: three of one question, two of another, one of a third; some begin alike
TEXTS = [
    ([3, 4, 5], [10, 11, 12, 13]),
    ([3, 4, 5], [10, 11, 20]),
    ([3, 4, 5], [14]),
    ([6, 7], [10, 15, 16, 17, 1]),
    ([6, 7], [18, 19]),
    ([8, 9, 8, 9, 8], [21, 22, 23]),
]
TEMPERATURE = 0.7
SETTINGS = [
    "model.scratch=tiny", "name=test", f"ppo.temperature={TEMPERATURE}", "ppo.value_coef=0.6",
    "ppo.clip_range=0.3", "ppo.value_clip_range=0.15", "ppo.max_grad_norm=1e9",
]  # fmt: skip


class Twin:
    """The same weights in a model of its own, and PPO's equations (docs/algorithm.md) token by token."""

    def __init__(self, policy: PolicyWithValue) -> None:
        self.model = tiny_model("gpt2").double()
        self.model.load_state_dict(policy.policy.state_dict())
        self.backbone = self.model.base_model
        if policy.value_backbone is not None:
            self.backbone = tiny_model("gpt2").double().base_model
            self.backbone.load_state_dict(policy.value_backbone.state_dict())
        assert policy.value_head is not None
        self.head = nn.Linear(32, 1, dtype=torch.float64)
        self.head.load_state_dict(policy.value_head.state_dict())

    def parameters(self) -> dict[str, Tensor]:
        """Return the weights under the names that they have in the policy."""
        found = {f"policy.{name}": p for name, p in self.model.named_parameters()}
        if self.backbone is not self.model.base_model:
            found |= {f"value_backbone.{name}": p for name, p in self.backbone.named_parameters()}
        return found | {f"value_head.{name}": p for name, p in self.head.named_parameters()}

    def read(self, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and value of each token of a response."""
        ids = torch.tensor([sample.prompt + sample.tokens])
        before = slice(len(sample.prompt) - 1, -1)
        probabilities = torch.softmax(self.model(input_ids=ids).logits[0, before] / TEMPERATURE, dim=-1)
        chosen = torch.stack(
            [row[token] for row, token in zip(probabilities, sample.tokens, strict=True)]
        )
        entropies = -(probabilities * probabilities.log()).sum(-1)
        states = self.backbone(input_ids=ids).last_hidden_state[0, before]
        return chosen.log(), entropies, states @ self.head.weight[0] + self.head.bias

    def learn(
        self, rollouts: Rollouts, targets: AdvantagesAndReturns, rows: Sequence[int], weigh: float
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of some rows and what the update says of it; `weigh` is alpha."""
        policy_losses, value_losses, tokens, sums = [], [], 0, Counter[str]()
        for row in rows:
            policy_terms, value_terms = [], []
            logprobs, entropies, values = self.read(rollouts.samples[row].sample)
            for t in range(len(logprobs)):
                old, advantage = rollouts.logprobs[row, t].item(), targets.advantages[row, t].item()
                ratio = torch.exp(logprobs[t]) / math.exp(old)
                bounded = min(max(ratio.item(), 0.7), 1.3)
                unclipped = -advantage * ratio
                policy_terms.append(unclipped if unclipped >= -advantage * bounded else
                                    torch.tensor(-advantage * bounded))  # fmt: skip
                before, aim = rollouts.values[row, t].item(), targets.returns[row, t].item()
                near = min(max(values[t].item(), before - 0.15), before + 0.15)
                far_off = (values[t] - aim) ** 2 >= (near - aim) ** 2
                value_terms.append(0.5 * (values[t] - aim) ** 2 if far_off else
                                   torch.tensor(0.5 * (near - aim) ** 2))  # fmt: skip
                sums["ratio_mean"] += ratio.item()
                sums["clip_fraction"] += abs(ratio.item() - 1) > 0.3
                sums["approx_kl"] += ratio.item() - 1 - (logprobs[t].item() - old)
                sums["entropy"] += entropies[t].item()
                sums["logprob_gap"] += abs((logprobs[t] - rollouts.sampler_logprobs[row, t]).item())
            tokens += len(logprobs)
            policy_losses.append(sum(policy_terms) / len(policy_terms))
            value_losses.append(sum(value_terms) / len(value_terms))
        policy, value = sum(policy_losses) / len(rows), sum(value_losses) / len(rows)
        loss = policy + weigh * value
        told = {"loss": loss, "policy_loss": policy, "value_loss": value}
        return loss, {k: v.item() for k, v in told.items()} | {k: v / tokens for k, v in sums.items()}

    def all_terms(
        self, rollouts: Rollouts, targets: AdvantagesAndReturns, aggregation: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss with every term, coefficients 0.6, 0.3, -0.2 and 0.1, and the terms."""
        names = ("policy_loss", "value_loss", "kl_loss", "entropy_bonus")
        totals = {name: torch.zeros(()) for name in names}
        surprise, right_tokens, every_token = torch.zeros(()), 0, 4 + 3 + 1 + 5 + 2 + 3
        assert rollouts.ref_logprobs is not None
        for row, graded in enumerate(rollouts.samples):
            logprobs, entropies, values = self.read(graded.sample)
            n = len(logprobs)
            share = {"sequence_mean": 1 / n / 6, "token_mean": 1 / every_token,
                     "constant_length": 1 / 7 / 6}[aggregation]  # fmt: skip
            for t in range(n):
                advantage, aim = targets.advantages[row, t], targets.returns[row, t]
                ratio = torch.exp(logprobs[t] - rollouts.logprobs[row, t])
                bounded = min(max(ratio.item(), 0.88), 1.3) * advantage
                gain = ratio * advantage if ratio * advantage <= bounded else bounded
                gain = gain if gain >= 1.5 * advantage or advantage > 0 else 1.5 * advantage
                before = rollouts.values[row, t]
                near = before + min(max((values[t] - before).item(), -0.15), 0.15)
                far_off = (values[t] - aim) ** 2 >= (near - aim) ** 2
                error = 0.5 * ((values[t] if far_off else near) - aim) ** 2
                change = torch.exp(rollouts.ref_logprobs[row, t] - logprobs[t])
                kl = change - 1 - torch.log(change)
                for name, term in zip(names, (-gain, error, kl, entropies[t]), strict=True):
                    totals[name] = totals[name] + share * term
            if graded.verdict.correct:
                surprise, right_tokens = surprise - logprobs.sum(), right_tokens + n
        totals["positive_loss"] = surprise / right_tokens
        weights = {"policy_loss": 1, "value_loss": 0.6, "kl_loss": 0.3, "entropy_bonus": -0.2,
                   "positive_loss": 0.1}  # fmt: skip
        return sum((weights[n] * totals[n] for n in totals), torch.zeros(())), totals


class Recorder(Learner):
    """A learner that notes which rows each optimizer step had, and what came of it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rows: list[list[int]] = []
        self.shapes: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()  # lengths and groups
        self.told: list[dict[str, float]] = []

    def step(
        self, rows: Sequence[int], lengths: Sequence[int], loss_fn: LossFn, groups: Any = ()
    ) -> dict[str, float]:
        self.rows.append(list(rows))
        self.shapes.add((tuple(lengths), tuple(groups)))
        self.told.append(super().step(rows, lengths, loss_fn, groups))
        return self.told[-1]


class Lost(Learner):
    """A learner whose every step gives the same."""

    def __init__(self, *args: Any, **sums: float) -> None:
        super().__init__(*args)
        self.sums = sums

    def step(self, *_: Any) -> dict[str, float]:
        return self.sums


def settings(*changes: str, **ppo: Any) -> Config:
    """Return a run's settings; `ppo` are some that a run would not be let do with these."""
    config = parse_config({}, [*SETTINGS, *changes], "test")
    return config.model_copy(update={"ppo": config.ppo.model_copy(update=ppo)})


def make_policy(critic: str = "shared") -> PolicyWithValue:
    """Return a policy whose critic says something."""
    policy = PolicyWithValue(tiny_model("gpt2"), critic)
    if policy.value_head is not None:
        generator = torch.Generator().manual_seed(5)
        policy.value_head.weight.data.normal_(0, 0.1, generator=generator)
        policy.value_head.bias.data.fill_(0.3)
    if policy.value_backbone is not None:  # a copy that has learned something else
        for parameter in policy.value_backbone.parameters():
            parameter.data *= 1.1
    return policy.eval()


def make_batch(policy: PolicyWithValue) -> tuple[Rollouts, AdvantagesAndReturns]:
    """Return rollouts of a policy that has moved since, and targets drawn at random.

    So much that in many tokens a clip takes over, of the ratio and of the value, on either side.
    """
    graded = [graded_sample(str(prompt[0]), tokens, 0.0, prompt=prompt) for prompt, tokens in TEXTS]
    generator = torch.Generator().manual_seed(1)

    def noise(tokens: Tensor, scale: float) -> list[float]:
        drawn = scale * torch.randn(len(tokens), generator=generator, dtype=torch.float64)
        return (tokens.detach() + drawn).tolist()

    twin = Twin(policy)
    read = [twin.read(a.sample) for a in graded]
    logprobs = [noise(logprobs, 0.4) for logprobs, _, _ in read]
    sampler = [noise(torch.tensor(row), 0.1) for row in logprobs]
    values = [noise(values, 0.3) for _, _, values in read]
    rollouts = make_rollouts(graded, logprobs, sampler=sampler, values=values)
    zeros = [torch.zeros(len(row)) for row in logprobs]
    advantages = padded([noise(row, 1.0) for row in zeros])
    returns = padded([noise(torch.tensor(row), 0.5) for row in values])
    nothing = torch.zeros_like(returns)
    return rollouts, AdvantagesAndReturns(nothing, advantages, returns, nothing, nothing)


def make_learner(
    policy: PolicyWithValue, config: Config, kind: type[Learner] = Recorder, **more: float
) -> Any:
    # Plain gradient steps: Adam would blow rounding of gradients near 0 up to whole steps.
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    budget, norm = config.compute.tokens_per_microbatch or 4096, config.ppo.max_grad_norm
    return kind(policy, optimizer, Accelerator(cpu=True), budget, norm, **more)


@pytest.mark.parametrize("critic", ["shared", "separate"])
# All rows at once; some; one in each thread's replica, and then two threads have none.
@pytest.mark.parametrize(("budget", "threads"), [(4096, 1), (20, 1), (1, 4)])
@float64()
@pytest.mark.usefixtures("kept_gradients")
def test_loss_and_gradient_are_the_twins(
    monkeypatch: pytest.MonkeyPatch, critic: str, budget: int, threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    policy = make_policy(critic)
    twin, (rollouts, targets) = Twin(policy), make_batch(policy)
    config = settings(f"compute.tokens_per_microbatch={budget}", ppo_epochs=1)
    loss, expected = twin.learn(rollouts, targets, range(6), 0.6)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters().values()))
    told = update(make_learner(policy, config), rollouts, targets, config, 3)
    assert told == pytest.approx({**expected, "grad_norm": norm}, rel=CLOSE)
    assert 0.2 < expected["clip_fraction"] < 0.8
    for name, parameter in policy.named_parameters():
        found, wanted = parameter.grad, twin.parameters()[name].grad
        assert found is not None
        torch.testing.assert_close(found, wanted, rtol=CLOSE, atol=CLOSE)


ALL_TERMS: dict[str, Any] = {
    "clip_range": 0.12, "clip_range_high": 0.3, "dual_clip": 1.5, "kl_penalty": "loss_k3",
    "kl_coef": 0.3, "entropy_coef": 0.2, "positive_coef": 0.1,
}  # fmt: skip


def with_right_samples(rollouts: Rollouts) -> Rollouts:
    """Return rollouts of which three are right, and whose reference is another policy."""
    samples = [
        replace(a, verdict=replace(a.verdict, correct=i in (0, 3, 4)))
        for i, a in enumerate(rollouts.samples)
    ]
    noise = torch.randn(6, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return replace(rollouts, samples=samples, ref_logprobs=rollouts.logprobs + 0.3 * noise)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant_length"])
@pytest.mark.parametrize(("budget", "threads"), [(4096, 1), (20, 1), (1, 4)])
@float64()
@pytest.mark.usefixtures("kept_gradients")
def test_every_term_is_the_twins_however_the_minibatch_is_cut(
    monkeypatch: pytest.MonkeyPatch, aggregation: str, budget: int, threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    policy = make_policy()
    twin, (rollouts, targets) = Twin(policy), make_batch(policy)
    rollouts = with_right_samples(rollouts)
    changes = (f"compute.tokens_per_microbatch={budget}", "prompt.max_new_tokens=7")
    config = settings(*changes, ppo_epochs=1, loss_aggregation=aggregation, **ALL_TERMS)
    loss, terms = twin.all_terms(rollouts, targets, aggregation)
    loss.backward()
    told = update(make_learner(policy, config), rollouts, targets, config, 3)
    expected = {name: term.item() for name, term in terms.items()} | {"loss": loss.item()}
    assert {name: told[name] for name in expected} == pytest.approx(expected, rel=CLOSE)
    # Of 18 ratios 0.768, 0.780, 0.858 and 0.845 are low where A < 0, 1.508 and 1.471 high where A > 0,
    # 1.839 and 1.429 high where A < 0, the first of which is beyond 1.5.
    parts = {"": 8, "_low": 4, "_high": 2}
    assert {part: told[f"clip_fraction{part}"] * 18 for part in parts} == pytest.approx(parts)
    assert told["dual_clip_fraction"] * 18 == pytest.approx(1)
    for name, parameter in policy.named_parameters():
        found, wanted = parameter.grad, twin.parameters()[name].grad
        assert found is not None
        torch.testing.assert_close(found, wanted, rtol=CLOSE, atol=CLOSE)


def policy_losses(
    name: str, new: Tensor, old: Tensor, sampler: Tensor, advantages: Tensor
) -> list[tuple[Tensor, bool]]:
    """Return the loss of each token of one response, and whether a bound has taken its gradient.

    The bounds are 0.12 and 0.3 (gspo: of the whole response), 0.003 of a probability.
    """
    found = []
    whole = math.exp(float((new.detach() - old).mean()))
    for logprob, before, drawn, a in zip(new, old.tolist(), sampler.tolist(), advantages.tolist(),
                                         strict=True):  # fmt: skip
        ratio = math.exp(logprob.item() - before)
        moved = math.exp(logprob.item()) - math.exp(drawn)
        if name == "cispo":
            found.append((-min(ratio, 1.3) * a * logprob, ratio > 1.3))
            continue
        if name == "dppo_tv":
            bound, stops = ratio, a * moved > 0 and abs(moved) > 0.003
        else:
            ratio = whole if name == "gspo" else ratio
            bound = min(max(ratio, 0.88), 1.3)
            stops = bound * a < ratio * a
        # The gradient of a ratio is the ratio times that of the logarithm.
        slope = logprob - logprob.item()
        kept = -a * ratio * (1 + slope)
        found.append((torch.tensor(-a * bound) * (name != "dppo_tv") if stops else kept, stops))
    return found


KL_OF = dict(zip(POLICY_LOSSES, itertools.cycle(KL_LOSSES), strict=False))  # each is tried once


@pytest.mark.parametrize("name", POLICY_LOSSES)
@pytest.mark.parametrize("budget", [4096, 1])
@float64()
@pytest.mark.usefixtures("kept_gradients")
def test_each_policy_loss_and_kl_loss_is_learnt_from_as_it_says(name: str, budget: int) -> None:
    policy = make_policy()
    twin, (rollouts, targets) = Twin(policy), make_batch(policy)
    rollouts = with_right_samples(rollouts)
    assert rollouts.ref_logprobs is not None
    losses, far, stopped = {"policy_loss": torch.zeros(()), "kl_loss": torch.zeros(())}, 0, 0
    for row, graded in enumerate(rollouts.samples):
        new, _, _ = twin.read(graded.sample)
        n = len(new)
        cut = (rollouts.logprobs, rollouts.sampler_logprobs, targets.advantages)
        terms = policy_losses(name, new, *(tensor[row, :n] for tensor in cut))
        change = new - rollouts.ref_logprobs[row, :n]
        kl = {"loss_k1": change, "loss_k2": change**2 / 2, "loss_k3": torch.exp(-change) - 1 + change}
        losses["policy_loss"] = losses["policy_loss"] + sum(term for term, _ in terms) / n / 6
        losses["kl_loss"] = losses["kl_loss"] + kl[KL_OF[name]].sum() / n / 6
        stopped, far = stopped + sum(stops for _, stops in terms), far + n
    assert 0 < stopped < far
    (losses["policy_loss"] + 0.3 * losses["kl_loss"]).backward()
    config = settings(
        f"compute.tokens_per_microbatch={budget}", ppo_epochs=1, policy_loss=name, clip_range=0.12,
        clip_range_high=0.3, tv_range=0.003, kl_penalty=KL_OF[name], kl_coef=0.3, value_coef=0.0,
    )  # fmt: skip
    told = update(make_learner(policy, config), rollouts, targets, config, 3)
    expected = {name: loss.item() for name, loss in losses.items()}
    assert {name: told[name] for name in expected} == pytest.approx(expected, rel=CLOSE)
    for part, parameter in policy.policy.named_parameters():
        wanted = twin.parameters()[f"policy.{part}"].grad
        torch.testing.assert_close(parameter.grad, wanted, rtol=CLOSE, atol=CLOSE)


@float64()
def test_right_samples_are_those_of_the_minibatch() -> None:
    policy = make_policy()
    twin, (rollouts, targets) = Twin(policy), make_batch(policy)
    rollouts = with_right_samples(rollouts)
    config = settings("ppo.minibatch_size=2", ppo_epochs=1, positive_coef=0.1)
    learner = make_learner(policy, config)
    update(learner, rollouts, targets, config, 3)
    right = [i for i in learner.rows[0] if rollouts.samples[i].verdict.correct]
    read = [twin.read(rollouts.samples[i].sample)[0] for i in right]
    assert 0 < len(right) < 3
    surprise = -sum(float(row.detach().sum()) for row in read) / sum(map(len, read))
    assert learner.told[0]["positive_loss"] == pytest.approx(surprise, rel=CLOSE)


@float64()
def test_without_a_right_sample_there_is_nothing_to_imitate() -> None:
    policy = make_policy()
    rollouts, targets = make_batch(policy)
    config = settings(ppo_epochs=1, positive_coef=0.1)
    told = update(make_learner(policy, config), rollouts, targets, config, 3)
    assert told["positive_loss"] == 0
    assert told["loss"] == pytest.approx(told["policy_loss"] + 0.6 * told["value_loss"], rel=CLOSE)


@pytest.mark.parametrize(
    ("term", "name"),
    [
        ({"kl_penalty": "loss_k3"}, "kl_loss"),
        ({"entropy_coef": 0.2}, "entropy_bonus"),
        ({"positive_coef": 0.2}, "positive_loss"),
        ({"kl_penalty": "loss_k3", "kl_coef": 0.0}, ""),
        ({}, ""),
    ],
)
def test_terms_that_do_not_go_by_advantages_are_taken_over_all_rows(
    term: dict[str, Any], name: str
) -> None:
    policy = make_policy()
    rollouts, targets = make_batch(policy)
    targets.advantages[:3] = 0.0
    config = settings(ppo_epochs=1, advantage="group", **term)
    learner = make_learner(policy, config)
    told = update(learner, with_right_samples(rollouts), targets, config, 3)
    assert [sorted(rows) for rows in learner.rows] == [list(range(6)) if name else [3, 4, 5]]
    terms = {"kl_loss", "entropy_bonus", "positive_loss"}
    assert terms & told.keys() == ({name} if name else set())


@float64()
def test_a_live_denominator_leaves_whole_questions_out() -> None:
    policy = make_policy()
    twin, (rollouts, targets) = Twin(policy), make_batch(policy)
    targets.advantages[4] = 0.0  # of a question that counts: two samples were rewarded otherwise
    # The samples of the first were rewarded alike, whatever a KL penalty makes of it; the third has one.
    rewards = torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0, 1.0], dtype=torch.float64)
    rollouts = replace(rollouts, rewards=rewards)
    config = settings(ppo_epochs=1, advantage="group", live_denominator=True)
    loss, _ = twin.learn(rollouts, targets, range(3, 5), 0.0)
    learner = make_learner(policy, config)
    told = update(learner, rollouts, targets, config, 3)
    assert told["loss"] == pytest.approx(loss.item(), rel=CLOSE)
    assert [sorted(rows) for rows in learner.rows] == [[3]]
    config = settings(ppo_epochs=1, advantage="group", live_denominator=True, entropy_coef=0.1)
    learner = make_learner(policy, config)
    update(learner, rollouts, targets, config, 3)
    assert [sorted(rows) for rows in learner.rows] == [[3, 4]]


@pytest.mark.parametrize("advantage", [name for name, kind in KINDS.items() if kind.compares])
def test_a_question_is_live_by_its_rewards_whatever_the_estimator(advantage: str) -> None:
    rewards = [(q, r) for q, given in {"a": (0.1,) * 3, "b": (1.0, 0.0), "c": (1.0,) * 3}.items()
               for r in given]  # fmt: skip
    graded = [graded_sample(q, [10, 11], reward) for q, reward in rewards]
    graded.append(graded_sample("a", [10, 11], 1.0, status="sandbox_error"))
    logprobs = [[-1.0 - i / 10, -0.5] for i in range(9)]
    for kl_coef, all_same in ((0.0, advantage != "reinforce++"), (0.1, False)):
        reference = [[a - 0.2, b] for a, b in logprobs[:4]] + logprobs[4:]
        rollouts = make_rollouts(graded, logprobs, reference=reference)
        rollouts.logprobs[0] += 0.3  # so that a penalty tells samples of one question apart
        ppo = Ppo(advantage=advantage, live_denominator=True, kl_coef=kl_coef, samples_per_question=3)
        counted, read = counted_and_read(rollouts, compute_advantages(rollouts, ppo), ppo)
        assert counted == [False] * 3 + [True] * 2 + [False] * 3 + [False]
        if all_same:
            assert read == [False] * 3 + [True] * 2 + [False] * 4


def test_the_entropy_bonus_rises_below_its_target_and_rests_above() -> None:
    policy = make_policy()
    rollouts, targets = make_batch(policy)
    memory: dict[str, Any] = {}
    told = []
    for target in (99.0, 99.0, 99.0, 1e-3, 1e-3, 1e-3, 99.0):
        config = settings(ppo_epochs=1, entropy_target=target)
        told.append(update(make_learner(policy, config), rollouts, targets, config, 3, memory))
        memory = json.loads(json.dumps(memory))  # as a checkpoint keeps it
    # In the fourth step the entropy is already known to be above the new target.
    expected = [0.0, 0.005, 0.01, 0.0, 0.0, 0.0, 0.0]
    assert [step["entropy_coef"] for step in told] == pytest.approx(expected)
    assert memory == {"entropy_coef": pytest.approx(0.005), "entropy": told[-1]["entropy"]}
    assert ["entropy_bonus" in step for step in told] == [c > 0 for c in expected]


@float64()
def test_a_whole_update_is_the_twins_gradient_steps() -> None:
    policy = make_policy()
    twin, (rollouts, targets) = Twin(policy), make_batch(policy)
    config = settings("ppo.ppo_epochs=2", "ppo.minibatch_size=4", "ppo.max_grad_norm=0.3")
    learner = make_learner(policy, config)
    told = update(learner, rollouts, targets, config, 3)
    history = []
    for rows in learner.rows:  # plain gradient descent, at the learner's rate
        loss, sums = twin.learn(rollouts, targets, rows, 0.6)
        gradients = torch.autograd.grad(loss, list(twin.parameters().values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        assert norm > 0.3, "there is something to clip"
        for parameter, gradient in zip(twin.parameters().values(), gradients, strict=True):
            parameter.data -= 0.1 * gradient * 0.3 / (norm + 1e-6)  # torch's clipping adds that
        history.append({**sums, "grad_norm": norm})
    for found, expected in zip(learner.told, history, strict=True):
        assert found == pytest.approx(expected, rel=CLOSE)
    means = {key: sum(h[key] for h in history) / 4 for key in history[0]}
    # The gap between sampler and trainer is that of the weights that sampled: of the first minibatch.
    means["logprob_gap"] = history[0]["logprob_gap"]
    assert told == pytest.approx(means, rel=CLOSE)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter, twin.parameters()[name], rtol=0, atol=CLOSE)


@float64()
@pytest.mark.usefixtures("kept_gradients")
def test_without_a_critic_the_value_loss_moves_nothing() -> None:
    policy = make_policy()
    twin, (rollouts, targets) = Twin(policy), make_batch(policy)
    config = settings(ppo_epochs=1, advantage="group")
    loss, expected = twin.learn(rollouts, targets, range(6), 0.0)
    loss.backward()
    told = update(make_learner(policy, config), rollouts, targets, config, 3)
    assert told["loss"] == pytest.approx(expected["policy_loss"], rel=CLOSE)
    assert told["value_loss"] == pytest.approx(expected["value_loss"], rel=CLOSE)
    found = policy.policy.get_input_embeddings().weight.grad
    wanted = twin.model.get_input_embeddings().weight.grad
    torch.testing.assert_close(found, wanted, rtol=CLOSE, atol=CLOSE)
    assert policy.value_head is not None
    assert not policy.value_head.weight.grad.any()


@float64()
@pytest.mark.usefixtures("kept_gradients")
def test_rows_without_advantages_are_not_read_where_there_is_no_critic() -> None:
    """They had no gradient; the loss is still divided by all six."""
    policy = make_policy()
    twin, (rollouts, targets) = Twin(policy), make_batch(policy)
    targets.advantages[:3] = 0.0
    config = settings(ppo_epochs=1, advantage="group")
    loss, _ = twin.learn(rollouts, targets, range(6), 0.0)
    loss.backward()
    _, seen = twin.learn(rollouts, targets, range(3, 6), 0.0)
    learner = make_learner(policy, config)
    told = update(learner, rollouts, targets, config, 3)
    assert [sorted(rows) for rows in learner.rows] == [[3, 4, 5]]
    found = policy.policy.get_input_embeddings().weight.grad
    wanted = twin.model.get_input_embeddings().weight.grad
    torch.testing.assert_close(found, wanted, rtol=CLOSE, atol=1e-8)
    assert told["loss"] == pytest.approx(loss.item(), abs=1e-7)
    for key in ("entropy", "ratio_mean", "clip_fraction", "approx_kl"):  # of what was read
        assert told[key] == pytest.approx(seen[key], rel=CLOSE)


def test_with_a_critic_rows_without_advantages_are_read_for_their_values() -> None:
    policy = make_policy()
    rollouts, targets = make_batch(policy)
    targets.advantages[:] = 0.0
    config = settings(ppo_epochs=1)
    learner = make_learner(policy, config)
    update(learner, rollouts, targets, config, 3)
    assert [sorted(rows) for rows in learner.rows] == [list(range(6))]


def test_where_nothing_is_to_be_learned_no_step_is_taken() -> None:
    policy = make_policy()
    rollouts, targets = make_batch(policy)
    targets.advantages[:] = 0.0
    config = settings(ppo_epochs=2, advantage="group")
    learner = make_learner(policy, config)
    assert update(learner, rollouts, targets, config, 3) == {}
    assert learner.rows == []


def test_each_pass_has_every_row_once_in_minibatches_of_whole_questions() -> None:
    policy = make_policy()
    rollouts, targets = make_batch(policy)
    config = settings("ppo.ppo_epochs=3", "ppo.minibatch_size=4")
    orders = []
    for step in (3, 4):
        learner = make_learner(policy, config)
        update(learner, rollouts, targets, config, step)
        assert [len(rows) for rows in learner.rows] == [4, 2] * 3
        assert learner.shapes == {
            ((7, 6, 4, 7, 4, 8), (0, 0, 0, 1, 1, 2))
        }  # with their prompts of 3, 2, 5
        orders += [learner.rows[i] + learner.rows[i + 1] for i in (0, 2, 4)]
    # Where questions 0, 1, 2 stand is what random.Random("42/update/3/0") and so on make of [0, 1, 2]:
    # in step 3 [0, 2, 1], [2, 1, 0], [0, 1, 2], then [1, 2, 0], [2, 1, 0], [0, 2, 1].
    assert orders == [
        [0, 1, 2, 5, 3, 4], [5, 3, 4, 0, 1, 2], [0, 1, 2, 3, 4, 5],
        [5, 0, 1, 2, 3, 4], [5, 3, 4, 0, 1, 2], [0, 1, 2, 5, 3, 4],
    ]  # fmt: skip


def test_one_minibatch_of_all_rows_is_the_default() -> None:
    policy = make_policy()
    rollouts, targets = make_batch(policy)
    learner = make_learner(policy, settings())
    update(learner, rollouts, targets, settings(), 1)
    assert [sorted(rows) for rows in learner.rows] == [list(range(6))] * 2


@pytest.mark.parametrize("size", [3, 6])
@float64()
def test_rows_that_nobody_judged_teach_nothing(size: int) -> None:
    config = settings(ppo_epochs=1, minibatch_size=size)
    weights, steps, told = [], [], []
    for change in (lambda *given: given, with_an_unjudged_row):
        policy = make_policy()
        rollouts, targets = change(*make_batch(policy))
        learner = make_learner(policy, config)
        update(learner, rollouts, targets, config, 3)
        steps.append(learner.rows)
        told.append(learner.told)
        weights.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    # Unclipped gradient steps: one more row in the mean would shorten them by a quarter or a seventh.
    assert steps[1] == steps[0]
    for found, expected in zip(*told, strict=True):
        assert found == pytest.approx(expected, rel=CLOSE)
        assert found["grad_norm"] > 0.1
    torch.testing.assert_close(*weights, rtol=0, atol=CLOSE)


def with_an_unjudged_row(
    rollouts: Rollouts, targets: AdvantagesAndReturns
) -> tuple[Rollouts, AdvantagesAndReturns]:
    """Add a response that nobody judged to the second question, with rubbish for numbers."""
    unjudged = graded_sample("6", [30, 31], 0.0, prompt=[6, 7], status="sandbox_error")
    longer = make_rollouts([*rollouts.samples, unjudged], [[0.0] * 5] * 7)
    for name in ("logprobs", "sampler_logprobs", "values"):
        getattr(longer, name)[:6] = getattr(rollouts, name)
        getattr(longer, name)[6:] = -1.0
    rubbish = torch.full((1, 5), 50.0, dtype=torch.float64)
    parts = (getattr(targets, f.name) for f in fields(targets))
    return longer, AdvantagesAndReturns(*(torch.cat([part, rubbish]) for part in parts))


def test_a_batch_of_which_nothing_was_judged_is_no_update() -> None:
    policy = make_policy()
    graded = [graded_sample("a", [10, 11], 0.0, status="sandbox_error")]
    rollouts = make_rollouts(graded, [[-1.0, -2.0]])
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    learner = make_learner(policy, settings())
    assert update(learner, rollouts, AdvantagesAndReturns(*[nothing] * 5), settings(), 1) == {}
    assert learner.rows == []


def test_a_non_finite_loss_stops_the_run_and_saves_the_samples(tmp_path: Path) -> None:
    policy = make_policy()
    rollouts, targets = make_batch(policy)
    targets.advantages[3, 1] = math.nan
    config = settings(f'output_dir="{tmp_path}"', "ppo.minibatch_size=4")
    learner = make_learner(policy, config)
    with pytest.raises(UserError) as error:
        update(learner, rollouts, targets, config, 3)
    saved = tmp_path / "test" / "ppo" / "non_finite_step_3.json"
    assert str(error.value) == (
        f"ppo: the loss is not finite (nan) at step 3; its samples are in {saved}. Lower"
        " ppo.learning_rate or raise ppo.kl_coef under a new --name"
    )
    rows = learner.rows[-1]
    assert 3 in rows
    assert [row["id"] for row in json.loads(saved.read_text())] == [str(TEXTS[i][0][0]) for i in rows]
    assert all(p.isfinite().all() for p in policy.parameters())  # that step was not taken


@pytest.mark.parametrize(
    ("loss", "norm"),
    [(math.inf, 1.0), (math.nan, 1.0), (1.0, math.inf), (1.0, math.nan), (-math.inf, 0)],
)
def test_neither_loss_nor_gradient_may_be_non_finite(tmp_path: Path, loss: float, norm: float) -> None:
    policy = make_policy()
    rollouts, targets = make_batch(policy)
    config = settings(f'output_dir="{tmp_path}"')
    (config.run_dir / "ppo/checkpoints/step-00000007").mkdir(parents=True)
    learner = make_learner(policy, config, Lost, loss=loss, grad_norm=float(norm))
    with pytest.raises(
        UserError, match=r"not finite \(.*\) at step 1; [^(]*--name \(the weights .*step-00000007\)$"
    ):
        update(learner, rollouts, targets, config, 1)


def test_only_the_main_process_saves_the_samples_of_a_non_finite_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    policy = make_policy()
    rollouts, targets = make_batch(policy)
    config = settings(f'output_dir="{tmp_path}"')
    lost = {"loss": math.nan, "grad_norm": 1.0}
    with pytest.raises(UserError, match="not finite"):
        update(make_learner(policy, config, Lost, **lost), rollouts, targets, config, 1)
    assert not list(tmp_path.rglob("*.json"))
