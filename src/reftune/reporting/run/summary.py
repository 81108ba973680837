"""What a run has found: its result in words, accuracies and comparisons laid out for tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reftune.evaluation.aggregation import saved_curves
from reftune.methods import BASELINE, MAIN, label_of
from reftune.problem import Row
from reftune.reporting.pages import interval, p_value, signed
from reftune.reporting.run.run_files import Run

FEW_MODELS = 3  # up to here all comparisons are shown
MANY_PASSES = 4  # beyond, pass@k is a curve, and only its ends are in the table


def headline(run: Run) -> str:
    """Say the result in one sentence, or how far the run is."""
    n, models = run.evaluation.get("n", 0), run.evaluation.get("models", {})
    row = _main_comparison(run)
    if row is not None:
        a, b = (models[row[key]]["greedy"]["accuracy"] for key in ("a", "b"))
        answers = f"{label_of(row['b'])} answers {b:.1%} of {n} unseen questions"
        gain = f"{signed(row['difference'])} points, 95% interval {interval(row['interval'])}"
        return f"{answers}, {label_of(row['a'])} {a:.1%}: {gain}, McNemar {p_value(row['mcnemar_p'])}."
    if models:
        parts = [f"{label_of(key)} {model['greedy']['accuracy']:.1%}" for key, model in models.items()]
        return f"Right answers on {n} unseen questions: {', '.join(parts)}."
    return "This run has not been evaluated yet."


def verdict(run: Run) -> str:
    """Say what the interval of the main comparison allows to claim."""
    row = _main_comparison(run)
    if row is None:
        return ""
    low, high = row["interval"]
    if low > 0 or high < 0:
        better, worse = (row["b"], row["a"]) if low > 0 else (row["a"], row["b"])
        return f"The interval excludes 0: {label_of(better)} is better than {label_of(worse)}."
    return "The interval includes 0: these questions do not tell the two models apart."


def accuracies(evaluation: Row) -> dict[str, Any]:
    """Lay the aggregations out as columns; a model without one has None there."""
    models = evaluation.get("models", {})
    aggregations = list(
        dict.fromkeys(name for model in models.values() for name in _aggregations(model))
    )
    ks = sorted({k for model in models.values() for k in model.get("pass", {})}, key=int)
    if len(ks) > MANY_PASSES:
        ks = [ks[0], ks[-1]]
    rows = [
        {"key": key, "label": label_of(key), "cells": [model.get(name) for name in aggregations]}
        | {"passes": [model.get("pass", {}).get(k) for k in ks]}
        for key, model in models.items()
    ]
    columns = [_aggregation_label(name, models) for name in aggregations]
    return {"columns": columns, "ks": ks, "models": rows}


def wrong_chains(evaluation: Row) -> list[Row]:
    """List the models whose right answers have chains that could be checked."""
    return [
        {"key": key, "label": label_of(key)} | model["right_answer_wrong_chain"]
        for key, model in evaluation.get("models", {}).items()
        if "right_answer_wrong_chain" in model
    ]


def reranker_orders(evaluation: Row) -> list[tuple[str, float]]:
    """Return how often each model's reranker puts a right sample before a wrong one of a question."""
    found = {key: m.get("rerank", {}) for key, m in evaluation.get("models", {}).items()}
    orders = {key: rerank.get("within_question_auc") for key, rerank in found.items()}
    return [(label_of(key), share) for key, share in orders.items() if share is not None]


def comparisons(evaluation: Row) -> dict[str, list[Row]]:
    """Return the comparisons to show and those to fold away.

    Of many models those with SFT or ReFT at temperature 0 are shown, and ReFT against SFT always.
    """
    models = evaluation.get("models", {})
    found: dict[str, list[Row]] = {"shown": [], "folded": []}
    for row in evaluation.get("comparisons", []):
        pair = (row["a"], row["b"])
        main = pair == (BASELINE, MAIN) or (
            row["aggregation"] == "greedy" and not {*pair}.isdisjoint((BASELINE, MAIN))
        )
        label = f"{label_of(row['b'])} against {label_of(row['a'])}"
        named = {"label": label, "aggregation": _aggregation_label(row["aggregation"], models)}
        found["shown" if main or len(models) <= FEW_MODELS else "folded"].append(row | named)
    if found["folded"]:
        found["shown"].sort(key=lambda row: row["aggregation"] != "greedy")  # greedy first
    return found


def curves(evaluation: Row) -> dict[str, dict[str, dict[int, float]]]:
    """Return accuracies by aggregation ("pass" for pass@k), model and number of samples."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for key, model in evaluation.get("models", {}).items():
        for aggregation, points in saved_curves(model).items():
            found.setdefault(aggregation, {})[key] = points
    return dict(sorted(found.items(), key=lambda item: item[0] == "pass"))  # the bound comes last


def _main_comparison(run: Run) -> Row | None:
    rows = [row for row in run.evaluation.get("comparisons", []) if row["aggregation"] == "greedy"]
    main = [row for row in rows if (row["a"], row["b"]) == (BASELINE, MAIN)]
    return next(iter(main + rows), None)


def _aggregations(model: Mapping[str, Any]) -> list[str]:
    """Return the keys of a model's summary that are aggregations: those with an accuracy."""
    return [key for key, value in model.items() if isinstance(value, dict) and "accuracy" in value]


def _aggregation_label(name: str, models: Mapping[str, Any]) -> str:
    k = next((model[name]["k"] for model in models.values() if "k" in model.get(name, {})), None)
    return name if k is None else f"{name} of {k}"
