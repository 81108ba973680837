"""What mlflow has stored of a run, read back from its own files; skipped where it is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reftune.config.files import load_config
from reftune.runs.setup import make_accelerator
from reftune.runs.tracking import (
    mlflow_name,
    start_trackers,
    track_accuracies,
    track_metrics,
    track_report,
    track_samples,
)

SOURCE = "accuracy//data/a b.jsonl"  # an absolute path
GYM = "accuracy/reasoning_gym:leg_counting?max_animals=5&size=9"
STEPS = {
    ("sft", 1): {"loss": 2.5},
    ("ppo", 1): {"reward": 0.5, "statuses": {"ok": 3}, SOURCE: 0.25, GYM: 0.125},
    ("ppo", 2): {"reward": 0.75, "statuses": {"ok": 4}, SOURCE: 0.5, GYM: 1.0},
}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("ppo/statuses/ok", "ppo/statuses/ok"),
        (SOURCE, "accuracy/data/a b.jsonl"),
        (GYM, "accuracy/reasoning_gym:leg_counting_max_animals_5_size_9"),
        ("accuracy/./../x.jsonl", "accuracy/x.jsonl"),
        ("ppo.kl_coef", "ppo.kl_coef"),
    ],
)
def test_names_that_mlflow_would_refuse_are_changed(key: str, name: str) -> None:
    assert mlflow_name(key) == name


def test_mlflow_keeps_steps_settings_samples_accuracies_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a directory serves a test
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    config = load_config(
        {
            "name": "mine", "output_dir": str(tmp_path), "model.scratch": "tiny",
            "data.mixture": {"reasoning_gym:leg_counting?size=9": 1.0, "a.jsonl": 2.0},
            "compute": {"trackers": ["mlflow"], "tracker_project": "fruit", "threads": 1},
        }
    )  # fmt: skip
    config.run_dir.mkdir()
    (config.run_dir / "run.json").write_text('{"started": "2026-01-01"}')
    accelerator = make_accelerator(config)
    start_trackers(accelerator, config)
    for (stage, step), row in STEPS.items():
        track_metrics(accelerator, stage, step, row)
    track_samples(accelerator, "ppo", [{"step": 1, "id": "a", "question": "3 + 4?", "correct": True}])
    track_accuracies(accelerator, {"sft": 0.25, "reft": 0.5})
    page = config.run_dir / "report.html"
    page.write_text("<p>")
    track_report(accelerator, config.run_dir, lambda _: page)
    accelerator.end_training()

    client = mlflow.tracking.MlflowClient()
    project = client.get_experiment_by_name("fruit")
    (kept,) = client.search_runs([project.experiment_id])
    assert (kept.info.run_name, kept.info.status) == ("mine", "FINISHED")
    steps = [(one.step, one.value) for one in client.get_metric_history(kept.info.run_id, "ppo/reward")]
    assert steps == [(1, 0.5), (2, 0.75)]
    last = {"sft/loss": 2.5, "ppo/reward": 0.75, "ppo/statuses/ok": 4, "ppo/" + mlflow_name(SOURCE): 0.5}
    last |= {"ppo/" + mlflow_name(GYM): 1.0, "accuracy/sft": 0.25, "accuracy/reft": 0.5}
    assert kept.data.metrics == last
    assert kept.data.params["ppo.learning_rate"] == str(config.ppo.learning_rate)
    assert kept.data.params["data.mixture.a.jsonl"] == "2.0"
    folder = Path(client.download_artifacts(kept.info.run_id, "", str(tmp_path)))
    assert (folder / "report.html").read_text() == "<p>"
    table = json.loads((folder / "ppo/samples.json").read_text())
    assert dict(zip(table["columns"], *table["data"], strict=True))["question"] == "3 + 4?"
