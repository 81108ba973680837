from __future__ import annotations

import json
from pathlib import Path

import pytest

from reftune.problem import UserError
from reftune.reporting.run.run_files import read_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write(tmp_path / "config.toml", 'name = "trial"\n[ppo]\nsteps = 9\nlearning_rate = 5e-5\n')
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_run_that_has_just_begun_is_empty(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.config["name"] == "trial"
    assert not any([run.info, run.data, run.evaluation, run.answers, run.unreadable])
    stages = {"sft", "warmup_samples", "offline_st", "online_st", "ppo"}
    stages |= {f"reranker/{model}" for model in ("sft", "offline_st", "online_st", "reft")}
    assert run.metrics == {stage: [] for stage in stages}
    assert run.results == {stage: {} for stage in stages}
    assert run.samples == {"online_st": [], "ppo": []}


def test_the_configuration_tells_which_stages_a_run_has(run_dir: Path) -> None:
    assert read_run(run_dir).lineup.stages == ["sft", "ppo", "evaluation"]  # the default
    write(run_dir / "config.toml", 'methods = ["online_st"]\n[evaluation]\nrerank = true\n')
    run = read_run(run_dir)
    assert run.lineup.models == ["warmup", "sft", "online_st"]
    assert run.lineup.stages == [
        "sft",
        "warmup_samples",
        "online_st",
        "reranker/sft",
        "reranker/online_st",
        "evaluation",
    ]


def test_the_log_of_the_evaluation_is_no_training_log(run_dir: Path) -> None:
    write(run_dir / "evaluation/metrics.jsonl", '{"step": 1, "model": "sft", "accuracy": 0.5}\n')
    run = read_run(run_dir)
    assert run.unreadable == []
    assert "evaluation" not in run.metrics


def test_the_configuration_tells_what_a_run_starts_from(run_dir: Path) -> None:
    models = '[model]\nname = "some/model"\n'
    write(run_dir / "config.toml", f"{models}[evaluation]\nbase = true\n")
    assert read_run(run_dir).lineup.models == ["base", "warmup", "sft", "reft"]
    write(run_dir / "config.toml", models)  # of a version that never asked the given model
    assert read_run(run_dir).lineup.models == ["warmup", "sft", "reft"]
    write(run_dir / "config.toml", '[model]\nscratch = "tiny"\n[evaluation]\nbase = true\n')
    assert read_run(run_dir).lineup.models == ["warmup", "sft", "reft"]
    write(run_dir / "config.toml", f"{models}[sft]\nepochs = 3\nwarmup_epochs = 0\n")
    assert read_run(run_dir).lineup.models == ["base", "sft", "reft"]
    write(
        run_dir / "config.toml",
        f"{models}[sft]\nepochs = 0\nwarmup_epochs = 0\n[evaluation]\nrerank = true\n",
    )
    run = read_run(run_dir)
    assert run.lineup.models == ["base", "reft"]
    assert run.results["reranker/base"] == {}


def test_steps_written_twice_count_once_and_validation_joins_its_step(run_dir: Path) -> None:
    lines = ['{"step": 1, "loss": 3}', '{"step": 2, "loss": 2}', '{"step": 3, "loss": 9}']
    lines += ['{"step": 2, "loss": 2.5}', '{"step": 2, "validation_accuracy": 0.5}']
    write(run_dir / "sft/metrics.jsonl", "\n".join(lines))
    assert read_run(run_dir).metrics["sft"] == [
        {"step": 1, "loss": 3},
        {"step": 2, "loss": 2.5, "validation_accuracy": 0.5},
        {"step": 3, "loss": 9},
    ]


def test_damaged_lines_are_left_out_and_named(run_dir: Path) -> None:
    write(run_dir / "ppo/metrics.jsonl", '{"step": 1}\n\n[1]\n{"kl": 2}\n{"step": 2, "kl')
    run = read_run(run_dir)
    assert run.metrics["ppo"] == [{"step": 1}]
    assert run.unreadable == ["ppo/metrics.jsonl: 3 of 4 lines cannot be read and are left out"]


def test_an_answer_that_lacks_a_key_is_left_out(run_dir: Path) -> None:
    whole = {
        "id": "1",
        "question": "?",
        "answer": "4",
        "completion": "4",
        "status": "ok",
        "correct": True,
    }
    rows = [whole, {key: value for key, value in whole.items() if key != "status"}]
    (run_dir / "evaluation").mkdir()
    write(run_dir / "evaluation/sft.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(run_dir)
    assert run.answers == {"sft": [whole]}
    assert run.unreadable == ["evaluation/sft.jsonl: 1 of 2 lines cannot be read and are left out"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.toml", "name =", r"config\.toml: not valid TOML: .*Invalid value"),
        ("sft/result.json", "{", r"result\.json:1: not JSON .*; delete it and run its stage again"),
        ("evaluation/result.json", "[]", r"result\.json: not an object; delete it"),
    ],
)
def test_damaged_files_are_named(run_dir: Path, name: str, text: str, message: str) -> None:
    write(run_dir / name, text)
    with pytest.raises(UserError, match=message):
        read_run(run_dir)


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such run directory"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not a run directory, it holds no config\.toml"):
        read_run(tmp_path)
