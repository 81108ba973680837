"""The learning curves of a run's stages: each figure is drawn where its metrics are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reftune.methods import BASELINE, METHODS, WARMUP, Method, label_of
from reftune.problem import ANSWERED, Row
from reftune.reporting.pages import LIGHT, colour_of
from reftune.reporting.plots import Plot, legend_above, new_plot, styled

Array = np.ndarray[Any, np.dtype[np.float64]]

MAX_POINTS = 400  # longer curves are averaged in blocks: nothing more fits on the page
LARGEST = 1e30  # beyond, an axis has no room for its numbers

# Metrics with a figure of their own: key, title, caption. The second ones are folded away on the page.
SINGLE = (
    ("kl", "KL divergence", "How far the policy has moved from the {start} model."),
    ("entropy", "Entropy", "How undecided the policy is per token. A fall to 0 ends exploration."),
    ("loss", "Training loss", "What each step of the optimizer makes smaller."),
    ("response_length", "Response length", "Mean number of tokens in a sampled chain."),
    ("clip_fraction", "Clip fraction", "Share of the tokens whose update the PPO clip cut off."),
)
MINOR = (
    (
        "logprob_gap",
        "Sampler and trainer",
        "Gap between their log-probabilities. It should not exceed rounding.",
    ),
    ("grad_norm", "Gradient norm", "Before it is clipped to max_grad_norm."),
    ("learning_rate", "Learning rate", "Of the optimizer in each step."),
    ("tokens_per_second", "Tokens per second", "Prompts and responses, by the time of the whole step."),
    ("memory_gib", "Memory", "The most that the process has held so far, in GiB."),
)
TIMES = ("sampling", "judging", "reading", "update")  # of an online step, `seconds_NAME`


@styled
def method_plots(
    method: Method, rows: Sequence[Row], result: Row, baseline: Row, start: str = WARMUP
) -> list[Plot]:
    """Draw a method's stage from its metrics.

    Args:
        method: which its stage is for; the names of its figures start with the stage's.
        rows: of metrics.jsonl.
        result: of the stage, empty while it is unfinished.
        baseline: result of the stage whose levels are drawn beside it, empty for none.
        start: the model that the methods start from.
    """
    plots = [_accuracy(method, rows), _validation(method, rows, result, baseline)]
    for key, title, caption in SINGLE:
        told = caption.format(start=label_of(start).lower())
        plots.append(_curves(method.stage, {method: rows}, key, title, told))
    plots += [_explained(method, rows), _statuses(method, rows), _times(method, rows)]
    for key, title, caption in MINOR:
        plots.append(_curves(method.stage, {method: rows}, key, title, caption, minor=True))
    return [plot for plot in plots if plot]


@styled
def reranker_plots(rows: Mapping[str, Sequence[Row]]) -> list[Plot]:
    """Draw the rerankers of all models together; `rows` are their metrics by model."""
    methods = {METHODS[model]: found for model, found in rows.items()}
    caption = "Cross-entropy of right and wrong chains, per step."
    loss = _curves("reranker", methods, "loss", "Training loss", caption)
    caption = "How often a right chain of a held-out question gets the higher score than a wrong one."
    auc = _curves("reranker", methods, "validation_auc", "Validation AUC", caption, x="epoch")
    return [plot for plot in (loss, auc) if plot]


def status_shares(rows: Sequence[Row]) -> tuple[list[str], Array]:
    """Return layer names and their shares per step, shape (layers, steps), each column summing to 1.

    Judged chains split into right and wrong answers; of the failures the four commonest keep their name.
    """
    counts = [Counter[str](row["statuses"]) for row in rows]
    totals = sum(counts, Counter[str]())  # without those that never occur
    failures = [name for name, _ in totals.most_common() if name not in ANSWERED]
    named, rest = failures[:4], failures[4:]

    def count(*names: str) -> Array:
        return np.array([sum(row[name] for name in names) for row in counts], float)

    right = np.array([row.get("accuracy") or 0.0 for row in rows]) * count(*totals)
    layers = {"right answer": right, "wrong answer": np.maximum(0, count(*ANSWERED) - right)}
    layers |= {name.replace("_", " "): count(name) for name in named}
    layers |= {"other": count(*rest)} if rest else {}
    shares = np.array(list(layers.values()))
    return list(layers), shares / np.maximum(shares.sum(axis=0), 1e-9)


def series(rows: Sequence[Row], key: str, x: str = "step") -> tuple[Array, Array]:
    """Return the values of `key` that can be drawn, and where they lie."""
    pairs = [(row.get(x), row.get(key)) for row in rows]
    numbers = [pair for pair in pairs if all(isinstance(value, int | float) for value in pair)]
    points = np.array(numbers, float).reshape(-1, 2)
    xs, ys = points[(np.abs(points) < LARGEST).all(axis=1)].T  # finite ones: NaN is never less
    return xs, ys


def thin(*series: Array) -> list[Array]:
    """Average blocks of equal size until at most MAX_POINTS remain."""
    size = -(-len(series[0]) // MAX_POINTS)
    starts = np.arange(0, len(series[0]), size)
    lengths = np.diff(np.append(starts, len(series[0])))
    return [np.add.reduceat(values, starts) / lengths for values in series]


def noisy(ax: Axes, x: Array, y: Array, colour: str, label: str = "") -> None:
    """Draw every value faintly, and their moving average."""
    if not len(x):
        return
    x, y = thin(x, y)
    window = np.ones(max(1, len(y) // 25) | 1)  # odd, so that the average is centred
    smooth = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
    ax.plot(x, y, color=colour, alpha=0.28, linewidth=1, label=f"_{label}", picker=True)
    line(ax, x, smooth, colour, label, told=False)


def line(ax: Axes, x: Array, y: Array, colour: str, label: str = "_", *, told: bool = True) -> None:
    """Draw a curve; `told` says whether the page tells its values under the pointer."""
    marker = "o" if len(x) <= 3 else None  # a line through one point cannot be seen
    ax.plot(x, y, color=colour, label=label, marker=marker, markersize=3.5, picker=told)


def _level(ax: Axes, y: float | None, label: str, colour: str) -> None:
    """Draw a dashed level, if it is known; the legend names it."""
    if y is not None:
        ax.axhline(y, color=colour, linewidth=1.2, linestyle=(0, (4, 3)), label=f"{label} {y:.1%}")


def _dot(ax: Axes, result: Row, x: str, y: str, colour: str) -> None:
    """Mark a point of a stage's result, if it is known."""
    ax.plot(*series([result], y, x), "o", color=colour, markersize=6)


def _curves(
    stage: str,
    rows: Mapping[Method, Sequence[Row]],
    key: str,
    title: str,
    caption: str,
    x: str = "step",
    minor: bool = False,
) -> Plot | None:
    """Draw a metric, a line per method that has it; where several methods could be, they are named."""
    found = {method: series(mine, key, x) for method, mine in rows.items()}
    curves = {method: points for method, points in found.items() if len(points[0])}
    if not curves:
        return None
    plot, ax = new_plot(f"{stage}_{key}", title, caption, x=x, minor=minor)
    draw = noisy if x == "step" else line
    for method, points in curves.items():
        draw(ax, *points, method.color[0], method.label)
    if len(rows) > 1:
        legend_above(ax)
    return plot


def _accuracy(method: Method, rows: Sequence[Row]) -> Plot | None:
    """Draw how good the samples are, and what reward they got where there is one."""
    reward, accuracy = series(rows, "reward"), series(rows, "accuracy")
    if not len(reward[0]):
        caption = "Share of the sampled training chains with the right answer."
        return _curves(method.stage, {method: rows}, "accuracy", "Accuracy of the samples", caption)
    caption = "Of the sampled training chains: mean reward, and share with the right answer."
    plot, ax = new_plot(f"{method.stage}_reward", "Reward and accuracy", caption)
    noisy(ax, *reward, LIGHT["muted"], label="reward")
    noisy(ax, *accuracy, method.color[0], label="accuracy")
    legend_above(ax)
    return plot


def _validation(method: Method, rows: Sequence[Row], result: Row, baseline: Row) -> Plot | None:
    x, y = series(rows, "validation_accuracy", x=method.unit)
    if not len(x):
        return None
    caption = f"On held-out questions. Dot: the best {method.unit}, which is the {method.label} model"
    caption += "; grey: the warm-up." if f"warmup_{method.unit}" in result else "."
    name = f"{method.stage}_validation"
    plot, ax = new_plot(name, "Validation accuracy", caption, x=method.unit, percent=True)
    line(ax, x, y, method.color[0], f"_{method.label}")
    best, warmup = "best_validation_accuracy", "warmup_validation_accuracy"
    best_baseline = f"{label_of(BASELINE)}, best {METHODS[BASELINE].unit}"
    _level(ax, baseline.get(best), best_baseline, colour_of(BASELINE))
    _level(ax, baseline.get(warmup), "warm-up", colour_of("warmup"))
    _dot(ax, result, f"warmup_{method.unit}", warmup, colour_of("warmup"))
    _dot(ax, result, f"best_{method.unit}", best, method.color[0])
    legend_above(ax)
    return plot


def _explained(method: Method, rows: Sequence[Row]) -> Plot | None:
    """Draw what a critic explains: of all tokens, and of a response's first and last quarter."""
    key, title = "explained_variance", "Explained variance"
    caption = "What the critic foresees of the returns: 1 all, 0 no more than a constant, below 0 less."
    quarters = {"first quarter": LIGHT["muted"], "last quarter": LIGHT["right"]}
    found = [series(rows, f"{key}/quarter_{number}") for number in (1, 4)]
    if not len(found[0][0]):
        return _curves(method.stage, {method: rows}, key, title, caption)
    plot, ax = new_plot(f"{method.stage}_{key}", title, caption)
    for points, (label, colour) in zip(found, quarters.items(), strict=True):
        x, y = thin(*points)
        line(ax, x, y, colour, label)
    noisy(ax, *series(rows, key), method.color[0], label="all tokens")
    legend_above(ax)
    return plot


def _statuses(method: Method, rows: Sequence[Row]) -> Plot | None:
    rows = [row for row in rows if row.get("statuses")]
    if not rows:
        return None
    caption = "What became of the sampled chains, as shares of each step."
    plot, ax = new_plot(f"{method.stage}_statuses", "Outcomes", caption, percent=True)
    names, shares = status_shares(rows)
    _stack(ax, np.array([row["step"] for row in rows], float), names, shares)
    ax.set_ylim(0, 1)
    return plot


def _times(method: Method, rows: Sequence[Row]) -> Plot | None:
    """Draw what the parts of an online step take."""
    found = [[row.get(f"seconds_{part}") for part in TIMES] for row in rows]
    seconds = np.array(found, float).reshape(-1, len(TIMES)).T  # None becomes NaN
    known = np.isfinite(seconds).all(axis=0)
    if not known.any():
        return None
    plot, ax = new_plot(
        f"{method.stage}_times", "Time per step", "Seconds by what was done.", minor=True
    )
    seconds = seconds[:, known]
    _stack(ax, np.array([row["step"] for row in rows], float)[known], TIMES, seconds)
    ax.set_ylim(0, 1.05 * seconds.sum(axis=0).max() or 1)
    return plot


def _stack(ax: Axes, x: Array, names: Sequence[str], layers: Array) -> None:
    """Draw layers, shape (names, steps), on each other."""
    x, *found = thin(x, *layers)
    fails = ["fail-1", "fail-2", "fail-3", "fail-4", "fail-rest"]
    colours = [LIGHT[name] for name in ("right", "wrong", *fails)][: len(names)]
    if len(x) == 1:  # an area needs two
        x, found = x + np.array([-0.5, 0.5]), [layer.repeat(2) for layer in found]
    ax.stackplot(x, found, labels=names, colors=colours, linewidth=0)
    ax.set_xlim(x[0], x[-1])
    legend_above(ax)
    for name, edge, colour in zip(names, np.cumsum(found, axis=0), colours, strict=True):
        ax.plot(x, edge, color=colour, label=f"_{name}", picker=True, visible=False)
