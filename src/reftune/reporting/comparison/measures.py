"""What a comparison says of each model and of each two: accuracies, differences, how sure they are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reftune.config import Evaluation
from reftune.evaluation import statistics
from reftune.evaluation.pairing import ACCURACY, Contender
from reftune.evaluation.statistics import Array
from reftune.reporting.comparison.reported import Number
from reftune.reporting.pages import p_value

ALONE = (ACCURACY, "greedy")  # what a question's answer is without a choice among samples
RESAMPLES = Evaluation().bootstrap  # of what comes from no run


Reported = Callable[[str, str, int], Number | None]  # of a method, an aggregation, and samples


@dataclass(frozen=True)
class Cell:
    """The accuracy of one method, by one aggregation, over the seeds of a group.

    `interval` is Wilson's for one seed, and a bootstrap over seeds and questions for several.
    `lowest` and `highest` are over the seeds.
    """

    group: str
    chains: str  # "natural" or "program"
    method: str
    aggregation: str
    samples: int  # per question
    questions: int
    seeds: int
    accuracy: float
    interval: tuple[float, float]
    lowest: float
    highest: float
    reported: Number | None = None


@dataclass(frozen=True)
class Difference:
    """How much more of the same questions one method answers than another, its base.

    Within a group, or the same method in two groups. `p_holm` is corrected for all differences of the
    comparison.
    """

    group: str
    method: str
    base_group: str
    base_method: str
    aggregation: str
    samples: int
    questions: int
    seeds: int
    base_seeds: int
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float = 1.0
    differing: int = 0  # questions of which the two do not answer equally many samples right

    @property
    def explained(self) -> str:
        """Say, where interval and p-value seem to disagree, why; empty where they do not."""
        low, high = self.interval
        if (low > 0 or high < 0) and self.p >= 0.05:
            return (
                f"The interval leaves 0 out, but the exact test does not reach 5%: the two differ on"
                f" {self.differing} questions only, for which a bootstrap is too sure. Take it as"
                " unclear."
            )
        if (low > 0 or high < 0) and self.p_holm >= 0.05:
            return (
                f"The interval leaves 0 out, but it is for this difference alone ({p_value(self.p)});"
                f" corrected for all comparisons here it is {p_value(self.p_holm)}. Take it as unclear."
            )
        if low <= 0 <= high and self.p_holm < 0.05 and max(self.seeds, self.base_seeds) > 1:
            return (
                "The test says that these trained models differ; the interval also counts how far seeds"
                " differ, and holds 0: with other seeds it may be otherwise."
            )
        if low <= 0 <= high and self.p_holm < 0.05:
            return (
                "The exact test reaches 5%, and the bootstrap interval just holds 0: it is a close call."
                " Take it as unclear."
            )
        return ""

    @property
    def clear(self) -> bool:
        """Tell whether both say that the two differ: the corrected p-value, and the interval."""
        low, high = self.interval
        return self.p_holm < 0.05 and (low > 0 or high < 0)


@dataclass(frozen=True)
class Resampling:
    """How often a bootstrap resamples, and with which random numbers."""

    resamples: int = RESAMPLES
    seed: int = 0


def accuracies_of(
    one: Contender, chains: str, samples: int, how: Resampling, reported: Reported | None = None
) -> Iterator[Cell]:
    """Yield the accuracy of a contender by each of its aggregations.

    Args:
        one: the contender.
        chains: kind of its chains, empty where that is unknown.
        samples: per question, behind the aggregations that choose among samples.
        how: to resample.
        reported: finds what others report.
    """
    for aggregation, right in one.right.items():
        by_seed = right.mean(axis=1)
        k = 1 if aggregation in ALONE else samples
        yield Cell(
            group=one.group, chains=chains, method=one.label, aggregation=aggregation,
            samples=k, questions=right.shape[1], seeds=len(right), accuracy=float(by_seed.mean()),
            interval=_accuracy_interval(right, how), lowest=float(by_seed.min()),
            highest=float(by_seed.max()),
            reported=reported(one.label, aggregation, k) if reported else None,
        )  # fmt: skip


def differences_between(
    base: Contender, one: Contender, samples: int, how: Resampling
) -> Iterator[Difference]:
    """Yield how much better a contender is than its base, by the aggregations that both have."""
    for aggregation in [name for name in base.right if name in one.right]:
        a, b = base.right[aggregation], one.right[aggregation]
        sums = len(a) * b.sum(axis=0) - len(b) * a.sum(axis=0)  # mean differences, whole if a, b are
        flips = statistics.whole_multiples(sums)
        yield Difference(
            group=one.group, method=one.label, base_group=base.group, base_method=base.label,
            aggregation=aggregation, samples=1 if aggregation in ALONE else samples,
            questions=a.shape[1], seeds=len(b), base_seeds=len(a), p=statistics.sign_flip(flips),
            differing=int(np.count_nonzero(flips)), difference=float(b.mean() - a.mean()),
            interval=_difference_interval(a, b, base.seeds == one.seeds, how),
        )  # fmt: skip


def _accuracy_interval(right: Array, how: Resampling) -> tuple[float, float]:
    if len(right) == 1:
        return statistics.wilson_interval(float(right.sum()), right.shape[1])
    return statistics.bootstrap_means([right], resamples=how.resamples, seed=how.seed)


def _difference_interval(a: Array, b: Array, paired: bool, how: Resampling) -> tuple[float, float]:
    given = {"resamples": how.resamples, "seed": how.seed}
    if len(a) == len(b) == 1 and np.isin([a, b], (0, 1)).all():  # as in the run's own report
        return statistics.bootstrap_difference(
            a[0].astype(bool).tolist(), b[0].astype(bool).tolist(), **given
        )
    signed = [b.astype(float) - a] if paired or len(a) == len(b) == 1 else [b, -a.astype(float)]
    return statistics.bootstrap_means(signed, **given)


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Return differences with their p-values corrected for the number of all of them."""
    p_values = statistics.holm([found.p for found in differences])
    return [replace(d, p_holm=p) for d, p in zip(differences, p_values, strict=True)]
