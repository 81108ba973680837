"""The claims and what became of them, as a part of docs/results.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reftune.evaluation.aggregation import AGGREGATIONS, accuracy_of, within_question_auc
from reftune.evaluation.seeds import ONE_SEED
from reftune.evaluation.statistics import wilson_interval
from reftune.methods import BASELINE, OPTIONAL, label_of
from reftune.reporting.comparison.finished_runs import CHAINS
from reftune.reporting.pages import interval, p_value, percent, signed
from reproduction.claims import Finding, answers, cost, wrong_chains
from reproduction.plan import MAIN
from reproduction.series import put_between, seconds_of

BEGIN, END = "<!-- reproduce-mini: begin -->\n", "<!-- reproduce-mini: end -->\n"


def write_results(
    path: Path, findings: Sequence[Finding], seeds: Sequence[int], ablation_seeds: Sequence[int]
) -> None:
    """Put the findings between the marks in a document; the rest of it stays.

    Raises ValueError where the marks are missing.
    """

    def text() -> str:
        parts = [
            claim_table(findings), reranking(seeds), costs(ablation_seeds),
            hacking(seeds, ablation_seeds), times(),
        ]  # fmt: skip
        return "\n\n".join(part for part in parts if part)

    put_between(path, BEGIN, END, text)


def claim_table(findings: Sequence[Finding]) -> str:
    """Return one row per claim, in accuracies and points."""
    lines = [
        "| claim of the paper | chains | accuracy | against | difference, points | p (Holm) | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for found in findings:
        cells = [
            found.claim.text, found.claim.chains, percent(found.accuracy), percent(found.other_accuracy),
            f"{signed(found.difference)} {interval(found.interval)}",
            p_value(found.p).removeprefix("p = "),
            f"**{found.verdict}**" + (f" ({ONE_SEED})" if found.seeds == 1 else ""),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reranking(seeds: Sequence[int]) -> str:
    """Return what every model's samples give, chosen in each way, and how its reranker orders them."""
    names = ["one sample", *AGGREGATIONS, "right before wrong"]
    lines = [f"| chains | model | {' | '.join(names)} |", f"|---|---|{'---:|' * len(names)}"]
    for config in MAIN:
        for model in (BASELINE, *OPTIONAL):
            rows = [row for seed in seeds for row in answers(config, model, seed)]
            k = len(rows[0]["samples"])
            shares = [accuracy_of(rows, AGGREGATIONS["vote"], 1)]
            shares += [accuracy_of(rows, aggregation, k) for aggregation in AGGREGATIONS.values()]
            order = within_question_auc(rows)
            cells = [*map(percent, shares), "" if order is None else percent(order)]
            lines.append(f"| {CHAINS[config]} | {label_of(model)} | {' | '.join(cells)} |")
    explained = (
        "The last column: of a right and a wrong sample of one question, how often the reranker puts the"
        " right one first; 50% is chance, and then reranking is no better than one sample."
    )
    return "\n".join(lines) + f"\n\n{explained}"


def costs(seeds: Sequence[int]) -> str:
    """Say what a value model of its own costs."""
    ratio = cost("separate_value_model", seeds) / cost("program", seeds)
    return f"PPO with a value model of its own took {ratio:.2f} times as long as with a shared backbone."


def hacking(seeds: Sequence[int], ablation_seeds: Sequence[int]) -> str:
    """Return how many right answers have a wrong chain, with open answers and multiple choice."""
    lines = ["| right answers with a wrong chain, N-CoT | SFT | ReFT |", "|---|---:|---:|"]
    for name, config, shown in (
        ("open answers", "natural", seeds),
        ("multiple choice, 5 options", "choices", ablation_seeds),
    ):
        cells = [_share(*wrong_chains(config, model, shown)) for model in ("sft", "reft")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def times() -> str:
    """Say how long the runs took."""
    found = [seconds for config in MAIN for seconds in seconds_of(config)]
    if not found:
        return ""
    low, high = min(found) / 60, max(found) / 60
    return f"A run of all methods took {low:.0f} to {high:.0f} minutes."


def _share(wrong: int, checked: int) -> str:
    if not checked:
        return "none could be checked"
    return (
        f"{wrong} of {checked}, {percent(wrong / checked)} {interval(wilson_interval(wrong, checked))}"
    )
