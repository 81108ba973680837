"""A comparison of runs as one page, as markdown, as CSV, and as tables for the terminal."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from reftune.files import check_writable
from reftune.reporting.comparison import tables
from reftune.reporting.comparison.compare import Cell, Comparison, Difference
from reftune.reporting.pages import interval, p_value, percent, signed, write_pages

if TYPE_CHECKING:
    from reftune.reporting.plots import Plot


def default_directory(directories: Sequence[Path]) -> Path:
    """Return where a comparison of these runs is written: beside them."""
    return Path(os.path.commonpath([path.absolute().parent for path in directories]), "comparison")


def write_comparison(comparison: Comparison, directory: Path) -> Path:
    """Write comparison.html, .csv and .md (its pictures in comparison_files/); return the page."""
    check_writable(directory, is_directory=True)
    with (directory / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, tables.CSV_COLUMNS)
        writer.writeheader()
        writer.writerows(tables.csv_rows(comparison))
    return write_pages("comparison", _context(comparison), _plots(comparison), directory)


def terminal_tables(comparison: Comparison) -> Group:
    """Return accuracies and differences as tables for the terminal, with the result in words below."""
    names = list(tables.columns(comparison))
    sections = tables.accuracy_sections(comparison).items()
    parts: list[RenderableType] = [_accuracies(names, *section) for section in sections]
    sections = tables.difference_sections(comparison).items()
    parts += [_differences(names, *section) for section in sections]
    parts += [Text(text) for text in tables.sentences(comparison)]
    parts += [Text(text, style="dim") for text in tables.notes(comparison)]
    return Group(*parts)


def _context(comparison: Comparison) -> dict[str, Any]:
    return {
        "name": "comparison",
        "headline": tables.headline(comparison),
        "sentences": tables.sentences(comparison) if len(comparison.groups) > 1 else [],
        "comparison": comparison,
        "runs": sum(len(group.runs) for group in comparison.groups),
        "columns": tables.columns(comparison),
        "accuracies": tables.accuracy_sections(comparison),
        "differences": tables.difference_sections(comparison),
        "notes": tables.notes(comparison),
    }


def _plots(comparison: Comparison) -> dict[str, list[Plot]]:
    """Draw bars per aggregation, and curves over the number of samples per group, by section title."""
    # Only now: what draws takes half a second to import, for which a refusal need not wait.
    from reftune.reporting.plots import bar_plot, curve_plots

    plots: dict[str, list[Plot]] = {"Methods side by side": []}
    for name, column in zip(comparison.aggregations, tables.columns(comparison), strict=True):
        cells = [cell for cell in comparison.cells if cell.aggregation == name]
        title = column[0].upper() + column[1:]
        plot = bar_plot(f"bars_{name.replace(' ', '_')}", title, "With 95% intervals.", cells)
        plots["Methods side by side"].append(plot)
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
