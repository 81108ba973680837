"""Finished runs read for a comparison: which of the same test questions each model got right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from reftune.config import Config
from reftune.config_files import load_config
from reftune.evaluation.aggregation import available, curve, pass_curve
from reftune.files import read_rows
from reftune.methods import METHODS
from reftune.problem import AnsweredQuestion, Row, UserError

Questions = dict[str, tuple[str, str]]  # id -> question, right answer
Curves = dict[str, dict[int, float]]  # by aggregation, and "pass" for pass@k; by number of samples
KEYS = {"id", "question", "answer", "completion", "correct"}  # what every row has


@dataclass(frozen=True)
class Answers:
    """What one model of a run made of the test questions."""

    right: dict[str, list[bool]]  # by aggregation, in the order of the questions
    curves: Curves
    fingerprint: str  # two models with the same one have written the same answers


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: where it lies, its configuration, and what its models answered."""

    directory: Path
    config: Config
    answers: dict[str, Answers]


def read_finished_runs(
    directories: Sequence[Path], k: int | None = None
) -> tuple[list[FinishedRun], int]:
    """Read finished runs; return them and the number of samples per question that was used.

    Args:
        directories: of the runs.
        k: samples per question to use, the first ones drawn; default as many as all runs have.

    Raises UserError if a run is not finished or given twice, if the runs were not tested on the same
    questions, or have fewer than `k` samples.
    """
    configs = {directory: _read_config(directory) for directory in directories}
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise UserError("a run is given twice; give each run directory once")
    samples = _samples(configs, k)
    synthetic = all(config.data.test == "synthetic" for config in configs.values())
    questions: Questions = {}
    runs = []
    for directory, config in configs.items():
        answers = {}
        for model, summary in _models(directory).items():
            path = directory / f"evaluation/{model}.jsonl"
            rows = {row["id"]: row for row in _read_rows(path, samples)}
            asked = {key: (row["question"], row["answer"]) for key, row in rows.items()}
            questions = questions or asked
            _require_same(questions, asked, directories[0], directory, synthetic)
            known = _known_curves(summary) if samples == config.evaluation.samples else {}
            answers[model] = _answers([rows[key] for key in questions], samples, known)
        runs.append(FinishedRun(directory, config, answers))
    return runs, samples


def _read_config(directory: Path) -> Config:
    if not (directory / "config.toml").exists():
        raise UserError(f"{directory}: no run directory; give those that `reftune run` has written")
    if not (directory / "evaluation/result.json").exists():
        raise UserError(f"{directory}: not evaluated yet; finish the run with `reftune run` first")
    return load_config(directory / "config.toml")


def _samples(configs: Mapping[Path, Config], k: int | None) -> int:
    fewest = min(configs, key=lambda directory: configs[directory].evaluation.samples)
    drawn = configs[fewest].evaluation.samples
    if k is not None and not 1 <= k <= drawn:
        choice = f"choose --k from 1 to {drawn}" if drawn else "leave --k out"
        raise UserError(f"--k {k}: {fewest} has {drawn} samples per question; {choice}")
    return drawn if k is None else k


def _models(directory: Path) -> dict[str, Row]:
    """Return the evaluated models, each with the summary of its accuracies."""
    path = directory / "evaluation/result.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["models"]
        return {model: found[model] for model in METHODS if model in found}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and run the stage again") from None


def _read_rows(path: Path, samples: int) -> Iterator[AnsweredQuestion]:
    """Read a model's answers without the texts of its samples, which are most of the file."""
    fix = "delete it with result.json beside it and run the stage again"
    for place, row in read_rows(path, fix):
        if missing := KEYS - row.keys():
            raise UserError(f"{place}: has no {min(missing)}; {fix}")
        drawn = row.get("samples", [])[:samples]
        if len(drawn) < samples:
            raise UserError(f"{place}: question {row['id']} has {len(drawn)} samples; {fix}")
        row["samples"] = [sample | {"completion": ""} for sample in drawn]
        yield cast(AnsweredQuestion, row)


def _require_same(
    expected: Questions, asked: Questions, first: Path, directory: Path, synthetic: bool
) -> None:
    """Refuse runs of different test questions; another wording or answer makes another question."""
    differing = [key for key in expected.keys() | asked.keys() if expected.get(key) != asked.get(key)]
    if differing:
        fix = "give both the same data.synthetic.seed" if synthetic else "compare runs of one data.test"
        example = f"({min(differing)}, for example)"
        raise UserError(f"{first} and {directory} were tested on different questions {example}; {fix}")


def _known_curves(summary: Row) -> Curves:
    """Return the curves that the evaluation has drawn; runs of the first versions have none."""
    curves = (
        {**summary.get("curves", {}), "pass": summary.get("pass", {})} if "curves" in summary else {}
    )
    return {name: {int(k): x for k, x in points.items()} for name, points in curves.items()}


def _answers(rows: Sequence[AnsweredQuestion], samples: int, known_curves: Curves) -> Answers:
    right = {"greedy": [bool(row["correct"]) for row in rows]}
    curves = dict(known_curves)
    for name, aggregation in available(rows).items() if samples else ():
        right[name] = [aggregation.is_right(row["samples"]) for row in rows]
        if name not in curves:
            curves[name] = curve(rows, aggregation, samples)
    if samples and "pass" not in curves:
        curves["pass"] = pass_curve(rows, samples)
    written = json.dumps([[row["completion"] for row in rows], right])
    return Answers(right, curves, hashlib.sha256(written.encode()).hexdigest())
