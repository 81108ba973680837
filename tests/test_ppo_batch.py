"""What PPO asks and keeps in a step: draws until a batch is full, difficulty, samples that are long."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from made_rollouts import graded_sample, make_rollouts
from reftune.config import Ppo
from reftune.problem import Problem, Verdict
from reftune.sampling.sampler import Sample
from reftune.stages.ppo.batch import PATIENCE, Agenda, Batch, draw_batch, overlong_penalty, shape
from reftune.stages.ppo.metrics import describe
from reftune.stages.ppo.targets import compute_advantages
from reftune.stages.stage import Stage
from reftune.training.rollouts import Generator, sequence_seed
from reftune.training.types import GradedSample
from tiny_stage import PROMPTER, TRAIN, make_stage

# With seed 7 the five questions come as t2 t1 t4 t3 t0, t4 t3 t0 t2 t1, t4 t2 t0 t3 t1 (see test_stage).
SEED = 7


class Quick:
    """A sampler that says one token, and notes the seeds that it is given."""

    exact = False

    def __init__(self, cut: frozenset[int] = frozenset()) -> None:
        self.seeds: list[list[int]] = []
        self.cut = cut  # numbers of samples of each question that are cut off

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
    ) -> list[Sample]:
        self.seeds.append(list(seeds))
        return [Sample(list(p), [5], [-1.0], i % 2 not in self.cut) for i, p in enumerate(prompts)]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        raise AssertionError("nothing learns here")


class Script:
    """Calls so many of a question's two samples right, visit by visit; the last number stays."""

    def __init__(self, lost: Sequence[str] = (), **right: int | list[int]) -> None:
        self.right = {name: [n] if isinstance(n, int) else list(n) for name, n in right.items()}
        self.lost = lost  # questions whose second sample nobody can judge
        self.asked: list[list[str]] = []

    def __call__(self, problems: Sequence[Problem], *_: object) -> list[Verdict]:
        names = [problem.id for problem in problems[::2]]
        self.asked.append(names)
        found = []
        for name in names:
            script = self.right.get(name, [1])
            count = script.pop(0) if len(script) > 1 else script[0]
            found += [Verdict("ok", None, k < count, float(k < count)) for k in range(2)]
            if name in self.lost:
                found[-1] = Verdict("sandbox_error", None, False, 0.0)
        return found


def stage_of(folder: Path, **ppo: Any) -> Stage:
    settings = {"samples_per_question": 2, "questions_per_step": 2, "steps": 100, **ppo}
    return make_stage(folder, "ppo", seed=SEED, ppo=settings)


def draw(
    stage: Stage, script: Script, memory: dict[str, Any], step: int = 1, sampler: Quick | None = None
) -> Batch:
    """Draw one step's batch, and leave in the memory what the step found, as its checkpoint has it."""
    agenda = Agenda.of(stage, memory, step)
    before = json.dumps(memory)
    generator = Generator(sampler or Quick(), script, PROMPTER, Accelerator(cpu=True))
    batch = draw_batch(agenda, generator, step)
    assert json.dumps(memory) == before, "a step that is broken off leaves no trace"
    agenda.keep(memory)
    kept = json.loads(json.dumps(memory))
    memory.clear()
    memory.update(kept)
    return batch


def questions(batch: Batch) -> list[str]:
    return [graded.problem.id for graded in batch.samples[::2]]


# Off


def test_by_default_a_batch_is_the_steps_questions_and_nothing_is_remembered(tmp_path: Path) -> None:
    stage, script, sampler = stage_of(tmp_path), Script(t2=0, t1=2), Quick()
    memory: dict[str, Any] = {}
    for step in (1, 2):
        batch = draw(stage, script, memory, step, sampler)
        assert questions(batch) == [problem.id for problem in stage.questions(step, 2)]
        assert batch.teaches
        assert (batch.told, memory) == ({}, {})
    keys = [(i, k) for i in (0, 1) for k in (0, 1)]
    assert sampler.seeds[1] == [sequence_seed(SEED, "ppo", 2, i, k) for i, k in keys]


# Dynamic sampling


def test_questions_are_drawn_until_a_batch_of_told_apart_ones_is_full(tmp_path: Path) -> None:
    stage, sampler = stage_of(tmp_path, dynamic_sampling=5), Quick()
    memory: dict[str, Any] = {}
    script = Script(t2=2, t1=1, t4=0, t3=1, t0=1)
    batch = draw(stage, script, memory, sampler=sampler)
    # One of two is kept; the one that is missing takes two at that rate, of which one is kept.
    assert script.asked == [["t2", "t1"], ["t4", "t3"]]
    assert questions(batch) == ["t1", "t3"]
    right = (2 + 1 + 0 + 1) / 8
    told = {"draws": 2, "questions_kept": 2, "questions_dropped": 2, "accuracy_drawn": right}
    assert batch.told == told
    assert memory == {"position": 4}
    keys = [(i, k) for i in range(4) for k in (0, 1)]  # no random number serves two draws
    assert [x for d in sampler.seeds for x in d] == [sequence_seed(SEED, "ppo", 1, *key) for key in keys]
    assert questions(draw(stage, Script(), memory, 2)) == ["t0", "t4"], "none is left out"


def test_what_is_kept_beyond_a_full_batch_is_thrown_away(tmp_path: Path) -> None:
    batch = draw(stage_of(tmp_path, dynamic_sampling=5), Script(t2=0), {})
    assert questions(batch) == ["t1", "t4"]
    assert (batch.told["questions_kept"], batch.told["questions_dropped"]) == (2, 2)


@pytest.mark.parametrize(
    ("wanted", "dropped", "asked"),
    [
        (4, ["t2"], [4, 2]),  # 3 of 4 kept: the one that is missing takes 4/3 questions
        (4, ["t2", "t1", "t4"], [4, 4]),  # 1 of 4: three take twelve, and a draw is a batch at most
        (5, ["t2"], [5, 2]),  # 4 of 5: one takes 5/4
        (3, ["t2", "t1", "t4"], [3, 3, 3]),  # nothing; then 2 of 6: one takes three
    ],
)
def test_a_draw_asks_what_fills_the_batch_at_the_rate_so_far(
    tmp_path: Path, wanted: int, dropped: list[str], asked: list[int]
) -> None:
    script = Script(**{name: [0, 0, 1] if wanted == 3 else [0, 1] for name in dropped})
    stage = stage_of(tmp_path, dynamic_sampling=9, questions_per_step=wanted)
    batch = draw(stage, script, {})
    assert [len(names) for names in script.asked] == asked
    assert batch.told["questions_kept"] == wanted


def test_the_cap_ends_the_draws_with_what_there_is(tmp_path: Path) -> None:
    script = Script(t2=0, t1=2, t4=0, t3=1, t0=0)
    batch = draw(stage_of(tmp_path, dynamic_sampling=2), script, {})
    assert (questions(batch), batch.told["draws"], batch.teaches) == (["t3"], 2, True)
    once = draw(stage_of(tmp_path, dynamic_sampling=1), Script(t2=0), {})
    assert (questions(once), once.told["draws"]) == (["t1"], 1)


def test_where_nothing_is_told_apart_the_last_draw_teaches_nothing(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, dynamic_sampling=2)
    batch = draw(stage, Script(t2=0, t1=2, t4=0, t3=2), {})
    assert (questions(batch), batch.teaches) == (["t4", "t3"], False)
    assert batch.told["questions_kept"] == 0
    rollouts = shape(make_rollouts(batch.samples, [[-1.0]] * 4), batch, stage)
    assert not rollouts.mask.any()
    estimates = compute_advantages(rollouts, stage.config.ppo)
    assert not estimates.advantages.any()
    assert describe(rollouts, estimates, stage.config.ppo)["accuracy"] == 0.5, "it is told all the same"


def test_only_samples_that_may_teach_tell_a_question_apart(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, dynamic_sampling=1)
    assert questions(draw(stage, Script(lost=["t2"], t2=1), {})) == ["t1"]
    masked = stage_of(tmp_path, dynamic_sampling=1, mask_truncated=True)
    cut = Quick(frozenset([1]))  # each question's second sample, which is the wrong one
    assert draw(masked, Script(), {}, sampler=cut).teaches is False
    assert draw(stage, Script(), {}, sampler=cut).teaches is True


# Difficulty


def test_the_running_success_rate_by_hand(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, difficulty_range=[0.2, 0.8])
    agenda = Agenda.of(stage, {}, 1)
    shares = {"a": [0.5, 1.0, 0.0], "b": [1.0]}
    for name, visits in shares.items():
        for share in visits:
            agenda.note([graded_sample(name, [5], float(k < 2 * share)) for k in range(2)])
    assert agenda.rates == {"a": [0.375, 0], "b": [1.0, 0]}  # 0.5; (0.5 + 1) / 2; (0.75 + 0) / 2
    lost = graded_sample("b", [5], 0.0, status="sandbox_error")
    agenda.note([graded_sample("b", [5], 1.0), lost])
    agenda.note([lost, lost])
    assert agenda.rates["b"] == [1.0, 0], "what nobody could judge says nothing"


def test_rates_are_kept_for_a_critic_that_goes_by_them_and_leave_nothing_out(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, value_features=["success_rate"])
    memory: dict[str, Any] = {}
    drawn = draw(stage, Script(t2=2, t1=0), memory)
    assert memory == {"rates": {"t2": [1.0, 0], "t1": [0.0, 0]}}
    assert drawn.told == {}
    without: dict[str, Any] = {}
    assert draw(stage_of(tmp_path), Script(t2=2, t1=0), without).told == without == {}


def test_questions_out_of_the_range_are_left_out_and_looked_at_again(tmp_path: Path) -> None:
    """t2 is always right; t1 is wrong at first, and comes into the range when it is asked again."""
    stage = stage_of(tmp_path, difficulty_range=[0.2, 0.8])
    memory: dict[str, Any] = {}
    script, left_out = Script(t2=2, t1=[0, 1]), []
    for step in range(1, 31):
        left_out.append(draw(stage, script, memory, step).told["questions_left_out"])
    asked = [name for names in script.asked for name in names]
    assert asked[:5] == ["t2", "t1", "t4", "t3", "t0"], "without a rate all are asked"
    counts, came = Counter(asked), Counter(p.id for p in stage.questions_from(0, memory["position"]))
    assert came["t2"] > 2 * (PATIENCE + 1), "often enough to be asked three times"
    assert counts["t2"] == 1 + (came["t2"] - 1) // (PATIENCE + 1)
    assert counts["t1"] == came["t1"] - PATIENCE, "0, and then (0 + 1/2) / 2, which is in the range"
    assert sum(left_out) == memory["position"] - len(asked)
    assert memory["rates"]["t1"][0] == pytest.approx(0.5, abs=0.01)


def test_a_question_that_is_looked_at_again_waits_anew_even_if_nobody_can_judge_it(
    tmp_path: Path,
) -> None:
    rates = {"t2": [1.0, PATIENCE], "t1": [1.0, PATIENCE - 1]}
    agenda = Agenda(stage_of(tmp_path, difficulty_range=[0.2, 0.8]), 0, rates)
    assert [problem.id for problem in agenda.take(2)] == ["t2", "t4"]
    assert agenda.rates == {"t2": [1.0, 0], "t1": [1.0, PATIENCE]}


def test_bounds_belong_to_the_range(tmp_path: Path) -> None:
    stage, script = stage_of(tmp_path, difficulty_range=[0.5, 1.0]), Script(t2=2, t1=0)
    memory: dict[str, Any] = {}
    left_out = [draw(stage, script, memory, n).told["questions_left_out"] for n in range(1, 6)]
    assert script.asked[-1] == ["t2", "t4"], "t1 is between them"
    assert left_out == [0, 0, 0, 0, 1]


def test_a_batch_is_filled_with_what_would_be_left_out_before_a_pass_comes_again(tmp_path: Path) -> None:
    """All are too easy: of each five questions that come a batch of two can do without three."""
    stage, script = stage_of(tmp_path, difficulty_range=[0.2, 0.8]), Script()
    memory: dict[str, Any] = {}
    script.right = {problem.id: [2] for problem in TRAIN}
    left_out = [draw(stage, script, memory, n).told["questions_left_out"] for n in range(1, 31)]
    assert max(left_out) == 3
    counts = Counter(name for names in script.asked for name in names)
    came = Counter(p.id for p in stage.questions_from(0, memory["position"]))
    for problem in TRAIN:
        assert counts[problem.id] >= came[problem.id] // (PATIENCE + 1), "none is lost"
    whole = stage_of(tmp_path, difficulty_range=[0.2, 0.8], questions_per_step=5)
    assert {draw(whole, script, memory, n).told["questions_left_out"] for n in (31, 32)} == {0}


def test_the_filters_work_together_and_with_a_mixture(tmp_path: Path) -> None:
    """Source a has one question of weight 1, which is too easy; b four, of weight 1 together."""
    train = [replace(problem, source="ab"[i > 0]) for i, problem in enumerate(TRAIN)]
    stage = stage_of(tmp_path, dynamic_sampling=4, difficulty_range=[0.2, 0.8])
    data = stage.config.data.model_copy(update={"mixture": {"a": 1.0, "b": 1.0}})
    mixed = replace(stage, train=train, config=stage.config.model_copy(update={"data": data}))
    memory: dict[str, Any] = {}
    script, dropped = Script(t0=2), 0
    for step in range(1, 9):
        batch = draw(mixed, script, memory, step)
        assert len(batch.samples) == 4
        assert TRAIN[0].id not in questions(batch)
        dropped += batch.told["questions_dropped"]
    asked = [name for names in script.asked for name in names]
    turns = (memory["position"] + 1) // 2  # a comes first
    assert asked.count(TRAIN[0].id) == -(-turns // (PATIENCE + 1))
    assert dropped >= asked.count(TRAIN[0].id)


# Long samples

LENGTHS, LIMIT, BUFFER = [1, 9, 10, 11, 13, 15, 16], 16, 6


def test_the_overlong_penalty_by_hand() -> None:
    found = overlong_penalty(torch.tensor([*LENGTHS, 17, 99]), LIMIT, BUFFER)
    expected = torch.tensor([0, 0, 0, -1 / 6, -1 / 2, -5 / 6, -1, -1, -1])
    torch.testing.assert_close(found, expected)


def test_the_overlong_penalty_is_that_of_nemo_rl() -> None:
    # NeMo-RL at 7ea279ab, apply_reward_shaping with overlong_buffer_length 6, overlong_buffer_penalty 1
    # and max_response_length 16, of rewards 1. Verl's reward manager "dapo" at 1dda039b says the same.
    shaped = [1.0, 1.0, 1.0, 0.8333333134651184, 0.5, 0.1666666865348816, 0.0]
    found = 1 + overlong_penalty(torch.tensor(LENGTHS), LIMIT, BUFFER)
    assert found.tolist() == pytest.approx(shaped)


def cut_and_whole() -> list[GradedSample]:
    return [
        graded_sample("a", [5, 6], 1.0),  # at the limit of two tokens, and finished
        graded_sample("a", [5, 6], 0.0, finished=False),
        graded_sample("a", [5], 1.0),
        graded_sample("a", [5], 0.0, finished=False),  # where the model has no more positions
    ]


def test_long_samples_cost_reward_and_the_metric_says_how_much(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, overlong_buffer=2)  # responses have two tokens at most
    samples = cut_and_whole()
    rollouts = make_rollouts(samples, [[0.0] * len(s.sample.tokens) for s in samples])
    shaped = shape(rollouts, Batch(samples, True, {}), stage)
    assert shaped.rewards.tolist() == [0.0, -1.0, 0.5, -1.0]
    assert torch.equal(shaped.mask, rollouts.mask)
    told = describe(shaped, compute_advantages(shaped, stage.config.ppo), stage.config.ppo)
    assert (told["reward"], told["overlong_penalty"]) == (-1.5 / 4, -3.5 / 4)


def test_what_was_cut_off_is_left_out_of_the_loss_and_told_all_the_same(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, mask_truncated=True)
    samples = cut_and_whole()
    rollouts = make_rollouts(samples, [[0.0] * len(s.sample.tokens) for s in samples])
    shaped = shape(rollouts, Batch(samples, True, {}), stage)
    assert shaped.mask.tolist() == [[1, 1], [0, 0], [1, 0], [0, 0]]
    assert torch.equal(shaped.rewards, rollouts.rewards)
    told = describe(shaped, compute_advantages(shaped, stage.config.ppo), stage.config.ppo)
    assert (told["reward"], told["accuracy"], told["truncated"]) == (0.5, 0.5, 0.5)
    assert "overlong_penalty" not in told
    grouped = Ppo(advantage="group", samples_per_question=4, kl_coef=0)
    assert not compute_advantages(shaped, grouped).advantages.any(), "both that are left are right"


def test_without_settings_rollouts_stay_the_same_object(tmp_path: Path) -> None:
    samples = cut_and_whole()
    rollouts = make_rollouts(samples, [[0.0] * len(s.sample.tokens) for s in samples])
    assert shape(rollouts, Batch(samples, True, {}), stage_of(tmp_path)) is rollouts
