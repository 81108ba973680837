from __future__ import annotations

from typing import Any

import numpy as np

from reftune.reporting.plots import Plot, save_png
from reftune.reporting.run.stage_plots import (
    offline_st_plots,
    online_st_plots,
    ppo_plots,
    reranker_plots,
    sft_plots,
    status_shares,
)

SFT_RESULT = {"best_validation_accuracy": 0.715, "warmup_validation_accuracy": 0.655}


def names(plots: list[Plot]) -> list[str]:
    return [plot.name for plot in plots]


def words(plot: Plot) -> list[str]:
    return [text.get_text() for text in plot.figure.axes[0].texts]


def strong_line(plot: Plot, index: int = -1) -> tuple[list[float], list[float]]:
    line = plot.figure.axes[0].lines[index]
    return list(line.get_xdata()), list(line.get_ydata())


def test_nothing_is_drawn_of_what_is_not_there() -> None:
    assert sft_plots([], {}) == offline_st_plots([], {}, {}) == online_st_plots([], {}, {}) == []
    assert ppo_plots([], {}, {}) == reranker_plots({}) == reranker_plots({"sft": []}) == []
    assert names(ppo_plots([{"step": 1, "kl": 0.1}], {}, {})) == ["ppo_kl"]


def test_validation_accuracy_is_shown_beside_what_sft_reached() -> None:
    rows = [{"step": 10, "validation_accuracy": 0.7}, {"step": 20, "validation_accuracy": 0.8}]
    (plot,) = ppo_plots(rows, SFT_RESULT, {"best_step": 20, "best_validation_accuracy": 0.8})
    assert words(plot) == ["SFT, best epoch 71.5%", "warm-up 65.5%"]
    assert strong_line(plot) == ([20], [0.8])  # the dot


def test_sft_validation_is_drawn_by_epoch() -> None:
    rows = [{"step": 8, "epoch": 1, "validation_accuracy": 0.2}, {"step": 16, "epoch": 2, "loss": 1.0}]
    loss, validation = sft_plots(rows, {})
    assert names([loss, validation]) == ["sft_loss", "sft_validation"]
    assert strong_line(loss) == ([16.0], [1.0])
    assert strong_line(validation) == ([1.0], [0.2])


def test_off_line_self_training_is_drawn_as_sft_and_beside_it() -> None:
    rows = [{"step": 8, "epoch": 1.0, "loss": 2.0, "validation_accuracy": 0.2}]
    loss, validation = offline_st_plots(
        rows, SFT_RESULT, {"best_epoch": 3, "best_validation_accuracy": 0.7}
    )
    assert names([loss, validation]) == ["offline_st_loss", "offline_st_validation"]
    assert strong_line(validation, 0) == ([1.0], [0.2])  # by epoch
    assert strong_line(validation) == ([3], [0.7])
    assert words(validation) == ["SFT, best epoch 71.5%", "warm-up 65.5%"]
    assert "which is the Offline-ST model" in validation.caption


def test_on_line_self_training_is_drawn_from_the_metrics_that_it_has() -> None:
    row = {"step": 1, "accuracy": 0.5, "response_length": 4.0, "statuses": {"ok": 3, "timeout": 1}}
    assert names(online_st_plots([row], {}, {})) == [
        "online_st_accuracy",
        "online_st_response_length",  # a step without right samples and annotations has no loss
        "online_st_statuses",
    ]
    accuracy, validation, loss, *_ = online_st_plots(
        [row | {"loss": 0.3, "validation_accuracy": 0.6}], SFT_RESULT, {}
    )
    assert strong_line(accuracy) == ([1.0], [0.5])
    assert strong_line(validation, 0) == ([1.0], [0.6])
    assert strong_line(loss) == ([1.0], [0.3])


def test_rerankers_share_their_figures_with_a_line_per_model() -> None:
    def rows(auc: float) -> list[dict[str, Any]]:
        return [{"step": 1, "epoch": 0.5, "loss": 0.7}, {"step": 2, "epoch": 1.0, "validation_auc": auc}]

    loss, auc = reranker_plots({"sft": rows(0.8), "reft": rows(0.9)})
    assert names([loss, auc]) == ["reranker_loss", "reranker_validation_auc"]
    assert [strong_line(auc, i) for i in (0, 1)] == [([1.0], [0.8]), ([1.0], [0.9])]
    legend = auc.figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["SFT", "ReFT"]


def test_the_files_of_a_whole_run_have_names_of_their_own(tmp_path: Any) -> None:
    rows = [{"step": 1, "epoch": 1, "accuracy": 0.5, "validation_accuracy": 0.5, "loss": 1.0}]
    rows[0] |= {"response_length": 3, "kl": 0.1, "statuses": {"ok": 1}, "validation_auc": 0.5}
    plots = sft_plots(rows, {}) + offline_st_plots(rows, {}, {}) + online_st_plots(rows, {}, {})
    plots += ppo_plots(rows, {}, {}) + reranker_plots({"sft": rows})
    assert len({save_png(plot, tmp_path) for plot in plots}) == len(plots) == 16


def test_status_shares_by_hand() -> None:
    rows = [
        {"statuses": {"ok": 6, "timeout": 2}, "accuracy": 0.5},
        {"statuses": {"ok": 7, "ok_text": 1}, "accuracy": 1.0},
    ]
    labels, shares = status_shares(rows)
    assert labels == ["right answer", "wrong answer", "timeout"]
    np.testing.assert_allclose(shares, [[0.5, 1.0], [0.25, 0.0], [0.25, 0.0]])


def test_rare_outcomes_are_gathered() -> None:
    failures = {"syntax_error": 6, "exception": 5, "timeout": 4, "memory": 3, "blocked": 2, "crash": 1}
    labels, shares = status_shares([{"statuses": {"ok": 0} | failures, "accuracy": 0.0}])
    assert labels[2:] == ["syntax error", "exception", "timeout", "memory", "other"]
    np.testing.assert_allclose(shares[:, 0] * 21, [0, 0, 6, 5, 4, 3, 3])
