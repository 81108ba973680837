"""From several samples of a question to one answer: majority vote, reranking, weighted vote.

A sample is a row with its answer (`value`, None where there is none), whether that was judged right
(`correct`), and, where a reranker has seen it, the probability that it is right (`rerank`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TypeVar

from reftune.evaluation.statistics import area_under_curve, majority_vote, pass_at_k
from reftune.problem import AnsweredQuestion, Row, SampledAnswer, UserError, is_judged

Model = TypeVar("Model")  # what a model is called


@dataclass(frozen=True, slots=True)
class Aggregation:
    """A way to choose: from samples to whether the chosen answer is right."""

    is_right: Callable[[Sequence[SampledAnswer]], bool]
    ranks: bool  # whether it needs a reranker


def vote(samples: Sequence[SampledAnswer]) -> bool:
    """Tell whether the most frequent answer is right, as the first sample that gave it was judged."""
    return _as_judged(samples, [1.0] * len(samples))


def weighted_vote(samples: Sequence[SampledAnswer]) -> bool:
    """Tell whether the answer with the largest sum of the reranker's probabilities is right."""
    return _as_judged(samples, [sample["rerank"] or 0.0 for sample in samples])


def rerank(samples: Sequence[SampledAnswer]) -> bool:
    """Tell whether the sample that the reranker finds most probable is right; of equals the first."""
    ranked = [sample for sample in samples if sample["value"] is not None]
    best = max(ranked, key=lambda sample: sample["rerank"] or 0.0, default=None)
    return best is not None and bool(best["correct"])


AGGREGATIONS = {
    "vote": Aggregation(vote, ranks=False),
    "rerank": Aggregation(rerank, ranks=True),
    "weighted vote": Aggregation(weighted_vote, ranks=True),
}


def judged_by_all(
    answers: Mapping[Model, Sequence[AnsweredQuestion]],
) -> dict[Model, list[AnsweredQuestion]]:
    """Leave out the questions on one of whose answers the sandbox failed: nobody is charged with that.

    Args:
        answers: by model, each with the same questions in the same order.

    Raises UserError if no question is left.
    """
    kept = [all(map(_wholly_judged, rows)) for rows in zip(*answers.values(), strict=True)]
    if not any(kept):
        raise UserError(
            "the sandbox failed on every question; let it have more memory, or fewer workers"
        )
    return {name: list(compress(rows, kept)) for name, rows in answers.items()}


def available(rows: Sequence[AnsweredQuestion]) -> dict[str, Aggregation]:
    """Return the aggregations for which these rows, one per question, have what is needed."""
    samples = [sample for row in rows for sample in row.get("samples", ())]
    ranked = bool(samples) and all("rerank" in sample for sample in samples)
    return {name: s for name, s in AGGREGATIONS.items() if samples and (ranked or not s.ranks)}


def right_answers(rows: Sequence[AnsweredQuestion]) -> dict[str, list[bool]]:
    """Tell by aggregation, "greedy" first, which of the questions are answered right."""
    right = {"greedy": [bool(row["correct"]) for row in rows]}
    for name, aggregation in available(rows).items():
        right[name] = [aggregation.is_right(row["samples"]) for row in rows]
    return right


def within_question_auc(rows: Sequence[AnsweredQuestion]) -> float | None:
    """Return how often the reranker puts a right sample before a wrong one of the same question.

    That is what reranking needs: to know the easy questions does not help it. It is the share of all
    such pairs, ties counting half, so that 0.5 is chance; None if there is no pair.
    """
    ordered, pairs = 0.0, 0
    for row in rows:
        ranked = [sample for sample in row["samples"] if sample["value"] is not None]
        labels = [bool(sample["correct"]) for sample in ranked]
        mine = labels.count(True) * labels.count(False)
        ordered += mine * area_under_curve([sample["rerank"] or 0.0 for sample in ranked], labels)
        pairs += mine
    return ordered / pairs if pairs else None


def accuracy_of(rows: Sequence[AnsweredQuestion], aggregation: Aggregation, k: int) -> float:
    """Return the accuracy with k samples per question, averaged over disjoint bunches of the drawn ones.

    Raises ValueError if fewer than k were drawn.
    """
    shares = []
    for row in rows:
        samples = row["samples"]
        if not 1 <= k <= len(samples):
            raise ValueError(f"k = {k}, but {len(samples)} samples were drawn")
        bunches = [samples[start : start + k] for start in range(0, len(samples) - k + 1, k)]
        shares.append(sum(map(aggregation.is_right, bunches)) / len(bunches))
    return sum(shares) / len(shares)


def curves(rows: Sequence[AnsweredQuestion], k: int) -> dict[str, dict[int, float]]:
    """Return accuracies with ever more of k samples per question, by aggregation; "pass" has pass@k."""
    steps = ladder(k)
    found = {name: {j: accuracy_of(rows, s, j) for j in steps} for name, s in available(rows).items()}
    right = [sum(sample["correct"] for sample in row["samples"]) for row in rows]
    return found | {"pass": {j: sum(pass_at_k(k, c, j) for c in right) / len(rows) for j in steps}}


def saved_curves(summary: Row) -> dict[str, dict[int, float]]:
    """Return the curves of a model's summary as `curves` does: JSON has made texts of the numbers."""
    saved = summary.get("curves", {}) | {"pass": summary.get("pass", {})}
    return {name: {int(k): share for k, share in points.items()} for name, points in saved.items()}


def ladder(k: int) -> list[int]:
    """Return the numbers of samples at which curves are drawn: powers of two, and k itself."""
    return sorted({2**i for i in range(k.bit_length()) if 2**i <= k} | {k})


def _wholly_judged(row: AnsweredQuestion) -> bool:
    return is_judged(row["status"]) and all(is_judged(s["status"]) for s in row.get("samples", ()))


def _as_judged(samples: Sequence[SampledAnswer], weights: Sequence[float]) -> bool:
    # A program cut off or failed has no vote; every other answer votes, right or wrong.
    winner = majority_vote([sample["value"] for sample in samples], weights)
    return next((bool(s["correct"]) for s in samples if s["value"] == winner), False)
