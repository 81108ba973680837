"""The function that hears of every step: what it is told, and how it ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reftune import interrupts, pipeline
from reftune.config import Config
from reftune.files import read_jsonl
from tiny_pipeline import make_config

Heard = list[tuple[str, int, dict[str, Any]]]
MODELS = [("evaluation", 1), ("evaluation", 2), ("evaluation", 3)]
STEPS = [("sft", 1), ("sft", 2), ("ppo", 1), ("ppo", 2), *MODELS]


def config_of(folder: Path, name: str) -> Config:
    """Return a run of two steps of SFT, two of PPO, and three models to evaluate."""
    sft = {"epochs": 1, "warmup_epochs": 1, "batch_size": 2}
    batches = {"questions_per_step": 2, "samples_per_question": 2, "validate_every_steps": 2}
    return make_config(
        folder, "reft", name=name, sft=sft, ppo={"steps": 2, "kl_coef": 0.0, **batches}
    )  # fmt: skip


def logged(config: Config) -> Heard:
    stages = dict.fromkeys(stage for stage, _ in STEPS)
    rows = {stage: read_jsonl(config.run_dir / stage / "metrics.jsonl") for stage in stages}
    return [(stage, row["step"], row) for stage in stages for row in rows[stage]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Heard]:
    """Return a run that was listened to, and what was heard."""
    config, heard = config_of(tmp_path_factory.mktemp("listener"), "whole"), Heard()
    pipeline.run(config, on_step=lambda *step: heard.append(step))
    return config, heard


def test_every_step_of_every_stage_is_heard_as_it_is_logged(whole: tuple[Config, Heard]) -> None:
    config, heard = whole
    assert [(stage, step) for stage, step, _ in heard] == STEPS
    assert heard == logged(config)
    ppo = heard[3][2]
    assert {"reward", "accuracy", "statuses", "loss", "validation_accuracy"} <= ppo.keys()


def test_nothing_is_heard_of_finished_stages(whole: tuple[Config, Heard]) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    assert pipeline.run(whole[0], on_step=never).ran == []


class Enough(Exception):
    """What a program raises that has seen enough."""


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        (Enough, ("sft", 2)),
        (KeyboardInterrupt, ("ppo", 1)),
        (Enough, ("evaluation", 1)),
        (Enough, STEPS[-1]),
    ],
)
def test_where_it_raises_the_run_ends_and_goes_on_from_there(
    whole: tuple[Config, Heard], tmp_path: Path, kind: type[BaseException], end: tuple[str, int]
) -> None:
    """No step is done twice; of an evaluation all models are told again."""
    config, heard = config_of(tmp_path, "ended"), []

    def on_step(stage: str, step: int, row: dict[str, Any]) -> None:
        heard.append((stage, step))
        row.clear()  # which is its own
        if (stage, step) == end:
            raise kind("here")

    with pytest.raises(kind, match="here"):
        pipeline.run(config, on_step=on_step)
    assert not interrupts.received()
    assert heard[-1] == end
    pipeline.run(config, on_step=lambda stage, step, row: heard.append((stage, step)))
    assert heard == (STEPS[: -len(MODELS) + 1] + MODELS if end == MODELS[0] else STEPS)
    assert [(stage, step) for stage, step, _ in logged(config)] == STEPS
    files = [one.run_dir / "ppo/model/model.safetensors" for one in (config, whole[0])]
    assert files[0].read_bytes() == files[1].read_bytes()
