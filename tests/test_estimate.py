"""How long a run takes, guessed from the machine's rates before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reftune.model.scratch import new_model
from reftune.planning import estimate
from reftune.planning.estimate import measured_card, rough_seconds
from reftune.planning.pace import Card, assumed
from reftune.planning.shapes import given_shape, shape_of
from reftune.planning.workload import counts_of, measure, works
from reftune.runs.setup import make_accelerator
from reftune.stages.run import Run
from tiny_pipeline import make_config, with_model

CARD = Card(0.0, tflops=1e-9, bandwidth=1e-6, float32=1.0)  # a kiloflop per second


def make_run(folder: Path) -> Run:
    """Return a run of a given model: of one that was new a moment ago."""
    config = make_config(folder, "reft")
    for part in new_model(config.model, ["How many are it?"], seed=0):
        part.save_pretrained(folder / "model")
    config = with_model(config, name=str(folder / "model"), scratch=None)
    return Run(config, make_accelerator(config))


def test_a_guess_is_the_sum_of_the_stages_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    monkeypatch.setattr(estimate, "measured_card", lambda *_: CARD)
    architecture, prompter = run.base_architecture()
    shape = shape_of(architecture, run.config, activations=False)
    pace = assumed(CARD, shape, run.config)
    lengths = measure(prompter, run.splits.train, run.config)
    sft, ppo, evaluation = (pace.stage(w, 7) for w in works(run.config, lengths, counts_of(run)))
    assert rough_seconds(run, ["sft", "ppo", "evaluation"], shape) == pytest.approx(
        sft + ppo + evaluation
    )
    assert rough_seconds(run, ["evaluation"], shape) == pytest.approx(evaluation)
    # 1,000 steps, of which a checkpoint has done 250
    (run.config.run_dir / "ppo/checkpoints/step-00000250").mkdir(parents=True)
    assert rough_seconds(run, ["ppo"], shape) == pytest.approx(0.75 * ppo)


def test_a_new_model_and_one_that_is_not_there_tell_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for changes in ({"name": None, "scratch": "tiny"}, {"name": str(tmp_path / "nowhere")}):
        run.config = with_model(run.config, **changes)
        assert rough_seconds(run, ["sft"], given_shape(run.config)) is None


def test_a_guess_of_seconds_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    monkeypatch.setattr(estimate, "measured_card", lambda *_: replace(CARD, tflops=1e3, bandwidth=1e6))
    assert rough_seconds(run, ["evaluation"], given_shape(run.config)) is None


def test_rates_are_those_of_products_and_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves by a second whenever it is read."""
    now = iter(range(100))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(now)))
    card = measured_card(torch.device("cpu"), torch.float32)
    assert card.tflops == pytest.approx(2 * 1024**3 / 1e12)
    assert card.bandwidth == pytest.approx(4 * 2**26 / 1e9)
    assert card.float32 == 1.0


def test_a_measured_rate_is_not_divided_once_more_in_float32(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shape = shape_of(run.base_architecture()[0], run.config, activations=False)
    measured = assumed(CARD, shape, run.config)
    by_data_sheet = assumed(replace(CARD, float32=1 / 8), shape, run.config)
    assert by_data_sheet.learn_token == pytest.approx(8 * measured.learn_token)
