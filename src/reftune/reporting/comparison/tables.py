"""A comparison laid out: sentences, tables, rows of a CSV file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from reftune.evaluation.pairing import Paired
from reftune.evaluation.seeds import ONE_SEED
from reftune.methods import MAIN
from reftune.problem import Row
from reftune.reporting.comparison.compare import Cell, Comparison, Difference
from reftune.reporting.comparison.flips import Flips
from reftune.reporting.comparison.measures import ALONE
from reftune.reporting.pages import interval, p_value, percent, signed

CSV_COLUMNS = (
    "quantity", "group", "chains", "method", "base_group", "base_method", "aggregation", "samples",
    "questions", "seeds", "base_seeds", "value", "low", "high", "lowest_seed", "highest_seed", "p",
    "p_holm", "scope", "as_reported", "second_hand",
)  # fmt: skip


@dataclass(frozen=True)
class TableRow:
    """What a row is called, whose colour it has, and its numbers by column (None: there is none)."""

    label: str
    method: str
    cells: Sequence[Any]


Sections = dict[str, list[TableRow]]  # rows under the title of their part of a table, which may be empty


def headline(comparison: Comparison) -> str:
    """Say in one sentence how much better ReFT is than the baseline, in every group."""
    main = _main(comparison)
    if len(comparison.groups) == 1 or not main:
        return next(iter(sentences(comparison)), f"Accuracy on {comparison.questions} unseen questions.")
    if not comparison.groups:
        models = len({cell.method for cell in comparison.cells})
        return sentences(comparison)[0] if models == 2 else f"{models} models on the same questions."
    parts = []
    # groups may have other baselines
    for pair, found in groupby(main, lambda row: _pair(comparison, row)):
        gains = [f"{signed(row.difference)} points ({row.group})" for row in found]
        parts.append(f"{pair}: {', '.join(gains)}")
    return f"{'; '.join(parts)}."


def sentences(comparison: Comparison) -> list[str]:
    """Say how much better ReFT is than the baseline, a sentence per group; of files, than the first."""
    return [_sentence(comparison, row) for row in _main(comparison)]


def columns(comparison: Comparison) -> dict[str, bool]:
    """Name the aggregations with their number of samples; tell for which there are reported numbers."""
    reported = {cell.aggregation for cell in comparison.cells if cell.reported}
    k = comparison.samples
    return {
        name if name in ALONE else f"{name} of {k}": name in reported for name in comparison.aggregations
    }


def accuracy_sections(comparison: Comparison) -> Sections:
    """Lay the accuracies out: a section per group, a row per method, a column per aggregation."""
    sections = {}
    groups = [(group.label, len(group.runs)) for group in comparison.groups]
    for label, seeds in groups or [("", 0)]:
        mine = [cell for cell in comparison.cells if cell.group == label]
        rows = []
        for method, of_method in groupby(mine, attrgetter("method")):
            first, *_ = cells = list(of_method)
            fewer = f" ({first.seeds} of {seeds} seeds)" if first.seeds < seeds else ""
            called = comparison.called(method) + fewer
            rows.append(TableRow(called, method, _by_aggregation(comparison, cells)))
        title = f"{label}, {seeds} seeds" if label and seeds > 1 else label
        sections[title] = rows
    return sections


def difference_sections(comparison: Comparison) -> Sections:
    """Lay the differences out: within each group, then between groups; a column per aggregation."""
    sections = {}
    several = any(cell.seeds > 1 for cell in comparison.cells)
    for (base, group), section in groupby(comparison.differences, attrgetter("base_group", "group")):
        rows = []
        for _, pair in groupby(section, attrgetter("base_method", "method")):
            first, *_ = cells = list(pair)
            label = _pair(comparison, first) if base == group else comparison.called(first.method)
            fewer = f" ({first.scope.partition(':')[0]})" if several and first.scope else ""
            rows.append(TableRow(label + fewer, first.method, _by_aggregation(comparison, cells)))
        sections[group if base == group else f"{group} against {base}"] = rows
    return sections


def explanations(comparison: Comparison, row: TableRow) -> list[str]:
    """Say of a row of differences, for each cell whose interval and p-value disagree, why."""
    names = list(columns(comparison)) if len(comparison.aggregations) > 1 else [""]
    found = zip(names, row.cells, strict=True)
    return [f"{name}: {cell.explained}" if name else cell.explained
            for name, cell in found if cell and cell.explained]  # fmt: skip


def flipped_names(comparison: Comparison, flips: Flips) -> tuple[str, str]:
    """Name the two models, with their groups where these differ."""
    base, method = comparison.called(flips.base_method), comparison.called(flips.method)
    if flips.group != flips.base_group:
        return f"{base} ({flips.base_group})", f"{method} ({flips.group})"
    return base, method


def flips_title(comparison: Comparison, flips: Flips) -> str:
    """Say which two models differ on how many questions."""
    base, method = flipped_names(comparison, flips)
    if flips.group == flips.base_group and flips.group:
        method = f"{flips.group}: {method}"
    lost = len(flips.questions) - flips.gained
    return f"{method} answers {flips.gained} that {base} does not, and {lost} the other way round"


def notes(comparison: Comparison) -> list[str]:
    """Say what the numbers are, and what they do not cover."""
    texts = []
    if any(cell.seeds == 1 for cell in comparison.cells):
        texts.append(
            f"{ONE_SEED.capitalize()}. Wilson's interval and McNemar's exact test tell what other"
            " questions would change; another seed may end elsewhere."
        )
    if any(cell.seeds > 1 for cell in comparison.cells):
        texts.append(
            "Several seeds: their mean, a t interval over seeds and questions, as wide as so few seeds"
            " make it, the lowest to the highest seed; p is that of the interval. They speak of the"
            " method."
        )
    if count := len(comparison.differences):
        texts.append(
            "Differences are paired: both sides answer the same questions. Their p-values are corrected"
            f" by Holm's method for {'all ' if count > 1 else ''}{count} comparison{'s' * (count > 1)}"
            " here."
        )
    if comparison.paired:
        return texts + _notes_of_files(comparison, comparison.paired)
    if comparison.unjudged:
        texts.append(f"{comparison.unjudged} questions are left out: the sandbox failed on an answer.")
    k, drawn = comparison.samples, " and ".join(map(str, comparison.drawn))
    if len(comparison.drawn) > 1:
        used = f"the first {k} of each are used" if k else "greedy only"
        texts.append(f"The runs drew {drawn} samples per question: {used}.")
    elif k < comparison.drawn[0]:
        texts.append(f"Of {drawn} samples per question the first {k}.")
    if any(columns(comparison).values()):
        texts.append(f"As reported by {comparison.source}; ~ read second-hand.")
    return texts


def _notes_of_files(comparison: Comparison, paired: Paired) -> list[str]:
    texts = [f"Questions are paired by their {paired.by}."]
    reasons = (paired.left_out, "not all were asked"), (paired.unjudged, "an answer was not judged")
    texts += [
        f"Left out: {count} question{'s' if count > 1 else ''}, for {why}."
        for count, why in reasons
        if count
    ]
    for one in paired.contenders:
        drawn = sorted({len(samples) for asked in one.answers for samples in asked})
        if drawn and drawn != [1]:
            many = f"{drawn[0]}" if len(drawn) == 1 else f"{drawn[0]} to {drawn[-1]}"
            texts.append(
                f"{one.label}: {many} answers to a question, which count as their mean"
                " (in Wilson's interval as one; the test of one seed flips the differences' signs)."
            )
    return texts + paired.notes


def csv_rows(comparison: Comparison) -> Iterator[Row]:
    """Yield one row per accuracy, then one per difference, with the columns CSV_COLUMNS."""
    chains = {cell.group: cell.chains for cell in comparison.cells}
    found: list[Cell | Difference] = [*comparison.cells, *comparison.differences]
    for one in found:
        low, high = one.interval
        row = dict.fromkeys(CSV_COLUMNS) | {k: v for k, v in vars(one).items() if k in CSV_COLUMNS}
        row |= {"chains": chains[one.group], "low": low, "high": high, "scope": one.scope}
        if isinstance(one, Difference):
            yield row | {"quantity": "difference", "value": one.difference}
            continue
        row |= {"quantity": "accuracy", "value": one.accuracy}
        row |= {"lowest_seed": one.lowest, "highest_seed": one.highest}
        if one.reported:
            row |= {"as_reported": one.reported.share, "second_hand": one.reported.second_hand}
        yield row


def _sentence(comparison: Comparison, row: Difference) -> str:
    greedy = {(c.group, c.method): c.accuracy for c in comparison.cells if c.aggregation in ALONE}
    group = f"{row.group}: " if row.group else ""
    seeds = f" (mean of {row.seeds} seeds)" if row.seeds > 1 else " (one seed)"
    asked = f"{row.questions} {'' if comparison.paired else 'unseen '}questions"
    answers = f"answers {percent(greedy[row.group, row.method])} of {asked}"
    gain = f"{signed(row.difference)} points, 95% interval {interval(row.interval)}"
    base = f"{comparison.called(row.base_method)} {percent(greedy[row.group, row.base_method])}"
    better, p = comparison.called(row.method), p_value(row.p_holm)
    return f"{group}{better} {answers}{seeds}, {base}: {gain}, corrected {p}."


def _main(comparison: Comparison) -> list[Difference]:
    """Return each group's greedy difference of baseline and ReFT; without ReFT, of its last method.

    Of files it is the difference of each from the first.
    """
    if not comparison.groups:
        first = comparison.cells[0].method
        return [d for d in comparison.differences if d.base_method == first and d.aggregation in ALONE]
    found: dict[str, Difference] = {}
    baselines = {group.label: group.baseline for group in comparison.groups}
    for row in comparison.differences:
        within = row.group == row.base_group and row.base_method == baselines[row.group]
        main = row.group in found and found[row.group].method == MAIN
        if row.aggregation == "greedy" and within and not main:
            found[row.group] = row
    return list(found.values())


def _pair(comparison: Comparison, row: Difference) -> str:
    return f"{comparison.called(row.method)} against {comparison.called(row.base_method)}"


def _by_aggregation(comparison: Comparison, found: Sequence[Any]) -> list[Any]:
    by_name = {item.aggregation: item for item in found}
    return [by_name.get(name) for name in comparison.aggregations]
