"""When PPO's reference becomes the policy, what the optimizer keeps, and how a run goes on behind it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from reftune import interrupts
from reftune.config import Ppo
from reftune.files import read_json, read_jsonl
from reftune.model.policy import PolicyWithValue
from reftune.problem import Problem, Verdict
from reftune.runs.run_dir import complete_checkpoints
from reftune.stages.ppo.reference import FILE, ReferenceReset
from reftune.stages.ppo.step import run_ppo
from reftune.stages.stage import Stage
from tiny_stage import make_policy, make_stage

STEPS, EVERY = 8, 3  # the reference moves before steps 4 and 7
FILTERS = {"dynamic_sampling": 3, "difficulty_range": [0.2, 0.8]}
SETTINGS: dict[str, Any] = {
    "steps": STEPS, "questions_per_step": 2, "samples_per_question": 4, "learning_rate": 1e-2,
    "ppo_epochs": 1, "kl_coef": 0.1, "reference_reset_steps": EVERY, "validate_every_steps": STEPS,
    "checkpoint_every_steps": 2, "samples_logged_per_step": 100,
}  # fmt: skip
TIMES = ("seconds", "tokens_per_second", "memory_gib")


class Parity:
    """Calls a response right by the sum of its letters; at one of its calls something ends the run."""

    def __init__(self, fails_at: int = 0, end: Callable[[], None] | None = None) -> None:
        self.calls, self.fails_at, self.end = 0, fails_at, end

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str], *_: object) -> list[Verdict]:
        self.calls += 1
        if self.calls == self.fails_at and self.end is not None:
            self.end()
        right = [sum(map(ord, text)) % 2 == 1 for text in texts]
        return [Verdict("ok", None, one, float(one)) for one in right]


def run(
    folder: Path, judge: Parity, **ppo: Any
) -> tuple[Stage, dict[str, Tensor], list[dict[str, Any]]]:
    """Take the steps, or those that are left; return the weights and what was logged but the times."""
    stage = replace(make_stage(folder, "ppo", ppo=SETTINGS | ppo), judge=judge)
    policy, reference = make_policy(critic="shared"), make_policy()
    reference.requires_grad_(False)
    run_ppo(stage, policy, reference)
    rows = [
        {key: value for key, value in row.items() if not key.startswith(TIMES)}
        for row in read_jsonl(stage.directory / "metrics.jsonl")
    ]
    return stage, {name: p.detach().clone() for name, p in policy.named_parameters()}, rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, dict[str, Tensor], list[Any], int]:
    judge = Parity()
    stage, weights, rows = run(tmp_path_factory.mktemp("whole"), judge, **FILTERS)
    return stage, weights, rows, judge.calls


def test_right_behind_a_reset_the_kl_is_nothing(whole: Any) -> None:
    rows = whole[2]
    assert [row["reference_step"] for row in rows] == [0, 0, 0, 3, 3, 3, 6, 6]
    near = [abs(row["kl"]) < 1e-4 for row in rows]  # rounding
    assert near == [True, False, False, True, False, False, True, False]
    assert any(row["draws"] > 1 for row in rows)
    assert any(row["questions_left_out"] for row in rows), "all three are at work"


def power_cut() -> None:
    raise KeyboardInterrupt


def ctrl_c() -> None:
    interrupts.receive(signal.SIGINT)


@pytest.mark.parametrize(
    ("end", "share"),
    [
        *((power_cut, share) for share in (0.3, 0.5, 0.65, 0.75, 0.9)),
        *((ctrl_c, share) for share in (0.3, 0.45, 0.6, 0.7)),
    ],
)
def test_a_run_that_is_broken_off_anywhere_goes_on_as_if_it_were_not(
    tmp_path: Path, whole: Any, end: Callable[[], None], share: float
) -> None:
    """Between checkpoints, behind a reset and before one; the last have a reference of their own."""
    stage, weights, rows, calls = whole
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Parity(1 + round(share * calls), end), **FILTERS)
    interrupts.forget()
    newest = complete_checkpoints(tmp_path / "run/ppo")[-1]
    state = read_json(newest / "state.json")
    assert 0 < state["step"] < STEPS
    assert (newest / FILE).exists() is (state["step"] >= EVERY)
    assert state["memory"].keys() == {"position", "rates"}
    broken, found, logged = run(tmp_path, Parity(), **FILTERS)
    assert logged == rows
    samples = [read_jsonl(one.directory / "samples.jsonl") for one in (stage, broken)]
    assert samples[0] == samples[1]
    for name, weight in weights.items():
        assert torch.equal(found[name], weight), name


def test_a_run_that_was_resumed_keeps_the_reference_that_it_found(tmp_path: Path, whole: Any) -> None:
    _, weights, rows, _ = whole
    draws = [row["draws"] for row in rows]
    for step, calls in ((5, sum(draws[:4])), (6, draws[4])):  # the reference moved before step 4
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Parity(calls + 1, ctrl_c), **FILTERS)
        interrupts.forget()
        newest = complete_checkpoints(tmp_path / "run/ppo")[-1]
        assert read_json(newest / "state.json")["step"] == step - 1
        assert (newest / FILE).exists()
    _, found, logged = run(tmp_path, Parity(), **FILTERS)
    assert logged == rows
    for name, weight in weights.items():
        assert torch.equal(found[name], weight), name


def test_by_default_nothing_is_reset_and_no_reference_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Parity(5, power_cut), reference_reset_steps=0)
    newest = complete_checkpoints(tmp_path / "run/ppo")[-1]
    assert read_json(newest / "state.json")["memory"] == {}
    assert not (newest / FILE).exists()
    rows = read_jsonl(tmp_path / "run/ppo/metrics.jsonl")
    assert all("reference_step" not in row for row in rows)


def moved(policy: PolicyWithValue, by: float) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += by


def test_the_reference_becomes_the_policy_and_the_optimizer_a_new_one(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, "ppo", ppo=SETTINGS)
    policy, reference = make_policy(critic="shared"), make_policy()
    learner = stage.learner(policy, stage.config.ppo)
    start = {name: p.detach().clone() for name, p in reference.named_parameters()}
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()
    assert len(learner.optimizer.state) == len(list(policy.parameters()))
    reset = ReferenceReset(2, reference, policy, learner)
    rates = [group["lr"] for group in learner.optimizer.param_groups]
    moved(policy, 0.25)
    for step in (1, 2):
        assert reset.before(step) == {"reference_step": 0}
    assert all(torch.equal(p, start[name]) for name, p in reference.named_parameters())
    assert learner.optimizer.state
    for _ in range(2):  # a step that was broken off comes again
        assert reset.before(3) == {"reference_step": 2}
    for name, parameter in policy.policy.named_parameters():
        assert torch.equal(reference.policy.get_parameter(name), parameter), name
        assert reference.policy.get_parameter(name).data_ptr() != parameter.data_ptr()
    assert not learner.optimizer.state
    assert [group["lr"] for group in learner.optimizer.param_groups] == rates
    moved(policy, 0.25)
    assert reset.before(4) == {"reference_step": 2}
    assert not torch.equal(next(reference.parameters()), next(policy.parameters()))


def test_a_reference_of_another_precision_takes_the_rounded_weights(tmp_path: Path) -> None:
    """As with float16, whose training is in float32."""
    stage = make_stage(tmp_path, "ppo", ppo=SETTINGS)
    policy, reference = make_policy(), make_policy()
    reference.to(torch.bfloat16)
    moved(policy, 1 / 3)
    ReferenceReset(1, reference, policy, stage.learner(policy, stage.config.ppo)).before(2)
    for name, parameter in policy.policy.named_parameters():
        found = reference.policy.get_parameter(name)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, parameter.bfloat16())


def test_checkpoints_of_the_next_stage_hold_no_reference(tmp_path: Path) -> None:
    accelerator, policy = Accelerator(cpu=True), make_policy()
    learner = make_stage(tmp_path, "ppo", ppo=SETTINGS).learner(policy, Ppo())
    reset = ReferenceReset(1, make_policy(), policy, learner)
    reset.before(2)
    with reset.kept(accelerator):
        accelerator.save_state(str(tmp_path / "ppo"))
    accelerator.save_state(str(tmp_path / "reranker"))
    assert (tmp_path / "ppo" / FILE).exists()
    assert not (tmp_path / "reranker" / FILE).exists()
