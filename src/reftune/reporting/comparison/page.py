"""A comparison of runs as one page, as markdown, as CSV, and as tables for the terminal."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from reftune.files import check_writable, write_jsonl
from reftune.reporting.comparison import tables
from reftune.reporting.comparison.compare import Cell, Comparison, Difference
from reftune.reporting.comparison.finished_runs import run_names
from reftune.reporting.pages import interval, p_value, percent, signed, write_pages

if TYPE_CHECKING:
    from reftune.reporting.plots import Plot


FLIPS_SHOWN = 100  # of two models, on the page


def default_directory(directories: Sequence[Path]) -> Path:
    """Return where a comparison of these runs or files is written: beside them."""
    beside = Path(os.path.commonpath([os.path.dirname(os.path.abspath(x)) for x in directories]))
    given = beside if any(x.is_absolute() for x in directories) else Path(os.path.relpath(beside))
    return given / "comparison"


def write_comparison(comparison: Comparison, directory: Path) -> Path:
    """Write comparison.html, .csv and .md (its pictures in comparison_files/); return the page.

    comparison_flips.jsonl has the questions that one of two models answers.
    """
    check_writable(directory, is_directory=True)
    with (directory / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, tables.CSV_COLUMNS)
        writer.writeheader()
        writer.writerows(tables.csv_rows(comparison))
    write_jsonl(directory / "comparison_flips.jsonl", _flip_rows(comparison))
    return write_pages("comparison", _context(comparison), _plots(comparison), directory)


def terminal_tables(comparison: Comparison) -> Group:
    """Return accuracies and differences as tables for the terminal, with the result in words below."""
    names = list(tables.columns(comparison))
    sections = tables.accuracy_sections(comparison).items()
    parts: list[RenderableType] = [_accuracies(names, *section) for section in sections]
    sections = tables.difference_sections(comparison).items()
    parts += [_differences(names, *section) for section in sections]
    parts += [Text(text, style="dim") for text in _explanations(comparison)]
    parts += [Text(text) for text in tables.sentences(comparison)]
    parts += [Text(text, style="dim") for text in tables.notes(comparison)]
    return Group(*parts)


def _flip_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {"base": flips.base_method, "base_group": flips.base_group, "method": flips.method}
        | {"group": flips.group}
        | asdict(flip)
        for flips in comparison.flips
        for flip in flips.questions
    ]


def _explanations(comparison: Comparison) -> list[str]:
    return [
        " ".join(part for part in (f"{title}:" if title else "", f"{row.label}:", text) if part)
        for title, rows in tables.difference_sections(comparison).items()
        for row in rows
        for text in tables.explanations(comparison, row)
    ]


def _context(comparison: Comparison) -> dict[str, Any]:
    told = len(comparison.groups) > 1
    if comparison.paired:
        told = len(comparison.paired.contenders) > 2
    return {
        "name": "comparison",
        "headline": tables.headline(comparison),
        "sentences": tables.sentences(comparison) if told else [],
        "comparison": comparison,
        "compared": _compared(comparison),
        "columns": tables.columns(comparison),
        "accuracies": _named_sections(comparison),
        "differences": tables.difference_sections(comparison),
        "notes": tables.notes(comparison),
        "explanations": lambda row: tables.explanations(comparison, row),
        "flips": [
            (tables.flips_title(comparison, x), tables.flipped_names(comparison, x), x.questions)
            for x in comparison.flips
        ],
        "flips_shown": FLIPS_SHOWN,
    }


def _named_sections(comparison: Comparison) -> tables.Sections:
    """Return the accuracies with the names of the runs in the titles of their groups."""
    sections = tables.accuracy_sections(comparison)
    if len(comparison.groups) <= 1:
        return sections
    runs = [run_names(group) for group in comparison.groups]
    pairs = zip(sections.items(), comparison.groups, runs, strict=True)
    return {
        title if names == group.label else f"{title} ({names})": rows
        for (title, rows), group, names in pairs
    }


def _compared(comparison: Comparison) -> str:
    if comparison.paired:
        return f"{len(comparison.paired.contenders)} models"
    runs = sum(len(group.runs) for group in comparison.groups)
    return f"{runs} run{'s' if runs > 1 else ''}"


def _plots(comparison: Comparison) -> dict[str, list[Plot]]:
    """Draw bars per aggregation, and curves over the number of samples per group, by section title."""
    # Only now: what draws takes half a second to import, for which a refusal need not wait.
    from reftune.reporting.comparison.group_plots import learning_plots, sample_plots
    from reftune.reporting.plots import bar_plot, curve_plots

    plots: dict[str, list[Plot]] = {"Methods side by side": []}
    for name, column in zip(comparison.aggregations, tables.columns(comparison), strict=True):
        cells = [cell for cell in comparison.cells if cell.aggregation == name]
        title = column[0].upper() + column[1:]
        file = f"bars_{name.replace(' ', '_')}"
        plot = bar_plot(file, title, "With 95% intervals.", cells, comparison.called)
        plots["Methods side by side"].append(plot)
    if len(comparison.groups) > 1:
        plots["Groups over each other"] = sample_plots(comparison.groups, comparison.curves)
        plots["Learning"] = learning_plots(comparison.groups)
    for number, group in enumerate(comparison.groups, start=1):
        title = "Accuracy over the number of samples" + (f": {group.label}" if group.label else "")
        plots[title] = curve_plots(f"curves_{number}", comparison.curves[group.label])
    return plots


def _accuracies(names: Sequence[str], title: str, rows: Sequence[tables.TableRow]) -> Table:
    table = _table(title, "method", *(_numbers(name.replace(" of ", "\nof ")) for name in names))
    for row in rows:
        table.add_row(Text(row.label), *(Text(_accuracy_text(cell)) for cell in row.cells))
    return table


def _accuracy_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    lines = [percent(cell.accuracy), interval(cell.interval)]
    if cell.seeds > 1:
        lines.append(f"{100 * cell.lowest:.1f} to {100 * cell.highest:.1f}")
    if cell.reported:
        lines += ["reported", str(cell.reported)]
    return "\n".join(lines)


def _differences(names: Sequence[str], title: str, rows: Sequence[tables.TableRow]) -> Table:
    numbers = map(_numbers, ("points", "95% interval", "p (Holm)"))
    table = _table(title, "difference", Column("aggregation", no_wrap=True), *numbers)
    for row in rows:
        found = [(name, cell) for name, cell in zip(names, row.cells, strict=True) if cell]
        lines = zip(*(_difference_texts(name, cell) for name, cell in found), strict=True)
        table.add_row(Text(row.label), *(Text("\n".join(texts)) for texts in lines))
    return table


def _difference_texts(name: str, cell: Difference) -> tuple[str, ...]:
    p = p_value(cell.p_holm).removeprefix("p = ")
    return name, signed(cell.difference), interval(cell.interval), p


def _numbers(name: str) -> Column:
    return Column(name, justify="right", no_wrap=True)


def _table(title: str, *columns: Column | str) -> Table:
    shown = Text(title) if title else None  # an empty title would take a line
    return Table(*columns, title=shown, title_justify="left", title_style="bold", box=box.HORIZONTALS)
