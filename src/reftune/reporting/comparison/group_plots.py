"""Curves of several groups of runs, one over the other."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from reftune.files import read_jsonl
from reftune.methods import METHODS, label_of
from reftune.problem import Row
from reftune.reporting.comparison.finished_runs import Curves, RunGroup, run_names
from reftune.reporting.pages import colour_of, palette
from reftune.reporting.plots import CURVES, Plot, new_plot, styled
from reftune.reporting.run.stage_plots import noisy, series
from reftune.runs.records import Metrics

# Names of the palette, so that a dark page has its own.
COLOURS = ("reft", "sft", "online_st", "offline_st", "fail-3", "fail-1", "fail-4", "base")
LEARNING = {  # of the stage of a group's last method: key -> title, what it is
    "validation_accuracy": ("Validation accuracy", "On held-out questions."),
    "reward": ("Reward", "Mean reward of the sampled chains."),
    "accuracy": ("Accuracy of the samples", "Share of the sampled training chains that are right."),
    "kl": ("KL divergence", "How far the policy has moved from where it started."),
    "entropy": ("Entropy", "How undecided the policy is per token."),
    "response_length": ("Response length", "Mean number of tokens in a sampled chain."),
}


def named(group: RunGroup) -> str:
    """Name a group by what tells it from the others, and by its runs."""
    runs = run_names(group)
    return group.label if group.label == runs else f"{group.label} ({runs})"


@styled
def sample_plots(groups: Sequence[RunGroup], curves: Mapping[str, Mapping[str, Curves]]) -> list[Plot]:
    """Draw accuracy over the number of samples, a figure per aggregation and a colour per group.

    The group's last method is drawn through, its baseline dashed.
    """
    plots = []
    for aggregation, (title, caption) in CURVES.items():
        plot, ax = new_plot(
            f"groups_{aggregation.replace(' ', '_')}", title, f"{caption} Dashed: the baseline.",
            x="samples k", percent=True, wide=True,
        )  # fmt: skip
        ks: set[int] = set()
        for number, group in enumerate(groups):
            mine = curves[group.label]
            last = [model for model in METHODS if model in mine][-1:]
            for model in dict.fromkeys([*last, group.baseline]):
                if points := mine.get(model, {}).get(aggregation):
                    label = f"{label_of(model)}, {named(group)}" if model in last else ""
                    style = "-" if model in last else (0, (4, 3))
                    xs, ys = list(points), list(points.values())
                    ax.plot(xs, ys, color=_colour(number), label=_wrapped(label), linestyle=style,
                            marker="o", markersize=3.5)  # fmt: skip
                    ks |= points.keys()
        if len(ks) > 1:
            ax.set_xscale("log", base=2)
            ax.set_xticks(sorted(ks), list(map(str, sorted(ks))))
            _legend_beside(ax)
            plots.append(plot)
    return plots


@styled
def learning_plots(groups: Sequence[RunGroup]) -> list[Plot]:
    """Draw how the last methods of all groups learned: a figure per metric, a line per run."""
    rows = [[_metrics(group, run) for run in range(len(group.runs))] for group in groups]
    plots = []
    for key, (title, caption) in LEARNING.items():
        plot, ax = new_plot(f"learning_{key}", title, caption, wide=True)
        drawn = 0
        for number, (group, runs) in enumerate(zip(groups, rows, strict=True)):
            label = named(group)
            for xs, ys in (series(mine, key) for mine in runs):
                if len(xs):
                    noisy(ax, xs, ys, _colour(number), _wrapped(label))
                    drawn, label = drawn + 1, ""
        if drawn > 1:
            _legend_beside(ax)
            plots.append(plot)
    return plots


def _metrics(group: RunGroup, number: int) -> list[Row]:
    """Read the log of the stage that made the last model of a run; nothing where there is none."""
    run = group.runs[number]
    made = [METHODS[model].stage for model in METHODS if model in run.answers and METHODS[model].stage]
    path = run.directory / (made[-1] if made else "") / "metrics.jsonl"
    return read_jsonl(path, Metrics) if path.exists() else []


def _colour(number: int) -> str:
    name = COLOURS[number % len(COLOURS)]
    return colour_of(name) if name in METHODS else palette()[name][0]


def _wrapped(label: str) -> str:
    return textwrap.fill(label, 34)


def _legend_beside(ax: Axes) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, handlelength=1.2)
