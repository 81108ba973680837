"""The learning curves of a run's stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reftune.reporting.plots import (
    LIGHT,
    Array,
    Plot,
    Row,
    dot,
    legend_above,
    level,
    line,
    new_plot,
    noisy,
    series,
    styled,
    thin,
)
from reftune.reporting.run.run_files import model_label


@dataclass(frozen=True)
class _Look:
    """The stage that a figure shows (its file name starts with it) and the model that comes of it."""

    stage: str
    model: str

    @property
    def colour(self) -> str:
        return LIGHT[self.model]


SFT, OFFLINE_ST = _Look("sft", "sft"), _Look("offline_st", "offline_st")
ONLINE_ST, PPO = _Look("online_st", "online_st"), _Look("ppo", "reft")

KL = ("kl", "KL divergence", "How far the policy has moved from the warm-up model.")
ENTROPY = ("entropy", "Entropy", "How undecided the policy is per token. A fall to 0 ends exploration.")
LENGTH = ("response_length", "Response length", "Mean number of tokens in a sampled chain.")
EXPLAINED = (
    "explained_variance",
    "Explained variance",
    "What the critic foresees of the returns: 1 all, 0 nothing.",
)
GAP = (
    "logprob_gap",
    "Sampler and trainer",
    "Gap between their log-probabilities. It should not exceed rounding.",
)
CLIP = ("clip_fraction", "Clip fraction", "Share of the tokens whose update the PPO clip cut off.")
LOSS = ("loss", "Training loss", "Cross-entropy of annotated and sampled right chains, per step.")


@styled
def sft_plots(rows: Sequence[Row], result: Row) -> list[Plot]:
    """Draw the supervised stage from its metrics and its result (empty while unfinished)."""
    caption = "On held-out questions. Dots: where ReFT starts, and the best epoch (the SFT baseline)."
    loss = ("loss", "SFT: training loss", "Cross-entropy of the annotated chains, per step.")
    plots = [_single(SFT, rows, *loss)]
    x, y = series(rows, "validation_accuracy", x="epoch")
    if len(x):
        plot, ax = new_plot(
            "sft_validation", "SFT: validation accuracy", caption, xlabel="epoch", percent=True
        )
        line(ax, x, y, SFT.colour)
        dot(ax, result, "warmup_epoch", "warmup_validation_accuracy", LIGHT["warmup"])
        dot(ax, result, "best_epoch", "best_validation_accuracy", SFT.colour)
        plots.append(plot)
    return _drawn(plots)


@styled
def offline_st_plots(rows: Sequence[Row], sft_result: Row, result: Row) -> list[Plot]:
    """Draw offline self-training from its metrics and both stages' results."""
    return _drawn(
        [_single(OFFLINE_ST, rows, *LOSS), _validation(OFFLINE_ST, rows, sft_result, result, "epoch")]
    )


@styled
def online_st_plots(rows: Sequence[Row], sft_result: Row, result: Row) -> list[Plot]:
    """Draw online self-training from its metrics and both stages' results."""
    sampled = ("accuracy", "Accuracy of the samples", "Share of the sampled training chains with the"
               " right answer.")  # fmt: skip
    plots = [_single(ONLINE_ST, rows, *sampled), _validation(ONLINE_ST, rows, sft_result, result)]
    plots += [_single(ONLINE_ST, rows, *texts) for texts in (LOSS, LENGTH)]
    return _drawn([*plots, _statuses(ONLINE_ST, rows)])


@styled
def ppo_plots(rows: Sequence[Row], sft_result: Row, result: Row) -> list[Plot]:
    """Draw the reinforced stage from its metrics and both stages' results (empty while unfinished)."""
    plots = [_reward(rows), _validation(PPO, rows, sft_result, result)]
    plots += [_single(PPO, rows, *texts) for texts in (KL, ENTROPY, LENGTH, EXPLAINED, GAP, CLIP)]
    return _drawn([*plots, _statuses(PPO, rows)])


@styled
def reranker_plots(rows: Mapping[str, Sequence[Row]]) -> list[Plot]:
    """Draw the rerankers of all models together; `rows` are their metrics by model."""
    loss = _together(
        rows, "loss", "step", "Training loss", "Cross-entropy of right and wrong chains, per step."
    )
    auc = _together(
        rows, "validation_auc", "epoch", "Validation AUC",
        "How often a right chain of a held-out question gets the higher score than a wrong one.",
    )  # fmt: skip
    return _drawn([loss, auc])


def status_shares(rows: Sequence[Row]) -> tuple[list[str], Array]:
    """Return layer names and their shares per step, shape (layers, steps), each column summing to 1.

    Judged chains split into right and wrong answers; of the failures the four commonest keep their name.
    """
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row["statuses"])
    judged = ("ok", "ok_text")
    failures = [name for name, _ in totals.most_common() if name not in judged and totals[name]]
    named, rest = failures[:4], failures[4:]
    columns = []
    for row in rows:
        counts: Counter[str] = Counter(row["statuses"])
        right = (row.get("accuracy") or 0.0) * counts.total()
        wrong = max(0.0, sum(counts[name] for name in judged) - right)
        column = [right, wrong, *(counts[name] for name in named)]
        columns.append([*column, sum(counts[name] for name in rest)] if rest else column)
    shares = np.array(columns, float).T
    labels = ["right answer", "wrong answer", *(name.replace("_", " ") for name in named)]
    return labels + ["other"] * bool(rest), shares / np.maximum(shares.sum(axis=0), 1e-9)


def _drawn(plots: Sequence[Plot | None]) -> list[Plot]:
    return [plot for plot in plots if plot is not None]


def _single(look: _Look, rows: Sequence[Row], key: str, title: str, caption: str) -> Plot | None:
    x, y = series(rows, key)
    if not len(x):
        return None
    plot, ax = new_plot(f"{look.stage}_{key}", title, caption)
    noisy(ax, x, y, look.colour)
    return plot


def _reward(rows: Sequence[Row]) -> Plot | None:
    curves = [(key, *series(rows, key)) for key in ("reward", "accuracy")]
    if not any(len(x) for _, x, _ in curves):
        return None
    caption = "Of the sampled training chains: mean score, and share with the right answer."
    plot, ax = new_plot("ppo_reward", "Reward and accuracy", caption)
    for (key, x, y), colour in zip(curves, (LIGHT["warmup"], PPO.colour), strict=True):
        noisy(ax, x, y, colour, label=key)
    ax.legend(loc="lower right", labelcolor="linecolor", handlelength=1.2)
    return plot


def _validation(
    look: _Look, rows: Sequence[Row], sft_result: Row, result: Row, unit: str = "step"
) -> Plot | None:
    x, y = series(rows, "validation_accuracy", x=unit)
    if not len(x):
        return None
    best = f"Dot: the best {unit}, which is the {model_label(look.model)} model."
    caption = f"On the same held-out questions as SFT. {best}"
    plot, ax = new_plot(
        f"{look.stage}_validation", "Validation accuracy", caption, xlabel=unit, percent=True
    )
    line(ax, x, y, look.colour)
    ax.margins(y=0.15)  # room for the labels of the levels
    level(ax, sft_result.get("best_validation_accuracy"), "SFT, best epoch", SFT.colour, above=True)
    level(ax, sft_result.get("warmup_validation_accuracy"), "warm-up", LIGHT["warmup"], above=False)
    dot(ax, result, f"best_{unit}", "best_validation_accuracy", look.colour)
    return plot


def _together(
    rows: Mapping[str, Sequence[Row]], key: str, unit: str, title: str, caption: str
) -> Plot | None:
    curves = {model: series(found, key, x=unit) for model, found in rows.items()}
    if not any(len(x) for x, _ in curves.values()):
        return None
    plot, ax = new_plot(f"reranker_{key}", title, caption, xlabel=unit)
    draw = noisy if unit == "step" else line
    for model, (x, y) in curves.items():
        draw(ax, x, y, LIGHT.get(model, LIGHT["muted"]), label=model_label(model))
    legend_above(ax, len(curves))
    return plot


def _statuses(look: _Look, rows: Sequence[Row]) -> Plot | None:
    rows = [row for row in rows if row.get("statuses")]
    if not rows:
        return None
    caption = "What became of the sampled chains, as shares of each step."
    plot, ax = new_plot(f"{look.stage}_statuses", "Outcomes", caption, percent=True, wide=True)
    names, shares = status_shares(rows)
    x = np.array([row["step"] for row in rows], float)
    x, *layers = thin(x, *shares)
    fails = ["fail-1", "fail-2", "fail-3", "fail-4", "fail-rest"]
    colours = [LIGHT[name] for name in ("right", "wrong", *fails)]
    ax.stackplot(x, layers, labels=names, colors=colours[: len(names)], linewidth=0)
    ax.set(ylim=(0, 1), xlim=(x[0], x[-1] if len(x) > 1 else x[0] + 1))
    one_line = {"ncols": len(names), "handlelength": 1.0, "handleheight": 1.0, "borderaxespad": 0.3}
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), **one_line)
    return plot
