from __future__ import annotations

import pytest
from matplotlib.patches import Rectangle

from reftune.reporting.comparison.compare import Cell
from reftune.reporting.comparison.reported import Number
from reftune.reporting.plots import Plot, bar_plot, curve_plots


def cell(group: str, method: str, accuracy: float, reported: float | None = None) -> Cell:
    bounds = (accuracy - 0.1, accuracy + 0.1) if accuracy else (0.0, 0.0)
    row = {"model": "m", "data": "d", "chains": "program", "method": method}
    number = None if reported is None else Number(**row, accuracy=reported)
    return Cell(
        group, "program", method, "greedy", 1, 9, 1, accuracy, bounds, accuracy, accuracy, number
    )  # fmt: skip


def bars_of(plot: Plot) -> list[tuple[float, float]]:
    patches = [p for p in plot.figure.axes[0].patches if isinstance(p, Rectangle)]
    return [(p.get_x() + p.get_width() / 2, p.get_height()) for p in patches]


def legend(plot: Plot) -> list[str]:
    found = plot.figure.axes[0].get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def ticks(plot: Plot) -> list[str]:
    plot.figure.draw_without_rendering()
    return [label.get_text() for label in plot.figure.axes[0].get_xticklabels()]


def test_a_curve_per_model_and_a_figure_per_aggregation_with_the_bound_last() -> None:
    sft = {"vote": {1: 0.4, 2: 0.5, 3: 0.6}}
    reft = {"pass": {1: 0.7, 2: 0.9}, "weighted vote": {1: 0.7, 2: 0.75}, "rerank": {1: 0.7}}
    reft |= {"vote": {1: 0.7, 2: 0.8, 3: 0.9}}
    vote, weighted, bound = curve_plots("accuracy", {"sft": sft, "reft": reft})  # one point is no curve
    names = ["accuracy_vote", "accuracy_weighted_vote", "accuracy_pass"]
    assert [vote.name, weighted.name, bound.name] == names
    assert [legend(plot) for plot in (vote, bound)] == [["SFT", "ReFT"], ["ReFT"]]
    line = vote.figure.axes[0].lines[1]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], [0.7, 0.8, 0.9])


def test_a_tick_too_near_to_its_neighbour_has_no_name() -> None:
    ks = (1, 2, 4, 8, 16, 32, 64, 100)
    (plot,) = curve_plots("accuracy", {"sft": {"vote": dict.fromkeys(ks, 0.5)}})
    assert ticks(plot) == ["1", "2", "4", "8", "16", "32", "100"]


def test_nothing_is_drawn_without_samples() -> None:
    assert curve_plots("accuracy", {}) == curve_plots("accuracy", {"sft": {"pass": {}}}) == []


def test_the_bars_of_one_group_are_named_by_model() -> None:
    bars = [cell("", "sft", 0.6), cell("", "reft", 0.8)]
    plot = bar_plot("bars", "Greedy", "", bars)
    assert bars_of(plot) == [(pytest.approx(0), 0.6), (pytest.approx(1), 0.8)]
    assert ticks(plot) == ["SFT", "ReFT"]
    assert legend(plot) == []
    assert [text.get_text() for text in plot.figure.axes[0].texts] == ["60.0", "80.0"]


def test_the_bars_of_several_groups_stand_around_the_groups_name() -> None:
    bars = [
        cell(group, model, 0.5, 55 if model == "reft" else None)
        for group in ("P-CoT", "N-CoT")
        for model in ("sft", "reft")
    ]
    plot = bar_plot("bars", "Greedy", "", bars)
    assert [x for x, _ in bars_of(plot)] == pytest.approx([-0.215, 0.215, 0.785, 1.215])
    assert ticks(plot) == ["P-CoT", "N-CoT"]
    assert legend(plot) == ["SFT", "ReFT", "as reported"]
    assert plot.wide
    marks = [line.get_ydata() for line in plot.figure.axes[0].lines if line.get_marker() == "D"]
    assert [list(heights) for heights in marks] == [[0.55], [0.55], []]  # the last is the legend's


def test_accuracies_of_nothing_right_can_be_drawn() -> None:
    plot = bar_plot("bars", "Greedy", "", [cell("", "sft", 0.0)])
    assert plot.figure.axes[0].get_ylim() == (0, 1)
