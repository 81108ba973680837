from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from reftune.config import Config
from reftune.config.files import load_config, parse_config
from reftune.problem import UserError
from reftune.reporting.comparison.reported import Number, read_reported

ROOT = Path(__file__).parents[1]
PAPER = read_reported(ROOT / "reproduction" / "paper.toml")

LLAMA, GALACTICA = "codellama/CodeLlama-7b-hf", "facebook/galactica-6.7b"


def config(name: str = LLAMA, test: str = "data/gsm8k_test_set.json", **tables: Any) -> Config:
    tables["data"] = {"test": test, "cot": "program"} | tables.get("data", {})
    return parse_config({"model": {"name": name}} | tables, [], "test")


def percent(run: Config, model: str, aggregation: str = "greedy", samples: int = 1) -> float | None:
    found = PAPER.find(run, model, aggregation, samples)
    return None if found is None else found.accuracy


def natural(name: str, test: str) -> Config:
    return config(name, test, data={"cot": "natural"})


@pytest.mark.parametrize(
    ("run", "model", "expected"),
    [  # read off the paper's tables
        (config(), "sft", 63.68),
        (config(), "reft", 75.28),
        (config(GALACTICA), "reft", 68.91),
        (natural(GALACTICA, "openai/gsm8k"), "sft", 42.68),
        (natural(LLAMA, "data/svamp_test_set.json"), "reft", 64.50),
        (config(test="ChilleD/SVAMP"), "sft", 75.40),
        (config(test="data/mathqa_test_set.json", reward={"partial_reward": 0.0}), "reft", 71.83),
        (natural(LLAMA, "data/mathqa-numeric_test_set.json"), "online_st", 38.06),
        (config("facebook/galactica-125m"), "reft", 29.8),
        (config("Salesforce/codegen-350M-mono", "allenai/math_qa"), "sft", 56.4),
        (config("/models/CodeLlama-7b-hf/"), "reft", 75.28),
    ],
)
def test_a_run_of_the_papers_setting_finds_its_number(run: Config, model: str, expected: float) -> None:
    assert percent(run, model) == expected


@pytest.mark.parametrize(
    ("run", "model"),
    [
        (config("codellama/CodeLlama-7b-Python-hf"), "reft"),
        (config(test="synthetic"), "reft"),
        (config(test="data/mathqa-numeric_test_set.json"), "reft"),  # the paper has no programs there
        (config(data={"max_test": 100}), "reft"),
        (config(data={"max_train": 100}), "sft"),
        (config(reward={"function": "mine.py:reward"}), "sft"),
        (config(), "warmup"),
        (config(ppo={"kl_coef": 0.0}), "reft"),  # collapses
        (config(ppo={"advantage": "group", "samples_per_question": 2}), "reft"),
        (config(GALACTICA, reward={"partial_reward": 0.0}), "reft"),
        (
            config(reward={"partial_reward": 0.0}, model={"name": LLAMA, "value_model": "separate"}),
            "reft",
        ),
        (parse_config({"model": {"scratch": "tiny"}, "data": {"test": "gsm8k"}}, [], "test"), "reft"),
    ],
)
def test_other_settings_have_none(run: Config, model: str) -> None:
    assert percent(run, model) is None


def test_ablations_have_their_own_number_and_leave_sft_alone() -> None:
    run = config(reward={"partial_reward": 0.0})
    assert percent(run, "reft") == 74.4
    assert percent(run, "reft", "vote", 100) is None
    assert percent(run, "sft") == 63.68
    assert percent(config(model={"name": LLAMA, "value_model": "separate"}), "reft") == 75.15


def test_votes_and_reranking_are_reported_for_a_hundred_samples() -> None:
    assert percent(config(), "reft", "vote", 100) == 78.0
    assert percent(config(), "reft", "rerank", 100) == 81.2
    assert percent(config(GALACTICA), "sft", "rerank", 100) == 73.4
    assert percent(config(), "reft", "vote", 16) is None
    assert percent(config(), "reft", "weighted vote", 100) is None
    assert percent(config(test="data/svamp.json"), "reft", "vote", 100) is None


def test_what_was_read_second_hand_says_so() -> None:
    found = PAPER.find(config(), "online_st", "greedy", 1)
    assert found is not None
    assert (str(found), found.share) == ("~67.85%", 0.6785)
    numeric = natural(LLAMA, "data/mathqa-numeric_test_set.json")
    first_hand = PAPER.find(numeric, "online_st", "greedy", 1)
    assert str(first_hand) == "38.06%"


def test_every_config_of_the_paper_finds_a_number_for_every_method() -> None:
    without = set()
    for path in (ROOT / "configs" / "paper").glob("[!p]*/*.toml"):  # all but the parts
        run = load_config(path)
        if not all(percent(run, method) for method in ("sft", *run.methods)):
            without.add(f"{path.parent.name}/{path.stem}")
    small = {f"codeparrot-small/{name}_program" for name in ("gsm8k", "svamp", "mathqa_mcq")}
    no_programs = {f"{name}/mathqa_numeric_program" for name in ("galactica-6.7b", "codellama-7b")}
    assert without == small | no_programs | {"ablations/no_kl"}


def test_the_paper_reports_each_number_once_and_reft_above_sft() -> None:
    def of(n: Number) -> tuple[Any, ...]:
        return n.model, n.data, n.chains, n.aggregation, n.samples

    keys = [(*of(n), n.method, repr(n.settings)) for n in PAPER.numbers]
    assert len(set(keys)) == len(keys) == 48 + 8 + 12 + 8 + 2
    for a, b in itertools.product(PAPER.numbers, repeat=2):
        if of(a) == of(b) and (a.method, b.method) == ("sft", "reft"):
            assert b.accuracy > a.accuracy


ROW = 'model = "m", data = "d", chains = "program", method = "sft", accuracy = 50'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numbers = [", r"mine\.toml: not valid TOML: Invalid"),
        ("numbers = []", r"mine\.toml: source: Field required"),
        (f'numbers = [{{{ROW}, chain = "x"}}]', r"numbers\.0\.chain: Extra inputs are not permitted"),
        (f"numbers = [{{{ROW}5.5}}]", r"numbers\.0\.accuracy: .* less than or equal to 100"),
        (f"numbers = [{{{ROW.replace('sft', 'stf')}}}]", "unknown method stf"),
        (f'numbers = [{{{ROW}, aggregation = "best"}}]', "unknown aggregation best"),
        (f"numbers = [{{{ROW}, settings = {{lr = 1}}}}]", "unknown setting lr"),
        (f"numbers = [{{{ROW}}}]\nsettings.sft = {{lr = 1}}", "unknown setting lr"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_sentence(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'source = "me"\n{text}' if "required" not in message else text)
    with pytest.raises(UserError, match=message):
        read_reported(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: cannot be read \(.*No such file"):
        read_reported(tmp_path / "none.toml")
