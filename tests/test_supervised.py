"""Learning from given chains: a step's loss and rows, and when the model is validated and exported."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from precision import CLOSE, float64
from reftune.config import OfflineSt, Sft
from reftune.files import read_jsonl
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import trained_at
from reftune.problem import UserError, Verdict
from reftune.stages import steps as steps_module
from reftune.stages import supervised as supervised_module
from reftune.stages.sft import run_sft
from reftune.stages.stage import Stage, State
from reftune.stages.supervised import (
    Example,
    fit,
    short_enough,
    stop_on_non_finite,
    train_epochs,
    train_on,
)
from reftune.training.learner import Learner
from tiny_stage import NORM, Clock, OneOf, ScriptedJudge, make_policy, make_stage, mark_of

EXAMPLES: list[Example] = [
    ([20, 21, 22], [7, 8, 9, 1]), ([30], [5, 1]), ([20, 21], [6, 4, 1]), ([40], [7, 7, 1]), ([9], [1]),
]  # fmt: skip
LENGTHS = [4, 1, 3, 2, 5]
# Batches of two rows of similar length. Python's shuffle gives 4, 0, 2, 3, 1 and 1, 0, 3, 2, 4 for the
# seeds "2/offline_st/1" and "2/offline_st/2"; a batch stands where the first of its rows does.
PLAN = [[4], [2, 0], [1, 3], [1, 3], [2, 0], [4]]


class Toy(nn.Module):
    """Has parameters of both groups of the optimizer, and counts the steps that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.class_head = nn.Linear(1, 1), nn.Linear(1, 1)
        nn.init.zeros_(self.body.weight)


class Epochs:
    """Trains a toy in steps of ten seconds, each epoch's end takes five; breaks off before one step."""

    def __init__(self, folder: Path, clock: Clock, broken: int = 0, **settings: Any) -> None:
        given = {"epochs": 2, "batch_size": 2, "learning_rate": 3e-3, "checkpoint_every_steps": 2}
        self.stage = make_stage(
            folder, "offline_st", seed=2, offline_st={**given, "lr_warmup_share": 0.5, **settings}
        )
        self.clock, self.broken, self.toy = clock, broken, Toy()
        self.learner = self.stage.learner(self.toy, self.stage.config.offline_st, 1e-1)
        self.rows: list[list[int]] = []
        self.rates: list[list[float]] = []
        self.modes: list[bool] = []
        self.ends: list[tuple[int, float, bool]] = []

    def take_step(self, rows: list[int]) -> dict[str, float]:
        if self.broken == len(self.rows) + 1:
            raise KeyboardInterrupt
        self.clock.now += 10
        self.rows.append(rows)
        self.rates.append([group["lr"] for group in self.learner.optimizer.param_groups])
        self.modes.append(self.toy.training)
        with torch.no_grad():
            self.toy.body.weight += 1
        return {"loss": 0.5}

    def end_epoch(self, epoch: int, state: State) -> dict[str, float]:
        self.clock.now += 5
        self.ends.append((epoch, self.toy.body.weight.item(), self.toy.training))
        state["told"] = epoch
        return {"seen": epoch / 4}

    def run(self) -> State:
        start = {"best": -1.0}
        settings = self.stage.config.offline_st
        return train_epochs(
            self.stage, self.learner, settings, LENGTHS, self.take_step, self.end_epoch, start
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (steps_module, supervised_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, State]]:
    """Return the checkpoints that are saved: (number of the step, state)."""
    seen: list[tuple[int, State]] = []

    def save(accelerator: Accelerator, directory: Path, step: int, state: State, keep: int) -> None:
        seen.append((step, dict(state)))
        original(accelerator, directory, step, state, keep)

    original = steps_module.save_checkpoint
    monkeypatch.setattr(steps_module, "save_checkpoint", save)
    return seen


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(tmp_path: Path, clock: Clock) -> None:
    epochs = Epochs(tmp_path, clock)
    epochs.run()
    assert epochs.rows == PLAN
    assert [(epoch, weight) for epoch, weight, _ in epochs.ends] == [(1, 3.0), (2, 6.0)]


def test_a_model_learns_in_training_mode_and_is_looked_at_in_eval_mode(
    tmp_path: Path, clock: Clock
) -> None:
    epochs = Epochs(tmp_path, clock)
    epochs.run()
    assert epochs.modes == [True] * 6
    assert [training for _, _, training in epochs.ends] == [False, False]
    assert not epochs.toy.training


def test_the_rates_rise_over_half_of_the_steps_and_fall_over_the_other(
    tmp_path: Path, clock: Clock
) -> None:
    epochs = Epochs(tmp_path, clock)
    epochs.run()
    body = [1e-3, 2e-3, 3e-3, 3e-3, 2e-3, 1e-3]
    assert [rates[0] for rates in epochs.rates] == pytest.approx(body)
    assert [rates[1] for rates in epochs.rates] == pytest.approx([100 / 3 * rate for rate in body])
    rows = read_jsonl(tmp_path / "run/offline_st/metrics.jsonl")
    assert [row["learning_rate"] for row in rows] == pytest.approx(body)


def test_what_a_step_logs(tmp_path: Path, clock: Clock) -> None:
    state = Epochs(tmp_path, clock).run()
    rows = read_jsonl(tmp_path / "run/offline_st/metrics.jsonl")
    for row in rows:
        del row["learning_rate"], row["memory_gib"]
    # Row 4 has 5 tokens, rows 2 and 0 have 7, rows 1 and 3 have 3; a step takes ten seconds.
    assert rows == [
        {"step": 1, "epoch": pytest.approx(1 / 3), "loss": 0.5, "tokens_per_second": 0.5, "seconds": 10},
        {"step": 2, "epoch": pytest.approx(2 / 3), "loss": 0.5, "tokens_per_second": 0.7, "seconds": 20},
        {
            "step": 3, "epoch": 1.0, "loss": 0.5, "tokens_per_second": 0.3, "seen": 0.25,
            "seconds_validation": 5, "seconds": 35,
        },
        {"step": 4, "epoch": pytest.approx(4 / 3), "loss": 0.5, "tokens_per_second": 0.3, "seconds": 45},
        {"step": 5, "epoch": pytest.approx(5 / 3), "loss": 0.5, "tokens_per_second": 0.7, "seconds": 55},
        {
            "step": 6, "epoch": 2.0, "loss": 0.5, "tokens_per_second": 0.5, "seen": 0.5,
            "seconds_validation": 5, "seconds": 70,
        },
    ]  # fmt: skip
    assert state == {"step": 6, "seconds": 70.0, "best": -1.0, "told": 2}


def test_checkpoints_come_every_so_many_steps_but_not_after_the_last(
    tmp_path: Path, clock: Clock, saved: list[tuple[int, State]]
) -> None:
    Epochs(tmp_path, clock).run()
    first, second = {"step": 2, "seconds": 20.0}, {"step": 4, "seconds": 45.0, "told": 1}
    assert saved == [(2, {**first, "best": -1.0}), (4, {**second, "best": -1.0})]


def test_training_goes_on_at_the_row_after_its_checkpoint(
    tmp_path: Path, clock: Clock, saved: list[tuple[int, State]]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Epochs(tmp_path, clock, broken=6).run()
    clock.now = 7000
    resumed = Epochs(tmp_path, clock)
    state = resumed.run()
    assert resumed.rows == PLAN[4:]
    assert resumed.ends == [(2, 6.0, False)]  # six steps in all: the weights of four, and two more
    assert [rates[0] for rates in resumed.rates] == pytest.approx([2e-3, 1e-3])
    assert state == {"step": 6, "seconds": 70.0, "best": -1.0, "told": 2}
    rows = read_jsonl(tmp_path / "run/offline_st/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in saved] == [2, 4]


class Watching(ScriptedJudge):
    """Remembers a policy's first norm whenever it is asked."""

    def __init__(self, *right: int) -> None:
        super().__init__(*right)
        self.policy = make_policy()
        self.marks: list[float] = []

    def __call__(self, *given: Any) -> list[Verdict]:
        self.marks.append(self.policy.policy.get_parameter(NORM)[0].item())
        return super().__call__(*given)


def fit_stage(
    folder: Path, judge: ScriptedJudge, name: str = "sft", epochs: int = 5, **changes: Any
) -> tuple[Stage, Sft | OfflineSt]:
    settings = {
        "epochs": epochs, "batch_size": 2, "learning_rate": 3e-3, "validate_every_epochs": 2, **changes,
    }  # fmt: skip
    if name == "sft":
        settings.setdefault("warmup_epochs", 1)
    stage = make_stage(folder, name, judge, **{name: settings})
    return stage, getattr(stage.config, name)


def run_fit(
    folder: Path, judge: Watching, warmup: int | None = None, name: str = "sft", **changes: Any
) -> State:
    stage, settings = fit_stage(folder, judge, name, **changes)
    return fit(stage, judge.policy, settings, EXAMPLES, warmup)


def test_epochs_are_validated_when_it_is_their_turn_and_the_warm_up_and_the_last_always(
    tmp_path: Path,
) -> None:
    state = run_fit(tmp_path, Watching(1, 2, 3, 0), warmup=1)
    rows = read_jsonl(tmp_path / "run/sft/metrics.jsonl")  # three steps per epoch
    found = {row["epoch"]: row["validation_accuracy"] for row in rows if "validation_accuracy" in row}
    assert found == {1.0: 0.25, 2.0: 0.5, 4.0: 0.75, 5.0: 0.0}
    assert state["warmup_validation_accuracy"] == 0.25
    assert (state["best_epoch"], state["best_validation_accuracy"]) == (4, 0.75)


def test_the_warm_up_is_the_model_of_its_epoch_and_the_best_that_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[Path] = []

    def export(stage: Stage, policy: PolicyWithValue, target: Path, **trained: float) -> None:
        exported.append(target)
        original(stage, policy, target, **trained)

    original = Stage.export
    monkeypatch.setattr(Stage, "export", export)
    judge = Watching(1, 3, 3, 0)
    state = run_fit(tmp_path, judge, warmup=3, epochs=4, warmup_epochs=3)
    assert len(set(judge.marks)) == 3  # after epochs 2, 3 and 4
    assert exported.count(tmp_path / "run/warmup/model") == 1
    assert mark_of(tmp_path / "run/warmup/model") == judge.marks[1]
    assert mark_of(tmp_path / "run/sft/model") == judge.marks[1]
    for name in ("warmup", "sft"):
        trained = {"stage": "sft", "epoch": 3, "validation_accuracy": 0.75}
        assert trained_at(tmp_path / "run" / name / "model") == trained
    assert (state["best_epoch"], state["warmup_validation_accuracy"]) == (3, 0.75)  # not 4: as good


def test_the_best_model_may_come_before_the_warm_up(tmp_path: Path) -> None:
    judge = Watching(4, 0, 0)
    state = run_fit(tmp_path, judge, warmup=3, epochs=4, warmup_epochs=3)
    assert mark_of(tmp_path / "run/warmup/model") == judge.marks[1]
    assert mark_of(tmp_path / "run/sft/model") == judge.marks[0]
    assert (state["best_epoch"], state["warmup_validation_accuracy"]) == (2, 0.0)


def test_without_a_warm_up_none_is_written(tmp_path: Path) -> None:
    state = run_fit(tmp_path, Watching(0), name="offline_st", epochs=1)
    assert not (tmp_path / "run/warmup").exists()
    assert "warmup_validation_accuracy" not in state
    assert (state["best_epoch"], state["best_validation_accuracy"]) == (1, 0.0)  # 0 beats nothing


def test_sft_without_a_warm_up_has_one_model_and_one_result(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, "sft", ScriptedJudge(1, 2, 2, 1), sft={"epochs": 2, "warmup_epochs": 1})
    found = run_sft(stage, make_policy())
    assert (found["warmup_epoch"], found["warmup_validation_accuracy"]) == (1, 0.25)
    settings = stage.config.sft.model_copy(update={"warmup_epochs": 0})
    given = stage.config.model_copy(update={"sft": settings, "name": "given"})
    found = run_sft(replace(stage, config=given), make_policy())
    assert found.keys() == {"best_epoch", "best_validation_accuracy", "seconds"}
    assert (given.run_dir / "sft/model").exists()
    assert not (given.run_dir / "warmup").exists()


def test_a_fit_that_breaks_off_ends_with_the_weights_of_one_that_does_not(tmp_path: Path) -> None:
    whole = Watching(1, 1, 1)
    settings = {"epochs": 3, "validate_every_epochs": 1, "checkpoint_every_steps": 2}
    run_fit(tmp_path / "whole", whole, warmup=1, **settings)
    broken = Watching(1)
    with pytest.raises(IndexError):  # the script has one validation only
        run_fit(tmp_path / "broken", broken, warmup=1, **settings)
    resumed = Watching(1, 1)
    state = run_fit(tmp_path / "broken", resumed, warmup=1, **settings)
    assert broken.marks + resumed.marks[1:] == [*whole.marks[:2], whole.marks[2]]
    assert resumed.marks[0] == whole.marks[1]
    assert (state["best_epoch"], state["warmup_validation_accuracy"]) == (1, 0.25)


def cross_entropies(policy: PolicyWithValue, examples: Sequence[Example]) -> Tensor:
    """Return transformers' cross-entropy of every response, summed over its tokens, row by row."""
    losses = []
    for prompt, response in examples:
        logits = policy.policy(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        losses.append(functional.cross_entropy(logits, torch.tensor(response), reduction="sum"))
    return torch.stack(losses)


@float64()
def test_the_loss_is_the_mean_over_target_tokens(tmp_path: Path) -> None:
    judge = Watching(0)
    with torch.no_grad():
        expected = cross_entropies(judge.policy, EXAMPLES).sum().item() / 13  # 4 + 2 + 3 + 3 + 1 tokens
    run_fit(tmp_path, judge, epochs=1, batch_size=5)
    [row] = read_jsonl(tmp_path / "run/sft/metrics.jsonl")
    assert row["loss"] == pytest.approx(expected, rel=CLOSE)
    assert row["tokens_per_second"] > 0


def test_a_model_that_knows_nothing_has_the_loss_ln_300_whatever_the_batch(tmp_path: Path) -> None:
    for size in (1, 2, 5):
        judge = Watching(0)
        torch.nn.init.zeros_(judge.policy.policy.get_output_embeddings().weight)
        run_fit(tmp_path / f"{size}", judge, epochs=1, batch_size=size, learning_rate=1e-9)
        rows = read_jsonl(tmp_path / f"{size}" / "run/sft/metrics.jsonl")
        assert [row["loss"] for row in rows] == pytest.approx([5.703782] * len(rows), abs=1e-4)


@float64()
def test_a_step_follows_the_gradient_of_the_weighed_cross_entropies() -> None:
    policy, twin, weights = make_policy(), make_policy(), [0.5, 0.125, 0.0]
    loss = (cross_entropies(twin, EXAMPLES[:3]) * torch.tensor(weights)).sum()
    loss.backward()
    gradients = [p.grad for p in twin.parameters() if p.grad is not None]
    for budget, pieces in ((8, 3), (1000, 1)):  # 7, 5 and 3 tokens: rows apart, and rows together
        policy, reads = make_policy(), list[int]()
        policy.register_forward_hook(lambda *_, reads=reads: reads.append(1))
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.25)
        learner = Learner(policy, optimizer, Accelerator(cpu=True), budget, 1e9)
        sums = train_on(learner, EXAMPLES[:3], weights)
        assert len(reads) == pieces
        assert sums["loss"] == pytest.approx(loss.item(), rel=CLOSE)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        assert sums["grad_norm"] == pytest.approx(norm.item(), rel=CLOSE)
        for new, old, gradient in zip(policy.parameters(), twin.parameters(), gradients, strict=True):
            torch.testing.assert_close(new, old - 0.25 * gradient, atol=CLOSE, rtol=CLOSE)


@float64()
def test_a_process_that_is_dealt_no_row_adds_nothing() -> None:
    losses = []
    for index in (0, 1):
        policy = make_policy()
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        learner = Learner(policy, optimizer, OneOf(index, 2), 1000, 1e9)
        losses.append(train_on(learner, EXAMPLES[:1], [1.0])["loss"])
    assert losses == [0.0, pytest.approx(cross_entropies(make_policy(), EXAMPLES)[0].item(), rel=CLOSE)]


def test_the_optimizer_gets_the_stages_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Learner] = []

    def learner(stage: Stage, *given: Any) -> Learner:
        made.append(original(stage, *given))
        return made[0]

    original: Callable[..., Learner] = Stage.learner
    monkeypatch.setattr(Stage, "learner", learner)
    run_fit(tmp_path, Watching(0), epochs=1, weight_decay=0.125, max_grad_norm=0.75, lr_warmup_share=0.0)
    [group] = made[0].optimizer.param_groups
    assert (group["peak"], group["weight_decay"]) == (3e-3, 0.125)
    assert group["lr"] == pytest.approx(3e-3 / 3)  # the last of three steps
    assert made[0].max_grad_norm == 0.75


def test_examples_beyond_the_limit_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = make_stage(tmp_path, "offline_st")
    assert short_enough(stage, EXAMPLES, 7) == EXAMPLES  # the longest has 3 + 4 tokens
    assert capsys.readouterr().err == ""
    assert short_enough(stage, EXAMPLES, 4) == [EXAMPLES[1], EXAMPLES[3], EXAMPLES[4]]
    told = "2 examples exceed offline_st.max_tokens = 4 and are left out\n"
    assert capsys.readouterr() == ("", told)
    other = make_stage(tmp_path, accelerator=OneOf(1, 2))
    assert len(short_enough(other, EXAMPLES, 4)) == 3
    assert capsys.readouterr().err == ""


def test_a_limit_that_leaves_no_example_is_refused(tmp_path: Path) -> None:
    stage, settings = fit_stage(tmp_path, Watching(), max_tokens=6)
    with pytest.raises(UserError) as error:
        fit(stage, make_policy(), settings, EXAMPLES[:1])
    assert str(error.value) == "sft.max_tokens = 6: no example is that short; raise it"


@float64()
def test_only_examples_within_the_limit_are_learnt_from(tmp_path: Path) -> None:
    judge = Watching(0)
    with torch.no_grad():
        kept = [EXAMPLES[i] for i in (1, 3, 4)]
        expected = cross_entropies(judge.policy, kept).sum().item() / 6
    run_fit(tmp_path, judge, epochs=1, batch_size=5, max_tokens=4)
    [row] = read_jsonl(tmp_path / "run/sft/metrics.jsonl")
    assert row["loss"] == pytest.approx(expected, rel=CLOSE)


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [
        (math.nan, 1.0, "the loss is not finite (nan)"),
        (math.inf, 1.0, "the loss is not finite (inf)"),
        (1.5, math.nan, "the norm of the gradient is not finite (nan)"),
        (5.866, math.inf, "the norm of the gradient is not finite (inf)"),
    ],
)
def test_a_step_that_is_not_finite_stops_the_stage(
    tmp_path: Path, loss: float, norm: float, what: str
) -> None:
    sums = {"loss": loss, "grad_norm": norm}
    with pytest.raises(UserError) as error:
        stop_on_non_finite(make_stage(tmp_path, "online_st"), sums, 0.25)
    assert str(error.value) == (f"online_st: {what}; lower online_st.learning_rate (now 0.25)")


def test_a_finite_step_stops_nothing(tmp_path: Path) -> None:
    stop_on_non_finite(make_stage(tmp_path), {"loss": 1e30, "grad_norm": 1e30}, 0.25)


def test_a_fit_whose_loss_is_not_finite_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "reftune.sampling.engine.find_fault", lambda *_, **__: ""
    )  # it would see nan first
    judge = Watching()
    with torch.no_grad():
        judge.policy.policy.get_parameter(NORM).fill_(math.nan)
    with pytest.raises(
        UserError, match=r"^sft: the loss is not finite \(nan\); lower .* \(now 0\.003\)$"
    ):
        run_fit(tmp_path, judge)
