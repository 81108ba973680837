"""PPO as a whole: checked answers alone make the reward rise; cuts change nothing; faults are told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import tiny_run
from reftune.config import Config
from reftune.config_files import load_config, parse_config
from reftune.model.policy import PolicyWithValue
from reftune.pipeline import run_stages
from reftune.problem import Problem, UserError, Verdict
from reftune.sampling.sampler import Sample
from reftune.stages.ppo import compute_advantages, describe, update
from reftune.training.learner import Learner
from reftune.training.types import GradedSample, Rollouts
from tiny_models import tiny_model


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_checked_answers_alone_make_the_reward_rise(tmp_path: Path, advantage: str) -> None:
    settings = [
        "ppo.steps=12", "ppo.questions_per_step=16", "ppo.samples_per_question=8",
        "ppo.minibatch_size=64", f"ppo.advantage={advantage}",
    ]  # fmt: skip
    config = load_config(tiny_run.write_config(tmp_path), settings)
    run_stages(config, ("sft", "ppo"))
    rows = _metrics(config)
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[:2]) / 2 < 0.5  # two of three annotations are wrong, and SFT repeats them
    assert sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 0.2
    assert max(row["logprob_gap"] for row in rows) < 1e-4
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)  # the first batch comes from the reference itself


def test_an_update_does_not_depend_on_how_the_batch_is_cut() -> None:
    weights = []
    for budget in (10_000, 30):
        policy, rollouts = _rollouts()
        _update(policy, rollouts, [f"compute.tokens_per_microbatch={budget}"])
        weights.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert torch.allclose(*weights, atol=1e-6)


def test_rows_that_nobody_judged_teach_nothing() -> None:
    weights = []
    for extra in (False, True):
        policy, rollouts = _rollouts(unjudged=extra)
        _update(policy, rollouts, [])
        weights.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert torch.allclose(*weights, atol=1e-6)


def test_a_non_finite_loss_stops_the_run_and_saves_the_samples(tmp_path: Path) -> None:
    policy, rollouts = _rollouts()
    rollouts.logprobs[0, 0] = math.nan
    before = [p.detach().clone() for p in policy.parameters()]
    with pytest.raises(UserError, match="not finite at step 3") as error:
        _update(policy, rollouts, [f'output_dir="{tmp_path}"'])
    saved = tmp_path / "test" / "ppo" / "non_finite_step_3.json"
    assert str(saved) in str(error.value)
    assert len(json.loads(saved.read_text())) == len(rollouts.samples)
    for old, new in zip(before, policy.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_sampler_that_is_not_the_trainer_is_corrected_for() -> None:
    _, rollouts = _rollouts()
    config = parse_config({}, ["model.scratch=tiny", "name=test"], "test")
    expected = compute_advantages(rollouts, config.ppo).advantages.clone()
    rollouts.sampler_logprobs[0, 0] -= math.log(1.5)  # the trainer makes it 1.5 times as likely
    rollouts.sampler_logprobs[1, 0] -= math.log(7.0)  # beyond the cap of 2
    rollouts.sampler_logprobs[2, 0] += math.log(4.0)
    targets = compute_advantages(rollouts, config.ppo)
    for row, factor in ((0, 1.5), (1, 2.0), (2, 0.25)):
        expected[row, 0] *= factor
    torch.testing.assert_close(targets.advantages, expected)
    row = describe(rollouts, targets, config.ppo)
    tokens = float(rollouts.mask.sum())
    assert row["sampler_weight"] == pytest.approx(1 + (0.5 + 1.0 - 0.75) / tokens)
    assert row["sampler_truncated"] == pytest.approx(1 / tokens)
    off = parse_config({}, ["model.scratch=tiny", "name=test", "ppo.importance_sampling_cap=0"], "test")
    plain = compute_advantages(rollouts, off.ppo).advantages
    assert not torch.allclose(plain, targets.advantages)


def _metrics(config: Config) -> list[dict[str, Any]]:
    text = (config.run_dir / "ppo" / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _rollouts(unjudged: bool = False) -> tuple[PolicyWithValue, Rollouts]:
    """Return a small policy and made-up rollouts of three questions, scored by that policy."""
    policy = PolicyWithValue(tiny_model("llama").eval(), "shared")
    generator = torch.Generator().manual_seed(1)
    lengths = [5, 2, 7, 3, 4, 6]
    graded = []
    for i, length in enumerate(lengths):
        prompt = [3 + i // 2] * (4 + i // 2)
        tokens = torch.randint(2, 60, (length,), generator=generator).tolist()
        score = float(i % 2)
        verdict = Verdict("ok", score, bool(score), score)
        sample = Sample(prompt, tokens, [0.0] * length, True)
        graded.append(GradedSample(Problem(f"p{i // 2}", "?", "1"), sample, "", verdict))
    if unjudged:
        graded.append(
            GradedSample(
                Problem("p9", "?", "1"),
                Sample([9, 9], [5, 6], [0.0] * 2, True),
                "",
                Verdict("sandbox_error", None, False, 0.0),
            )
        )
    rows, time = len(graded), max(lengths)
    mask = torch.zeros(rows, time)
    for i, length in enumerate(lengths):
        mask[i, :length] = 1
    noise = torch.randn(6, time, generator=generator)
    logprobs = torch.zeros(rows, time)
    logprobs[:6] = -4 + 0.1 * noise
    return policy, Rollouts(
        samples=graded,
        groups=torch.tensor([i // 2 for i in range(6)] + [3] * (rows - 6)),
        rewards=torch.tensor([a.verdict.reward for a in graded]),
        mask=mask,
        sampler_logprobs=logprobs * mask,
        logprobs=logprobs * mask,
        ref_logprobs=logprobs * mask,
        values=torch.zeros(rows, time),
    )


def _update(policy: PolicyWithValue, rollouts: Rollouts, overrides: list[str]) -> None:
    settings = ["model.scratch=tiny", "name=test", *overrides]
    config = parse_config({}, settings, "test")
    accelerator = Accelerator(cpu=True)
    # Plain gradient steps: Adam would blow rounding of gradients near 0 up to whole steps.
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    budget, norm = config.compute.tokens_per_microbatch, config.ppo.max_grad_norm
    learner = Learner(policy, optimizer, accelerator, budget, norm)
    update(learner, rollouts, compute_advantages(rollouts, config.ppo), config, 3)
