"""What all figures share: their style; they become themed inline SVG, or PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reftune.reporting.pages import LIGHT, palette

STEPS = [1, 2, 2.5, 5, 10]  # distances between ticks that people count in

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
        # Names of groups are the same in each figure.
        text = re.sub(r' id="[^"]*_[^"]*"', "", text[text.index("<svg") :])
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
    name: str, title: str, caption: str, *, x: str = "step", percent: bool = False, wide: bool = False
) -> tuple[Plot, Axes]:
    """Return an empty figure and where to draw in it; call it, and draw, under `styled`."""
    figure = Figure(figsize=(9.6 if wide else 4.6, 2.3), layout="constrained")
    ax = figure.add_subplot()
    ax.set_xlabel(x)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=STEPS))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=STEPS))
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return Plot(name, title, caption, figure, wide), ax


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
