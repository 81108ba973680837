"""What the paper claims, and whether it held here: held, did not hold, or undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from reftune.evaluation.aggregation import AGGREGATIONS
from reftune.evaluation.seeds import compare
from reftune.evaluation.statistics import holm
from reftune.files import read_json, read_jsonl
from reftune.problem import AnsweredQuestion
from reftune.reporting.comparison.finished_runs import CHAINS
from reproduction.plan import MAIN, cell

MARGIN = 0.03  # "about equal": the whole interval of the difference lies within 3 points
RESAMPLES = 10_000

Array = np.ndarray[Any, np.dtype[np.int64]]
Verdict = Literal["held", "did not hold", "undecided"]
Expected = Literal["better", "equal", "different"]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a config of configs/mini, a model of its runs, a aggregation."""

    config: str
    model: str = "reft"
    aggregation: str = "greedy"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper as a difference: what `side` is expected to be beside `other`."""

    text: str
    chains: str
    side: Side
    other: Side
    expected: Expected = "better"


@dataclass(frozen=True)
class Finding:
    """What became of a claim; accuracies and differences as shares."""

    claim: Claim
    accuracy: float
    other_accuracy: float
    difference: float
    interval: tuple[float, float]
    p: float  # corrected for the number of claims
    verdict: Verdict
    seeds: int = 1


def claims() -> list[Claim]:
    """Return the paper's claims in its order."""
    found = []
    for cot in MAIN:
        chains = CHAINS[cot]
        for model, name in (
            ("sft", "SFT"),
            ("offline_st", "offline self-training"),
            ("online_st", "online self-training"),
        ):
            found.append(Claim(f"ReFT beats {name}", chains, Side(cot), Side(cot, model)))
        for model, name in (("sft", "SFT"), ("reft", "ReFT")):
            greedy, vote, rerank = (Side(cot, model, s) for s in ("greedy", "vote", "rerank"))
            found.append(Claim(f"Voting adds to {name}", chains, vote, greedy))
            found.append(Claim(f"Reranking adds to {name}'s vote", chains, rerank, vote))
    main = Side("program")
    for model, name in (("sft", "SFT"), ("reft", "ReFT")):
        programs, text = Side("program", model), Side("natural", model)
        found.append(Claim(f"Programs beat text, {name}", "both", programs, text))
    for config, text, expected in (
        ("no_kl", "ReFT collapses without the KL penalty", "better"),
        ("no_partial_reward", "The partial reward helps", "better"),
        ("separate_value_model", "A value model of its own is about equal", "equal"),
        ("warmup_4", "The length of the warm-up matters (12 epochs against 4)", "different"),
        ("warmup_8", "The length of the warm-up matters (12 epochs against 8)", "different"),
    ):
        found.append(Claim(text, "P-CoT", main, Side(config), expected))
    return found


def find(seeds: Sequence[int], ablation_seeds: Sequence[int]) -> list[Finding]:
    """Check every claim on the finished runs; both sides are compared over the seeds they share."""
    rows = [_measure(claim, seeds, ablation_seeds) for claim in claims()]
    corrected = holm([p for *_, p in rows])
    return [
        Finding(
            claim, float(a.mean()), float(b.mean()), float(a.mean() - b.mean()), interval, p,
            judge(claim.expected, interval), len(a),
        )
        for (claim, a, b, interval, _), p in zip(rows, corrected, strict=True)
    ]  # fmt: skip


def judge(expected: Expected, interval: tuple[float, float]) -> Verdict:
    """Say what an interval of the difference decides."""
    low, high = interval
    if expected == "equal":
        if low >= -MARGIN and high <= MARGIN:
            return "held"
        return "did not hold" if low > MARGIN or high < -MARGIN else "undecided"
    if low > 0 or (expected == "different" and high < 0):
        return "held"
    return "did not hold" if high < 0 else "undecided"


def _measure(
    claim: Claim, seeds: Sequence[int], ablation_seeds: Sequence[int]
) -> tuple[Claim, Array, Array, tuple[float, float], float]:
    main = {claim.side.config, claim.other.config} <= {*MAIN}
    shared = tuple(seeds if main else ablation_seeds)
    a, b = statuses(claim.side, shared), statuses(claim.other, shared)
    interval, p = compare(b, a, paired=True, resamples=RESAMPLES, seed=0)
    return claim, a, b, interval, p


@lru_cache(maxsize=128)
def answers(config: str, model: str, seed: int) -> list[AnsweredQuestion]:
    """Return a model's answers to the test questions."""
    return read_jsonl(cell(config, seed).run_dir / "evaluation" / f"{model}.jsonl")


def statuses(side: Side, seeds: tuple[int, ...]) -> Array:
    """Return 1 where the answer was right, 0 elsewhere: (seeds, questions)."""
    rows = []
    for seed in seeds:
        aggregation = AGGREGATIONS.get(side.aggregation)
        rows.append(
            [
                row["correct"] if aggregation is None else aggregation.is_right(row["samples"])
                for row in answers(side.config, side.model, seed)
            ]
        )
    return np.array(rows, dtype=np.int64)


def cost(config: str, seeds: Sequence[int], stage: str = "ppo") -> float:
    """Return the mean seconds that a stage took."""
    results = [read_json(cell(config, seed).run_dir / stage / "result.json") for seed in seeds]
    return float(np.mean([result["seconds"] for result in results]))


def wrong_chains(config: str, model: str, seeds: Sequence[int]) -> tuple[int, int]:
    """Return how many checked right answers have a wrong chain, and how many were checked."""
    found = [0, 0]
    for seed in seeds:
        result = read_json(cell(config, seed).run_dir / "evaluation" / "result.json")
        share = result["models"][model].get("right_answer_wrong_chain", {"wrong": 0, "checked": 0})
        found[0] += share["wrong"]
        found[1] += share["checked"]
    return found[0], found[1]
