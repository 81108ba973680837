from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from reftune.methods import METHODS
from reftune.reporting.pages import palette
from reftune.reporting.plots import new_plot, styled
from reftune.reporting.run.stage_plots import MAX_POINTS, line, method_plots, noisy, series


def test_values_that_are_missing_or_not_finite_are_left_out() -> None:
    rows = [{"step": 1, "kl": 0.5}, {"step": 2, "kl": math.nan}, {"step": 3}, {"step": 4, "kl": 0.7}]
    rows += [{"step": 5, "kl": None}, {"step": 6, "kl": math.inf}]
    rows += [{"step": 7, "kl": "much"}, {"step": 8, "kl": [1]}, {"step": "last", "kl": 0.9}]  # damaged
    x, y = series(rows, "kl")
    assert (list(x), list(y)) == ([1.0, 4.0], [0.5, 0.7])


def test_a_constant_stays_itself_under_averaging_however_long() -> None:
    _, ax = new_plot("loss", "", "")
    noisy(ax, *series([{"step": s, "loss": 2.5} for s in range(5 * MAX_POINTS + 3)], "loss"), "#667085")
    x, y = (list(values) for values in (ax.lines[-1].get_xdata(), ax.lines[-1].get_ydata()))
    assert y == pytest.approx([2.5] * len(x))
    assert MAX_POINTS / 2 < len(x) <= MAX_POINTS
    assert x[0] == pytest.approx(2.5)  # the middle of steps 0..5


def test_svg_takes_its_colours_and_fonts_from_the_page() -> None:
    rows = [{"step": s, "kl": s / 9, "statuses": {"ok": 1, "<i>$x$": 1}} for s in (1, 2, 3)]
    plots = method_plots(METHODS["sft"], [{"step": 1, "loss": 1.0}], {}, {})
    plots += method_plots(METHODS["reft"], rows, {}, {})
    drawings = [plot.svg() for plot in plots]
    assert len(drawings) == 3
    for drawing in drawings:
        assert drawing.startswith("<svg")
        assert not re.search(r"#[0-9a-f]{6}\b(?<!000000)", drawing)  # no colour of its own
        assert not [light for light, _ in palette().values() if light in drawing]
    assert "var(--sft)" in drawings[0]
    assert "var(--reft)" in drawings[1]
    assert "&lt;i&gt;$x$" in drawings[2]
    assert "<i>" not in drawings[2]


def test_no_two_names_share_a_colour() -> None:
    for theme in zip(
        *palette().values(), strict=True
    ):  # or the SVG of one would take the other's variable
        assert len(set(theme)) == len(theme)


def test_ids_of_two_svgs_never_meet() -> None:
    rows = [{"step": step, "kl": 0.1, "entropy": 0.1} for step in (1, 2)]
    plots = method_plots(METHODS["reft"], rows, {}, {})
    first, second = (set(re.findall(r'id="([^"]+)"', plot.svg())) for plot in plots)
    assert first
    assert not first & second


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    @styled
    def draw() -> tuple[str, bytes]:
        plot, ax = new_plot("loss", "", "")
        line(ax, *series([{"step": step, "loss": 1 / step} for step in (1, 2, 3)], "loss"), "#667085")
        return plot.svg(), plot.save_png(tmp_path).read_bytes()

    one, two = draw(), draw()
    assert one == two
    assert one[1].startswith(b"\x89PNG")


def test_a_figure_has_its_layout_before_either_file_is_written(tmp_path: Path) -> None:
    plots = [method_plots(METHODS["sft"], [{"step": 1, "loss": 1.0}], {}, {})[0] for _ in range(2)]
    bounds = [plot.figure.axes[0].get_position().bounds for plot in plots]
    plots[0].svg()
    plots[1].save_png(tmp_path)
    placed = [plot.figure.axes[0].get_position().bounds for plot in plots]
    assert placed[0] == placed[1] != bounds[0]
    figure, box = plots[0].figure, plots[0].figure.axes[0].get_tightbbox()
    assert box is not None  # with the numbers and names of both axes
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
