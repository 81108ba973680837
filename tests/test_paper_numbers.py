from __future__ import annotations

from typing import Any

import pytest

from reftune.config import Config
from reftune.config_files import parse_config
from reftune.reporting.comparison.paper_numbers import LARGE, NUMERIC, SMALL, TABLES, Reported, reported

LLAMA, GALACTICA = "codellama/CodeLlama-7b-hf", "facebook/galactica-6.7b"


def config(name: str = LLAMA, test: str = "data/gsm8k_test_set.json", **tables: Any) -> Config:
    tables["data"] = {"test": test, "cot": "program"} | tables.get("data", {})
    return parse_config({"model": {"name": name}} | tables, [], "test")


def natural(name: str, test: str) -> Config:
    return config(name, test, data={"cot": "natural"})


@pytest.mark.parametrize(
    ("run", "model", "percent"),
    [  # read off the paper's tables
        (config(), "sft", 63.68),
        (config(), "reft", 75.28),
        (config(GALACTICA), "reft", 68.91),
        (natural(GALACTICA, "openai/gsm8k"), "sft", 42.68),
        (natural(LLAMA, "data/svamp_test_set.json"), "reft", 64.50),
        (config(test="ChilleD/SVAMP"), "sft", 75.40),
        (config(test="data/mathqa_test_set.json"), "reft", 71.83),
        (natural(LLAMA, "data/mathqa-numeric_test_set.json"), "online_st", 38.06),
        (config("facebook/galactica-125m"), "reft", 29.8),
        (config("Salesforce/codegen-350M-mono", "allenai/math_qa"), "sft", 56.4),
        (config("/models/CodeLlama-7b-hf/"), "reft", 75.28),
    ],
)
def test_a_run_of_the_papers_setting_finds_its_number(run: Config, model: str, percent: float) -> None:
    assert reported(run, model, "greedy", 1) == Reported(round(percent / 100, 4))


@pytest.mark.parametrize(
    ("run", "model"),
    [
        (config("codellama/CodeLlama-7b-Python-hf"), "reft"),
        (config(test="synthetic"), "reft"),
        (config(test="data/mathqa-numeric_test_set.json"), "reft"),  # the paper has no programs there
        (config(data={"max_test": 100}), "reft"),
        (config(), "warmup"),
        (config(ppo={"kl_coef": 0.0}), "reft"),  # collapses
        (config(ppo={"advantage": "group"}), "reft"),
        (config(GALACTICA, reward={"partial_reward": 0.0}), "reft"),
        (
            config(reward={"partial_reward": 0.0}, model={"name": LLAMA, "value_model": "separate"}),
            "reft",
        ),
        (parse_config({"model": {"scratch": "tiny"}, "data": {"test": "gsm8k"}}, [], "test"), "reft"),
    ],
)
def test_other_settings_have_none(run: Config, model: str) -> None:
    assert reported(run, model, "greedy", 1) is None


def test_ablations_have_their_own_number_and_leave_sft_alone() -> None:
    run = config(reward={"partial_reward": 0.0})
    assert reported(run, "reft", "greedy", 1) == Reported(0.744)
    assert reported(run, "reft", "vote", 100) is None
    assert reported(run, "sft", "greedy", 1) == Reported(0.6368)
    separate = config(model={"name": LLAMA, "value_model": "separate"})
    assert reported(separate, "reft", "greedy", 1) == Reported(0.7515)


def test_votes_and_reranking_are_reported_for_a_hundred_samples() -> None:
    assert reported(config(), "reft", "vote", 100) == Reported(0.78)
    assert reported(config(), "reft", "rerank", 100) == Reported(0.812)
    assert reported(config(GALACTICA), "sft", "rerank", 100) == Reported(0.734)
    assert reported(config(), "reft", "vote", 16) is None
    assert reported(config(), "reft", "weighted vote", 100) is None
    assert reported(config(test="data/svamp.json"), "reft", "vote", 100) is None


def test_what_was_read_second_hand_says_so() -> None:
    found = reported(config(), "online_st", "greedy", 1)
    assert found == Reported(0.6785, second_hand=True)
    assert str(found) == "~67.85%"
    assert str(Reported(0.78)) == "78%"
    numeric = natural(LLAMA, "data/mathqa-numeric_test_set.json")
    assert reported(numeric, "online_st", "greedy", 1) == Reported(0.3806)


def test_every_row_has_a_number_per_column_and_reft_is_above_sft() -> None:
    for columns, rows in TABLES:
        assert {len(row) for row in rows.values()} == {len(columns)}
    for rows in (LARGE, NUMERIC, SMALL):
        for (name, model), row in rows.items():
            if model == "reft":
                assert all(b > a for a, b in zip(rows[name, "sft"], row, strict=True))
