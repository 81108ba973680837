"""Finished runs read for a comparison, and grouped: which differ in their seed only."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from reftune.config import Config
from reftune.config.files import changed_settings, flat_settings, load_config
from reftune.evaluation.aggregation import curves, judged_by_all, right_answers, saved_curves
from reftune.evaluation.answer_formats import JudgedAnswer
from reftune.files import read_object, read_rows, require_shape
from reftune.methods import METHODS
from reftune.problem import AnsweredQuestion, Row, UserError, shortened
from reftune.runs.records import Answered, Outline

Questions = dict[str, tuple[str, str]]  # id -> question, right answer
Curves = dict[str, dict[int, float]]  # by aggregation, and "pass" for pass@k; by number of samples

# Runs that differ in nothing else are seeds of one cell: these settings say who a run is, how far it
# went, and on what machine.
FREE = (
    "name", "seed", "output_dir", "start_from", "methods",
    "evaluation.samples", "evaluation.base", "evaluation.rerank", "evaluation.bootstrap", "compute.",
)  # fmt: skip
CHAINS = {"natural": "N-CoT", "program": "P-CoT"}
LONGEST_LABEL = 40  # characters; beyond, a group is called by its run


@dataclass(frozen=True)
class Answers:
    """What one model of a run made of the test questions."""

    right: dict[str, list[bool]]  # by aggregation, in the order of the questions
    curves: Curves
    fingerprint: str  # two models with the same one have written the same answers
    written: list[JudgedAnswer]  # by question


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: where it lies, its configuration, and what its models answered."""

    directory: Path
    config: Config
    answers: dict[str, Answers]


def read_finished_runs(
    directories: Sequence[Path], k: int | None = None
) -> tuple[list[FinishedRun], int, int]:
    """Read finished runs; return them, the number of samples per question that was used, and how many
    questions are left out because the sandbox failed on an answer to them.

    For the arguments, and the UserErrors that this raises, see `compare_runs`.
    """
    configs = {directory: _read_config(directory) for directory in directories}
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise UserError("a run is given twice; give each run directory once")
    samples = _samples(configs, k)
    synthetic = all(config.data.test == "synthetic" for config in configs.values())
    questions: Questions = {}
    written: dict[tuple[Path, str], dict[str, AnsweredQuestion]] = {}
    known: dict[tuple[Path, str], Curves] = {}
    for directory, config in configs.items():
        for model, summary in _models(directory).items():
            path = directory / f"evaluation/{model}.jsonl"
            rows = {row["id"]: row for row in _read_rows(path, samples)}
            asked = {key: (row["question"], row["answer"]) for key, row in rows.items()}
            questions = questions or asked
            _require_same(questions, asked, directories[0], directory, synthetic)
            written[directory, model] = {key: rows[key] for key in questions}
            # Runs of the first versions have saved no curves; of fewer samples they are other ones.
            if "curves" in summary and samples == config.evaluation.samples:
                known[directory, model] = saved_curves(summary)
    judged = judged_by_all({pair: list(rows.values()) for pair, rows in written.items()})
    unjudged = len(questions) - len(next(iter(judged.values())))
    answers: dict[Path, dict[str, Answers]] = {directory: {} for directory in configs}
    for (directory, model), kept in judged.items():
        curve = None if unjudged else known.get((directory, model))
        answers[directory][model] = _answers(kept, samples, curve)
    runs = [FinishedRun(directory, config, answers[directory]) for directory, config in configs.items()]
    return runs, samples, unjudged


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
    path, fix = directory / "evaluation/result.json", "delete it and run the stage again"
    found = read_object(path, fix, Outline)["models"]
    known = {model: found[model] for model in METHODS if model in found}
    if not known:
        raise UserError(f"{path}: models: none is known among {shortened(', '.join(found))}; {fix}")
    return known


def _read_rows(path: Path, samples: int) -> Iterator[AnsweredQuestion]:
    """Read a model's answers without the texts of its samples, which are most of the file."""
    fix = "delete it with result.json beside it and run the stage again"
    for place, row in read_rows(path, fix):
        require_shape(row, Answered, place, fix)
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


def _answers(rows: Sequence[AnsweredQuestion], samples: int, known_curves: Curves | None) -> Answers:
    right = right_answers(rows)
    written = json.dumps([[row["completion"] for row in rows], right])
    found = known_curves or (curves(rows, samples) if samples else {})
    shown = [
        JudgedAnswer("", row["id"], row["question"], right, row["completion"], row["answer"])
        for row, right in zip(rows, right["greedy"], strict=True)
    ]
    return Answers(right, found, hashlib.sha256(written.encode()).hexdigest(), shown)


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed only.

    `label` tells the group from the others (empty if there is one); `changes` are the settings in which
    it differs from the first group.
    """

    label: str
    runs: list[FinishedRun]
    changes: dict[str, Any]

    @property
    def chains(self) -> str:
        """Return the kind of chain that its models write."""
        return self.runs[0].config.data.cot

    @property
    def baseline(self) -> str:
        """Return the model with which its methods are compared: SFT's, or the given one without SFT."""
        return self.runs[0].config.lineup.baseline


def run_names(group: RunGroup) -> str:
    """Name the runs of a group, the first ones of many."""
    names = [run.directory.name for run in group.runs]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def group_runs(runs: Sequence[FinishedRun]) -> list[RunGroup]:
    """Put runs of the same settings together, by seed; the groups are in the order given.

    Raises UserError if two of them have the same seed, too.
    """
    groups: list[list[FinishedRun]] = []
    for run in runs:
        group = next((group for group in groups if not _changes(group[0], run)), None)
        if group is None:
            groups.append([run])
            continue
        if twins := [other.directory for other in group if other.config.seed == run.config.seed]:
            raise UserError(
                f"{twins[0]} and {run.directory} have the same settings and the same seed;"
                " leave one of them out"
            )
        group.append(run)
    groups = [sorted(group, key=lambda run: run.config.seed) for group in groups]
    labels = _labels([group[0] for group in groups])
    return [
        RunGroup(label, group, _changes(groups[0][0], group[0]))
        for label, group in zip(labels, groups, strict=True)
    ]


def _changes(base: FinishedRun, other: FinishedRun) -> dict[str, Any]:
    """Return the settings in which groups may differ, and these do."""
    changes = changed_settings(base.config, other.config)
    return {key: value for key, value in changes.items() if not key.startswith(FREE)}


def _labels(firsts: Sequence[FinishedRun]) -> list[str]:
    """Name each group, given one run of each, by what tells it from the others."""
    if len(firsts) == 1:
        return [""]
    leaves = Counter(key.rpartition(".")[2] for key in flat_settings(firsts[0].config))
    several = len({run.config.data.cot for run in firsts}) > 1
    bases: dict[str, FinishedRun] = {}  # other settings change with the kind of chain: compare within it
    labels = []
    for run in firsts:
        base = bases.setdefault(run.config.data.cot, run)
        parts = [CHAINS[run.config.data.cot]] if several else []
        parts += [_change(key, value, leaves) for key, value in _changes(base, run).items()]
        label = ", ".join(parts) or _base_label(firsts, leaves)
        labels.append(label if len(label) <= LONGEST_LABEL else run.directory.name)
    named = zip(labels, firsts, strict=True)
    return [str(run.directory) if labels.count(label) > 1 else label for label, run in named]


def _base_label(firsts: Sequence[FinishedRun], leaves: Mapping[str, int]) -> str:
    """Name the first group: by its value if all others differ in that one setting, else by its run."""
    changed = {key for run in firsts for key in _changes(firsts[0], run)}
    if len(changed) > 1:
        return firsts[0].directory.name
    return ", ".join(_change(key, flat_settings(firsts[0].config).get(key), leaves) for key in changed)


def _change(key: str, value: Any, leaves: Mapping[str, int]) -> str:
    """Return "kl_coef = 0", with the section in front where several sections have such a key."""
    leaf = key.rpartition(".")[2]
    shown = f"{value:g}" if isinstance(value, float) else "unset" if value is None else str(value)
    return f"{leaf if leaves[leaf] <= 1 else key} = {shown}"
