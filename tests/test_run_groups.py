from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reftune.config.files import parse_config
from reftune.problem import UserError
from reftune.reporting.comparison.finished_runs import FinishedRun, RunGroup, group_runs


def run(name: str, seed: int = 1, **settings: Any) -> FinishedRun:
    values = {"name": name, "seed": seed, "model": {"scratch": "tiny"}} | settings
    return FinishedRun(Path("runs") / name, parse_config(values, [], name), {})


def labels(*runs: FinishedRun) -> list[str]:
    return [group.label for group in group_runs(runs)]


def test_runs_that_differ_in_identity_extent_and_machine_are_seeds_of_one_cell() -> None:
    runs = [
        run("a"),
        run("b", 2, methods=["offline_st", "reft"], start_from="runs/a", output_dir="elsewhere"),
        run("c", 3, compute={"threads": 1}, evaluation={"samples": 4, "rerank": True, "bootstrap": 500}),
    ]
    assert group_runs(runs) == [RunGroup("", runs, {})]


def test_any_other_setting_makes_another_group() -> None:
    groups = group_runs(
        [run("a"), run("b", ppo={"kl_coef": 0.0}), run("c", 2), run("d", 2, ppo={"steps": 5})]
    )
    assert [[one.directory.name for one in group.runs] for group in groups] == [["a", "c"], ["b"], ["d"]]
    assert [group.changes for group in groups] == [{}, {"ppo.kl_coef": 0.0}, {"ppo.steps": 5}]
    assert len(group_runs([run("a"), run("b", 2, evaluation={"temperature": 0.5})])) == 2


def test_a_setting_that_only_the_first_group_has_is_a_difference() -> None:
    shaped = run("a", model={"scratch": "tiny", "scratch_overrides": {"hidden_size": 64}})
    groups = group_runs([shaped, run("b")])
    assert [list(group.changes.values()) for group in groups] == [[], [None]]


def test_one_setting_names_both_groups() -> None:
    assert labels(run("a"), run("b", ppo={"kl_coef": 0.0})) == ["kl_coef = 0.01", "kl_coef = 0"]
    assert labels(run("a"), run("b", ppo={"steps": 5})) == ["ppo.steps = 1000", "ppo.steps = 5"]
    assert labels(run("a"), run("b", data={"max_train": 9})) == ["max_train = unset", "max_train = 9"]


def test_of_several_ablations_the_first_group_has_its_runs_name() -> None:
    one, two = run("b", ppo={"kl_coef": 0.0}), run("c", reward={"partial_reward": 0.0})
    assert labels(run("a"), one, two) == ["a", "kl_coef = 0", "partial_reward = 0"]


def test_the_kind_of_chain_stands_for_what_changes_with_it() -> None:
    def natural(name: str, **ppo: Any) -> FinishedRun:
        data = {"cot": "natural", "train": "data/gsm8k_nl.json"}
        return run(name, data=data, ppo={"kl_coef": 0.05} | ppo)

    assert labels(run("p"), natural("n")) == ["P-CoT", "N-CoT"]
    ablation = run("p0", ppo={"kl_coef": 0.0})
    assert labels(run("p"), natural("n"), ablation, natural("n0", kl_coef=0.0)) == [
        "P-CoT",
        "N-CoT",
        "P-CoT, kl_coef = 0",
        "N-CoT, kl_coef = 0",
    ]


def test_what_is_too_long_to_be_a_label_gives_way_to_the_runs_name() -> None:
    many = {"steps": 5, "kl_coef": 0.0, "gae_lambda": 1.0, "learning_rate": 1e-4}
    assert labels(run("a"), run("short", ppo=many)) == ["a", "short"]
    old = FinishedRun(Path("old/short"), run("short", ppo=many | {"steps": 6}).config, {})
    assert labels(run("a"), run("short", ppo=many), old) == ["a", "runs/short", "old/short"]


def test_the_same_settings_and_the_same_seed_are_no_two_seeds() -> None:
    with pytest.raises(UserError, match="runs/a and runs/b have the same settings and the same seed"):
        group_runs([run("a"), run("b")])
