from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from reftune.reporting.run.metadata import facts, stage_states
from reftune.reporting.run.run_files import Run, read_run

ALL = 'methods = ["offline_st", "online_st", "reft"]\n[evaluation]\nrerank = true\n'
PPO = "Reinforced fine-tuning (PPO)"
SOLVED = '"best_validation_accuracy": 0.75'


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write(tmp_path / "config.toml", 'name = "trial"\n[ppo]\nsteps = 9\nlearning_rate = 5e-5\n')
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def states(run: Run) -> dict[str, tuple[str, str]]:
    return {stage["name"]: (stage["state"], stage["detail"]) for stage in stage_states(run)}


def test_facts_come_from_settings_and_from_results(run_dir: Path) -> None:
    assert facts(read_run(run_dir)) == {PPO: [("steps", "9"), ("learning rate", "5e-05")]}
    write(run_dir / "ppo/result.json", f'{{"best_step": 2, {SOLVED}, "seconds": 12.5}}')
    write(run_dir / "data/report.json", '{"train": 100}')
    write(run_dir / "run.json", '{"seed": 3, "device": "H100", "versions": {"torch": "2"}}')
    found = facts(read_run(run_dir))
    assert found[PPO][-1] == ("seconds", "12.5")
    assert found["Data"] == [("training questions", "100")]
    assert found["Run"] == [("seed", "3"), ("device", "H100"), ("torch", "2")]


def test_parameters_are_counted_from_the_first_model_that_is_there(run_dir: Path) -> None:
    model = run_dir / "sft/model"
    model.mkdir(parents=True)
    weights = {"a": np.zeros((300, 20), np.float32), "b": np.zeros(40, np.float16)}
    save_file(weights, model / "model-00001.safetensors")
    save_file({"c": np.zeros((2, 3, 10), np.float32)}, model / "model-00002.safetensors")
    told = ("parameters", "0.0061 million")  # 6000 + 40 + 60
    assert told in facts(read_run(run_dir))["Model"]
    for file in model.iterdir():
        file.write_bytes(b"cut off")
    assert "Model" not in facts(read_run(run_dir))


def test_facts_of_stages_that_a_run_has_not_are_left_out(run_dir: Path) -> None:
    settings = "[offline_st]\nkeep = 10\n[online_st]\nsteps = 5\n[warmup_samples]\nper_question = 100\n"
    write(run_dir / "config.toml", settings + "[reranker]\nepochs = 3\n[ppo]\nsteps = 9\n")
    assert list(facts(read_run(run_dir))) == [PPO]
    write(run_dir / "config.toml", f"{ALL}{settings}[reranker]\nepochs = 3\n[ppo]\nsteps = 9\n")
    write(run_dir / "reranker/reft/result.json", '{"best_validation_auc": 0.875}')
    found = facts(read_run(run_dir))
    assert list(found) == [
        "Warm-up samples",
        "Offline self-training",
        "Online self-training",
        PPO,
        "Rerankers",
    ]
    assert found["Rerankers"] == [("epochs", "3"), ("AUC, ReFT", "0.875")]


def test_only_the_stages_that_the_configuration_asks_for_are_listed(run_dir: Path) -> None:
    assert list(states(read_run(run_dir))) == ["Data", "SFT", "ReFT", "Evaluation"]
    write(run_dir / "config.toml", ALL)
    names = ["Data", "SFT", "Warm-up samples", "Offline-ST", "Online-ST", "ReFT", "Rerankers"]
    assert list(states(read_run(run_dir))) == [*names, "Evaluation"]


def test_how_far_each_stage_is(run_dir: Path) -> None:
    write(run_dir / "config.toml", f"{ALL}[online_st]\nsteps = 8\n")
    write(run_dir / "sft/result.json", f'{{"best_epoch": 3, {SOLVED}}}')
    write(run_dir / "warmup_samples/result.json", '{"accuracy": 0.25, "samples": 400}')
    write(run_dir / "online_st/metrics.jsonl", '{"step": 2}\n')
    write(run_dir / "reranker/sft/metrics.jsonl", '{"step": 2}\n')
    write(run_dir / "reranker/sft/result.json", '{"best_validation_auc": 0.75}')
    assert states(read_run(run_dir)) == {
        "Data": ("not started", ""),
        "SFT": ("done", "best epoch 3: 75.0% on validation"),
        "Warm-up samples": ("done", "25.0% of 400 right"),
        "Offline-ST": ("not started", ""),
        "Online-ST": ("unfinished", "step 2 of 8"),
        "ReFT": ("not started", ""),
        "Rerankers": ("unfinished", "1 of 4"),
        "Evaluation": ("not started", ""),
    }


def test_an_evaluation_from_before_a_method_was_added_is_unfinished(run_dir: Path) -> None:
    write(run_dir / "config.toml", 'methods = ["online_st", "reft"]\n')
    greedy = {"greedy": {"accuracy": 1.0, "interval": [0.7, 1.0]}}
    result = {"n": 9, "models": dict.fromkeys(("warmup", "sft", "reft"), greedy), "comparisons": []}
    write(run_dir / "evaluation/result.json", json.dumps(result))
    assert states(read_run(run_dir))["Evaluation"] == ("unfinished", "without Online-ST")
    write(run_dir / "config.toml", 'methods = ["reft"]\n')
    assert states(read_run(run_dir))["Evaluation"] == ("done", "9 unseen questions")


def test_a_run_from_the_given_model_is_told_by_its_name(run_dir: Path) -> None:
    model = '[model]\nname = "m"\n[sft]\nepochs = 0\nwarmup_epochs = 0\n'
    write(run_dir / "config.toml", f"{ALL}{model}")
    names = ["Data", "Base samples", "Offline-ST", "Online-ST", "ReFT", "Rerankers", "Evaluation"]
    found = states(read_run(run_dir))
    assert list(found) == names
    write(run_dir / "reranker/base/result.json", '{"best_validation_auc": 0.75}')
    write(run_dir / "reranker/base/metrics.jsonl", '{"step": 2}\n')
    assert states(read_run(run_dir))["Rerankers"] == ("unfinished", "1 of 4")
    assert facts(read_run(run_dir))["Rerankers"] == [("AUC, Base", "0.75")]


def test_questions_without_a_chain_are_counted_where_there_are_some(run_dir: Path) -> None:
    write(run_dir / "data/report.json", '{"train": 100, "without_chain": 0}')
    assert facts(read_run(run_dir))["Data"] == [("training questions", "100")]
    write(run_dir / "data/report.json", '{"train": 100, "without_chain": 30}')
    assert facts(read_run(run_dir))["Data"][1] == ("training questions without a chain", "30")


def test_what_a_model_was_asked_and_trained_with_is_told(run_dir: Path) -> None:
    settings = '[prompt]\nstyle = "auto"\nanswer_style = "auto"\n[model]\ndtype = "bfloat16"\n[lora]\n'
    write(run_dir / "config.toml", f"{settings}rank = 4\nalpha = 8\n")
    found = facts(read_run(run_dir))
    assert found["Model"] == [("precision", "bfloat16"), ("LoRA rank", "4"), ("LoRA alpha", "8")]
    assert found["Prompt"] == [("asked in style", "auto"), ("answers in style", "auto")]
    write(run_dir / "config.toml", f"{settings}rank = 0\ndropout = 0.0\n")
    assert facts(read_run(run_dir))["Model"] == [("precision", "bfloat16")]

    saved = {"cot": "natural", "prompt": {"style": "chat", "answer_style": "boxed"}}
    write(run_dir / "ppo/model/reftune_prompt.json", json.dumps(saved))  # what was found out
    found = facts(read_run(run_dir))
    assert found["Prompt"] == [("asked in style", "chat"), ("answers in style", "boxed")]
