"""What trackers (wandb, trackio, TensorBoard ...) are told of a run, through accelerate.

Every stage counts its steps from 1, each on an axis of its own: wandb, which has one count for a whole
run and drops what goes back in it, is told to draw a stage's metrics over the stage's own steps.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from reftune.config import Config
from reftune.config.checks import flat
from reftune.files import read_object
from reftune.problem import UserError
from reftune.runs.records import Start

TABLE_ROWS = 200  # the newest samples of a stage that a tracker's table holds
KEEP_FILES = ("wandb", "trackio", "mlflow")
COLUMNS = ("step", "id", "question", "answer", "completion", "status", "value", "correct", "reward")


def start_trackers(accelerator: Accelerator, config: Config) -> None:
    """Begin the run in each tracker, with its name, group and settings, or go on with it.

    Args:
        accelerator: made with the trackers that `compute.trackers` names.
        config: of the run, whose directory is there.

    Raises UserError for a tracker that does not start, such as one that wants a login.
    """
    project, trackers = config.compute.tracker_project, config.compute.trackers
    if not trackers:
        return
    started = read_object(config.run_dir / "run.json", shape=Start).get("started", "")
    named = {"name": config.name, "group": config.compute.tracker_group}
    again = {"id": f"{config.name}-{re.sub(r'[^0-9]', '', started)}", "resume": "allow"}
    settings = {
        "wandb": {**named, **again, "dir": str(config.run_dir)},
        "trackio": {**named, "resume": "allow"},
        "mlflow": {"run_name": config.name},
    }
    try:
        accelerator.init_trackers(project, _settings(config), settings)
    except Exception as error:  # whatever a tracker may raise that is not set up
        told = f"compute.trackers: {', '.join(trackers)} did not start; set it up, or leave it out"
        raise UserError(f"{told} ({type(error).__name__}: {error})") from error
    for tracker in accelerator.trackers:
        for stage in config.lineup.stages if tracker.name == "wandb" else ():
            tracker.tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")


@contextmanager
def tracked(accelerator: Accelerator) -> Iterator[None]:
    """End the run in its trackers where the block fails: the same program may begin another."""
    try:
        yield
    except BaseException:
        for tracker in accelerator.trackers:
            tracker.finish()
        raise


def track_metrics(accelerator: Accelerator, stage: str, step: int, row: Mapping[str, Any]) -> None:
    """Tell the numbers of one step as `STAGE/KEY`, and those of a dictionary as `STAGE/KEY/KEY`."""
    everything = flat(dict(row), stage, "/")
    numbers = {key: value for key, value in everything.items() if isinstance(value, int | float)}
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.log({**numbers, f"{stage}/step": step})
        elif tracker.name == "mlflow":
            tracker.log({mlflow_name(key): value for key, value in numbers.items()}, step=step)
        else:
            tracker.log(numbers, step=step)


def track_samples(accelerator: Accelerator, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Show the newest samples of a stage as a table, in trackers that have tables or text."""
    newest = [[_cell(row.get(column)) for column in COLUMNS] for row in rows[-TABLE_ROWS:]]
    for tracker in accelerator.trackers if newest else ():
        name = f"{stage}/samples"
        if tracker.name == "wandb":
            tracker.log_table(name, columns=list(COLUMNS), data=newest)
        elif tracker.name == "trackio":
            from trackio import Table

            tracker.log({name: Table(columns=list(COLUMNS), data=newest)})
        elif tracker.name == "tensorboard":
            tracker.log({name: _markdown(newest)}, step=0)
        elif tracker.name == "mlflow":
            import mlflow

            columns = map(list, zip(*newest, strict=True))
            mlflow.log_table(dict(zip(COLUMNS, columns, strict=True)), f"{name}.json")


def track_accuracies(accelerator: Accelerator, accuracies: Mapping[str, float]) -> None:
    """Tell what a run has come to: the accuracy of each of its models, as `accuracy/MODEL`."""
    numbers = {f"accuracy/{model}": value for model, value in accuracies.items()}
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.tracker.summary.update(numbers)
        else:
            tracker.log(numbers, step=0)


def track_report(accelerator: Accelerator, run_dir: Path, write: Callable[[Path], Path]) -> None:
    """Keep a run's page where a tracker keeps files; `write` makes it, and is called only for these."""
    keeping = [tracker for tracker in accelerator.trackers if tracker.name in KEEP_FILES]
    page = str(write(run_dir)) if keeping else ""
    for tracker in keeping:
        if tracker.name == "mlflow":
            tracker.log_artifact(page)
        else:
            name = re.sub(r"[^\w.-]", "-", f"{run_dir.name}-report")
            tracker.tracker.log_artifact(page, name=name, type="report")


def _settings(config: Config) -> dict[str, Any]:
    """Return all settings that say something, as TensorBoard takes them: lists as texts."""
    found = flat(config.model_dump(mode="json")).items()
    said = {key: value for key, value in found if value is not None}
    return {
        mlflow_name(key): json.dumps(value) if isinstance(value, list) else value
        for key, value in said.items()
    }


def mlflow_name(key: str) -> str:
    """Return a name as mlflow takes it, which refuses most signs, and parts that make no path."""
    parts = re.sub(r"[^\w./: -]", "_", key).split("/")
    return "/".join(part for part in parts if part.strip("."))


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", "<br>")
