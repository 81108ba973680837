"""Axes that stay sensible whatever is drawn, and what a page says of their curves under the pointer."""

import json
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

FEW = 0.15  # of a share: below, an axis without decimals would name two ticks alike


def settle(ax: Axes) -> None:
    """Give one point, or equal ones, room around them; let no axis of shares leave 0 to 100%."""
    (x0, y0), (x1, y1) = ax.dataLim.get_points()
    if ax.get_autoscalex_on() and x0 == x1:
        log = ax.get_xscale() == "log"
        ax.set_xlim((x0 / 2, 2 * x0) if log else (x0 - 1, x0 + 1))
    formatter = ax.yaxis.get_major_formatter()
    shares = isinstance(formatter, PercentFormatter)
    if ax.get_autoscaley_on() and math.isfinite(y0 + y1):
        if math.isclose(y0, y1, rel_tol=1e-9, abs_tol=1e-12):
            around = 0.05 if shares else abs(y0) / 2 or 1.0
            ax.set_ylim(y0 - around, y1 + around)
        if shares:
            low, high = ax.get_ylim()
            edge = 0.04 * (high - low)  # so that a line along it is seen; two ticks are further apart
            ax.set_ylim(max(low, -edge), min(high, 1 + edge))
    if isinstance(formatter, PercentFormatter):
        low, high = ax.get_ylim()
        formatter.decimals = 1 if high - low < FEW else 0


def hover_data(ax: Axes) -> str:
    """Return the curves that can be picked as JSON, with where the axes lie in the drawing, in points.

    A name is a curve's label without the "_" that keeps it out of legends. Layers of a stack are told
    as their upper edges. Nothing is returned where there is no such curve.
    """
    lines = [line for line in ax.lines if line.get_picker() and np.size(line.get_xdata())]
    figure, place = ax.get_figure(root=True), ax.get_position()
    if not lines or figure is None:
        return ""
    width, height = 72 * figure.get_figwidth(), 72 * figure.get_figheight()
    box = (place.x0 * width, (1 - place.y1) * height, place.width * width, place.height * height)
    told = {
        "box": [round(number, 2) for number in box],
        "x": ax.get_xlim(),
        "y": ax.get_ylim(),
        "log": ax.get_xscale() == "log",
        "percent": isinstance(ax.yaxis.get_major_formatter(), PercentFormatter),
        "stacked": any(isinstance(one, PolyCollection) for one in ax.collections),
        "label": ax.get_xlabel(),
        "series": [_series(line) for line in lines],
    }
    return json.dumps(told, separators=(",", ":"))


def _series(line: Line2D) -> dict[str, object]:
    x, y = ([float(f"{value:.5g}") for value in np.nan_to_num(data)] for data in line.get_data())
    name = str(line.get_label()).removeprefix("_")
    return {"name": name, "colour": line.get_color(), "x": x, "y": y}
