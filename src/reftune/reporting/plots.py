"""What all figures share: style and lines; they become themed inline SVG, or PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reftune.problem import Row
from reftune.reporting.pages import LIGHT, palette

Array = np.ndarray[Any, np.dtype[np.float64]]

STEPS = [1, 2, 2.5, 5, 10]  # distances between ticks that people count in
MAX_POINTS = 400  # longer curves are averaged in blocks: nothing more fits on the page

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["grid"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8.5,
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

styled = matplotlib.rc_context(STYLE)  # decorates functions that draw


@dataclass(frozen=True)
class Plot:
    """One figure with the words around it; `name` is its file name."""

    name: str
    title: str
    caption: str
    figure: Figure
    wide: bool = False

    def svg(self) -> str:
        """Return the plot as an inline SVG element whose colours are the page's CSS variables."""
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        salt = {"svg.hashsalt": self.name}  # ids must differ between the figures of a page
        with matplotlib.rc_context(STYLE | salt):
            _lay_out(self.figure)
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
        text = buffer.getvalue()
        text = re.sub(
            r' id="[^"]*_[^"]*"', "", text[text.index("<svg") :]
        )  # group names, always the same
        for name, (light, _) in palette().items():
            text = text.replace(light, f"var(--{name})")
        return text

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
    xlabel: str = "step",
    percent: bool = False,
    wide: bool = False,
) -> tuple[Plot, Axes]:
    """Return an empty figure and where to draw in it; call it, and draw, under `styled`."""
    figure = Figure(figsize=(9.6 if wide else 4.6, 2.3), layout="constrained")
    ax = figure.add_subplot()
    ax.set_xlabel(xlabel)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=STEPS))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=STEPS))
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return Plot(name, title, caption, figure, wide), ax


def series(rows: Sequence[Row], key: str, x: str = "step") -> tuple[Array, Array]:
    """Return the finite values of `key` and where they lie."""
    points = np.array([(row.get(x), row.get(key)) for row in rows], float).reshape(-1, 2)
    xs, ys = points[np.isfinite(points).all(axis=1)].T  # what is missing has become nan
    return xs, ys


def thin(*series: Array) -> list[Array]:
    """Average blocks of equal size until at most MAX_POINTS remain."""
    size = -(-len(series[0]) // MAX_POINTS)
    starts = np.arange(0, len(series[0]), size)
    lengths = np.diff(np.append(starts, len(series[0])))
    return [np.add.reduceat(values, starts) / lengths for values in series]


def noisy(ax: Axes, x: Array, y: Array, colour: str, label: str | None = None) -> None:
    """Draw every value faintly, and their moving average."""
    if not len(x):
        return
    x, y = thin(x, y)
    window = np.ones(max(1, len(y) // 25) | 1)  # odd, so that the average is centred
    smooth = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
    ax.plot(x, y, color=colour, alpha=0.28, linewidth=1)
    line(ax, x, smooth, colour, label)


def line(ax: Axes, x: Array, y: Array, colour: str, label: str | None = None) -> None:
    """Draw a curve."""
    marker = "o" if len(x) <= 3 else None  # a line through one point cannot be seen
    ax.plot(x, y, color=colour, label=label, marker=marker, markersize=3.5)


def level(ax: Axes, y: float | None, label: str, colour: str, *, above: bool) -> None:
    """Draw a dashed level with its name, if it is known."""
    if y is None:
        return
    ax.axhline(y, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
    side = "bottom" if above else "top"
    ax.text(
        1, y, f"{label} {y:.1%}", transform=ax.get_yaxis_transform(), color=colour, ha="right", va=side
    )


def dot(ax: Axes, result: Row, x: str, y: str, colour: str) -> None:
    """Mark a point of a stage's result, if it is known."""
    ax.plot(*series([result], y, x), "o", color=colour, markersize=6)


def legend_above(ax: Axes, handles: Sequence[Artist] | None = None) -> None:
    """Put the names of what is drawn above it, in one line: there they never hide a curve."""
    named = ax.get_legend_handles_labels()[0] if handles is None else handles
    if named:
        ax.legend(
            handles=named, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(named), borderaxespad=0.2,
            handlelength=1, handletextpad=0.5, columnspacing=1,
        )  # fmt: skip


def _lay_out(figure: Figure) -> None:
    """Place the parts of a figure once; matplotlib would do it four times for two files."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine(None)
