from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from reftune.plots import MAX_POINTS, PALETTE, Plot, outcome_shares, ppo_plots, save_png, sft_plots, svg


def names(plots: list[Plot]) -> list[str]:
    return [plot.name for plot in plots]


def strong_line(plot: Plot, index: int = -1) -> tuple[list[float], list[float]]:
    line = plot.figure.axes[0].lines[index]
    return list(line.get_xdata()), list(line.get_ydata())


def test_nothing_is_drawn_of_what_is_not_there() -> None:
    assert sft_plots([], {}) == []
    assert ppo_plots([], {}, {}) == []
    assert names(ppo_plots([{"step": 1, "kl": 0.1}], {}, {})) == ["ppo_kl"]


def test_values_that_are_missing_or_not_finite_are_left_out() -> None:
    rows = [{"step": 1, "kl": 0.5}, {"step": 2, "kl": math.nan}, {"step": 3}, {"step": 4, "kl": 0.7}]
    rows += [{"step": 5, "kl": None}, {"step": 6, "kl": math.inf}]
    (plot,) = ppo_plots(rows, {}, {})
    assert strong_line(plot) == ([1.0, 4.0], [0.5, 0.7])


def test_validation_accuracy_is_shown_beside_what_sft_reached() -> None:
    rows = [{"step": 10, "validation_accuracy": 0.7}, {"step": 20, "validation_accuracy": 0.8}]
    sft = {"best_validation_accuracy": 0.715, "warmup_validation_accuracy": 0.655}
    (plot,) = ppo_plots(rows, sft, {"best_step": 20, "best_validation_accuracy": 0.8})
    assert [text.get_text() for text in plot.figure.axes[0].texts] == [
        "SFT, best epoch 71.5%",
        "warm-up 65.5%",
    ]
    assert strong_line(plot) == ([20], [0.8])  # the dot


def test_sft_validation_is_drawn_by_epoch() -> None:
    rows = [{"step": 8, "epoch": 1, "validation_accuracy": 0.2}, {"step": 16, "epoch": 2, "loss": 1.0}]
    loss, validation = sft_plots(rows, {})
    assert names([loss, validation]) == ["sft_loss", "sft_validation"]
    assert strong_line(loss) == ([16.0], [1.0])
    assert strong_line(validation) == ([1.0], [0.2])


def test_a_constant_stays_itself_under_averaging_however_long() -> None:
    rows = [{"step": step, "loss": 2.5} for step in range(5 * MAX_POINTS + 3)]
    (plot,) = sft_plots(rows, {})
    x, y = strong_line(plot)
    assert y == pytest.approx([2.5] * len(x))
    assert MAX_POINTS / 2 < len(x) <= MAX_POINTS
    assert x[0] == pytest.approx(2.5)  # the middle of steps 0..5


def test_outcome_shares_by_hand() -> None:
    rows = [
        {"outcomes": {"ok": 6, "timeout": 2}, "accuracy": 0.5},
        {"outcomes": {"ok": 7, "ok_text": 1}, "accuracy": 1.0},
    ]
    labels, shares = outcome_shares(rows)
    assert labels == ["right answer", "wrong answer", "timeout"]
    np.testing.assert_allclose(shares, [[0.5, 1.0], [0.25, 0.0], [0.25, 0.0]])


def test_rare_outcomes_are_gathered() -> None:
    failures = {"syntax_error": 6, "exception": 5, "timeout": 4, "memory": 3, "blocked": 2, "crash": 1}
    labels, shares = outcome_shares([{"outcomes": {"ok": 0} | failures, "accuracy": 0.0}])
    assert labels[2:] == ["syntax error", "exception", "timeout", "memory", "other"]
    np.testing.assert_allclose(shares[:, 0] * 21, [0, 0, 6, 5, 4, 3, 3])


def test_svg_takes_its_colours_and_fonts_from_the_page() -> None:
    rows = [
        {"step": s, "loss": 1 / s, "kl": s / 9, "outcomes": {"ok": 1, "<i>$x$": 1}} for s in (1, 2, 3)
    ]
    drawings = [svg(plot) for plot in sft_plots(rows, {}) + ppo_plots(rows, {}, {})]
    assert len(drawings) == 3
    for drawing in drawings:
        assert drawing.startswith("<svg")
        assert not re.search(r"#[0-9a-f]{6}\b(?<!000000)", drawing)  # no colour of its own
        assert not [light for light, _ in PALETTE.values() if light in drawing]
    assert "var(--sft)" in drawings[0]
    assert "var(--reft)" in drawings[1]
    assert "&lt;i&gt;$x$" in drawings[2]
    assert "<i>" not in drawings[2]


def test_ids_of_two_svgs_never_meet() -> None:
    rows = [{"step": step, "kl": 0.1, "entropy": 0.1} for step in (1, 2)]
    first, second = (set(re.findall(r'id="([^"]+)"', svg(plot))) for plot in ppo_plots(rows, {}, {}))
    assert first
    assert not first & second


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    (one,), (two,) = sft_plots(rows, {}), sft_plots(rows, {})
    assert svg(one) == svg(two)
    picture = save_png(one, tmp_path).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == save_png(two, tmp_path).read_bytes()
