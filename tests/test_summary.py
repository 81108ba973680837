from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from reftune.reporting.run.run_files import Run
from reftune.reporting.run.summary import (
    accuracies,
    comparisons,
    cut_off,
    headline,
    outcomes,
    starts,
    verdict,
)

AGGREGATIONS = ("greedy", "vote", "rerank", "weighted vote")
ACCURACIES = {
    "base": 0.3,
    "warmup": 0.65,
    "sft": 0.71,
    "offline_st": 0.72,
    "online_st": 0.75,
    "reft": 0.841,
}


def comparison(a: str = "sft", b: str = "reft", **values: Any) -> dict[str, Any]:
    row = {"a": a, "b": b, "aggregation": "greedy", "difference": 0.131, "interval": [0.109, 0.153]}
    return row | {"mcnemar_p": 1.24e-9} | values


def model(accuracy: float, aggregations: tuple[str, ...] = AGGREGATIONS[:1]) -> dict[str, Any]:
    cell = {"accuracy": accuracy, "interval": [accuracy - 0.02, accuracy + 0.02]}
    return {name: cell if name == "greedy" else cell | {"k": 8} for name in aggregations}


def run_of(*rows: dict[str, Any], names: tuple[str, ...] = ("warmup", "sft", "reft")) -> Run:
    models = {name: model(ACCURACIES[name]) for name in names}
    return Run(Path("runs/trial"), {}, evaluation={"n": 1000, "models": models, "comparisons": [*rows]})


def test_an_interval_around_zero_claims_nothing() -> None:
    run = run_of(comparison(difference=-0.004, interval=[-0.02, 0.012]))
    assert "\N{MINUS SIGN}0.4 points, 95% interval [\N{MINUS SIGN}2.0, 1.2]" in headline(run)
    assert verdict(run) == (
        "The interval includes 0: these questions do not tell the two models apart."
        " One seed: this model, not this method; reftune compare pools several."
    )


def test_a_loss_is_called_a_loss() -> None:
    lost = comparison(difference=-0.1, interval=[-0.12, -0.08], mcnemar_p=0.0123)
    run = run_of(comparison(a="warmup", difference=0.2), lost)
    assert headline(run) == (
        "ReFT answers 84.1% of 1000 unseen questions, SFT 71.0%: \N{MINUS SIGN}10.0 points,"
        " 95% interval [\N{MINUS SIGN}12.0, \N{MINUS SIGN}8.0], McNemar p = 0.012."
    )
    assert verdict(run) == (
        "The interval excludes 0: on such questions this SFT model is better than this ReFT model."
        " One seed: this model, not this method; reftune compare pools several."
    )


def test_without_a_comparison_the_accuracies_are_the_headline() -> None:
    expected = "Right answers on 1000 unseen questions: Warm-up 65.0%, SFT 71.0%, ReFT 84.1%."
    assert headline(run_of()) == expected
    assert verdict(run_of()) == ""


def test_a_run_without_reft_is_summed_up_by_what_it_compares() -> None:
    run = run_of(comparison(b="online_st"), names=("warmup", "sft", "online_st"))
    assert headline(run).startswith("Online-ST answers 75.0% of 1000 unseen questions, SFT 71.0%: +13.1")


def pairs_of(*names: str) -> list[dict[str, Any]]:
    return [comparison(a, b) for a, b in itertools.combinations(names, 2)]


def test_without_sft_the_given_model_stands_in_its_place() -> None:
    names = ("base", "offline_st", "online_st", "reft")
    run = run_of(*pairs_of(*names), names=names)
    run.config["sft"] = {"epochs": 0, "warmup_epochs": 0}
    assert headline(run).startswith("ReFT answers 84.1% of 1000 unseen questions, Base 30.0%: +13.1")
    assert "this ReFT model is better than this Base model" in verdict(run)
    assert [row["label"] for row in comparisons(run)["folded"]] == ["Online-ST against Offline-ST"]


def test_beside_sft_the_given_model_is_not_what_the_result_is_told_by() -> None:
    names = ("base", "warmup", "sft", "reft")
    assert "ReFT answers 84.1% of 1000 unseen questions, SFT 71.0%" in headline(
        run_of(*pairs_of(*names), names=names)
    )
    alone = run_of(*pairs_of("base", "warmup", "sft"), names=("base", "warmup", "sft"))
    assert headline(alone).startswith("SFT answers 71.0% of 1000 unseen questions, Base 30.0%")


def test_of_many_models_only_the_comparisons_that_matter_are_not_folded() -> None:
    names = [name for name in ACCURACIES if name != "base"]
    pairs = list(itertools.combinations(names, 2))
    rows = [comparison(*pair, aggregation=aggregation) for pair in pairs for aggregation in AGGREGATIONS]
    models = {name: model(ACCURACIES[name], AGGREGATIONS) for name in names}
    evaluation = {"n": 1000, "models": models, "comparisons": rows}
    found = comparisons(Run(Path("runs/trial"), {}, evaluation=evaluation))
    assert [(row["label"], row["aggregation"]) for row in found["shown"]] == [
        ("SFT against Warm-up", "greedy"),
        ("ReFT against Warm-up", "greedy"),
        ("Offline-ST against SFT", "greedy"),
        ("Online-ST against SFT", "greedy"),
        ("ReFT against SFT", "greedy"),
        ("ReFT against Offline-ST", "greedy"),
        ("ReFT against Online-ST", "greedy"),
        ("ReFT against SFT", "vote of 8"),
        ("ReFT against SFT", "rerank of 8"),
        ("ReFT against SFT", "weighted vote of 8"),
    ]
    assert len(found["shown"]) + len(found["folded"]) == 10 * 4


def test_of_three_models_every_comparison_is_shown_in_its_order() -> None:
    rows = [
        comparison(a, b, aggregation=aggregation)
        for a, b in itertools.combinations(("warmup", "sft", "reft"), 2)
        for aggregation in ("greedy", "vote")
    ]
    found = comparisons(run_of(*rows))
    assert [(row["a"], row["b"], row["aggregation"]) for row in found["shown"]] == [
        (row["a"], row["b"], row["aggregation"]) for row in rows
    ]
    assert found["folded"] == []


def test_what_is_no_aggregation_is_no_column() -> None:
    wrong = {"share": 0.1, "wrong": 5, "checked": 50, "unchecked": 0, "interval": [0.0, 0.2]}
    extra = {"right_answer_wrong_chain": wrong, "new": 3}
    found = accuracies({"models": {"sft": model(0.7) | extra, "reft": model(0.8, AGGREGATIONS[:2])}})
    assert found["columns"] == ["greedy", "vote of 8"]
    assert [len(row["cells"]) for row in found["models"]] == [2, 2]
    assert found["models"][0]["cells"][1] is None


def test_the_order_of_pairs_is_told_where_there_are_pairs() -> None:
    reranked = {"rerank": {"k": 8, "within_question_auc": 0.6}}
    models = {"warmup": {}, "sft": reranked, "reft": {"rerank": {"k": 8, "within_question_auc": None}}}
    rows = accuracies({"models": models})["models"]
    assert [(row["label"], row["order"]) for row in rows] == [
        ("Warm-up", None), ("SFT", 0.6), ("ReFT", None),
    ]  # fmt: skip


def test_a_long_ladder_of_passes_keeps_its_ends() -> None:
    def passes(*ks: int) -> list[str]:
        return list(accuracies({"models": {"sft": {"pass": {str(k): 0.5 for k in ks}}}})["ks"])

    assert passes(1, 2, 4, 8) == ["1", "2", "4", "8"]
    assert passes(1, 2, 4, 8, 16, 32, 64, 100) == ["1", "100"]


def test_outcomes_count_what_became_of_every_greedy_answer(tmp_path: Path) -> None:
    def rows(**statuses: int) -> list[Any]:
        return [
            {"status": name, "correct": False} for name, count in statuses.items() for _ in range(count)
        ]

    run = Run(tmp_path, {})
    run.answers = {
        "sft": rows(ok=2, timeout=1, no_result=3),
        "reft": rows(ok_text=1, no_result=1, odd=1),
    }
    run.answers["reft"][0]["correct"] = True
    assert outcomes(run) == {
        "columns": ["right", "wrong", "no result", "timeout", "other"],
        "models": [
            {"key": "sft", "label": "SFT", "counts": [0, 2, 3, 1, 0]},
            {"key": "reft", "label": "ReFT", "counts": [1, 0, 1, 0, 1]},
        ],
    }


def test_answers_that_were_cut_off_are_told_from_a_twentieth_on() -> None:
    statuses = {"sft": ["ok"] * 19 + ["truncated"], "reft": ["ok"] * 39 + ["truncated"]}
    run = run_of(comparison())
    assert cut_off(run) == ""
    run.answers = {model: [{"status": one} for one in mine] for model, mine in statuses.items()}
    run.config = {"prompt": {"max_new_tokens": 24}}
    assert cut_off(run) == (
        "5% of SFT's greedy answers were cut off at 24 tokens; a higher prompt.max_new_tokens gives them"
        " room."
    )


START = {"validation_accuracy": 0.5, "pass_at_1": 0.25, "pass_at_k": 0.75, "mixed": 0.5}


def test_the_starts_that_were_considered_are_told_and_which_was_chosen() -> None:
    run, considered = run_of(), [START | {"epoch": epoch} for epoch in (2, 4)]
    assert starts(run) == {"k": None, "rows": []}
    run.metrics["sft"] = [{"step": 1, "epoch": 0.5}, START | {"step": 2, "epoch": 2.0}]  # not finished
    [row] = starts(run)["rows"]
    assert (row["epoch"], row["pass_at_k"], row["chosen"]) == (2.0, 0.75, False)
    run.results["sft"] = {"starts": considered, "warmup_epoch": 4, "warmup_k": 16}
    assert starts(run)["k"] == 16
    assert [(row["epoch"], row["chosen"]) for row in starts(run)["rows"]] == [(2, False), (4, True)]


def test_a_run_whose_user_chose_the_start_has_no_table_of_starts() -> None:
    run = run_of()
    run.results["sft"] = {"warmup_epoch": 4, "best_epoch": 6}
    assert starts(run)["rows"] == []
