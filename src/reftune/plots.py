"""The learning curves of a run: small figures that become themed inline SVG, or PNG files."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

Row = Mapping[str, Any]
Array = np.ndarray[Any, np.dtype[np.float64]]

# Every colour of the report, as (light page, dark page). Figures are drawn in the light ones; in SVG
# each becomes the CSS variable of its name, so that one drawing follows the reader's theme.
PALETTE = {
    "ink": ("#1d2733", "#e7eaef"),
    "muted": ("#667085", "#9aa4b2"),
    "grid": ("#e6e9ee", "#2a323d"),
    "warmup": ("#7f8a9a", "#a3adbb"),
    "sft": ("#c2691b", "#f0a45d"),
    "reft": ("#2458c5", "#7fabff"),
    "right": ("#5f8de0", "#5b83cc"),
    "wrong": ("#ced7e6", "#414c5e"),
    "fail-1": ("#efb643", "#d9a43c"),
    "fail-2": ("#df7a4f", "#d37650"),
    "fail-3": ("#b9485f", "#b9536a"),
    "fail-4": ("#875ba6", "#8f68ad"),
    "fail-rest": ("#4b5668", "#76829a"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
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
    "figure.constrained_layout.use": True,
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


@dataclass(frozen=True)
class Plot:
    """One figure with the words around it; `name` is its file name."""

    name: str
    title: str
    caption: str
    figure: Figure
    wide: bool = False


@matplotlib.rc_context(STYLE)
def sft_plots(rows: Sequence[Row], result: Row) -> list[Plot]:
    """Draw the supervised stage from its metrics and its result (empty while unfinished)."""
    plots = []
    x, y = _series(rows, "loss")
    if len(x):
        plot, ax = _plot(
            "sft_loss", "SFT: training loss", "Cross-entropy of the annotated chains, per step."
        )
        _noisy(ax, x, y, LIGHT["sft"])
        plots.append(plot)
    x, y = _series(rows, "validation_accuracy", x="epoch")
    if len(x):
        caption = (
            "On held-out questions. Dots: where ReFT starts, and the best epoch (the SFT baseline)."
        )
        plot, ax = _plot(
            "sft_validation", "SFT: validation accuracy", caption, xlabel="epoch", percent=True
        )
        _line(ax, x, y, LIGHT["sft"])
        _dot(ax, result, "warmup_epoch", "warmup_validation_accuracy", LIGHT["warmup"])
        _dot(ax, result, "best_epoch", "best_validation_accuracy", LIGHT["sft"])
        plots.append(plot)
    return plots


@matplotlib.rc_context(STYLE)
def ppo_plots(rows: Sequence[Row], sft_result: Row, result: Row) -> list[Plot]:
    """Draw the reinforced stage from its metrics and both stages' results (empty while unfinished)."""
    plots = [_reward(rows), _ppo_validation(rows, sft_result, result)]
    plots += [_single(rows, *texts) for texts in PPO_CURVES]
    plots.append(_outcomes(rows))
    return [plot for plot in plots if plot is not None]


PPO_CURVES = (
    ("kl", "KL divergence", "How far the policy has moved from the warm-up model."),
    ("entropy", "Entropy", "How undecided the policy is per token. A fall to 0 ends exploration."),
    ("response_length", "Response length", "Mean number of tokens in a sampled chain."),
    (
        "explained_variance",
        "Explained variance",
        "What the critic foresees of the returns: 1 all, 0 nothing.",
    ),
    (
        "logprob_gap",
        "Sampler and trainer",
        "Gap between their log-probabilities. It should not exceed rounding.",
    ),
    ("clip_fraction", "Clip fraction", "Share of the tokens whose update the PPO clip cut off."),
)


def svg(plot: Plot) -> str:
    """Return the plot as an inline SVG element whose colours are the page's CSS variables."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(
        STYLE | {"svg.hashsalt": plot.name}
    ):  # ids must differ between the figures of a page
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = re.sub(r' id="[^"]*_[^"]*"', "", text[text.index("<svg") :])  # group names, the same in each
    for name, light in LIGHT.items():
        text = text.replace(light, f"var(--{name})")
    return text


def save_png(plot: Plot, directory: Path) -> Path:
    """Write the plot as `directory`/NAME.png, on white, and return the path."""
    path = directory / f"{plot.name}.png"
    with matplotlib.rc_context(STYLE):
        plot.figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": None})
    return path


def _reward(rows: Sequence[Row]) -> Plot | None:
    curves = [(key, *_series(rows, key)) for key in ("reward", "accuracy")]
    if not any(len(x) for _, x, _ in curves):
        return None
    caption = "Of the sampled training chains: mean score, and share with the right answer."
    plot, ax = _plot("ppo_reward", "Reward and accuracy", caption)
    for (key, x, y), colour in zip(curves, (LIGHT["warmup"], LIGHT["reft"]), strict=True):
        _noisy(ax, x, y, colour, label=key)
    ax.legend(loc="lower right", labelcolor="linecolor", handlelength=1.2)
    return plot


def _ppo_validation(rows: Sequence[Row], sft_result: Row, result: Row) -> Plot | None:
    x, y = _series(rows, "validation_accuracy")
    if not len(x):
        return None
    caption = "On the same held-out questions as SFT. Dot: the best step, which is the ReFT model."
    plot, ax = _plot("ppo_validation", "Validation accuracy", caption, percent=True)
    _line(ax, x, y, LIGHT["reft"])
    ax.margins(y=0.15)  # room for the labels of the levels
    _level(ax, sft_result.get("best_validation_accuracy"), "SFT, best epoch", LIGHT["sft"], above=True)
    _level(ax, sft_result.get("warmup_validation_accuracy"), "warm-up", LIGHT["warmup"], above=False)
    _dot(ax, result, "best_step", "best_validation_accuracy", LIGHT["reft"])
    return plot


def _single(rows: Sequence[Row], key: str, title: str, caption: str) -> Plot | None:
    x, y = _series(rows, key)
    if not len(x):
        return None
    plot, ax = _plot(f"ppo_{key}", title, caption)
    _noisy(ax, x, y, LIGHT["reft"])
    return plot


def _outcomes(rows: Sequence[Row]) -> Plot | None:
    rows = [row for row in rows if row.get("outcomes")]
    if not rows:
        return None
    caption = "What became of the sampled chains, as shares of each step."
    plot, ax = _plot("ppo_outcomes", "Outcomes", caption, percent=True, wide=True)
    names, shares = outcome_shares(rows)
    x = np.array([row["step"] for row in rows], float)
    x, *layers = _thin(x, *shares)
    fails = ["fail-1", "fail-2", "fail-3", "fail-4", "fail-rest"]
    colours = [LIGHT[name] for name in ("right", "wrong", *fails)]
    ax.stackplot(x, layers, labels=names, colors=colours[: len(names)], linewidth=0)
    ax.set(ylim=(0, 1), xlim=(x[0], x[-1] if len(x) > 1 else x[0] + 1))
    one_line = {"ncols": len(names), "handlelength": 1.0, "handleheight": 1.0, "borderaxespad": 0.3}
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), **one_line)
    return plot


def outcome_shares(rows: Sequence[Row]) -> tuple[list[str], Array]:
    """Return layer names and their shares per step, shape (layers, steps), each column summing to 1.

    Judged chains split into right and wrong answers; of the failures the four commonest keep their name.
    """
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row["outcomes"])
    judged = ("ok", "ok_text")
    failures = [name for name, _ in totals.most_common() if name not in judged and totals[name]]
    named, rest = failures[:4], failures[4:]
    columns = []
    for row in rows:
        counts: Counter[str] = Counter(row["outcomes"])
        right = (row.get("accuracy") or 0.0) * counts.total()
        wrong = max(0.0, sum(counts[name] for name in judged) - right)
        column = [right, wrong, *(counts[name] for name in named)]
        columns.append([*column, sum(counts[name] for name in rest)] if rest else column)
    shares = np.array(columns, float).T
    labels = ["right answer", "wrong answer", *(name.replace("_", " ") for name in named)]
    return labels + ["other"] * bool(rest), shares / np.maximum(shares.sum(axis=0), 1e-9)


def _plot(
    name: str,
    title: str,
    caption: str,
    *,
    xlabel: str = "step",
    percent: bool = False,
    wide: bool = False,
) -> tuple[Plot, Axes]:
    figure = Figure(figsize=(9.6 if wide else 4.6, 2.3))
    ax = figure.add_subplot()
    ax.set_xlabel(xlabel)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=STEPS))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=STEPS))
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return Plot(name, title, caption, figure, wide), ax


def _series(rows: Sequence[Row], key: str, x: str = "step") -> tuple[Array, Array]:
    """Return the finite values of `key` and where they lie."""
    points = [(row[x], row[key]) for row in rows if _finite(row.get(x)) and _finite(row.get(key))]
    xs, ys = np.array(points, float).reshape(-1, 2).T
    return xs, ys


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thin(*series: Array) -> list[Array]:
    """Average blocks of equal size until at most MAX_POINTS remain."""
    size = -(-len(series[0]) // MAX_POINTS)
    starts = np.arange(0, len(series[0]), size)
    lengths = np.diff(np.append(starts, len(series[0])))
    return [np.add.reduceat(values, starts) / lengths for values in series]


def _noisy(ax: Axes, x: Array, y: Array, colour: str, label: str | None = None) -> None:
    """Draw every value faintly, and their moving average."""
    if not len(x):
        return
    x, y = _thin(x, y)
    window = np.ones(max(1, len(y) // 25) | 1)  # odd, so that the average is centred
    smooth = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
    ax.plot(x, y, color=colour, alpha=0.28, linewidth=1)
    _line(ax, x, smooth, colour, label)


def _line(ax: Axes, x: Array, y: Array, colour: str, label: str | None = None) -> None:
    marker = "o" if len(x) <= 3 else None  # a line through one point cannot be seen
    ax.plot(x, y, color=colour, label=label, marker=marker, markersize=3.5)


def _level(ax: Axes, y: float | None, label: str, colour: str, *, above: bool) -> None:
    if y is None:
        return
    ax.axhline(y, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
    side = "bottom" if above else "top"
    ax.text(
        1, y, f"{label} {y:.1%}", transform=ax.get_yaxis_transform(), color=colour, ha="right", va=side
    )


def _dot(ax: Axes, result: Row, x: str, y: str, colour: str) -> None:
    if _finite(result.get(x)) and _finite(result.get(y)):
        ax.plot(result[x], result[y], "o", color=colour, markersize=6)
