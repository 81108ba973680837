"""What a comparison says of each model and of each two: accuracies, differences, how sure they are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reftune.config import Evaluation
from reftune.evaluation import seeds, statistics
from reftune.evaluation.pairing import ACCURACY, Contender
from reftune.evaluation.seeds import ONE_SEED
from reftune.evaluation.statistics import Array
from reftune.methods import label_of
from reftune.reporting.comparison.reported import Number
from reftune.reporting.pages import p_value

ALONE = (ACCURACY, "greedy")  # what a question's answer is without a choice among samples
RESAMPLES = Evaluation().bootstrap  # of what comes from no run


Reported = Callable[[str, str, int], Number | None]  # of a method, an aggregation, and samples


@dataclass(frozen=True)
class Cell:
    """The accuracy of one method, by one aggregation, over the seeds of a group.

    `interval` is Wilson's for one seed, of this model; for several, of the method, see
    `evaluation/seeds.py`. `lowest` and `highest` are over the seeds.
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

    @property
    def scope(self) -> str:
        """Say of what it speaks where that is not the method."""
        return ONE_SEED if self.seeds == 1 else ""


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
        leaves_out = low > 0 or high < 0
        if leaves_out and self.p >= 0.05:  # one seed: of several both say the same
            return (
                f"The interval leaves 0 out, but the exact test does not reach 5%: the two differ on"
                f" {self.differing} questions only, for which a bootstrap is too sure. Take it as"
                " unclear."
            )
        if leaves_out and self.p_holm >= 0.05:
            return (
                f"The interval leaves 0 out, but it is for this difference alone ({p_value(self.p)});"
                f" corrected for all comparisons here it is {p_value(self.p_holm)}. Take it as unclear."
            )
        if not leaves_out and self.p_holm < 0.05:
            return (
                "The exact test reaches 5%, and the bootstrap interval just holds 0: it is a close call."
                " Take it as unclear."
            )
        return ""

    @property
    def scope(self) -> str:
        """Say of what it speaks where that is not two methods."""
        if self.seeds == self.base_seeds == 1:
            return ONE_SEED
        sides = (
            (self.base_method, self.base_group, self.base_seeds),
            (self.method, self.group, self.seeds),
        )
        for method, group, seeds_of_it in sides:
            if seeds_of_it == 1:
                named = (
                    f"{label_of(method)} ({group})"
                    if self.group != self.base_group
                    else label_of(method)
                )
                return ONE_SEED.replace("one seed", f"one seed of {named}")
        return ""

    @property
    def clear(self) -> bool:
        """Tell whether both say that the two differ: the corrected p-value, and the interval."""
        low, high = self.interval
        return self.p_holm < 0.05 and (low > 0 or high < 0)


@dataclass(frozen=True)
class Resampling:
    """How often the bootstrap of one seed resamples, and with which random numbers."""

    resamples: int = RESAMPLES
    seed: int = 0


def accuracies_of(
    one: Contender, chains: str, samples: int, reported: Reported | None = None
) -> Iterator[Cell]:
    """Yield the accuracy of a contender by each of its aggregations.

    Args:
        one: the contender.
        chains: kind of its chains, empty where that is unknown.
        samples: per question, behind the aggregations that choose among samples.
        reported: finds what others report.
    """
    for aggregation, right in one.right.items():
        by_seed = right.mean(axis=1)
        k = 1 if aggregation in ALONE else samples
        yield Cell(
            group=one.group, chains=chains, method=one.label, aggregation=aggregation,
            samples=k, questions=right.shape[1], seeds=len(right), accuracy=float(by_seed.mean()),
            interval=_accuracy_interval(right), lowest=float(by_seed.min()),
            highest=float(by_seed.max()),
            reported=reported(one.label, aggregation, k) if reported else None,
        )  # fmt: skip


def differences_between(
    base: Contender, one: Contender, samples: int, how: Resampling
) -> Iterator[Difference]:
    """Yield how much better a contender is than its base, by the aggregations that both have."""
    for aggregation in [name for name in base.right if name in one.right]:
        a, b = base.right[aggregation], one.right[aggregation]
        given = {"resamples": how.resamples, "seed": how.seed}
        interval, p = seeds.compare(a, b, paired=base.seeds == one.seeds, **given)
        yield Difference(
            group=one.group, method=one.label, base_group=base.group, base_method=base.label,
            aggregation=aggregation, samples=1 if aggregation in ALONE else samples,
            questions=a.shape[1], seeds=len(b), base_seeds=len(a), p=p, interval=interval,
            differing=int(np.count_nonzero(a.mean(axis=0) != b.mean(axis=0))),
            difference=float(b.mean() - a.mean()),
        )  # fmt: skip


def _accuracy_interval(right: Array) -> tuple[float, float]:
    if len(right) == 1:
        return statistics.wilson_interval(float(right.sum()), right.shape[1])
    return seeds.accuracy_interval(right)


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Return differences with their p-values corrected for the number of all of them."""
    p_values = statistics.holm([found.p for found in differences])
    return [replace(d, p_holm=p) for d, p in zip(differences, p_values, strict=True)]
