"""A comparison laid out: sentences, tables, rows of a CSV file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from reftune.methods import MAIN, label_of
from reftune.problem import Row
from reftune.reporting.comparison.compare import Cell, Comparison, Difference
from reftune.reporting.pages import interval, p_value, percent, signed

CSV_COLUMNS = (
    "quantity", "group", "chains", "method", "base_group", "base_method", "aggregation", "samples",
    "questions", "seeds", "base_seeds", "value", "low", "high", "lowest_seed", "highest_seed", "p",
    "p_holm", "as_reported", "second_hand",
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
    parts = []
    for pair, found in groupby(main, _pair):  # groups may have other baselines
        gains = [f"{signed(row.difference)} points ({row.group})" for row in found]
        parts.append(f"{pair}: {', '.join(gains)}")
    return f"{'; '.join(parts)}."


def sentences(comparison: Comparison) -> list[str]:
    """Say how much better ReFT is than the baseline, a sentence per group."""
    return [_sentence(comparison, row) for row in _main(comparison)]


def columns(comparison: Comparison) -> dict[str, bool]:
    """Name the aggregations with their number of samples; tell for which there are reported numbers."""
    reported = {cell.aggregation for cell in comparison.cells if cell.reported}
    k = comparison.samples
    return {
        name if name == "greedy" else f"{name} of {k}": name in reported
        for name in comparison.aggregations
    }


def accuracy_sections(comparison: Comparison) -> Sections:
    """Lay the accuracies out: a section per group, a row per method, a column per aggregation."""
    sections = {}
    for group in comparison.groups:
        seeds = len(group.runs)
        mine = [cell for cell in comparison.cells if cell.group == group.label]
        rows = []
        for method, found in groupby(mine, attrgetter("method")):
            first, *_ = cells = list(found)
            fewer = f" ({first.seeds} of {seeds} seeds)" if first.seeds < seeds else ""
            rows.append(TableRow(label_of(method) + fewer, method, _by_aggregation(comparison, cells)))
        title = f"{group.label}, {seeds} seeds" if group.label and seeds > 1 else group.label
        sections[title] = rows
    return sections


def difference_sections(comparison: Comparison) -> Sections:
    """Lay the differences out: within each group, then between groups; a column per aggregation."""
    sections = {}
    for (base, group), section in groupby(comparison.differences, attrgetter("base_group", "group")):
        rows = []
        for _, pair in groupby(section, attrgetter("base_method", "method")):
            first, *_ = cells = list(pair)
            label = _pair(first) if base == group else label_of(first.method)
            rows.append(TableRow(label, first.method, _by_aggregation(comparison, cells)))
        sections[group if base == group else f"{group} against {base}"] = rows
    return sections


def notes(comparison: Comparison) -> list[str]:
    """Say what the numbers are, and what they do not cover."""
    texts = []
    if any(cell.seeds == 1 for cell in comparison.cells):
        texts.append("One seed: Wilson's interval, and McNemar's exact test.")
    if any(cell.seeds > 1 for cell in comparison.cells):
        texts.append(
            "Several seeds: their mean, an interval from a bootstrap over seeds and questions (a rough"
            " guide where seeds are few), the lowest to the highest seed; p from the exact sign-flip"
            " test over questions."
        )
    if count := len(comparison.differences):
        texts.append(
            "Differences are paired: both sides answer the same questions. Their p-values are corrected"
            f" by Holm's method for all {count} comparisons here. They take the trained models as given:"
            " they tell what other questions would change, not what training with other seeds would."
        )
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


def csv_rows(comparison: Comparison) -> Iterator[Row]:
    """Yield one row per accuracy, then one per difference, with the columns CSV_COLUMNS."""
    chains = {group.label: group.chains for group in comparison.groups}
    found: list[Cell | Difference] = [*comparison.cells, *comparison.differences]
    for one in found:
        low, high = one.interval
        row = dict.fromkeys(CSV_COLUMNS) | {k: v for k, v in vars(one).items() if k in CSV_COLUMNS}
        row |= {"chains": chains[one.group], "low": low, "high": high}
        if isinstance(one, Difference):
            yield row | {"quantity": "difference", "value": one.difference}
            continue
        row |= {"quantity": "accuracy", "value": one.accuracy}
        row |= {"lowest_seed": one.lowest, "highest_seed": one.highest}
        if one.reported:
            row |= {"as_reported": one.reported.share, "second_hand": one.reported.second_hand}
        yield row


def _sentence(comparison: Comparison, row: Difference) -> str:
    greedy = {(c.group, c.method): c.accuracy for c in comparison.cells if c.aggregation == "greedy"}
    group = f"{row.group}: " if row.group else ""
    seeds = f" (mean of {row.seeds} seeds)" if row.seeds > 1 else ""
    answers = f"answers {percent(greedy[row.group, row.method])} of {row.questions} unseen questions"
    gain = f"{signed(row.difference)} points, 95% interval {interval(row.interval)}"
    base = f"{label_of(row.base_method)} {percent(greedy[row.group, row.base_method])}"
    better, p = label_of(row.method), p_value(row.p_holm)
    return f"{group}{better} {answers}{seeds}, {base}: {gain}, corrected {p}."


def _main(comparison: Comparison) -> list[Difference]:
    """Return each group's greedy difference of baseline and ReFT; without ReFT, of its last method."""
    found: dict[str, Difference] = {}
    baselines = {group.label: group.baseline for group in comparison.groups}
    for row in comparison.differences:
        within = row.group == row.base_group and row.base_method == baselines[row.group]
        main = row.group in found and found[row.group].method == MAIN
        if row.aggregation == "greedy" and within and not main:
            found[row.group] = row
    return list(found.values())


def _pair(row: Difference) -> str:
    return f"{label_of(row.method)} against {label_of(row.base_method)}"


def _by_aggregation(comparison: Comparison, found: Sequence[Any]) -> list[Any]:
    by_name = {item.aggregation: item for item in found}
    return [by_name.get(name) for name in comparison.aggregations]
