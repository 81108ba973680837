"""What lies in a run directory, read with patience: the run may be unfinished, a line half written."""

import tomllib
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reftune.files import read_object, read_rows
from reftune.methods import METHODS, methods_by_stage, planned_models, planned_stages
from reftune.problem import AnsweredQuestion, LoggedRow, Row, UserError

SAMPLE = {"question", "answer", "completion", "status", "correct"}  # what every sample's row has


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
    unreadable: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[str]:
        """Return the stages that this run's configuration asks for, in order."""
        methods = self.config.get("methods", ["reft"])  # runs of the first versions name none
        return planned_stages(methods, bool(self.config.get("evaluation", {}).get("rerank")))

    @property
    def models(self) -> list[str]:
        """Return the models that this run's configuration asks for, in order."""
        return planned_models(self.config.get("methods", ["reft"]))


def read_run(directory: Path) -> Run:
    """Read a run directory as far as the run has come.

    Raises UserError if it is none, or if one of its JSON or TOML files is damaged.
    """
    run = Run(directory, _read_config(directory))

    def read(name: str) -> Row:
        path = directory / name
        return read_object(path, "delete it and run its stage again") if path.exists() else {}

    run.info, run.data = read("run.json"), read("data/report.json")
    run.evaluation = read("evaluation/result.json")
    for stage in planned_stages([*METHODS], rerank=True)[:-1]:  # all there can be, but the evaluation
        run.results[stage] = read(f"{stage}/result.json")
        run.metrics[stage] = _by_step(_read_rows(run, f"{stage}/metrics.jsonl", {"step"}))
    for stage, method in methods_by_stage().items():
        if method.unit == "step":  # an online method, which logs some of its samples
            run.samples[stage] = _read_rows(run, f"{stage}/samples.jsonl", SAMPLE | {"step"})
    for model in dict.fromkeys([*METHODS, *run.evaluation.get("models", {})]):
        if rows := _read_rows(run, f"evaluation/{model}.jsonl", SAMPLE | {"id"}):
            run.answers[model] = rows
    return run


def _read_config(directory: Path) -> Row:
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such run directory; give the one that `reftune run` has written"
        )
    path = directory / "config.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{directory}: not a run directory, it holds no config.toml") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not TOML
        raise UserError(f"{path}: cannot be read: {error}") from None


def _read_rows(run: Run, name: str, keys: Set[str]) -> list[Any]:
    """Read a JSONL file of the run; lines without these keys are counted in `run.unreadable`."""
    path, bad = run.directory / name, list[str]()
    if not path.exists():
        return []
    rows = [row for _, row in read_rows(path, bad=bad)]
    good = [row for row in rows if row.keys() >= keys]
    total = len(bad) + len(rows)
    if left_out := total - len(good):
        run.unreadable.append(f"{name}: {left_out} of {total} lines cannot be read and are left out")
    return good


def _by_step(rows: Sequence[Row]) -> list[Row]:
    """Merge rows of one step: a resumed run may write a step again, validation a row of its own."""
    merged: dict[float, Row] = defaultdict(dict)
    for row in rows:
        merged[row["step"]].update(row)
    return [merged[step] for step in sorted(merged)]
