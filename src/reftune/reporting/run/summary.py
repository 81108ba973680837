"""What a run has found: its result in words, accuracies and comparisons laid out for tables."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from reftune.evaluation.seeds import ONE_SEED
from reftune.methods import MAIN, label_of
from reftune.problem import ANSWERED, STATUSES, AnsweredQuestion, Row
from reftune.reporting.pages import interval, p_value, signed
from reftune.reporting.run.run_files import Run

FEW_MODELS = 3  # up to here all comparisons are shown
CUT_OFF = 0.05  # share of a model's answers from which on it is told
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
    """Say what the interval of the main comparison allows to claim: it covers questions, not seeds."""
    row = _main_comparison(run)
    if row is None:
        return ""
    low, high = row["interval"]
    one_seed = f"{ONE_SEED.capitalize()}; reftune compare pools several."
    if low > 0 or high < 0:
        better, worse = (row["b"], row["a"]) if low > 0 else (row["a"], row["b"])
        better, worse = label_of(better), label_of(worse)
        return (
            f"The interval excludes 0: on such questions this {better} model is better than this {worse}"
            f" model. {one_seed}"
        )
    return f"The interval includes 0: these questions do not tell the two models apart. {one_seed}"


def cut_off(run: Run) -> str:
    """Say of which models many greedy answers ended at the token limit, which says little of them."""
    shares = {
        label_of(model): sum(row["status"] == "truncated" for row in rows) / max(1, len(rows))
        for model, rows in run.answers.items()
    }
    told = [f"{share:.0%} of {label}'s" for label, share in shares.items() if share >= CUT_OFF]
    limit = run.config.get("prompt", {}).get("max_new_tokens", "the limit of")
    return (
        f"{' and '.join(told)} greedy answers were cut off at {limit} tokens; a higher"
        " prompt.max_new_tokens gives them room."
        if told
        else ""
    )


def accuracies(evaluation: Row) -> dict[str, Any]:
    """Lay the aggregations out as columns; what a model has not is None there.

    Beside its accuracies and pass@k each model has its `order`, how often its reranker puts a right
    sample before a wrong one of a question, and what is known of its `wrong_chains`,
    and its greedy accuracy on each of several `sources`.
    """
    models = evaluation.get("models", {})
    parts = [part for model in models.values() for part in model.items()]
    names = dict.fromkeys(key for key, value in parts if isinstance(value, dict) and "accuracy" in value)
    ks = sorted({k for model in models.values() for k in model.get("pass", {})}, key=int)
    if len(ks) > MANY_PASSES:
        ks = [ks[0], ks[-1]]
    rows = [
        {
            "key": key,
            "label": label_of(key),
            "cells": [model.get(name) for name in names],
            "passes": [model.get("pass", {}).get(k) for k in ks],
            "order": model.get("rerank", {}).get("within_question_auc"),
            "wrong_chains": model.get("right_answer_wrong_chain"),
            "sources": model.get("sources", {}),
        }
        for key, model in models.items()
    ]
    return {"columns": [_column(name, models) for name in names], "ks": ks, "models": rows}


def starts(run: Run) -> dict[str, Any]:
    """Lay out the epochs of SFT from which the methods could start: none, unless one is chosen.

    The row of that one is `chosen`; `k` is the number of samples, None until SFT is finished.
    """
    result = run.results.get("sft", {})
    found = result.get("starts") or [row for row in run.metrics.get("sft", []) if "pass_at_k" in row]
    rows = [row | {"chosen": row["epoch"] == result.get("warmup_epoch")} for row in found]
    return {"k": result.get("warmup_k"), "rows": rows}


def outcomes(run: Run) -> dict[str, Any]:
    """Count what became of the models' greedy answers: right, wrong, or a status that is no answer."""
    counts = {model: Counter(map(_outcome, rows)) for model, rows in run.answers.items()}
    failures = sum(counts.values(), Counter[str]())
    columns = list(dict.fromkeys(["right", "wrong", *(name for name, _ in failures.most_common())]))
    return {
        "columns": columns,
        "models": [
            {"key": model, "label": label_of(model), "counts": [mine[column] for column in columns]}
            for model, mine in counts.items()
        ],
    }


def _outcome(row: AnsweredQuestion) -> str:
    if row["correct"]:
        return "right"
    if row["status"] in ANSWERED:
        return "wrong"
    return row["status"].replace("_", " ") if row["status"] in STATUSES else "other"


def comparisons(run: Run) -> dict[str, list[Row]]:
    """Return the comparisons to show and those to fold away.

    Of many models those with the baseline or ReFT at temperature 0 are shown, and that of these two
    always.
    """
    models = run.evaluation.get("models", {})
    found: dict[str, list[Row]] = {"shown": [], "folded": []}
    main = {run.lineup.baseline, MAIN}
    for row in run.evaluation.get("comparisons", []):
        pair = {row["a"], row["b"]}
        shown = pair == main or (row["aggregation"] == "greedy" and pair & main)
        label = f"{label_of(row['b'])} against {label_of(row['a'])}"
        named = {"label": label, "aggregation": _column(row["aggregation"], models)}
        found["shown" if shown or len(models) <= FEW_MODELS else "folded"].append(row | named)
    if found["folded"]:
        found["shown"].sort(key=lambda row: row["aggregation"] != "greedy")  # greedy first
    return found


def _main_comparison(run: Run) -> Row | None:
    rows = [row for row in run.evaluation.get("comparisons", []) if row["aggregation"] == "greedy"]
    baseline = run.lineup.baseline
    main = [row for row in rows if (row["a"], row["b"]) == (baseline, MAIN)]
    first = [row for row in rows if row["b"] == baseline]  # without ReFT, what the baseline has gained
    return next(iter(main + first + rows), None)


def _column(name: str, models: Mapping[str, Any]) -> str:
    k = next((model[name]["k"] for model in models.values() if "k" in model.get(name, {})), None)
    return name if k is None else f"{name} of {k}"
