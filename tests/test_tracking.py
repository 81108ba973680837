"""What trackers have stored of a whole run, read back from their own files, without any network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from reftune.config.files import load_config
from reftune.pipeline import run_stages
from reftune.problem import UserError
from wandb_file import read_records

TRACKERS = ("wandb", "trackio", "tensorboard")
pytestmark = pytest.mark.skipif(not all(map(find_spec, TRACKERS)), reason=f"needs {TRACKERS}")

SETTINGS = [
    'compute.trackers=["wandb", "trackio", "tensorboard"]', "compute.tracker_project=fruit",
    "compute.tracker_group=seeds", "sft.epochs=2", "sft.warmup_epochs=1", "sft.validate_every_epochs=1",
    "ppo.steps=3",
]  # fmt: skip
STAGES = ("sft", "ppo")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Let trackers write to a folder alone; return it."""
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CACHE_DIR": folder / "cache",
            "WANDB_DATA_DIR": folder / "staging", "WANDB_CONFIG_DIR": folder / "settings",
            "TRACKIO_DIR": folder / "trackio",  # read when it is imported
        }.items():  # fmt: skip
            patch.setenv(name, str(value))
        yield folder


@pytest.fixture(scope="module")
def run_dir(environment: Path) -> Path:
    """Return the directory of a whole run that told three trackers."""
    config = load_config(tiny_run.write_config(environment), SETTINGS)
    run_stages(config)
    return config.run_dir


@pytest.fixture(scope="module")
def records(run_dir: Path) -> list[Any]:
    """Return what wandb has kept of it."""
    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    return list(read_records(path))


def metrics(run_dir: Path, stage: str) -> list[dict[str, Any]]:
    text = (run_dir / stage / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def numbers(run_dir: Path, stage: str) -> dict[int, dict[str, float]]:
    """Return the numbers of each step as a tracker should have them."""
    found = {}
    for row in metrics(run_dir, stage):
        inner = {f"{stage}/statuses/{k}": v for k, v in row.pop("statuses", {}).items()}
        plain = {f"{stage}/{k}": v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
        found[row["step"]] = plain | inner
    return found


def history(records: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({x.key or "/".join(x.nested_key): json.loads(x.value_json) for x in items})
    return rows


@pytest.mark.parametrize("stage", STAGES)
def test_wandb_keeps_every_number_of_every_step_over_the_stages_own_steps(
    run_dir: Path, records: list[Any], stage: str
) -> None:
    kept = [row for row in history(records) if f"{stage}/seconds" in row]
    found = {
        row.pop(f"{stage}/step"): {k: v for k, v in row.items() if not k.startswith("_")} for row in kept
    }
    assert found == {step: pytest.approx(row) for step, row in numbers(run_dir, stage).items()}
    own = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
    axes = {metric.glob_name or metric.name: metric.step_metric for metric in own}
    assert axes[f"{stage}/*"] == f"{stage}/step"


def test_wandb_knows_the_run_its_settings_and_what_it_came_to(run_dir: Path, records: list[Any]) -> None:
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name, run.run_group) == ("fruit", "tiny", "seeds")
    assert run.run_id.startswith("tiny-20")
    settings = {
        x.key or "/".join(x.nested_key): json.loads(x.value_json)
        for r in records if r.WhichOneof("record_type") == "config" for x in r.config.update
    }  # fmt: skip
    assert settings["ppo.learning_rate"] == 1e-3
    assert settings["model.scratch"] == "tiny"
    summary = {
        x.key or "/".join(x.nested_key): json.loads(x.value_json)
        for r in records if r.WhichOneof("record_type") == "summary" for x in r.summary.update
    }  # fmt: skip
    result = json.loads((run_dir / "evaluation" / "result.json").read_text(encoding="utf-8"))
    for model in ("warmup", "sft", "reft"):
        right = result["models"][model]["greedy"]["accuracy"]
        assert summary[f"accuracy/{model}"] == pytest.approx(right)


def test_wandb_keeps_samples_and_the_page(run_dir: Path, records: list[Any]) -> None:
    (table,) = run_dir.glob("wandb/offline-run-*/files/media/table/ppo/samples*.json")
    content = json.loads(table.read_text(encoding="utf-8"))
    text = (run_dir / "ppo" / "samples.jsonl").read_text(encoding="utf-8")
    samples = [json.loads(line) for line in text.splitlines()]
    assert [row[content["columns"].index("completion")] for row in content["data"]] == [
        sample["completion"] for sample in samples
    ]
    kept = [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    kept += [r.request.log_artifact.artifact for r in records if r.request.HasField("log_artifact")]
    assert any(artifact.name == "tiny-report" for artifact in kept)


@pytest.mark.parametrize("stage", STAGES)
def test_tensorboard_keeps_every_number_of_every_step(run_dir: Path, stage: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "fruit"))
    events.Reload()
    expected = numbers(run_dir, stage)
    tags = {tag for row in expected.values() for tag in row}
    found: dict[int, dict[str, float]] = {step: {} for step in expected}
    for tag in tags:
        for event in events.Scalars(tag):
            found[event.step][tag] = event.value
    assert found == {step: pytest.approx(row, rel=1e-6) for step, row in expected.items()}
    assert "ppo/samples/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize("stage", STAGES)
def test_trackio_keeps_every_number_of_every_step(run_dir: Path, stage: str) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    kept = [row for row in SQLiteStorage.get_logs("fruit", "tiny") if f"{stage}/seconds" in row]
    found = {row["step"]: {k: v for k, v in row.items() if k.startswith(f"{stage}/")} for row in kept}
    assert found == {step: pytest.approx(row) for step, row in numbers(run_dir, stage).items()}


def test_a_tracker_that_does_not_start_is_named(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: Any) -> None:
        raise ValueError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr("wandb.init", refuse)
    config = load_config(environment / "tiny.toml", ['compute.trackers=["wandb"]', "name=refused"])
    with pytest.raises(UserError) as error:
        run_stages(config)
    assert str(error.value) == (
        "compute.trackers: wandb did not start; set it up, or leave it out"
        " (ValueError: No API key configured. Use `wandb login` to log in.)"
    )
