"""Asynchronous rollouts: whose samples a step learns from, when they are drawn, and their resume."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from reftune import interrupts, progress
from reftune.config import Config, Data, Model, Ppo
from reftune.config.files import load_config
from reftune.model.policy import PolicyWithValue
from reftune.model.value_head import ValueHead
from reftune.pipeline import run_stages
from reftune.problem import Problem, UserError, Verdict
from reftune.runs.listener import Listener
from reftune.sampling.sampler import Sample
from reftune.stages.ppo.ahead import Ahead
from reftune.stages.ppo.batch import Batch
from reftune.stages.ppo.step import run_ppo
from reftune.stages.stage import Stage
from reftune.training.learner import Learner
from reftune.training.rollouts import Generator, sequence_seed
from tiny_models import tiny_model
from tiny_ppo import make_start
from tiny_ppo import run_ppo as run_tiny
from tiny_stage import PROMPTER, TRAIN, VALIDATION, VOCAB

SECONDS = 60.0


def judge(problems: Sequence[Problem], texts: Sequence[str], *_: object) -> list[Verdict]:
    return [Verdict("ok", 1.0, i % 2 == 0, float(i % 2 == 0)) for i in range(len(texts))]


class Engine:
    """An engine with weights of its own; it notes what it is asked, and with which weights."""

    exact = True

    def __init__(self) -> None:
        self.weights: Tensor | None = None
        self.drawn: list[tuple[list[int], Tensor, bool]] = []
        # Set while the policy learns, and while samples are drawn: each waits for the other.
        self.learning, self.drawing = threading.Event(), threading.Event()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
    ) -> list[Sample]:
        assert self.weights is not None
        if temperature and self.drawn:  # not the first one
            self.drawing.set()
            assert self.learning.wait(SECONDS), "samples are drawn while the policy learns"
            self.learning.clear()
        if temperature:
            self.drawn.append((list(seeds), self.weights, interrupts.is_aside()))
        return [
            Sample(list(prompt), [65 + i % 3, 66], [-1.0, -2.0], True, [0.0, 0.0])
            for i, prompt in enumerate(prompts)
        ]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.weights = next(iter(weights))[1].detach().clone()


@dataclass(frozen=True)
class Watched(Stage):
    """A stage with that engine, which notes the weights before each optimizer step."""

    engine: Engine = field(default_factory=Engine)
    before: list[Tensor] = field(default_factory=list)

    def generator(self, policy: PolicyWithValue) -> Generator:
        return Generator(self.engine, judge, self.prompter, self.accelerator)

    def learner(self, model: Any, *settings: Any) -> Learner:
        def note(*_: object) -> None:
            self.before.append(next(iter(model.policy.parameters())).detach().clone())
            if len(self.before) < self.config.ppo.steps:
                self.engine.learning.set()
                assert self.engine.drawing.wait(SECONDS), "the policy learns while samples are drawn"
                self.engine.drawing.clear()

        found = super().learner(model, *settings)
        found.optimizer.optimizer.register_step_pre_hook(note)
        return found


def make_stage(folder: Path, **ppo: Any) -> Watched:
    settings = {
        "steps": 3, "questions_per_step": 2, "samples_per_question": 2, "ppo_epochs": 1,
        "learning_rate": 0.01, "validate_every_steps": 3, "async_rollouts": True, "kl_coef": 0.0,
    } | ppo  # fmt: skip
    config = Config(
        output_dir=str(folder),
        model=Model(scratch="tiny"),
        data=Data(cot="natural"),
        ppo=Ppo(**settings),
    )
    return Watched("ppo", config, PROMPTER, judge, TRAIN, VALIDATION, Accelerator(cpu=True))


def make_policy() -> PolicyWithValue:
    model = tiny_model("llama", vocab_size=VOCAB)
    return PolicyWithValue(model, "shared", lambda width: ValueHead(width, 0, "plain"))


def test_a_step_learns_from_what_the_policy_before_the_last_update_has_said(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    run_ppo(stage, make_policy(), None)
    first, second, third = stage.engine.drawn
    for step, (seeds, _, _) in enumerate(stage.engine.drawn, start=1):
        key = (stage.config.seed, "ppo", step)
        assert seeds == [sequence_seed(*key, i, k) for i in range(2) for k in range(2)]
    start, after_one, _ = stage.before
    assert torch.equal(first[1], start)
    assert torch.equal(second[1], start), "drawn while step 1 was learning"
    assert torch.equal(third[1], after_one)
    assert not torch.equal(start, after_one)
    assert [aside for _, _, aside in stage.engine.drawn] == [False, True, True]


def test_the_ratio_starts_at_the_policy_as_it_is_and_weights_make_up_for_the_rest(
    tmp_path: Path,
) -> None:
    stage = make_stage(tmp_path)
    run_ppo(stage, make_policy(), None)
    text = (stage.directory / "metrics.jsonl").read_text(encoding="utf-8")
    for row in map(json.loads, text.splitlines()):
        assert row["approx_kl"] == pytest.approx(0.0, abs=1e-6), "one update a batch starts at ratio 1"
        assert row["logprob_gap"] > 0.1, "the engine's own numbers, which are made up"
        assert row["sampler_weight"] != pytest.approx(1.0, abs=0.01)


def test_an_error_of_the_engine_ends_the_step(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)

    def fails(*_: object, **options: object) -> list[Sample]:
        raise UserError("the server is gone")

    memory: dict[str, Any] = {}
    ahead = Ahead(stage, make_policy(), stage.generator(make_policy()))
    stage.engine.sample = fails  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the server is gone"), ahead.meanwhile(1, memory):
        pass
    assert memory == {}


def test_a_failure_of_the_update_waits_for_the_samples_that_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows closes the engine; a second Ctrl-C does not wait."""
    started, finished, stage = threading.Event(), threading.Event(), make_stage(tmp_path)

    def slowly(*_: object) -> Batch:
        started.set()
        time.sleep(0.3)
        finished.set()
        return Batch([], True, {})

    monkeypatch.setattr("reftune.stages.ppo.ahead.draw_batch", slowly)
    ahead = Ahead(stage, make_policy(), stage.generator(make_policy()))

    def fail(error: BaseException) -> None:
        with ahead.meanwhile(1, {}):
            assert started.wait(SECONDS)
            raise error

    for error, waits in ((UserError("the loss is not finite"), True), (KeyboardInterrupt(), False)):
        started.clear()
        finished.clear()
        with pytest.raises(type(error)):
            fail(error)
        assert finished.is_set() == waits
        assert finished.wait(SECONDS)


def test_nothing_is_drawn_behind_the_last_step(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    ahead, memory = Ahead(stage, make_policy(), stage.generator(make_policy())), {"ahead": [1]}
    with ahead.meanwhile(3, memory):
        pass
    assert stage.engine.drawn == []
    assert memory == {}


def test_several_processes_and_chosen_questions_are_refused(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    object.__setattr__(stage.accelerator.state, "num_processes", 2)
    try:
        with pytest.raises(UserError, match="works in one process"):
            Ahead(stage, make_policy(), stage.generator(make_policy()))
    finally:
        object.__setattr__(stage.accelerator.state, "num_processes", 1)
    for given in ({"dynamic_sampling": 3}, {"difficulty_range": [0.1, 0.9]}):
        with pytest.raises(ValueError, match="does not wait for; leave one of them out"):
            Ppo(async_rollouts=True, **given)  # type: ignore[arg-type]


def test_signals_and_the_screen_are_the_main_threads() -> None:
    seen: list[object] = []

    def work() -> None:
        with interrupts.aside(), interrupts.breakable(), progress.counting("hidden", 3) as count:
            progress.advance()
            seen.extend([interrupts._State.breakable, [c.label for c in progress.at_work()], count.done])

    with progress.counting("shown", 5) as shown:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [False, ["shown"], 0]
    assert shown.done == 0, "what works aside advances nobody else's count"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("ahead"))


SHORT = ("ppo.steps=4", "ppo.checkpoint_every_steps=1", "ppo.validate_every_steps=4")
AHEAD = (*SHORT, "ppo.async_rollouts=true")


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    text = (run / "ppo" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def completions(run: Path, step: int) -> list[str]:
    return [row["completion"] for row in rows(run, "samples") if row["step"] == step]


def told(run: Path) -> list[dict[str, Any]]:
    """Return a run's metrics without what differs from time to time."""
    timed = ("seconds", "tokens_per_second", "memory_gib")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows(run, "metrics")]


@pytest.fixture(scope="module")
def whole(start: Path) -> Path:
    return run_tiny(start, "whole", *AHEAD)


def test_the_built_in_engine_samples_from_a_copy_that_is_one_update_behind(
    start: Path, whole: Path
) -> None:
    resting = run_tiny(start, "resting", *SHORT, "ppo.learning_rate=1e-12", "ppo.value_coef=0")
    for step in (1, 2):  # both are sampled by the policy that was given
        assert completions(whole, step) == completions(resting, step)
    assert completions(whole, 4) != completions(resting, 4)
    first, second, *_ = rows(whole, "metrics")
    assert first["logprob_gap"] < 1e-4, "nothing lies between the sampler and the trainer yet"
    assert second["logprob_gap"] > 1e-3


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_that_is_broken_off_goes_on_as_if_it_had_not_been(
    start: Path, whole: Path, step: int
) -> None:
    settings = load_config(start, list(AHEAD), f"broken-{step}")

    def break_off(stage: str, number: int, row: object) -> None:
        if number == step:
            raise RuntimeError("power failure")

    listener = Listener(break_off)
    with pytest.raises(RuntimeError, match="power failure"), listener.listening():
        run_stages(settings, ("ppo",), listener=listener)
    again = run_tiny(start, f"broken-{step}", *AHEAD)
    assert told(again) == told(whole)
    weights = [(run / "ppo" / "model" / "model.safetensors").read_bytes() for run in (again, whole)]
    assert weights[0] == weights[1]
