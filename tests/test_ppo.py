"""Steps of PPO on given samples: who is asked for what, at which rates, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from reftune import progress
from reftune.config import Ppo, Prompt
from reftune.config.files import parse_config
from reftune.model.loading import load_model
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.model.scratch import train_tokenizer
from reftune.model.value_head import ValueHead
from reftune.problem import Problem, UserError, Verdict
from reftune.sampling.sampler import Sample
from reftune.stages.ppo import step as module
from reftune.stages.ppo import update as ppo_update
from reftune.stages.ppo.step import run_ppo
from reftune.stages.ppo.targets import compute_advantages
from reftune.stages.stage import Stage
from reftune.training.learner import Learner
from reftune.training.rollouts import Generator, sequence_seed
from reftune.training.types import AdvantagesAndReturns, Rollouts
from reftune.training.value_features import group, success_rate, surprise
from tiny_models import tiny_model

TRAIN = [Problem(f"t{i}", f"what is {i}?", "1") for i in range(5)]
VALIDATION = [Problem(f"v{i}", f"what is 1{i}?", "1") for i in range(4)]

# What is sampled in every step for two questions, two samples each, and what the judge says of it.
RESPONSES = [[65, 66, 67], [68], [65, 69], [70, 71]]
VERDICTS = [
    Verdict("ok", 1.0, True, 1.0),
    Verdict("ok", 2.0, False, 0.1),
    Verdict("truncated", None, False, 0.0),
    Verdict("ok", 1.0, True, 1.0),
]

STEPS, OPTIMIZER_STEPS = 3, 6  # of each: three passes over two minibatches
SETTINGS = [
    "model.scratch=tiny", "name=test", "ppo.steps=3", "ppo.questions_per_step=2",
    "ppo.samples_per_question=2", "ppo.ppo_epochs=3", "ppo.minibatch_size=2",
    "ppo.value_pretraining_steps=1", "ppo.lr_warmup_steps=2", "ppo.temperature=0.7",
    "ppo.learning_rate=3e-3",
    "ppo.value_head_learning_rate=2e-2", "ppo.weight_decay=0.125", "ppo.max_grad_norm=0.75",
    "ppo.validate_every_steps=3", "ppo.kl_coef=0.2",
]  # fmt: skip


def judge(problems: Sequence[Problem], texts: Sequence[str], *_: object) -> list[Verdict]:
    return [VERDICTS[i % 4] for i in range(len(texts))]


class Given:
    """A sampler whose responses are given; it notes what it was asked for."""

    exact = False

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.prompts: list[list[list[int]]] = []
        self.seeds: list[list[int]] = []
        self.temperatures: list[float] = []

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
    ) -> list[Sample]:
        self.prompts.append([list(prompt) for prompt in prompts])
        self.seeds.append(list(seeds))
        self.temperatures.append(temperature)
        return [
            Sample(list(prompt), RESPONSES[i % 4], [-3.0] * len(RESPONSES[i % 4]), i % 4 != 2)
            for i, prompt in enumerate(prompts)
        ]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.weights.append({name: tensor.detach().clone() for name, tensor in weights})


@dataclass(frozen=True)
class Watched(Stage):
    """A stage with given samples, which notes what its learner is made of and does."""

    sampler: Given = field(default_factory=Given)
    learners: list[Learner] = field(default_factory=list)
    generators: list[Generator] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)  # of each optimizer step
    weights: list[dict[str, Tensor]] = field(default_factory=list)  # before each optimizer step

    def learner(self, model: Any, *settings: Any) -> Learner:
        def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
            self.rates.append([group["lr"] for group in optimizer.param_groups])
            self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

        self.learners.append(super().learner(model, *settings))
        self.learners[-1].optimizer.optimizer.register_step_pre_hook(note)
        return self.learners[-1]

    def generator(self, policy: PolicyWithValue) -> Generator:
        self.generators.append(super().generator(policy))
        return Generator(self.sampler, judge, self.prompter, self.accelerator)


@dataclass(frozen=True)
class Run:
    """Three steps, and what was noted of them."""

    stage: Watched
    policy: PolicyWithValue
    reference: PolicyWithValue
    result: dict[str, Any]
    rows: list[dict[str, Any]]


def make_stage(folder: Path, *more: str) -> Watched:
    tokenizer = train_tokenizer(["what is it? Question: Answer reasoning:"], 300)
    prompter = Prompter(tokenizer, Prompt(max_new_tokens=6), "natural")
    config = parse_config({}, [f'output_dir="{folder}"', *SETTINGS, *more], "test")
    return Watched("ppo", config, prompter, judge, TRAIN, VALIDATION, Accelerator(cpu=True))


def make_policies(targets: str = "plain") -> tuple[PolicyWithValue, PolicyWithValue]:
    """Return two different models; that of the policy has dropout, which PPO must switch off."""
    policy = PolicyWithValue(
        tiny_model("gpt2", vocab_size=300),
        "shared",
        lambda width: ValueHead(width, 0, targets),  # type: ignore[arg-type]
    ).train()
    return policy, PolicyWithValue(tiny_model("gpt2", seed=1, vocab_size=300)).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("ppo")
    stage, (policy, reference) = make_stage(folder), make_policies()
    result = run_ppo(stage, policy, reference)
    text = (folder / "test" / "ppo" / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return Run(stage, policy, reference, result, rows)


def read(weights: dict[str, Tensor], prompt: list[int], response: list[int]) -> Tensor:
    """Return the log-probability of a response to a model with these weights, read plainly."""
    model = tiny_model("gpt2", vocab_size=300)
    names = {name.removeprefix("policy."): tensor for name, tensor in weights.items()}
    model.load_state_dict({n: t for n, t in names.items() if not n.startswith("value_")}, strict=False)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits / 0.7, dim=-1)
    return sum((logprobs[t, token] for t, token in enumerate(response)), torch.zeros(()))


def test_kl_is_that_of_the_learning_policy_to_the_frozen_reference(run: Run) -> None:
    frozen = {name: p.detach() for name, p in run.reference.named_parameters()}
    for step, row in enumerate(run.rows):
        now = run.stage.weights[step * OPTIMIZER_STEPS]  # those that sampled
        samples = list(zip(run.stage.sampler.prompts[step], RESPONSES, strict=True))
        kl = sum(float(read(now, *sample) - read(frozen, *sample)) for sample in samples) / 4
        assert abs(kl) > 0.1, "two models that differ"
        # The mean of numbers below 25 after some fifty roundings: 25 * 50 * 6e-8 is less than 1e-4.
        assert row["kl"] == pytest.approx(kl, abs=1e-4)


def test_the_reference_stays_as_it_was(run: Run) -> None:
    _, reference = make_policies()
    for found, expected in zip(run.reference.parameters(), reference.parameters(), strict=True):
        assert torch.equal(found, expected)
        assert found.grad is None


def test_only_the_critic_learns_in_its_warmup_then_the_policys_rate_rises(run: Run) -> None:
    rates = [[policy, 2e-2] for policy in (0.0, 1.5e-3, 3e-3) for _ in range(OPTIMIZER_STEPS)]
    assert run.stage.rates == rates
    start, after_one, after_two = (run.stage.weights[i * OPTIMIZER_STEPS] for i in range(STEPS))
    for name, weight in start.items():
        assert torch.equal(weight, after_one[name]) == (not name.startswith("value_")), name
    assert any(not torch.equal(weight, after_two[name]) for name, weight in after_one.items()
               if not name.startswith("value_"))  # fmt: skip


def test_the_learner_is_made_of_the_settings(run: Run) -> None:
    [learner] = run.stage.learners
    assert learner.max_grad_norm == 0.75
    groups = learner.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.125, 0.125]
    assert [len(group["params"]) for group in groups] == [len(list(run.policy.policy.parameters())), 2]


def test_each_step_samples_its_questions_with_random_numbers_of_its_own(run: Run) -> None:
    sampler, encode = run.stage.sampler, run.stage.prompter.encode_prompt
    for step in (1, 2, 3):
        first, second = (encode(problem) for problem in run.stage.questions(step, 2))
        assert sampler.prompts[step - 1] == [first, first, second, second]
        keys = [(i, k) for i in (0, 1) for k in (0, 1)]
        assert sampler.seeds[step - 1] == [sequence_seed(42, "ppo", step, i, k) for i, k in keys]
    assert sampler.temperatures == [0.7, 0.7, 0.7, 0.0]  # validation is greedy


def test_the_policy_is_what_samples_and_what_is_kept(run: Run) -> None:
    [generator] = run.stage.generators
    assert generator.sampler.model is run.policy.policy  # type: ignore[attr-defined]
    kept = load_model(run.stage.directory / "model")
    for found, expected in zip(kept.parameters(), run.policy.policy.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_the_metrics_of_a_step(run: Run) -> None:
    told = {
        "step", "reward", "accuracy", "kl", "response_length", "truncated", "explained_variance",
        "sampler_weight", "sampler_truncated", "statuses", "loss", "policy_loss", "value_loss",
        "grad_norm", "ratio_mean", "clip_fraction", "approx_kl", "entropy", "logprob_gap",
        "seconds_rollouts", "seconds_sampling", "seconds_judging", "seconds_reading", "seconds_update",
        "tokens_per_second", "seconds", "learning_rate", "memory_gib", "groups_all_right",
        "groups_all_wrong", *(f"explained_variance/quarter_{k}" for k in (1, 2, 3, 4)),
    }  # fmt: skip
    validated = {"validation_accuracy", "seconds_validation"}
    assert [set(row) - told for row in run.rows] == [set(), set(), validated]
    assert [told - set(row) for row in run.rows] == [set()] * 3
    for row in run.rows:
        assert row["reward"] == pytest.approx(2.1 / 4)
        assert (row["accuracy"], row["response_length"], row["truncated"]) == (0.5, 2.0, 0.25)
        assert (row["groups_all_right"], row["groups_all_wrong"]) == (0.0, 0.0)
        assert row["statuses"] == {"ok": 3, "truncated": 1}
    rate = run.stage.config.ppo.learning_rate
    assert [row["learning_rate"] for row in run.rows] == [0.0, rate / 2, rate]  # rests, rises, is there
    # In the critic's warm-up the policy stays where it is, and there is no dropout.
    assert run.rows[0]["ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert run.rows[0]["clip_fraction"] == 0
    assert run.rows[1]["ratio_mean"] != pytest.approx(1, abs=1e-4)


def test_the_result_is_written(run: Run) -> None:
    written = json.loads((run.stage.directory / "result.json").read_text(encoding="utf-8"))
    assert run.result == written
    assert (run.result["best_step"], run.result["best_validation_accuracy"]) == (3, 0.5)


def test_seconds_are_those_between_sampling_scoring_and_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 103.0, 108.0] * STEPS)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    stage = make_stage(tmp_path)
    run_ppo(stage, *make_policies())
    lines = (stage.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for prompts, row in zip(stage.sampler.prompts, map(json.loads, lines), strict=False):
        assert (row["seconds_rollouts"], row["seconds_update"]) == (3.0, 5.0)
        assert row["tokens_per_second"] == (sum(map(len, prompts)) + 8) / 8.0


def test_what_sampling_judging_and_reading_took_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(1000))  # each count takes one second
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr(ppo_update, "counting", lambda *_: nullcontext(progress.Count("update", 1)))
    progress.seconds_spent()
    with progress.counting("sampling"):  # before the step: not its own
        next(ticks)
    stage = make_stage(tmp_path)
    run_ppo(stage, *make_policies())
    first = json.loads((stage.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert (first["seconds_sampling"], first["seconds_judging"]) == (1, 1)
    assert first["seconds_reading"] == 2  # once with the policy, once with the reference


def test_a_sampler_that_calls_itself_exact_and_is_not_stops_the_run(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.sampler.exact = True  # its -3 for every token is nowhere near what the policy says
    with pytest.raises(UserError, match=r"^ppo: at step 1 sampler and trainer differ by \d"):
        run_ppo(stage, *make_policies())
    assert not (stage.directory / "metrics.jsonl").exists()


def test_without_a_reference_steps_are_those_of_no_penalty_and_tell_no_kl(tmp_path: Path) -> None:
    kept: list[dict[str, Tensor]] = []
    for name, given in (("with", True), ("without", False)):
        stage = make_stage(tmp_path / name)
        ppo = stage.config.ppo.model_copy(update={"kl_coef": 0.0})
        stage = replace(stage, config=stage.config.model_copy(update={"ppo": ppo}))
        policy, reference = make_policies()
        run_ppo(stage, policy, reference if given else None)
        lines = (stage.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert all(("kl" in json.loads(line)) is given for line in lines)
        kept.append({name: p.detach().clone() for name, p in policy.named_parameters()})
    for name, weight in kept[0].items():
        assert torch.equal(weight, kept[1][name])


def test_the_entropys_coefficient_is_remembered_from_step_to_step(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    ppo = stage.config.ppo.model_copy(update={"entropy_target": 99.0})
    stage = replace(stage, config=stage.config.model_copy(update={"ppo": ppo}))
    run_ppo(stage, *make_policies())
    lines = (stage.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["entropy_coef"] for line in lines]
    assert found == pytest.approx([0.0, 0.0, 0.005])  # in the first step the critic learns alone


def test_a_broken_reference_stops_the_run_at_once(tmp_path: Path) -> None:
    stage, (policy, reference) = make_stage(tmp_path), make_policies()
    next(reference.parameters()).data.fill_(torch.nan)
    with pytest.raises(UserError, match=r"not finite \(.*\) at step 1; its samples are in"):
        run_ppo(stage, policy, reference)
    assert not (stage.directory / "metrics.jsonl").exists()
    saved = json.loads((stage.directory / "non_finite_step_1.json").read_text())
    assert len(saved) == 2  # a minibatch
    assert {row["id"] for row in saved} <= {problem.id for problem in TRAIN}


class Failing(Given):
    """The same, but it fails when it is asked for the third time."""

    def sample(self, *args: Any, **settings: Any) -> list[Sample]:
        if len(self.temperatures) == 2:
            raise RuntimeError("lost")
        return super().sample(*args, **settings)


@dataclass(frozen=True)
class Aim:
    """What one step aimed at."""

    rollouts: Rollouts
    estimates: AdvantagesAndReturns
    value_lambda: float | None


@pytest.fixture
def aims(monkeypatch: pytest.MonkeyPatch) -> list[Aim]:
    """Note what each step of a run aims at."""
    found: list[Aim] = []

    def noting(
        rollouts: Rollouts, ppo: Ppo, beside: Tensor | None, value_lambda: float | None
    ) -> AdvantagesAndReturns:
        estimates = compute_advantages(rollouts, ppo, beside, value_lambda)
        found.append(Aim(rollouts, estimates, value_lambda))
        return estimates

    monkeypatch.setattr(module, "compute_advantages", noting)
    return found


def test_values_are_the_heads_and_those_of_a_regression_on_the_steps_before(
    tmp_path: Path, aims: list[Aim]
) -> None:
    stage = make_stage(
        tmp_path, "ppo.value_pretraining_steps=0", "ppo.gae_lambda=1.0", "ppo.whiten=false",
        "ppo.importance_sampling_cap=0", 'ppo.value_features=["group", "success_rate", "surprise"]',
    )  # fmt: skip
    run_ppo(stage, *make_policies())
    first = 10 * np.eye(9)[0]  # ten tokens' worth of belief in the other samples' mean
    squares, products = np.zeros((9, 9)), np.zeros(9)
    rates: dict[str, float] = {}
    for step, aim in enumerate(aims, 1):
        rollouts, mask = aim.rollouts, aim.rollouts.mask
        parts = [group(rollouts, {}), success_rate(rollouts, rates), surprise(rollouts, {})]
        known = torch.cat([*parts, mask.unsqueeze(2)], dim=2).double().numpy()
        beside = known @ np.linalg.solve(squares + 10 * np.eye(9), products + first)
        values = rollouts.values.double().numpy() + beside
        np.testing.assert_allclose(aim.estimates.values.numpy(), values, atol=1e-5)
        followed = aim.estimates.token_rewards.flip(1).cumsum(1).flip(1).double().numpy()
        learnt = (followed - values) * mask.numpy()
        np.testing.assert_allclose(aim.estimates.advantages.numpy(), learnt, atol=1e-5)
        real = mask.numpy() > 0
        x, y = known[real], (followed - rollouts.values.double().numpy())[real]
        squares, products = 0.7 * squares + x.T @ x, 0.7 * products + x.T @ y
        # one of two samples of each question is right, in every step
        rates |= {problem.id: 0.5 for problem in stage.questions(step, 2)}
    assert len(aims) == STEPS
    assert rollouts.values.abs().max() > 1e-3, "the head has learnt something, too"


def test_pretraining_ends_when_flat_and_the_policys_schedule_begins_behind_it(
    tmp_path: Path, aims: list[Aim]
) -> None:
    stage = make_stage(
        tmp_path, "ppo.steps=6", "ppo.validate_every_steps=6", "ppo.value_pretraining_steps=5",
        "ppo.value_head_learning_rate=1e-9",  # it explains nothing, and goes on to
    )  # fmt: skip
    run_ppo(stage, *make_policies())
    # A first step, and two that add nothing to it; then the policy's rate rises for two.
    factors = [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    assert stage.rates == [[3e-3 * f, 1e-9] for f in factors for _ in range(OPTIMIZER_STEPS)]
    assert [aim.value_lambda for aim in aims] == [1.0, 1.0, 1.0, None, None, None]
    lines = (stage.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["learning_rate"] for line in lines] == [3e-3 * f for f in factors]
    start, end = stage.weights[0], stage.weights[3 * OPTIMIZER_STEPS]
    assert all(torch.equal(end[n], start[n]) for n in start if not n.startswith("value_"))


def test_behind_pretraining_the_heads_lambda_is_that_of_the_settings(
    tmp_path: Path, aims: list[Aim]
) -> None:
    run_ppo(make_stage(tmp_path, "ppo.value_lambda=0.5"), *make_policies())
    assert [aim.value_lambda for aim in aims] == [1.0, 0.5, 0.5]


def test_value_passes_move_the_critic_alone_behind_each_update(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, "ppo.value_epochs=2", "ppo.value_pretraining_steps=0")
    run_ppo(stage, *make_policies())
    passes = 4  # two over two minibatches
    assert stage.rates == [
        rates
        for policy in (1.5e-3, 3e-3, 3e-3)
        for rates in [[policy, 2e-2]] * OPTIMIZER_STEPS + [[0.0, 2e-2]] * passes
    ]
    for step in range(STEPS - 1):
        begin = step * (OPTIMIZER_STEPS + passes)
        updated, ended = begin + OPTIMIZER_STEPS, begin + OPTIMIZER_STEPS + passes
        for name, weight in stage.weights[updated].items():
            unmoved = torch.equal(weight, stage.weights[ended][name])
            assert unmoved == (not name.startswith("value_")), name
            assert not torch.equal(weight, stage.weights[begin][name]) or "bias" in name, name


def test_a_critic_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path: Path) -> None:
    settings = [
        "ppo.steps=4", "ppo.validate_every_steps=4", "ppo.value_pretraining_steps=2",
        "ppo.checkpoint_every_steps=1", "ppo.value_epochs=1", "ppo.kl_coef=0.05",
        'ppo.value_features=["group", "success_rate", "surprise"]',
    ]  # fmt: skip

    def ended(name: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        stage, (policy, reference) = make_stage(tmp_path / name, *settings), make_policies("normalised")
        run_ppo(stage, policy, reference)
        lines = (stage.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        timed = ("seconds", "tokens_per_second", "memory_gib")
        rows = [{k: v for k, v in json.loads(x).items() if not k.startswith(timed)} for x in lines]
        return policy.state_dict(), rows

    broken = replace(make_stage(tmp_path / "broken", *settings), sampler=Failing())
    with pytest.raises(RuntimeError, match="lost"):
        run_ppo(broken, *make_policies("normalised"))
    (weights, rows), (others, other_rows) = ended("whole"), ended("broken")
    assert rows == other_rows
    assert [row["learning_rate"] for row in rows] == [0.0, 0.0, 1.5e-3, 3e-3]
    assert weights["value_head.deviation"] != 1, "it has units of its own"
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
