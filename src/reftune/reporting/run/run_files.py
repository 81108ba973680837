"""What lies in a run directory, read with patience: the run may be unfinished, a line half written."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reftune.files import read_object, read_rows, read_toml, require_shape
from reftune.methods import METHODS, Lineup, methods_by_stage
from reftune.problem import AnsweredQuestion, LoggedRow, Row, UserError
from reftune.runs.records import Answered, LoggedSample, Metrics, Settings, Start, Timed, read_result


@dataclass
class Run:
    """The contents of a run directory; what is not there yet is empty."""

    directory: Path
    config: Row
    info: Row = field(default_factory=dict)
    data: Row = field(default_factory=dict)
    metrics: dict[str, list[Row]] = field(default_factory=dict)  # by stage
    results: dict[str, Row] = field(default_factory=dict)  # by stage
    samples: dict[str, list[LoggedRow]] = field(default_factory=dict)  # by stage
    evaluation: Row = field(default_factory=dict)
    answers: dict[str, list[AnsweredQuestion]] = field(default_factory=dict)  # by model
    asked: dict[str, float] = field(default_factory=dict)  # seconds that answering took, by model
    unreadable: list[str] = field(default_factory=list)

    @property
    def lineup(self) -> Lineup:
        """Return what this run's configuration asks for; keys are missing where the version is old."""
        sft, evaluation = self.config.get("sft", {}), self.config.get("evaluation", {})
        return Lineup(
            methods=self.config.get("methods", ["reft"]),
            rerank=bool(evaluation.get("rerank")),
            base=bool(evaluation.get("base")) and "name" in self.config.get("model", {}),
            epochs=sft.get("epochs", 1),
            warmup_epochs=sft.get("warmup_epochs", 1),
        )


def read_run(directory: Path) -> Run:
    """Read a run directory as far as the run has come.

    Raises UserError if it is none, or if one of its JSON or TOML files is damaged.
    """
    run = Run(directory, _read_config(directory))

    if (directory / "run.json").exists():
        run.info = read_object(directory / "run.json", "delete it", Start)
    if (directory / "data/report.json").exists():
        run.data = read_object(directory / "data/report.json", "delete it", dict[str, int])
    everything = Lineup([*METHODS], rerank=True).stages
    for stage in dict.fromkeys([*run.lineup.stages, *everything]):
        if (directory / stage / "result.json").exists():
            run.results[stage] = read_result(directory, stage)
        else:
            run.results[stage] = {}
        if stage != "evaluation":  # whose rows are no training's: they name models
            run.metrics[stage] = _by_step(_read_rows(run, f"{stage}/metrics.jsonl", Metrics))
    run.evaluation = run.results.pop("evaluation")
    for stage, method in methods_by_stage().items():
        if method.unit == "step":  # an online method, which logs some of its samples
            run.samples[stage] = _read_rows(run, f"{stage}/samples.jsonl", LoggedSample)
    timed = _read_rows(run, "evaluation/metrics.jsonl", Timed)
    run.asked = {row["model"]: row["seconds"] for row in timed if "seconds" in row}
    for model in dict.fromkeys([*METHODS, *run.evaluation.get("models", {})]):
        if rows := _read_rows(run, f"evaluation/{model}.jsonl", Answered):
            run.answers[model] = rows
    return run


def _read_config(directory: Path) -> Row:
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such run directory; give the one that `reftune run` has written"
        )
    path, fix = directory / "config.toml", "start `reftune run` with the run's configuration again"
    if not path.exists():
        raise UserError(f"{directory}: not a run directory, it holds no config.toml")
    config: Row = require_shape(read_toml(path, fix), Settings, path, fix)
    return config


def _read_rows(run: Run, name: str, shape: Any) -> list[Any]:
    """Read a JSONL file of the run; lines of another shape are counted in `run.unreadable`."""
    path, bad, good = run.directory / name, list[str](), list[Row]()
    if not path.exists():
        return []
    for place, row in read_rows(path, bad=bad):
        try:
            good.append(require_shape(row, shape, place, ""))
        except UserError as error:
            bad.append(str(error))
    total = len(bad) + len(good)
    if left_out := len(bad):
        run.unreadable.append(f"{name}: {left_out} of {total} lines cannot be read and are left out")
    return good


def _by_step(rows: Sequence[Row]) -> list[Row]:
    """Merge rows of one step: a resumed run may write a step again, validation a row of its own."""
    merged: dict[float, Row] = defaultdict(dict)
    for row in rows:
        merged[row["step"]].update(row)
    return [merged[step] for step in sorted(merged)]
