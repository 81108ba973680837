"""What stages do around their steps: questions, validation, the best model, checkpoints, the log."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from reftune import interrupts
from reftune.config import Compute, OnlineSt
from reftune.files import read_json, read_jsonl
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import trained_at
from reftune.problem import Problem, UserError, Verdict
from reftune.sampling.sampler import Sample
from reftune.stages import steps as module
from reftune.stages.stage import Stage
from reftune.training.rollouts import Generator
from reftune.training.types import GradedSample
from tiny_stage import (
    PROMPTER,
    VALIDATION,
    Clock,
    OneOf,
    ScriptedJudge,
    make_policy,
    make_stage,
    mark,
    mark_of,
)

# Of five steps 2, 4 and the last one are validated; 2 and 4 leave a checkpoint.
FIVE = {
    "steps": 5, "questions_per_step": 2, "samples_per_question": 3, "samples_logged_per_step": 2,
    "validate_every_steps": 2, "checkpoint_every_steps": 2,
}  # fmt: skip


def attempts_of(step: int) -> list[GradedSample]:
    """Return three samples of each of four questions, that can be told apart."""
    return [
        GradedSample(
            Problem(f"p{i}", f"{i}?", f"a{i}"),
            Sample([1], [2], [0.0], True),
            f"step {step} sample {k}",
            Verdict("ok", float(k), k == 1, k / 4),
        )
        for i in range(4)
        for k in range(3)
    ]


class Steps:
    """Takes steps of ten seconds, each of which marks the policy; breaks off before one of them."""

    def __init__(self, policy: PolicyWithValue, clock: Clock, broken: int = 0) -> None:
        self.policy, self.clock, self.broken = policy, clock, broken
        self.taken: list[int] = []

    def __call__(
        self, step: int, memory: dict[str, Any]
    ) -> tuple[dict[str, Any], Sequence[GradedSample]]:
        if step == self.broken:
            raise KeyboardInterrupt
        self.taken.append(step)
        memory["taken"] = [*memory.get("taken", []), step]
        self.memory = memory
        self.clock.now += 10
        mark(self.policy, step)
        return {"loss": step / 8}, attempts_of(step)


class SlowJudge(ScriptedJudge):
    """Takes five seconds for what it is given."""

    def __init__(self, clock: Clock, *right: int) -> None:
        super().__init__(*right)
        self.clock = clock

    def __call__(self, *given: Any) -> list[Verdict]:
        self.clock.now += 5
        return super().__call__(*given)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, Any]]]:
    """Return the checkpoints that are saved: (number of the step, state)."""
    seen: list[tuple[int, dict[str, Any]]] = []

    def save(
        accelerator: Accelerator, directory: Path, step: int, state: dict[str, Any], keep: int
    ) -> None:
        seen.append((step, copy.deepcopy(state)))
        original(accelerator, directory, step, state, keep)

    original = module.save_checkpoint
    monkeypatch.setattr(module, "save_checkpoint", save)
    return seen


def take_steps(
    folder: Path, clock: Clock, *right: int, broken: int = 0, **settings: Any
) -> tuple[Steps, dict[str, Any]]:
    """Take the steps of one stage whose validations have so many right answers of four."""
    stage = make_stage(folder, "online_st", SlowJudge(clock, *right), online_st=FIVE | settings)
    policy = make_policy()
    stage.learner(policy, stage.config.online_st)
    steps = Steps(policy, clock, broken)
    result = stage.run_online(stage.config.online_st, policy, stage.generator(policy), steps)
    return steps, result


def test_a_stages_directory_is_its_name_in_the_runs(tmp_path: Path) -> None:
    assert make_stage(tmp_path, "reranker/sft").directory == tmp_path / "run" / "reranker/sft"


def test_the_parts_of_a_stage_and_of_its_actor_stay_what_they_are(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    for thing, name in ((stage, "prompter"), (stage.generator(make_policy()), "exact")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, name, None)


def test_questions_come_in_endless_shuffled_passes_cut_into_steps(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, seed=7)
    # Python's shuffle of five with the seeds "7/questions/0", "7/questions/1" and "7/questions/2"
    expected = [f"t{i}" for i in (2, 1, 4, 3, 0, 4, 3, 0, 2, 1, 4, 2, 0, 3, 1)]
    for count in (1, 2, 3, 5, 7, 12):  # with 7 and 12 a question comes twice in a step
        for step in range(1, 15 // count + 1):
            found = [problem.id for problem in stage.questions(step, count)]
            assert found == expected[(step - 1) * count : step * count]


def test_validation_is_one_greedy_answer_to_each_validation_question(tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    class Asked(Generator):
        def generate(
            self, problems: Sequence[Problem], samples: int, temperature: float, *, key: Sequence[object]
        ) -> list[GradedSample]:
            asked.append((problems, samples, temperature, key))
            return attempts_of(1)[:3]  # of which the second is right

    stage = make_stage(tmp_path, seed=7)
    generator = stage.generator(make_policy())
    recorder = Asked(*(getattr(generator, field) for field in generator.__dataclass_fields__))
    assert stage.validate(recorder) == pytest.approx(1 / 3)
    assert asked == [(VALIDATION, 1, 0.0, (7, "validation"))]


def test_actor_and_learner_get_the_stages_parts_and_the_machines_budgets(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, compute=Compute(sampler_rows=3, tokens_per_microbatch=77))
    policy = make_policy()
    generator = stage.generator(policy)
    assert (generator.prompter, generator.judge) == (PROMPTER, stage.judge)
    assert generator.accelerator is stage.accelerator
    assert generator.sampler.max_rows == 3  # type: ignore[attr-defined]
    assert generator.sampler.model is policy.policy  # type: ignore[attr-defined]
    settings = OnlineSt(learning_rate=0.5, weight_decay=0.125, max_grad_norm=0.25)
    learner = stage.learner(policy, settings)
    assert (learner.model, learner.token_budget, learner.max_grad_norm) == (policy, 77, 0.25)
    [group] = learner.optimizer.param_groups
    assert (group["lr"], group["peak"], group["weight_decay"]) == (0.5, 0.5, 0.125)
    assert learner.accelerator is stage.accelerator


def test_where_no_budget_is_given_a_learner_reads_4096_tokens_at_once(tmp_path: Path) -> None:
    learner = make_stage(tmp_path, compute=Compute()).learner(make_policy(), OnlineSt())
    assert learner.token_budget == 4096


def test_a_head_learns_at_a_rate_of_its_own(tmp_path: Path) -> None:
    policy = make_policy(critic="shared")
    learner = make_stage(tmp_path).learner(policy, OnlineSt(learning_rate=0.5), 0.25)
    assert [group["peak"] for group in learner.optimizer.param_groups] == [0.5, 0.25]


def test_the_log_is_the_stages_and_stands_where_the_stage_does(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, "online_st")
    stage.directory.mkdir(parents=True)
    metrics = stage.directory / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": i}) + "\n" for i in (1, 2, 3)))
    log = stage.log(9, 2)
    assert (log.directory, log.title, log.display.total) == (stage.directory, "online_st", 9)
    assert log.accelerator is stage.accelerator
    assert [row["step"] for row in read_jsonl(metrics)] == [1, 2]


def test_every_so_many_steps_and_after_the_last_the_model_is_validated(
    tmp_path: Path, clock: Clock
) -> None:
    steps, result = take_steps(tmp_path, clock, 1, 3, 2)
    assert steps.taken == [1, 2, 3, 4, 5]
    rows = read_jsonl(tmp_path / "run/online_st/metrics.jsonl")
    held = [row.pop("memory_gib") for row in rows]
    assert held == sorted(held)  # the most so far
    assert 0.1 < held[0] < held[-1] + 1e-9 < 16  # of a process that has loaded torch
    # ten seconds a step, and five for the judge's validation
    validated = {"seconds_validation": 5.0}
    assert rows == [
        {"step": 1, "loss": 0.125, "seconds": 10.0},
        {"step": 2, "loss": 0.25, "validation_accuracy": 0.25, **validated, "seconds": 25.0},
        {"step": 3, "loss": 0.375, "seconds": 35.0},
        {"step": 4, "loss": 0.5, "validation_accuracy": 0.75, **validated, "seconds": 50.0},
        {"step": 5, "loss": 0.625, "validation_accuracy": 0.5, **validated, "seconds": 65.0},
    ]
    assert result == {"best_step": 4, "best_validation_accuracy": 0.75, "seconds": 65.0}
    assert read_json(tmp_path / "run/online_st/result.json") == result
    assert mark_of(tmp_path / "run/online_st/model") == 4


def test_the_last_step_is_validated_once_where_it_is_its_turn_anyway(
    tmp_path: Path, clock: Clock
) -> None:
    _, result = take_steps(tmp_path, clock, 1, 2, steps=4)
    assert result["best_step"] == 4


def test_of_equally_good_models_the_first_is_kept(tmp_path: Path, clock: Clock) -> None:
    _, result = take_steps(tmp_path, clock, 3, 3, 3)
    assert (result["best_step"], result["best_validation_accuracy"]) == (2, 0.75)
    assert mark_of(tmp_path / "run/online_st/model") == 2


def test_a_model_that_solves_nothing_is_still_a_model(tmp_path: Path, clock: Clock) -> None:
    _, result = take_steps(tmp_path, clock, 0, 0, 0)
    assert (result["best_step"], result["best_validation_accuracy"]) == (2, 0.0)
    assert mark_of(tmp_path / "run/online_st/model") == 2


def test_the_first_samples_are_logged_question_by_question(tmp_path: Path, clock: Clock) -> None:
    take_steps(tmp_path, clock, 1, 1, steps=3, samples_logged_per_step=4)
    rows = read_jsonl(tmp_path / "run/online_st/samples.jsonl")
    found = [(row["step"], row["id"], row["completion"]) for row in rows]
    places = ((0, 0), (0, 1), (0, 2), (1, 0))  # of three samples of each question
    assert found == [(s, f"p{i}", f"step {s} sample {k}") for s in (1, 2, 3) for i, k in places]
    assert rows[0] == {
        "step": 1, "id": "p0", "question": "0?", "answer": "a0", "completion": "step 1 sample 0",
        "status": "ok", "value": 0.0, "correct": False, "reward": 0.0,
    }  # fmt: skip


def test_checkpoints_come_every_so_many_steps_but_not_after_the_last(
    tmp_path: Path, clock: Clock, saved: list[tuple[int, dict[str, Any]]]
) -> None:
    take_steps(tmp_path, clock, 1, 3, steps=4)
    state = {"step": 2, "seconds": 25.0, "best_validation_accuracy": 0.25, "best_step": 2}
    assert saved == [(2, {**state, "memory": {"taken": [1, 2]}})]
    assert not (tmp_path / "run/online_st/checkpoints").exists()  # the stage is finished


@pytest.mark.parametrize(
    ("minutes", "expected"),
    # With five seconds for each validation a step is over at 10, 25, 35, 50 and 65 s; 2 and 4 by steps.
    [(0.0, [4]), (10.0, [4]), (0.5, [3, 4]), (0.25, [2, 4]), (0.01, [1, 2, 3, 4])],
)
def test_checkpoints_come_after_a_time_too_if_steps_are_slow(
    tmp_path: Path,
    clock: Clock,
    saved: list[tuple[int, dict[str, Any]]],
    minutes: float,
    expected: list[int],
) -> None:
    machine = Compute(checkpoint_every_minutes=minutes)
    stage = make_stage(
        tmp_path, "online_st", SlowJudge(clock, 1, 1, 1), online_st=FIVE | {"checkpoint_every_steps": 4},
        compute=machine,
    )  # fmt: skip
    policy = make_policy()
    stage.learner(policy, stage.config.online_st)
    steps = Steps(policy, clock)
    stage.run_online(stage.config.online_st, policy, stage.generator(policy), steps)
    assert [step for step, _ in saved] == expected


class Both(OneOf):
    """One of two processes, whose gathering finds what the other says, too."""

    other: Sequence[int] = (0, 0)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        rows = [tensor[0].tolist(), list(self.other)]
        return torch.tensor(rows if self.index == 0 else rows[::-1])


@pytest.mark.parametrize(
    ("main", "other", "expected"),
    [
        ((0, 0), (0, 0), (0, False)),
        ((15, 0), (0, 0), (15, False)),
        ((0, 0), (2, 0), (2, False)),  # whoever gets the signal
        ((0, 1), (0, 0), (0, True)),
        ((0, 0), (0, 1), (0, False)),  # the main process's clock decides
    ],
)
def test_processes_agree_on_signals_and_on_the_time(
    main: tuple[int, int], other: tuple[int, int], expected: tuple[int, bool]
) -> None:
    for index, (mine, theirs) in enumerate(((main, other), (other, main))):
        accelerator = Both(index, 2)
        accelerator.other = theirs
        assert module._agree(accelerator, mine[0], bool(mine[1])) == expected


def test_a_stage_goes_on_from_its_checkpoint_as_if_nothing_had_been(
    tmp_path: Path, clock: Clock, saved: list[tuple[int, dict[str, Any]]]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        take_steps(tmp_path, clock, 3, broken=4)
    assert not (tmp_path / "run/online_st/result.json").exists()
    clock.now = 5000
    steps, result = take_steps(tmp_path, clock, 2, 3)
    assert steps.taken == [3, 4, 5]
    assert steps.memory == {"taken": [1, 2, 3, 4, 5]}
    assert result == {"best_step": 2, "best_validation_accuracy": 0.75, "seconds": 65.0}
    assert mark_of(tmp_path / "run/online_st/model") == 2
    rows = read_jsonl(tmp_path / "run/online_st/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [step for step, _ in saved] == [2, 4]


def test_a_better_model_of_steps_behind_the_checkpoint_stays_the_best(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        take_steps(tmp_path, clock, 1, 2, 4, broken=4, validate_every_steps=1)
    steps, result = take_steps(
        tmp_path, clock, 3, 3, 3, validate_every_steps=1
    )  # other steps than before
    assert steps.taken == [3, 4, 5]
    assert (result["best_step"], result["best_validation_accuracy"]) == (3, 1.0)
    trained = {"stage": "online_st", "step": 3, "validation_accuracy": 1.0}
    assert trained_at(tmp_path / "run/online_st/model") == trained
    assert "online_st: goes on behind step 2 of 5" in capsys.readouterr().err


def test_the_weights_of_the_checkpoint_are_those_that_go_on(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(KeyboardInterrupt):
        take_steps(tmp_path, clock, 3, broken=4)

    class Idle(Steps):
        def __call__(
            self, step: int, memory: dict[str, Any]
        ) -> tuple[dict[str, Any], Sequence[GradedSample]]:
            return {}, []

    stage = make_stage(tmp_path, "online_st", SlowJudge(clock, 4, 4), online_st=FIVE)
    policy = make_policy(seed=1)
    stage.learner(policy, stage.config.online_st)
    stage.run_online(stage.config.online_st, policy, stage.generator(policy), Idle(policy, clock))
    assert mark_of(tmp_path / "run/online_st/model") == 2


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_only_a_better_model_takes_the_place_of_the_best(tmp_path: Path, unit: str) -> None:
    stage, policy = make_stage(tmp_path), make_policy()
    state: dict[str, Any] = {"best_validation_accuracy": 0.5, "other": 1}
    for number, solved, best, accuracy in (
        (3, 0.25, None, 0.5), (4, 0.5, None, 0.5), (5, 0.75, 5, 0.75), (6, 0.75, 5, 0.75),
    ):  # fmt: skip
        mark(policy, number)
        stage.keep_best(policy, state, unit, number, solved)
        expected = {} if best is None else {f"best_{unit}": best}
        assert state == {"best_validation_accuracy": accuracy, "other": 1, **expected}
        assert (stage.directory / "model").exists() == (best is not None)
    assert mark_of(stage.directory / "model") == 5
    settings = read_json(stage.directory / "model/reftune_prompt.json")
    assert settings["prompt"]["trigger"] == ":"


@pytest.mark.parametrize("index", [0, 1])
def test_the_main_process_alone_finishes_a_stage_and_the_others_wait(tmp_path: Path, index: int) -> None:
    accelerator = OneOf(index, 2)
    stage: Stage = make_stage(tmp_path, accelerator=accelerator)
    (stage.directory / "checkpoints").mkdir(parents=True)
    result = {"best_step": 3}
    returned = stage.finish(result)
    assert returned == result
    assert returned is not result
    assert accelerator.waits == 1
    assert (stage.directory / "result.json").exists() == (index == 0)
    assert (stage.directory / "checkpoints").exists() == (index == 1)


def test_a_signal_after_the_last_step_ends_the_run_when_the_stage_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts._State, "number", 15)
    stage = make_stage(tmp_path)
    stage.directory.mkdir(parents=True)
    with pytest.raises(interrupts.Stopped):
        stage.finish({"best_step": 3})
    assert read_json(stage.directory / "result.json") == {"best_step": 3}


def test_a_signal_of_another_program_that_is_no_stop_saves_nothing(
    tmp_path: Path, clock: Clock, saved: list[tuple[int, dict[str, Any]]]
) -> None:
    """Where reftune does not handle signals, a KeyboardInterrupt may come in the middle of an update."""
    with pytest.raises(KeyboardInterrupt):
        take_steps(tmp_path, clock, 1, broken=2, checkpoint_every_steps=100)
    assert saved == []


@pytest.mark.parametrize("broken_in", ["training", "validation"])
def test_a_full_disk_at_the_end_keeps_the_checkpoint_before(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, broken_in: str
) -> None:
    class Ends(Steps):
        def __call__(
            self, step: int, memory: dict[str, Any]
        ) -> tuple[dict[str, Any], Sequence[GradedSample]]:
            if step == 4:
                monkeypatch.setattr(module, "save_checkpoint", full)
                monkeypatch.setattr(interrupts._State, "number", 2)
                if broken_in == "training":
                    interrupts.check()
            return super().__call__(step, memory)

    def full(*_: Any) -> None:
        raise UserError("the disk is full")

    stage = make_stage(tmp_path, "online_st", SlowJudge(clock, 1, 1, 1), online_st=FIVE)
    policy = make_policy()
    stage.learner(policy, stage.config.online_st)
    with pytest.raises(UserError, match="the disk is full"):
        stage.run_online(stage.config.online_st, policy, stage.generator(policy), Ends(policy, clock))
    [kept] = (stage.directory / "checkpoints").iterdir()
    assert kept.name == "step-00000002"


def test_settings_of_a_method_need_not_be_those_of_another(tmp_path: Path, clock: Clock) -> None:
    """The loop goes by the settings it is given, whatever the configuration says of others."""
    stage, policy = make_stage(tmp_path, "ppo", SlowJudge(clock, 1)), make_policy()
    steps = Steps(policy, clock)
    stage.run_online(OnlineSt(steps=1), policy, stage.generator(policy), steps)
    assert steps.taken == [1]
    assert torch.equal(policy.policy.get_parameter("model.norm.weight"), torch.ones(32))
