"""The recipes in configs/: short files that are laid over a run, the demo or a user's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from reftune.config import Config
from reftune.config.files import load_config
from reftune.files import parse_toml, read_jsonl
from reftune.pipeline import run_stages
from reftune.problem import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = {path.stem: path for path in sorted((CONFIGS / "recipes").glob("*.toml"))}
QUICK = [
    "sft.epochs=1", "sft.warmup_epochs=1", "sft.validate_every_epochs=1", "ppo.steps=2",
]  # fmt: skip


def test_there_is_a_recipe_for_each_way_that_people_ask_for() -> None:
    assert set(RECIPES) == {
        "ppo_paper", "ppo_modern", "ppo_question_critic", "grpo", "dapo",
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_how_is_learnt_and_nothing_of_how_much(name: str) -> None:
    said = parse_toml(RECIPES[name].read_text(encoding="utf-8"), name)
    assert said.keys() == {"ppo"}
    amounts = {"steps", "questions_per_step", "samples_per_question", "learning_rate", "minibatch_size"}
    assert not amounts & said["ppo"].keys()


def laid_over(path: Path, recipe: str, *changes: str) -> Config:
    return load_config(path, [f"extends={RECIPES[recipe]}", *changes])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_laid_over_the_demo_or_a_users_own_run(name: str, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[model]\nname = "m"\n[ppo]\nsamples_per_question = 4\n', encoding="utf-8")
    said: dict[str, Any] = parse_toml(RECIPES[name].read_text(encoding="utf-8"), name)["ppo"]
    for path in (CONFIGS / "demo.toml", own):
        before, config = load_config(path), laid_over(path, name)
        found = config.ppo.model_dump()
        assert {key: found[key] for key in said} == said
        assert found == before.ppo.model_dump() | said, "and all else is the run's"
        assert config.name == before.name
    child = tmp_path / "child.toml"
    child.write_text(f'extends = ["own.toml", "{RECIPES[name]}"]\n', encoding="utf-8")
    assert load_config(child).ppo == laid_over(own, name).ppo, "as a file says it"


def test_the_recipe_of_a_critic_that_knows_the_question_is_the_technique_that_was_measured() -> None:
    technique = CONFIGS / "techniques" / "ppo" / "sees_both_plain.toml"
    measured = load_config(CONFIGS / "techniques" / "program.toml", [f"extends={technique}"])
    assert laid_over(CONFIGS / "demo.toml", "ppo_question_critic").ppo == measured.ppo


def test_what_is_set_beside_a_recipe_has_the_last_word() -> None:
    changes = ("ppo.kl_coef=0.3", "ppo.dynamic_sampling=0")
    for order in (0, 1):
        given = (
            [*changes, f"extends={RECIPES['dapo']}"]
            if order
            else [f"extends={RECIPES['dapo']}", *changes]
        )
        config = load_config(CONFIGS / "demo.toml", given)
        assert (config.ppo.kl_coef, config.ppo.dynamic_sampling) == (0.3, 0)
        assert config.ppo.overlong_buffer == 16


def test_a_recipe_that_a_run_cannot_follow_says_what_is_missing(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[model]\nname = "m"\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"set ppo\.samples_per_question to 2 or more"):
        laid_over(own, "grpo")
    changes = ("prompt.max_new_tokens=10", "ppo.samples_per_question=2")
    with pytest.raises(UserError, match=r"ppo\.overlong_buffer = 16 is longer than a response can be"):
        laid_over(own, "dapo", *changes)
    with pytest.raises(UserError, match=r"none\.toml: no such config file"):
        load_config(own, ["extends=none.toml"])


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the configuration of a run whose SFT stage is finished."""
    path = tiny_run.write_config(tmp_path_factory.mktemp("recipes"))
    run_stages(load_config(path, QUICK), ("sft",))
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_run_takes_its_steps_by_a_recipe(name: str, warm: Path) -> None:
    changes = [*QUICK, f"name={name}", f"start_from={warm.parent / 'runs/tiny'}"]
    changes += ["ppo.overlong_buffer=4"] if name == "dapo" else []
    config = laid_over(warm, name, *changes)
    run_stages(config, ("sft", "ppo"))
    rows = read_jsonl(config.run_dir / "ppo/metrics.jsonl")
    assert len(rows) == 2
    assert all(math.isfinite(row.get("loss", 0.0)) for row in rows)
    assert all(("kl" in row) is (config.ppo.kl_coef > 0) for row in rows)
    assert all(("draws" in row) is (name == "dapo") for row in rows)
