"""Runs side by side: accuracies over seeds, paired differences, p-values corrected for their number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from reftune.evaluation.aggregation import AGGREGATIONS
from reftune.evaluation.pairing import ACCURACY, Contender, Paired
from reftune.methods import MAIN, METHODS, label_of
from reftune.reporting.comparison.finished_runs import (
    Curves,
    FinishedRun,
    RunGroup,
    group_runs,
    read_finished_runs,
)
from reftune.reporting.comparison.flips import Flips, find_flips
from reftune.reporting.comparison.measures import (
    Cell,
    Difference,
    Resampling,
    accuracies_of,
    corrected,
    differences_between,
)
from reftune.reporting.comparison.reported import ReportedNumbers, read_reported

__all__ = ["Cell", "Comparison", "Difference", "compare_answers", "compare_runs"]

AGGREGATION_ORDER = (ACCURACY, "greedy", *AGGREGATIONS)
Pair = tuple[Contender, Contender, Resampling]


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
    paired: Paired | None = None  # files that are compared instead of groups of runs
    flips: list[Flips] = field(default_factory=list)  # questions that one of two answers, and not both

    def called(self, model: str) -> str:
        """Return the name under which a model is shown: of a run our label, of others' files theirs."""
        return label_of(model) if self.groups else model


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
    cells = [cell for group in groups for cell in _group_cells(group, samples, numbers)]
    pairs = [pair for group in groups for pair in _within(group)]
    pairs += [pair for group in groups[1:] for pair in _between(groups[0], group)]
    differences = [found for a, b, how in pairs for found in differences_between(a, b, samples, how)]
    return Comparison(
        groups=groups,
        cells=cells,
        differences=corrected(differences),
        curves={group.label: _curves(group) for group in groups},
        questions=cells[0].questions,
        samples=samples,
        drawn=sorted({run.config.evaluation.samples for run in runs}),
        aggregations=_aggregations(cells),
        unjudged=unjudged,
        source="" if numbers is None else numbers.source,
        flips=[find_flips(a, b) for a, b, _ in pairs if _is_main(a, b, groups)],
    )


def compare_answers(paired: Paired) -> Comparison:
    """Compare models by the answers in files, or of one evaluation, each with each.

    Files of one label are seeds of one model and are pooled. Intervals and tests are those of
    `compare_runs`; several samples of a question count as their mean.
    """
    rows = paired.contenders
    samples = max((len(drawn) for one in rows for asked in one.answers for drawn in asked), default=1)
    cells = [cell for one in rows for cell in accuracies_of(one, "", samples)]
    differences = [
        found
        for a, b in combinations(rows, 2)
        for found in differences_between(a, b, samples, Resampling())
    ]
    return Comparison(
        groups=[],
        cells=cells,
        differences=corrected(differences),
        curves={},
        questions=cells[0].questions,
        samples=samples,
        drawn=[samples],
        aggregations=_aggregations(cells),
        unjudged=paired.unjudged,
        paired=paired,
        flips=[find_flips(rows[0], other) for other in rows[1:]],
    )


def _is_main(base: Contender, one: Contender, groups: Sequence[RunGroup]) -> bool:
    """Tell whether it is a group's last method against its baseline, or against the first group's."""
    baselines = {group.label: group.baseline for group in groups}
    last = {group.label: _last_method(group) for group in groups}
    return one.label == last[one.group] and base.label in (baselines[base.group], last[base.group])


def _last_method(group: RunGroup) -> str:
    return [method for method in METHODS if _runs_of(group, method)][-1]


def _aggregations(cells: Sequence[Cell]) -> list[str]:
    return [name for name in AGGREGATION_ORDER if any(cell.aggregation == name for cell in cells)]


def _group_cells(group: RunGroup, samples: int, numbers: ReportedNumbers | None) -> Iterator[Cell]:
    reported = partial(numbers.find, group.runs[0].config) if numbers else None
    for method in METHODS:
        if runs := _runs_of(group, method):
            yield from accuracies_of(_contender(group, runs, method), group.chains, samples, reported)


def _within(group: RunGroup) -> Iterator[Pair]:
    """Compare every method with the baseline, and ReFT with each, on the seeds that have both."""
    methods = [name for name, method in METHODS.items() if method.optional]
    pairs = [(group.baseline, method) for method in methods]
    pairs += [(method, MAIN) for method in methods if method != MAIN]
    for base, method in pairs:
        if runs := [run for run in _runs_of(group, method) if base in run.answers]:
            yield _contender(group, runs, base), _contender(group, runs, method), _resampling(group)


def _between(first: RunGroup, group: RunGroup) -> Iterator[Pair]:
    """Compare the baseline and ReFT with another group's, seed by seed where both have the same."""
    baselines = [first.baseline] if first.baseline == group.baseline else []
    for method in (*baselines, MAIN):
        sides = [_runs_of(first, method), _runs_of(group, method)]
        base, other = ([run.answers[method].fingerprint for run in runs] for runs in sides)
        if base != other and all(sides):  # else one took the model over, or trained it alike
            a, b = _contender(first, sides[0], method), _contender(group, sides[1], method)
            yield a, b, _resampling(group)


def _resampling(group: RunGroup) -> Resampling:
    config = group.runs[0].config
    return Resampling(config.evaluation.bootstrap, config.seed)


def _contender(group: RunGroup, runs: Sequence[FinishedRun], model: str) -> Contender:
    """Return a model of runs with what was right by the aggregations that all of them have."""
    found = [run.answers[model] for run in runs]
    shared = [name for name in AGGREGATION_ORDER if all(name in one.right for one in found)]
    right = {name: np.array([one.right[name] for one in found]) for name in shared}
    answers = [[[answer] for answer in one.written] for one in found]
    return Contender(model, [run.config.seed for run in runs], right, answers, group.label)


def _runs_of(group: RunGroup, model: str) -> list[FinishedRun]:
    """Return the runs that have a model, by seed."""
    return [run for run in group.runs if model in run.answers]


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
