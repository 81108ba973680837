"""Figures: the style that all share, and accuracies on the test questions as bars and as curves."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reftune.evaluation.aggregation import AGGREGATIONS
from reftune.methods import label_of
from reftune.reporting.axes import hover_data, settle
from reftune.reporting.pages import LIGHT, colour_of, palette

if TYPE_CHECKING:
    from reftune.reporting.comparison.compare import Cell

Curves = Mapping[str, Mapping[str, Mapping[int, float]]]  # model -> aggregation -> samples -> accuracy

WIDTH, LETTERS = 4.6, 56  # of a figure, in inches and in letters beside each other

STEPS = [1, 2, 2.5, 5, 10]  # distances between ticks that people count in

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["grid"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.formatter.useoffset": False,  # numbers on an axis are what they are
    "font.size": 9.5,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "svg.fonttype": "none",  # text stays text: sharp, selectable, in the page's own font
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.labelcolor": LIGHT["muted"],
}

CURVES = {
    "vote": ("Majority vote", "Accuracy of the most frequent answer among k samples."),
    "rerank": ("Reranking", "Accuracy of the one of k samples that the reranker likes best."),
    "weighted vote": ("Weighted vote", "As the majority vote, each sample weighed by its reranker."),
    "pass": ("pass@k", "How often one of k samples at least is right: what choosing could reach."),
}
MANY_BARS = 24  # beyond there is no room for numbers on them

REPORTED: dict[str, Any] = {"linestyle": "", "marker": "D", "markersize": 5}
REPORTED |= {"color": LIGHT["ink"], "markeredgecolor": LIGHT["grid"]}  # seen on bars of every colour

styled = matplotlib.rc_context(STYLE)  # decorates functions that draw


@dataclass(frozen=True)
class Plot:
    """One figure with the words around it; `name` is its file name."""

    name: str
    title: str
    caption: str
    figure: Figure
    wide: bool = False
    minor: bool = False  # folded away on the page

    def hover(self) -> str:
        """Return as JSON what the page tells under the pointer; nothing of a figure without curves."""
        _lay_out(self.figure)
        return _with_variables(hover_data(self.figure.axes[0]))

    def svg(self) -> str:
        """Return the plot as an inline SVG element whose colours are the page's CSS variables."""
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        salt = {"svg.hashsalt": self.name}  # ids must differ between the figures of a page
        with matplotlib.rc_context(STYLE | salt):
            _lay_out(self.figure)
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
        text = buffer.getvalue()
        # Names of groups are the same in each figure.
        return _with_variables(re.sub(r' id="[^"]*_[^"]*"', "", text[text.index("<svg") :]))

    @styled
    def save_png(self, directory: Path) -> Path:
        """Write the plot as `directory`/NAME.png, on white, and return the path."""
        path = directory / f"{self.name}.png"
        _lay_out(self.figure)
        self.figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": None})
        return path


def new_plot(
    name: str,
    title: str,
    caption: str,
    *,
    x: str = "step",
    percent: bool = False,
    wide: bool = False,
    minor: bool = False,
) -> tuple[Plot, Axes]:
    """Return an empty figure and where to draw in it; call it, and draw, under `styled`."""
    figure = Figure(figsize=(9.6 if wide else WIDTH, 2.4), layout="constrained")
    ax = figure.add_subplot()
    ax.set_xlabel(x)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=STEPS))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=STEPS))
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return Plot(name, title, caption, figure, wide, minor), ax


def legend_above(ax: Axes, handles: Sequence[Artist] | None = None) -> None:
    """Put the names of what is drawn above it, in as few lines as they fit: there they hide no curve."""
    named = ax.get_legend_handles_labels()[0] if handles is None else handles
    if named:
        letters = sum(len(str(one.get_label())) + 4 for one in named)
        figure = ax.get_figure(root=True)
        width = WIDTH if figure is None else figure.get_figwidth()
        lines = math.ceil(letters / (LETTERS * width / WIDTH))
        ax.legend(
            handles=named, loc="lower left", bbox_to_anchor=(0, 1), ncols=math.ceil(len(named) / lines),
            borderaxespad=0.2, handlelength=1, handletextpad=0.5, columnspacing=1,
        )  # fmt: skip


@styled
def curve_plots(prefix: str, curves: Curves) -> list[Plot]:
    """Draw accuracy over the number of samples, a figure per aggregation and a line per model.

    Args:
        prefix: of the figures' file names.
        curves: by model, then aggregation ("pass" for pass@k); without a second point nothing is drawn.
    """
    plots = []
    for aggregation in (*AGGREGATIONS, "pass"):
        models = {model: mine[aggregation] for model, mine in curves.items() if aggregation in mine}
        if max(map(len, models.values()), default=0) > 1:
            title, caption = CURVES.get(aggregation, (aggregation, ""))
            name = f"{prefix}_{aggregation.replace(' ', '_')}"
            plot, ax = new_plot(name, title, caption, x="samples k", percent=True)
            for model, points in models.items():
                ax.plot(
                    list(points), list(points.values()), color=colour_of(model), marker="o",
                    markersize=3.5, label=label_of(model), picker=True,
                )  # fmt: skip
            _powers_of_two(ax, sorted({k for points in models.values() for k in points}))
            legend_above(ax)
            plots.append(plot)
    return plots


@styled
def bar_plot(
    name: str,
    title: str,
    caption: str,
    cells: Sequence[Cell],
    called: Callable[[str], str] = label_of,
) -> Plot:
    """Draw accuracies side by side: methods within groups, or alone if there is one group.

    `called` returns the name under which a method is shown.
    """
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
    labels = list(map(called, methods)) if one else [textwrap.fill(group, 22) for group in groups]
    ax.set_xticks(range(len(labels)), labels)
    reported = [cell.reported.share for cell in cells if cell.reported]
    ax.set_ylim(0, 1.1 * max(*(cell.interval[1] for cell in cells), *reported, 0) or 1)
    handles: list[Artist] = [Patch(color=colour_of(m), label=called(m)) for m in methods if not one]
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


def _with_variables(text: str) -> str:
    """Write the page's CSS variables in place of its colours: one drawing follows the reader's theme."""
    for name, (light, _) in palette().items():
        text = text.replace(light, f"var(--{name})")
    return text


def _lay_out(figure: Figure) -> None:
    """Place the parts of a figure once; matplotlib would do it four times for two files."""
    if engine := figure.get_layout_engine():
        for ax in figure.axes:
            settle(ax)
        engine.execute(figure)
        figure.set_layout_engine(None)
