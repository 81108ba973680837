"""Runs side by side: accuracies over seeds, paired differences, p-values corrected for their number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from reftune.evaluation import statistics
from reftune.evaluation.aggregation import AGGREGATIONS
from reftune.evaluation.statistics import Array
from reftune.methods import MAIN, METHODS
from reftune.reporting.comparison.finished_runs import (
    Curves,
    FinishedRun,
    RunGroup,
    group_runs,
    read_finished_runs,
)
from reftune.reporting.comparison.reported import Number, ReportedNumbers, read_reported

AGGREGATION_ORDER = ("greedy", *AGGREGATIONS)

Side = tuple[Sequence[FinishedRun], str]  # runs, and the model of them that is meant


@dataclass(frozen=True)
class Cell:
    """The accuracy of one method, by one aggregation, over the seeds of a group.

    `interval` is Wilson's for one seed, and a bootstrap over seeds and questions for several.
    `lowest` and `highest` are over the seeds.
    """

    group: str
    chains: str  # "natural" or "program"
    method: str
    aggregation: str
    samples: int  # per question
    questions: int
    seeds: int
    accuracy: float
    interval: tuple[float, float]
    lowest: float
    highest: float
    reported: Number | None = None


@dataclass(frozen=True)
class Difference:
    """How much more of the same questions one method answers than another, its base.

    Within a group, or the same method in two groups. `p_holm` is corrected for all differences of the
    comparison.
    """

    group: str
    method: str
    base_group: str
    base_method: str
    aggregation: str
    samples: int
    questions: int
    seeds: int
    base_seeds: int
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float = 1.0

    @property
    def clear(self) -> bool:
        """Tell whether both say that the two differ: the corrected p-value, and the interval."""
        low, high = self.interval
        return self.p_holm < 0.05 and (low > 0 or high < 0)


@dataclass(frozen=True)
class Comparison:
    """All numbers of a comparison. `curves` are accuracies by group, method, aggregation and samples."""

    groups: list[RunGroup]
    cells: list[Cell]
    differences: list[Difference]
    curves: dict[str, dict[str, Curves]]
    questions: int
    samples: int  # per question, used
    drawn: list[int]  # per question, by the runs
    aggregations: list[str]
    unjudged: int  # questions that are left out: the sandbox failed on an answer
    source: str = ""  # of reported numbers


def compare_runs(
    directories: Sequence[Path], k: int | None = None, reported: Path | None = None
) -> Comparison:
    """Compare finished runs that were tested on the same questions.

    Runs of the same settings are seeds of one group and are pooled. In each group every method is
    compared with SFT, or with the given model where there is none, and ReFT with every other method;
    between groups that baseline and ReFT with those of the first group, unless they are the very same
    models.

    Args:
        directories: of the runs; the group of the first one is what other groups are compared with.
        k: samples per question to use, the first ones drawn; default as many as all runs have.
        reported: file of numbers to stand beside those of the same setting, see `ReportedNumbers`.

    Raises UserError if a run is not finished or given twice, if the runs were not tested on the same
    questions, or have fewer than `k` samples.
    """
    numbers = None if reported is None else read_reported(reported)
    runs, samples, unjudged = read_finished_runs(directories, k)
    groups = group_runs(runs)
    cells = [cell for group in groups for cell in _cells(group, samples, numbers)]
    differences = [found for group in groups for found in _within(group, samples)]
    differences += [found for group in groups[1:] for found in _between(groups[0], group, samples)]
    corrected = statistics.holm([found.p for found in differences])
    return Comparison(
        groups=groups,
        cells=cells,
        differences=[replace(d, p_holm=p) for d, p in zip(differences, corrected, strict=True)],
        curves={group.label: _curves(group) for group in groups},
        questions=cells[0].questions,
        samples=samples,
        drawn=sorted({run.config.evaluation.samples for run in runs}),
        aggregations=[
            name for name in AGGREGATION_ORDER if any(cell.aggregation == name for cell in cells)
        ],
        unjudged=unjudged,
        source="" if numbers is None else numbers.source,
    )


def _cells(group: RunGroup, samples: int, numbers: ReportedNumbers | None) -> Iterator[Cell]:
    config = group.runs[0].config
    for method in METHODS:
        for aggregation, right in _right(_runs_of(group, method), method).items():
            by_seed = right.mean(axis=1)
            k = 1 if aggregation == "greedy" else samples
            yield Cell(
                group=group.label, chains=group.chains, method=method, aggregation=aggregation,
                samples=k, questions=right.shape[1], seeds=len(right), accuracy=float(by_seed.mean()),
                interval=_accuracy_interval(right, group), lowest=float(by_seed.min()),
                highest=float(by_seed.max()),
                reported=numbers.find(config, method, aggregation, k) if numbers else None,
            )  # fmt: skip


def _within(group: RunGroup, samples: int) -> Iterator[Difference]:
    """Compare every method with the baseline, and ReFT with each, on the seeds that have both."""
    methods = [name for name, method in METHODS.items() if method.optional]
    pairs = [(group.baseline, method) for method in methods]
    pairs += [(method, MAIN) for method in methods if method != MAIN]
    for base, method in pairs:
        runs = [run for run in _runs_of(group, method) if base in run.answers]
        yield from _differences(group, (runs, base), group, (runs, method), samples)


def _between(first: RunGroup, group: RunGroup, samples: int) -> Iterator[Difference]:
    """Compare the baseline and ReFT with another group's, seed by seed where both have the same."""
    baselines = [first.baseline] if first.baseline == group.baseline else []
    for method in (*baselines, MAIN):
        sides = [_runs_of(first, method), _runs_of(group, method)]
        base, other = ([run.answers[method].fingerprint for run in runs] for runs in sides)
        if base != other:  # else one took the model over from the other, or trained it alike
            yield from _differences(first, (sides[0], method), group, (sides[1], method), samples)


def _differences(
    base_group: RunGroup, base: Side, group: RunGroup, side: Side, samples: int
) -> Iterator[Difference]:
    base_seeds, seeds = ([run.config.seed for run in runs] for runs, _ in (base, side))
    before, after = _right(*base), _right(*side)
    for aggregation in [name for name in before if name in after]:
        a, b = before[aggregation], after[aggregation]
        sums = len(a) * b.sum(axis=0) - len(b) * a.sum(axis=0)  # the mean differences, as whole numbers
        yield Difference(
            group=group.label, method=side[1], base_group=base_group.label, base_method=base[1],
            aggregation=aggregation, samples=1 if aggregation == "greedy" else samples,
            questions=a.shape[1], seeds=len(b), base_seeds=len(a), p=statistics.sign_flip(sums.tolist()),
            difference=float(b.mean() - a.mean()),
            interval=_difference_interval(a, b, base_seeds == seeds, group),
        )  # fmt: skip


def _accuracy_interval(right: Array, group: RunGroup) -> tuple[float, float]:
    if len(right) == 1:
        return statistics.wilson_interval(int(right.sum()), right.shape[1])
    return statistics.bootstrap_means([right], **_resampling(group))


def _difference_interval(a: Array, b: Array, paired: bool, group: RunGroup) -> tuple[float, float]:
    if len(a) == len(b) == 1:  # as in the run's own report
        return statistics.bootstrap_difference(a[0].tolist(), b[0].tolist(), **_resampling(group))
    signed = [b.astype(int) - a] if paired else [b, -a.astype(int)]
    return statistics.bootstrap_means(signed, **_resampling(group))


def _resampling(group: RunGroup) -> dict[str, int]:
    config = group.runs[0].config
    return {"resamples": config.evaluation.bootstrap, "seed": config.seed}


def _runs_of(group: RunGroup, model: str) -> list[FinishedRun]:
    """Return the runs that have a model, by seed."""
    return [run for run in group.runs if model in run.answers]


def _right(runs: Sequence[FinishedRun], model: str) -> dict[str, Array]:
    """Return what was right, shape (seeds, questions), by the aggregations that all runs have."""
    found = [run.answers[model].right for run in runs]
    shared = [name for name in AGGREGATION_ORDER if found and all(name in right for right in found)]
    return {name: np.array([right[name] for right in found]) for name in shared}


def _curves(group: RunGroup) -> dict[str, Curves]:
    """Average each model's curves over the seeds."""
    found = {}
    for model in METHODS:
        if curves := [run.answers[model].curves for run in _runs_of(group, model)]:
            shared = [name for name in curves[0] if all(name in curve for curve in curves)]
            found[model] = {
                name: {j: float(np.mean([curve[name][j] for curve in curves])) for j in curves[0][name]}
                for name in shared
            }
    return found
