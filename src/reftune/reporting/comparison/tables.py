"""A comparison laid out: sentences, tables, rows of a CSV file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reftune.methods import BASELINE, MAIN, label_of
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


@dataclass(frozen=True)
class Section:
    """Some rows of a table under a title of their own (empty if the table has only them)."""

    title: str
    rows: list[TableRow]


def headline(comparison: Comparison) -> str:
    """Say in one sentence how much better ReFT is than SFT, in every group."""
    main = _main(comparison)
    if len(comparison.groups) == 1 or not main:
        return next(iter(sentences(comparison)), f"Accuracy on {comparison.questions} unseen questions.")
    gains = [f"{signed(found.difference)} points ({found.group})" for found in main]
    return f"{_pair(main[0])}: {', '.join(gains)}."


def sentences(comparison: Comparison) -> list[str]:
    """Say how much better ReFT is than SFT, a sentence per group."""
    return [_sentence(comparison, row) for row in _main(comparison)]


def columns(comparison: Comparison) -> list[str]:
    """Name the aggregations with their number of samples."""
    k = comparison.samples
    return [name if name == "greedy" else f"{name} of {k}" for name in comparison.aggregations]


def reported_columns(comparison: Comparison) -> list[bool]:
    """Tell for which aggregations there are reported numbers."""
    with_number = {cell.aggregation for cell in comparison.cells if cell.reported}
    return [name in with_number for name in comparison.aggregations]


def accuracy_sections(comparison: Comparison) -> list[Section]:
    """Lay the accuracies out: a section per group, a row per method, a column per aggregation."""
    sections = []
    for group in comparison.groups:
        seeds = len(group.runs)
        title = f"{group.label}, {seeds} seeds" if group.label and seeds > 1 else group.label
        rows = []
        for method in comparison.methods:
            mine = [c for c in comparison.cells if (c.group, c.method) == (group.label, method)]
            if mine:
                fewer = f" ({mine[0].seeds} of {seeds} seeds)" if mine[0].seeds < seeds else ""
                label = label_of(method) + fewer
                rows.append(TableRow(label, method, _by_aggregation(comparison, mine)))
        sections.append(Section(title, rows))
    return sections


def difference_sections(comparison: Comparison) -> list[Section]:
    """Lay the differences out: within each group, then between groups; a column per aggregation."""
    found: dict[tuple[str, str], dict[tuple[str, str], list[Difference]]] = {}
    for row in comparison.differences:
        section = found.setdefault((row.base_group, row.group), {})
        section.setdefault((row.base_method, row.method), []).append(row)
    sections = []
    for (base, group), pairs in found.items():
        within = base == group
        rows = [
            TableRow(
                _pair(cells[0]) if within else label_of(method), method,
                _by_aggregation(comparison, cells),
            )
            for (_, method), cells in pairs.items()
        ]  # fmt: skip
        sections.append(Section(group if within else f"{group} against {base}", rows))
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
    if len(comparison.drawn) > 1:
        drawn = " and ".join(map(str, comparison.drawn))
        used = (
            f"the first {comparison.samples} of each are used" if comparison.samples else "greedy only"
        )
        texts.append(f"The runs drew {drawn} samples per question: {used}.")
    elif comparison.samples < comparison.drawn[0]:
        texts.append(f"Of {comparison.drawn[0]} samples per question the first {comparison.samples}.")
    if any(reported_columns(comparison)):
        texts.append(f"As reported by {comparison.source}; ~ read second-hand.")
    return texts


def csv_rows(comparison: Comparison) -> Iterator[Row]:
    """Yield one row per accuracy, then one per difference, with the columns CSV_COLUMNS."""
    chains = {group.label: group.chains for group in comparison.groups}
    for cell in comparison.cells:
        yield _csv_row(cell, chains, quantity="accuracy", value=cell.accuracy) | {
            "lowest_seed": cell.lowest,
            "highest_seed": cell.highest,
            "as_reported": cell.reported.share if cell.reported else None,
            "second_hand": cell.reported.second_hand if cell.reported else None,
        }
    for row in comparison.differences:
        base = {key: getattr(row, key) for key in ("base_group", "base_method", "base_seeds")}
        tested = base | {"p": row.p, "p_holm": row.p_holm}
        yield _csv_row(row, chains, quantity="difference", value=row.difference) | tested


def _csv_row(found: Cell | Difference, chains: dict[str, str], **values: Any) -> Row:
    keys = ("group", "method", "aggregation", "samples", "questions", "seeds")
    shared = {key: getattr(found, key) for key in keys}
    low, high = found.interval
    row = dict.fromkeys(CSV_COLUMNS) | shared | values
    return row | {"chains": chains[found.group], "low": low, "high": high}


def _sentence(comparison: Comparison, row: Difference) -> str:
    a, b = (_accuracy(comparison, row.group, method) for method in (row.base_method, row.method))
    group = f"{row.group}: " if row.group else ""
    seeds = f" (mean of {row.seeds} seeds)" if row.seeds > 1 else ""
    answers = f"answers {percent(b)} of {comparison.questions} unseen questions{seeds}"
    gain = f"{signed(row.difference)} points, 95% interval {interval(row.interval)}"
    better, base = label_of(row.method), label_of(row.base_method)
    p = f"corrected {p_value(row.p_holm)}"
    return f"{group}{better} {answers}, {base} {percent(a)}: {gain}, {p}."


def _main(comparison: Comparison) -> list[Difference]:
    """Return each group's greedy difference between ReFT and SFT; without ReFT, of its last method."""
    found: dict[str, Difference] = {}
    for row in comparison.differences:
        against_sft = row.group == row.base_group and row.base_method == BASELINE
        main = row.group in found and found[row.group].method == MAIN
        if row.aggregation == "greedy" and against_sft and not main:
            found[row.group] = row
    return list(found.values())


def _accuracy(comparison: Comparison, group: str, method: str) -> float:
    return next(
        cell.accuracy
        for cell in comparison.cells
        if (cell.group, cell.method, cell.aggregation) == (group, method, "greedy")
    )


def _pair(row: Difference) -> str:
    return f"{label_of(row.method)} against {label_of(row.base_method)}"


def _by_aggregation(comparison: Comparison, found: Sequence[Any]) -> list[Any]:
    by_name = {item.aggregation: item for item in found}
    return [by_name.get(name) for name in comparison.aggregations]
