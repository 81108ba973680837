"""What a run says before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reftune.config import Config
from reftune.config.files import parse_config
from reftune.data.problems import SplitReport, Splits
from reftune.planning.outlook import outlook
from reftune.planning.shapes import given_shape
from reftune.problem import Problem
from tiny_models import tiny_model

PROBLEMS = [Problem(str(n), f"{n}?", "1", chain="so" if n < 5 else None) for n in range(7)]
CPU = torch.device("cpu")


def make_splits(duplicates: int = 0, overlaps: int = 0) -> Splits:
    return Splits(PROBLEMS, PROBLEMS[:2], PROBLEMS[:1], SplitReport(duplicates, overlaps, 0, 2))


def make_config(*settings: str) -> Config:
    given = [
        "sft.epochs=3",
        "sft.batch_size=2",
        "ppo.steps=1500",
        "output_dir=o",
        "name=mine",
        *settings,
    ]
    if not any(setting.startswith("model.name") for setting in settings):
        given.append("model.scratch=tiny")
    return parse_config({}, given, "mine")


def test_stages_with_their_steps_and_questions() -> None:
    config = make_config()
    assert outlook(config, make_splits(), CPU, config.lineup.stages, []) == [
        "o/mine: begins with sft (9 steps), ppo (1,500 steps), evaluation (3 models)",  # 5 chains by 2
        "7 questions to train on, 2 for validation, 1 to test on",
    ]


def test_one_of_a_thing_is_told_as_one() -> None:
    [first, _] = outlook(make_config("ppo.steps=1"), make_splits(), CPU, ["ppo"], [])
    assert first == "o/mine: begins with ppo (1 step)"


def test_what_is_finished_and_what_was_left_out() -> None:
    found = outlook(make_config(), make_splits(3, 1200), CPU, ["ppo", "evaluation"], ["sft"])
    assert found == [
        "o/mine: goes on with ppo (1,500 steps), evaluation (3 models); finished: sft",
        "7 questions to train on, 2 for validation, 1 to test on; left out of training: 3 repeated,"
        " 1,200 of the test set",
    ]


def test_a_stage_that_is_taken_over() -> None:
    config = make_config("start_from=other")
    [first, _] = outlook(config, make_splits(), CPU, config.lineup.stages, [])
    assert first.startswith(
        "o/mine: begins with sft (that of other, where it has one), ppo (1,500 steps)"
    )


@pytest.mark.parametrize("rank", [0, 4])
def test_a_given_model_and_what_of_it_is_trained(tmp_path: Path, rank: int) -> None:
    pytest.importorskip("peft")
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    config = make_config(f"model.name={tmp_path}", f"lora.rank={rank}")
    shape = given_shape(config)
    [*_, told] = outlook(config, make_splits(), CPU, config.lineup.stages, [], shape=shape)
    trained = "all of them trained" if not rank else "million trained in an adapter of rank 4"
    assert told.startswith(f"{tmp_path}: {count:,.1f} million parameters in float32, ")
    assert trained in told
    threads = torch.get_num_threads()
    assert told.endswith(f"{threads} CPU thread" if threads == 1 else f"{threads} CPU threads")


def test_how_long_it_takes_as_far_as_one_can_guess() -> None:
    config = make_config()
    [*_, told] = outlook(config, make_splits(), CPU, config.lineup.stages, [], seconds=5437.0)
    assert told == (
        "about 1.5 h, guessed from this machine's rates; `reftune plan` tries the model, and tells"
        " memory and time"
    )


def test_a_model_that_is_not_there_is_left_to_whoever_loads_it() -> None:
    config = make_config("model.name=nowhere")
    assert given_shape(config) is None
    assert len(outlook(config, make_splits(), CPU, ["ppo"], [])) == 2
