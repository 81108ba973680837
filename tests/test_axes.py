from __future__ import annotations

import json
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from reftune.reporting.axes import hover_data, settle
from reftune.reporting.plots import Plot, curve_plots, legend_above, new_plot, styled

matplotlib.use("agg")


def drawn(x: list[float], y: list[float], **kind: Any) -> Axes:
    _, ax = new_plot("name", "", "", **kind)
    ax.plot(x, y, label="_SFT", picker=True)
    settle(ax)
    return ax


def ticks(ax: Axes) -> list[str]:
    FigureCanvasAgg(ax.get_figure(root=True)).draw()  # type: ignore[arg-type]
    low, high = ax.get_ylim()
    return [t.get_text() for t in ax.get_yticklabels() if low <= t.get_position()[1] <= high]


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5, 3e-7, -2.0, 5000.0])
def test_one_point_has_room_around_it_and_a_tick_at_its_step(value: float) -> None:
    ax = drawn([7], [value])
    assert ax.get_xlim() == (6, 8)
    low, high = ax.get_ylim()
    assert low < value < high
    assert high - low == (abs(value) or 2.0)


@pytest.mark.parametrize("value", [0.0, 0.004, 0.5, 0.998, 1.0])
def test_equal_shares_never_leave_0_to_100_percent(value: float) -> None:
    ax = drawn([1, 2, 3], [value] * 3, percent=True)
    low, high = ax.get_ylim()
    assert -0.02 <= low < value < high <= 1.02
    shown = ticks(ax)
    assert len(shown) == len(set(shown)) >= 2  # no two ticks are called the same
    assert not [text for text in shown if text.startswith("\N{MINUS SIGN}") or float(text[:-1]) > 100]


def test_shares_that_hardly_differ_have_a_decimal_and_others_none() -> None:
    assert ticks(drawn([1, 2], [0.5, 0.52], percent=True))[0].count(".") == 1
    assert "20%" in ticks(drawn([1, 2], [0.2, 0.8], percent=True))


def test_one_number_of_samples_has_room_on_its_doubling_axis() -> None:
    _, ax = new_plot("name", "", "")
    ax.set_xscale("log", base=2)
    ax.plot([4], [0.5])
    settle(ax)
    assert ax.get_xlim() == (2, 8)


def test_what_is_told_under_the_pointer_lies_where_it_is_drawn() -> None:
    plot, ax = new_plot("name", "", "", percent=True)
    ax.plot([1, 2, 4], [0.25, 0.5, 1 / 3], color="#112233", label="_SFT", picker=True)
    ax.plot([1, 2, 4], [0.3, 0.3, 0.3])  # an average, which nobody asks for
    told = json.loads(plot.hover())
    assert told["series"] == [
        {"name": "SFT", "colour": "#112233", "x": [1, 2, 4], "y": [0.25, 0.5, 0.33333]}
    ]
    assert (told["label"], told["percent"], told["stacked"], told["log"]) == ("step", True, False, False)
    left, top, width, height = told["box"]
    (x0, x1), (y0, y1) = told["x"], told["y"]
    x = left + width * (2 - x0) / (x1 - x0)
    y = top + height * (1 - (0.5 - y0) / (y1 - y0))
    drawn = ax.transData.transform((2, 0.5)) / ax.get_figure(root=True).dpi * 72
    assert (x, 2.4 * 72 - y) == (pytest.approx(drawn[0], abs=0.02), pytest.approx(drawn[1], abs=0.02))


def test_a_figure_without_curves_tells_nothing() -> None:
    _, ax = new_plot("name", "", "")
    ax.plot([1], [2])
    assert hover_data(ax) == ""


def test_curves_over_samples_are_told_by_model_on_their_axis() -> None:
    (plot,) = curve_plots("a", {"sft": {"vote": {1: 0.5, 4: 0.75}}, "reft": {"vote": {1: 0.5, 4: 1.0}}})
    told = json.loads(plot.hover())
    assert [(one["name"], one["y"]) for one in told["series"]] == [
        ("SFT", [0.5, 0.75]),
        ("ReFT", [0.5, 1]),
    ]
    assert [one["colour"] for one in told["series"]] == ["var(--sft)", "var(--reft)"]
    assert (told["log"], told["label"]) == (True, "samples k")


@pytest.mark.parametrize(
    "names", [["SFT"], ["right answer", "no result"], ["a long name of a layer"] * 6]
)
def test_names_above_a_figure_stay_within_it(names: list[str]) -> None:
    @styled
    def draw() -> Plot:
        plot, ax = new_plot("name", "", "")
        for name in names:
            ax.plot(np.arange(3), label=name)
        legend_above(ax)
        plot.hover()
        return plot

    figure = draw().figure
    FigureCanvasAgg(figure).draw()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
