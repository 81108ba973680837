"""`reftune doctor`, the page's section and the run's own voice: where findings are told."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

import command_line
import test_doctor
from reftune.evaluation.doctor.foreign import METRICS, in_their_words, read_foreign
from reftune.problem import Row, UserError
from reftune.reporting.run.report import write_report
from reftune.runs.run_log import RunLog
from test_doctor import line, rows
from tiny_stage import make_stage

CONFIG = """
[data]
validation_size = 200
[ppo]
questions_per_step = 16
samples_per_question = 8
ppo_epochs = 2
"""


def make_run(folder: Path, found: Sequence[Row]) -> Path:
    (folder / "ppo").mkdir()
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    write(folder / "ppo/metrics.jsonl", found)
    return folder


def write(path: Path, found: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def tell(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    capsys.readouterr()  # of what was told before
    code = command_line.start(monkeypatch, "doctor", path, "--json")
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told | {"code": code, "names": [one["name"] for one in told["found"]]}


def test_a_run_that_is_well_ends_with_0_and_one_that_is_not_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, rows())
    assert command_line.start(monkeypatch, "doctor", run) == 0
    well = capsys.readouterr().out
    assert well == f"{run}: 20 steps of PPO: nothing wrong was found; 17 symptoms were looked for\n"
    write(run / "ppo/metrics.jsonl", rows(truncated=0.6))
    assert command_line.start(monkeypatch, "doctor", run) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{run}: 20 steps of PPO: 1 warning; 17 symptoms were looked for"
    assert second.startswith("warning, cut_off (from step 5 on): 60% of the samples in steps 16-20")
    write(run / "ppo/metrics.jsonl", rows(explained_variance=-1.0))  # a note is no warning
    assert tell(run, capsys, monkeypatch)["code"] == 0
    write(run / "ppo/metrics.jsonl", rows(40, truncated=lambda over: 0.6 if over < 0.3 else 0.0))
    assert tell(run, capsys, monkeypatch)["code"] == 0  # it has passed


def test_a_run_that_failed_says_what_it_failed_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, rows())
    (run / "ppo/non_finite_step_21.json").write_text("[]")
    told = tell(run, capsys, monkeypatch)
    assert (told["code"], told["names"], told["steps"]) == (1, ["not_finite"], 21)
    assert told["found"][0]["sentence"].startswith("loss is not finite in step 21")


def test_a_run_without_a_step_has_nothing_to_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, [])
    assert command_line.start(monkeypatch, "doctor", run) == 0
    assert "no step of PPO has been logged yet" in capsys.readouterr().out
    write_report(run)
    assert "What the run says" not in (run / "report.html").read_text()


def test_the_page_tells_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows(40, truncated=0.6))
    write_report(run)
    for page in ("report.html", "report.md"):
        text = (run / page).read_text(encoding="utf-8")
        assert "What the run says" in text
        assert "60% of the samples in steps 33-40 were cut off" in text
        assert "40 steps of PPO: 1 warning; 17 symptoms were looked for." in text
    write(run / "ppo/metrics.jsonl", rows())
    write_report(run)
    assert "20 steps of PPO: nothing wrong was found" in (run / "report.md").read_text()


def test_a_run_tells_while_it_runs_and_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = make_stage(tmp_path, "ppo")
    everything = rows(20, truncated=0.6)
    for begin, end in ((1, 12), (8, 20)):  # broken off behind step 12, with a checkpoint of step 7
        with stage.log(20, begin - 1) as log:
            for row in everything[begin - 1 : end]:
                log.metrics(row["step"], {key: row[key] for key in row if key != "step"})
    told = [text for text in capsys.readouterr().err.splitlines() if "warning" in text]
    assert len(told) == 1
    assert told[0].startswith("ppo: warning, cut_off (from step 5 on): 60% of the samples in steps 1-5")
    assert "raise prompt.max_new_tokens to 800" in told[0]
    assert make_stage(tmp_path, "sft").log(20, 0).watch is None


def test_a_damaged_log_is_named_as_without_a_watch(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, "ppo")
    stage.directory.mkdir(parents=True)
    (stage.directory / "metrics.jsonl").write_text('{"step": 1}\n{"step": "2"}\n{}\nno\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: step: "):
        stage.log(20, 3)


def test_without_anybody_to_ask_a_log_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, Accelerator(cpu=True), "ppo", 30) as log:
        for row in rows(20, truncated=0.6):
            log.metrics(row["step"], row)
    assert "cut_off" not in capsys.readouterr().err


# What TRL 1.x and verl log of a step, in their words.
TRL = {
    "clip_ratio/high_max": 0.0, "clip_ratio/high_mean": 0.0, "clip_ratio/low_mean": 0.01,
    "clip_ratio/region_mean": 0.01, "completions/clipped_ratio": 0.02, "completions/max_length": 300.0,
    "completions/mean_length": 120.0, "entropy": 0.3, "epoch": 0.1, "frac_reward_zero_std": 0.3,
    "grad_norm": 0.4, "kl": 0.01, "learning_rate": 1e-6, "loss": 0.01, "num_tokens": 9e4, "reward": 0.5,
    "reward_std": 0.4, "rewards/right/mean": 0.5, "sampling/importance_sampling_ratio/mean": 0.98,
    "sampling/sampling_logp_difference/mean": 0.01, "step_time": 9.0,
}  # fmt: skip
VERL = {
    "actor/entropy": 0.3, "actor/grad_norm": 0.4, "actor/kl_loss": 0.01, "actor/lr": 1e-6,
    "actor/pg_clipfrac": 0.01, "actor/pg_loss": 0.1, "actor/ppo_kl": 1e-4, "critic/score/mean": 0.5,
    "critic/vf_explained_var": 0.4, "response_length/clip_ratio": 0.02, "response_length/mean": 120.0,
    "training/rollout_probs_diff_mean": 0.003, "timing_s/step": 30.0,
}  # fmt: skip
FOREIGN = {
    "healthy": ({}, {}, []),
    "cut off": (
        {"completions/clipped_ratio": 0.7}, {"response_length/clip_ratio": 0.7}, ["cut_off"],
    ),
    "KL": ({"kl": 3.0}, {"actor/kl_loss": 3.0}, ["kl_runaway"]),
    "clipped": ({"clip_ratio/region_mean": 0.6}, {"actor/pg_clipfrac": 0.6}, ["clipped_everywhere"]),
    "apart": (
        {"sampling/sampling_logp_difference/mean": 0.3}, {"training/rollout_probs_diff_mean": 0.05},
        ["sampler_apart"],
    ),
    "all right": (
        {"reward": 1.0, "frac_reward_zero_std": 1.0}, {"critic/score/mean": 1.0}, ["all_right"],
    ),
    "all wrong": (
        {"reward": 0.0, "frac_reward_zero_std": 1.0}, {"critic/score/mean": 0.0}, ["all_wrong"],
    ),
    "entropy": ({"entropy": line(0.3, 0.0)}, {"actor/entropy": line(0.3, 0.0)}, ["entropy_collapsed"]),
}  # fmt: skip


def course(row: Row, changes: Row, steps: int = 30) -> list[Row]:
    whole = row | changes
    return [
        {"step": i, **{k: v(i / (steps - 1)) if callable(v) else v for k, v in whole.items()}}
        for i in range(steps)
    ]  # fmt: skip


@pytest.mark.parametrize("fault", FOREIGN)
def test_a_foreign_run_is_read_in_its_own_words(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trl, verl, expected = FOREIGN[fault]
    checkpoint = tmp_path / "out/checkpoint-30"
    checkpoint.mkdir(parents=True)
    history = [*course(TRL, trl), {"step": 29, "eval_reward": 0.4}, {"step": 30, "train_runtime": 9.0}]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    logged = [{"step": row.pop("step"), "data": row} for row in course(VERL, verl)]
    for path, software in (
        (tmp_path / "out", "TRL"),
        (write(tmp_path / "verl.jsonl", logged), "verl"),
    ):
        told = tell(path, capsys, monkeypatch)
        warnings = [one["name"] for one in told["found"] if one["level"] == "warning"]
        assert (told["software"], warnings, told["code"]) == (software, expected, int(bool(expected)))
        assert {"faults", "hacking", "clipped_nowhere"} <= {*told["not_checked"]}


def test_foreign_metrics_under_our_names(tmp_path: Path) -> None:
    logged = [
        {
            "step": 1,
            "data": {"critic/score/mean": 0.25, "actor/ppo_kl": -0.1, "val-core/a/acc/mean@1": 0.2},
        },
        {"step": 1, "data": {"val-core/b/reward/mean@4": 0.4, "val-core/b/acc/best@4/std": 9.0}},
        {"no": "step"},
    ]
    assert read_foreign(write(tmp_path / "verl.jsonl", logged)) == (
        "verl",
        [{"step": 1, "reward": 0.25, "accuracy": 0.25, "approx_kl": -0.1, "validation_accuracy": 0.4}],
    )
    trl = [{"step": 5, "reward": 0.75, "frac_reward_zero_std": 0.5, "kl": 0.1, "eval_reward": 0.5}]
    # Three quarters are right, half of the groups alike: the others hold at most a half of all.
    assert read_foreign(write(tmp_path / "trl.jsonl", trl)) == (
        "TRL",
        [
            {
                "step": 5, "reward": 0.75, "accuracy": 0.75, "groups_alike": 0.5, "kl_per_token": 0.1,
                "validation_accuracy": 0.5, "groups_all_right": 0.25, "groups_all_wrong": 0.0,
            }
        ],
    )  # fmt: skip
    trl[0]["reward"] = -2.5  # no share of anything
    [row] = read_foreign(write(tmp_path / "trl.jsonl", trl))[1]
    assert {"accuracy", "groups_all_right"} & {*row} == set()
    ours = rows()
    assert read_foreign(write(tmp_path / "metrics.jsonl", ours)) == ("reftune", ours)


def test_foreign_names_lead_to_metrics_that_somebody_needs() -> None:
    needed = {*test_doctor.HEALTHY, "step", "validation_accuracy", "kl_per_token", "groups_alike"}
    needed |= {"probability_gap"}
    assert {name for table in METRICS.values() for name in table.values()} <= needed


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"step": 1, "speed": 3}', "no metrics of TRL or verl are in it"),
        ("a.jsonl", "[1]", "a.jsonl:1: not an object; give a run directory"),
        ("a.json", "{}", "has no log_history; give a run directory"),
        ("trainer_state.json", '{"log_history": [3]}', "log_history: not an object"),
        (None, "", "holds neither config.toml nor trainer_state.json"),
        ("missing", None, "missing: cannot be read"),
    ],
)
def test_what_is_no_run_is_named(
    name: str | None,
    content: str | None,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path if name is None else tmp_path / name
    if name is not None and content is not None:
        path.write_text(content)
    assert command_line.start(monkeypatch, "doctor", path) == 2
    assert words in capsys.readouterr().err


def test_sentences_name_the_keys_of_other_libraries_too() -> None:
    said = in_their_words(
        'raise ppo.kl_coef from 0.01 to 0.05, set model.dtype = "float32", read a/b.jsonl'
    )
    assert said == (
        "raise ppo.kl_coef (beta or init_kl_coef or kl_loss_coef) from 0.01 to 0.05, set model.dtype"
        ' (torch_dtype or bf16 or fp16) = "float32", read a/b.jsonl'
    )


def test_a_page_of_a_run_with_senseless_numbers_is_written(tmp_path: Path) -> None:
    run = make_run(
        tmp_path, [{"step": i, "kl": math.inf, "reward": 1e300, "accuracy": -7} for i in range(9)]
    )
    (run / "config.toml").write_text('[ppo]\nsamples_per_question = "<b>"\nlearning_rate = nan\n')
    write_report(run)
    assert "kl is not finite in step 0" in (run / "report.md").read_text()
