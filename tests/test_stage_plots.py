from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from reftune.methods import METHODS, methods_by_stage
from reftune.reporting.plots import Plot
from reftune.reporting.run.stage_plots import method_plots, reranker_plots, status_shares

SFT_RESULT = {"best_validation_accuracy": 0.715, "warmup_validation_accuracy": 0.655}


def names(plots: list[Plot]) -> list[str]:
    return [plot.name for plot in plots]


def legend(plot: Plot) -> list[str]:
    found = plot.figure.axes[0].get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def strong_line(plot: Plot, index: int = -1) -> tuple[list[float], list[float]]:
    line = plot.figure.axes[0].lines[index]
    return list(line.get_xdata()), list(line.get_ydata())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.stage])
def test_nothing_is_drawn_of_what_is_not_there(name: str) -> None:
    assert method_plots(METHODS[name], [], {}, {}) == []
    (plot,) = method_plots(METHODS[name], [{"step": 1, "kl": 0.1}], {}, {})
    assert plot.name == f"{METHODS[name].stage}_kl"
    assert plot.figure.axes[0].lines[-1].get_color() == METHODS[name].color[0]
    assert plot.figure.axes[0].get_legend() is None  # its title says all


def test_nothing_is_drawn_of_rerankers_that_are_not_there() -> None:
    assert reranker_plots({}) == reranker_plots({"sft": []}) == []


def test_validation_accuracy_is_shown_beside_what_sft_reached() -> None:
    rows = [{"step": 10, "validation_accuracy": 0.7}, {"step": 20, "validation_accuracy": 0.8}]
    result = {"best_step": 20, "best_validation_accuracy": 0.8}
    (plot,) = method_plots(METHODS["reft"], rows, result, SFT_RESULT)
    assert legend(plot) == ["SFT, best epoch 71.5%", "warm-up 65.5%"]
    assert strong_line(plot) == ([20], [0.8])  # the dot
    assert plot.caption.endswith("Dot: the best step, which is the ReFT model.")


def test_sft_is_drawn_by_epoch_with_dots_for_both_of_its_models() -> None:
    rows = [{"step": 8, "epoch": 1, "validation_accuracy": 0.2}, {"step": 16, "epoch": 2, "loss": 1.0}]
    result = SFT_RESULT | {"warmup_epoch": 1, "best_epoch": 2}
    validation, loss = method_plots(METHODS["sft"], rows, result, {})
    assert names([validation, loss]) == ["sft_validation", "sft_loss"]
    assert strong_line(loss) == ([16.0], [1.0])
    curve, warmup, best = (strong_line(validation, i) for i in range(3))
    assert (curve, warmup, best) == (([1.0], [0.2]), ([1], [0.655]), ([2], [0.715]))
    assert validation.caption.endswith("which is the SFT model; grey: the warm-up.")


def test_offline_self_training_is_drawn_by_epoch_and_beside_sft() -> None:
    rows = [{"step": 8, "epoch": 1.0, "loss": 2.0, "validation_accuracy": 0.2}]
    result = {"best_epoch": 3, "best_validation_accuracy": 0.7}
    validation, loss = method_plots(METHODS["offline_st"], rows, result, SFT_RESULT)
    assert names([validation, loss]) == ["offline_st_validation", "offline_st_loss"]
    assert strong_line(validation, 0) == ([1.0], [0.2])
    assert strong_line(validation) == ([3], [0.7])
    assert legend(validation) == ["SFT, best epoch 71.5%", "warm-up 65.5%"]
    assert "which is the Offline-ST model." in validation.caption


def test_online_self_training_is_drawn_from_the_metrics_that_it_has() -> None:
    row = {"step": 1, "accuracy": 0.5, "response_length": 4.0, "statuses": {"ok": 3, "timeout": 1}}
    assert names(method_plots(METHODS["online_st"], [row], {}, {})) == [
        "online_st_accuracy",
        "online_st_response_length",  # a step without right samples and annotations has no loss
        "online_st_statuses",
    ]
    rows = [row | {"loss": 0.3, "validation_accuracy": 0.6}]
    accuracy, validation, loss, *_ = method_plots(METHODS["online_st"], rows, {}, SFT_RESULT)
    assert strong_line(accuracy) == ([1.0], [0.5])
    assert strong_line(validation, 0) == ([1.0], [0.6])
    assert strong_line(loss) == ([1.0], [0.3])


def test_a_reward_stands_beside_the_accuracy() -> None:
    rows = [{"step": 1, "accuracy": 0.5, "reward": 0.55}]
    (plot,) = method_plots(METHODS["reft"], rows, {}, {})
    assert (plot.name, plot.title) == ("ppo_reward", "Reward and accuracy")
    assert strong_line(plot, 1) == ([1.0], [0.55])
    assert strong_line(plot, 3) == ([1.0], [0.5])
    assert plot.figure.axes[0].lines[3].get_color() == METHODS["reft"].color[0]


def test_rerankers_share_their_figures_with_a_line_per_model() -> None:
    def rows(auc: float) -> list[dict[str, Any]]:
        return [{"step": 1, "epoch": 0.5, "loss": 0.7}, {"step": 2, "epoch": 1.0, "validation_auc": auc}]

    loss, auc = reranker_plots({"sft": rows(0.8), "reft": rows(0.9)})
    assert names([loss, auc]) == ["reranker_loss", "reranker_validation_auc"]
    assert [strong_line(auc, i) for i in (0, 1)] == [([1.0], [0.8]), ([1.0], [0.9])]
    assert legend(auc) == ["SFT", "ReFT"]


def test_the_files_of_a_whole_run_have_names_of_their_own(tmp_path: Any) -> None:
    rows = [{"step": 1, "epoch": 1, "accuracy": 0.5, "validation_accuracy": 0.5, "loss": 1.0}]
    rows[0] |= {"response_length": 3, "kl": 0.1, "statuses": {"ok": 1}, "validation_auc": 0.5}
    stages = methods_by_stage().values()
    plots = [plot for method in stages for plot in method_plots(method, rows, {}, {})]
    plots += reranker_plots({"sft": rows})
    assert len({plot.save_png(tmp_path) for plot in plots}) == len(plots) == 4 * 6 + 2


def test_status_shares_by_hand() -> None:
    rows = [
        {"statuses": {"ok": 6, "timeout": 2}, "accuracy": 0.5},
        {"statuses": {"ok": 7, "ok_text": 1}, "accuracy": 1.0},
    ]
    labels, shares = status_shares(rows)
    assert labels == ["right answer", "wrong answer", "timeout"]
    np.testing.assert_allclose(shares, [[0.5, 1.0], [0.25, 0.0], [0.25, 0.0]])
    # A reward of one's own may find more right than could be judged: then none of these is wrong.
    _, shares = status_shares([{"statuses": {"ok": 1, "timeout": 1}, "accuracy": 1.0}])
    np.testing.assert_allclose(shares[:, 0], [2 / 3, 0, 1 / 3])


def test_rare_outcomes_are_gathered() -> None:
    failures = {"syntax_error": 6, "exception": 5, "timeout": 4, "memory": 3, "blocked": 2, "crash": 1}
    labels, shares = status_shares([{"statuses": {"ok": 0} | failures, "accuracy": 0.0}])
    assert labels[2:] == ["syntax error", "exception", "timeout", "memory", "other"]
    np.testing.assert_allclose(shares[:, 0] * 21, [0, 0, 6, 5, 4, 3, 3])


def test_the_model_that_the_policy_moves_away_from_is_named() -> None:
    for start, name in (("warmup", "warm-up"), ("base", "base")):
        (plot,) = method_plots(METHODS["reft"], [{"step": 1, "kl": 0.1}], {}, {}, start)
        assert plot.caption == f"How far the policy has moved from the {name} model."


def test_the_time_of_a_step_is_drawn_by_its_parts_where_all_are_known() -> None:
    names = ("sampling", "judging", "reading", "update")
    row = {f"seconds_{name}": seconds for name, seconds in zip(names, (4.0, 1.0, 0.5, 2.5), strict=True)}
    rows: list[dict[str, Any]] = [{"step": 1} | row, {"step": 2}, {"step": 3} | row]
    rows.append({"step": 4} | row | {"seconds_update": None})
    (plot,) = method_plots(METHODS["reft"], rows, {}, {})
    assert (plot.name, plot.minor, legend(plot)) == ("ppo_times", True, list(names))
    told = json.loads(plot.hover())
    assert told["stacked"]
    assert [(one["name"], one["x"], one["y"]) for one in told["series"]] == [
        ("sampling", [1, 3], [4, 4]), ("judging", [1, 3], [5, 5]), ("reading", [1, 3], [5.5, 5.5]),
        ("update", [1, 3], [8, 8]),
    ]  # fmt: skip
    (one,) = method_plots(METHODS["reft"], rows[:1], {}, {})
    assert one.figure.axes[0].get_xlim() == (0.5, 1.5)
    assert method_plots(METHODS["reft"], rows[1:2], {}, {}) == []


def test_what_a_critic_explains_is_drawn_of_all_tokens_and_of_both_ends() -> None:
    key = "explained_variance"
    rows = [
        {"step": k, key: 0.1 * k, f"{key}/quarter_1": 0.0, f"{key}/quarter_4": 0.2 * k} for k in (1, 2)
    ]
    (plot,) = method_plots(METHODS["reft"], rows, {}, {})
    assert plot.name == "ppo_explained_variance"
    assert legend(plot) == ["first quarter", "last quarter", "all tokens"]
    assert strong_line(plot, 0) == ([1.0, 2.0], [0.0, 0.0])
    assert strong_line(plot, 1) == ([1.0, 2.0], [0.2, 0.4])
    (alone,) = method_plots(METHODS["reft"], [{"step": 1, key: 0.5}], {}, {})  # of older runs
    assert legend(alone) == []
