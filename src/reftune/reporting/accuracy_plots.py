"""Accuracies on the test questions: bars with intervals, and curves over the number of samples."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from reftune.methods import label_of
from reftune.reporting.pages import LIGHT, colour_of
from reftune.reporting.plots import Plot, legend_above, new_plot, styled

if TYPE_CHECKING:
    from reftune.reporting.comparison.compare import Cell

Curves = Mapping[str, Mapping[str, Mapping[int, float]]]  # aggregation -> model -> samples -> accuracy

CURVES = {
    "vote": ("Majority vote", "Accuracy of the most frequent answer among k samples."),
    "rerank": ("Reranking", "Accuracy of the one of k samples that the reranker likes best."),
    "weighted vote": ("Weighted vote", "As the majority vote, each sample weighed by its reranker."),
    "pass": ("pass@k", "How often one of k samples at least is right: what choosing could reach."),
}
MANY_BARS = 24  # beyond there is no room for numbers on them

REPORTED: dict[str, Any] = {"linestyle": "", "marker": "D", "markersize": 5}
REPORTED |= {"color": LIGHT["ink"], "markeredgecolor": LIGHT["grid"]}  # seen on bars of every colour


@styled
def curve_plots(prefix: str, curves: Curves) -> list[Plot]:
    """Draw accuracy over the number of samples, a figure per aggregation and a line per model.

    Args:
        prefix: of the figures' file names.
        curves: by aggregation ("pass" for pass@k), then model; without a second point nothing is drawn.
    """
    plots = []
    for aggregation, models in curves.items():
        if max((len(points) for points in models.values()), default=0) > 1:
            title, caption = CURVES.get(aggregation, (aggregation, ""))
            name = f"{prefix}_{aggregation.replace(' ', '_')}"
            plot, ax = new_plot(name, title, caption, x="samples k", percent=True)
            for model, points in models.items():
                ax.plot(
                    list(points), list(points.values()), color=colour_of(model), marker="o",
                    markersize=3.5, label=label_of(model),
                )  # fmt: skip
            _powers_of_two(ax, sorted({k for points in models.values() for k in points}))
            legend_above(ax)
            plots.append(plot)
    return plots


@styled
def bar_plot(name: str, title: str, caption: str, cells: Sequence[Cell]) -> Plot:
    """Draw accuracies side by side: methods within groups, or alone if there is one group."""
    groups = list(dict.fromkeys(cell.group for cell in cells))
    methods = list(dict.fromkeys(cell.method for cell in cells))
    one = len(groups) == 1
    plot, ax = new_plot(name, title, caption, x="", percent=True, wide=not one)
    width = 0.62 if one else 0.86 / len(methods)
    for cell in cells:
        place = methods.index(cell.method)
        shift = (place - (len(methods) - 1) / 2) * width
        x = place if one else groups.index(cell.group) + shift
        _bar(ax, cell, x, width, numbered=len(cells) <= MANY_BARS)
    labels = list(map(label_of, methods)) if one else [textwrap.fill(group, 22) for group in groups]
    ax.set_xticks(np.arange(len(labels)), labels)
    reported = [cell.reported.share for cell in cells if cell.reported]
    ax.set_ylim(0, 1.1 * max(*(cell.interval[1] for cell in cells), *reported, 0) or 1)
    handles: list[Artist] = [Patch(color=colour_of(m), label=label_of(m)) for m in methods if not one]
    if reported:
        handles.append(ax.plot([], [], **REPORTED, label="as reported")[0])
    legend_above(ax, handles)
    return plot


def _bar(ax: Axes, cell: Cell, x: float, width: float, *, numbered: bool) -> None:
    ax.bar(x, cell.accuracy, 0.92 * width, color=colour_of(cell.method), linewidth=0)
    ax.plot([x, x], cell.interval, color=LIGHT["ink"], linewidth=1.2)
    if cell.reported:
        ax.plot(x + 0.3 * width, cell.reported.share, **REPORTED)
    if numbered:
        top = max(cell.interval[1], cell.accuracy)
        number = f"{100 * cell.accuracy:.1f}"
        ax.annotate(number, (x, top), (0, 2), textcoords="offset points", ha="center", fontsize=8)


def _powers_of_two(ax: Axes, ks: Sequence[int]) -> None:
    """Count samples in doublings; name every k, less those that would touch their neighbour."""
    ax.set_xscale("log", base=2)
    named = [k for k, after in zip(ks, [*ks[1:], None], strict=True) if after is None or after / k > 1.7]
    ax.set_xticks(named, list(map(str, named)))
    ax.minorticks_off()
