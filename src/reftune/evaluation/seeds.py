"""How sure we are of a method of which a few seeds were trained, not only of the models they became.

Both are drawn: the questions, of which there are many, and the seeds, of which there are few. The mean
over S seeds and n questions varies with both (two-way random effects: Cornfield and Tukey, 1956,
"Average values of mean squares in factorials", Annals of Mathematical Statistics 27):

    variance = questions + seeds
    seeds = variance of the seeds' means / S
    questions = variance of the questions' means / n - W, not below 0
    W = what a seed's mean varies by because its single answers do, which both of them hold

`seeds` has few degrees of freedom, `questions` so many that it counts as known. With the two together
no exact interval exists (the Behrens-Fisher problem). Where all of the variance lies in the seeds,
Student's t is exact, where none does, the normal z. Between them the square of the critical value goes
from the one to the other with the seeds' share of the variance:

    c^2 = z^2 + (t^2 - z^2) (seeds / variance)^1.75

With an exponent of 2 that is Welch's solution to first order in one over the degrees of freedom (Welch,
1947, "The generalization of 'Student's' problem when several different population variances are
involved", Biometrika 34), but two seeds then cover 92.7% at the worst. With 1.75 two seeds cover 93.4 to
97.0%, three 94.5 to 96.0, five 94.9 to 95.4, whatever the share is in truth (normal means, integrated
numerically; `tools/coverage.py` simulates answers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from reftune.evaluation.statistics import (
    Array,
    bootstrap_difference,
    bootstrap_mean,
    sign_flip,
    whole_multiples,
)

Numbers = Array | float  # of one comparison, or of many side by side
Interval = tuple[float, float]

ONE_SEED = "one seed: this model, not this method"
POWER = 1.75
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(60)
TINY = 1e-300  # no p-value is smaller


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds and questions, with what is known of its variance.

    Attributes:
        mean: of all answers; of two parts the sum of their means.
        variance: of the mean, over other seeds and other questions.
        share: part of it that lies in the seeds, 0 to 1.
        df: degrees of freedom of that part, at least 1.
    """

    mean: Numbers
    variance: Numbers
    share: Numbers
    df: Numbers

    def interval(self, confidence: float = 0.95) -> tuple[Numbers, Numbers]:
        """Return the interval that covers the method's true mean, see the module."""
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        t = student_quantile(1 - confidence, self.df)
        half = np.sqrt(self.variance * (z**2 + (t**2 - z**2) * self.share**POWER))
        return self.mean - half, self.mean + half

    def p(self) -> float:
        """Return the two-sided p-value of a true mean of 0: that of the widest interval without it.

        For one comparison, not for many side by side.
        """
        weight, far = float(self.share) ** POWER, float(self.mean**2 / self.variance)
        if not weight:
            return math.erfc(math.sqrt(far / 2))
        low, high = 0.0, math.sqrt(far / weight)  # between them lies t
        for _ in range(60):
            t = (low + high) / 2
            z = NormalDist().inv_cdf(max(float(student_tail(t, self.df)), TINY) / 2)
            low, high = (low, t) if z**2 * (1 - weight) + t**2 * weight > far else (t, high)
        return float(student_tail(high, self.df))


def pooled(parts: Sequence[Array]) -> SeedMean:
    """Return the mean of a sum of parts, and its variance over seeds and questions.

    A part of one seed is taken as it is: a model, not a method.

    Args:
        parts: arrays of shape (..., seeds, questions), the same questions in all. One gives an accuracy,
            or the mean of paired differences; b and -a, with seeds of their own, the difference of two.

    Raises ValueError if there are fewer than two questions.
    """
    n = parts[0].shape[-1]
    if n < 2:
        raise ValueError("an interval over seeds needs at least two questions")
    by_question = np.sum([part.mean(axis=-2) for part in parts], axis=0)
    several = [part for part in parts if part.shape[-2] > 1]
    seeds = [part.mean(axis=-1).var(axis=-1, ddof=1) / part.shape[-2] for part in several]
    questions = by_question.var(axis=-1, ddof=1) / n - sum(map(_noise, several), 0.0)
    of_seeds = sum(seeds, 0.0)
    variance = np.maximum(questions, 0) + of_seeds
    share = np.divide(of_seeds, variance, out=np.zeros_like(variance), where=variance > 0)
    return SeedMean(by_question.mean(axis=-1), variance, share, _freedom(several, seeds))


def of_accuracy(right: Array) -> SeedMean:
    """Return the accuracy of a method, from what each seed answers right.

    Two questions that all answer and two that none does are added, so that 100% is not taken for certain
    (Agresti and Coull, 1998, "Approximate is better than 'exact' for interval estimation of binomial
    proportions", The American Statistician 52).

    Args:
        right: shape (..., seeds, questions): was it right, or how often.
    """
    return pooled([_with(right, 1, 1, 0, 0)])


def of_difference(a: Array, b: Array, *, paired: bool) -> SeedMean:
    """Return the difference of two methods, b - a, from what each seed answers right.

    One question that only b answers and one that only a does are added, so that no difference at all is
    not taken for certain (Bonett and Price, 2012, "Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data", Journal of Educational and Behavioral Statistics 37).

    Args:
        a, b: shape (..., seeds, questions), the same questions.
        paired: whether row i of both is the same seed, and shares its data and start.
    """
    if paired:
        return pooled([_with(np.subtract(b, a, dtype=float), 1, -1)])
    return pooled([_with(b, 1, 0), _with(-a.astype(float), 0, -1)])


def accuracy_interval(right: Array) -> Interval:
    """Return the 95% interval of a method's accuracy, from several seeds: (seeds, questions)."""
    low, high = of_accuracy(right).interval()
    return max(0.0, float(low)), min(1.0, float(high))


def compare(a: Array, b: Array, *, paired: bool, resamples: int, seed: int) -> tuple[Interval, float]:
    """Return the 95% interval of b - a, and the p-value that goes with it.

    Of one seed each both speak of these models: a bootstrap over questions, and the exact test.

    Args:
        a, b: shape (seeds, questions).
        paired: as for `of_difference`.
        resamples, seed: of the bootstrap, where there is one.
    """
    if len(a) > 1 or len(b) > 1:
        found = of_difference(a, b, paired=paired)
        low, high = found.interval()
        return (max(-1.0, float(low)), min(1.0, float(high))), found.p()
    gains = b[0].astype(float) - a[0]
    p = sign_flip(whole_multiples(gains))
    if np.isin([a, b], (0, 1)).all():  # as in the run's own report
        before, after = (row[0].astype(bool).tolist() for row in (a, b))
        return bootstrap_difference(before, after, resamples=resamples, seed=seed), p
    return bootstrap_mean(gains, resamples=resamples, seed=seed), p


def student_tail(x: Numbers, df: Numbers) -> Array:
    """Return the chance that Student's t is as far from 0 as x, on either side.

    With t = sqrt(df) sinh(v) its density is cosh(v)^-df, which Gauss's rule integrates from any x on.
    """
    v, freedom = np.asarray(x, dtype=float)[..., None], np.asarray(df, dtype=float)[..., None]
    v = np.arcsinh(v / np.sqrt(freedom))
    steps = (NODES + 1) / 2 * (40 / freedom + 9 / np.sqrt(freedom))  # to where nothing is left
    above, all_of_it = ((NODE_WEIGHTS * np.cosh(u + steps) ** -freedom).sum(axis=-1) for u in (v, 0.0))
    return np.asarray(above / all_of_it)


def student_quantile(tail: float, df: Numbers) -> Array:
    """Return how far from 0 Student's t is with a chance of `tail`; df of 1 or more."""
    low, high = np.zeros_like(df, dtype=float), np.full_like(df, 1 / tail, dtype=float)
    for _ in range(50):
        middle = (low + high) / 2
        further = student_tail(middle, df) > tail
        low, high = np.where(further, middle, low), np.where(further, high, middle)
    return high


def _with(part: Array, *added: int) -> Array:
    """Return a part with questions to which all seeds have the given answers."""
    columns = np.broadcast_to(np.array(added, dtype=float), (*part.shape[:-1], len(added)))
    return np.concatenate([part, columns], axis=-1)


def _noise(part: Array) -> Numbers:
    """Return W of a part: the mean square of its residuals over its number of answers."""
    seeds, n = part.shape[-2:]
    within, shared = part.var(axis=-1, ddof=1).mean(axis=-1), part.mean(axis=-2).var(axis=-1, ddof=1)
    noise: Numbers = (within - shared) / ((seeds - 1) * n)
    return noise


def _freedom(parts: Sequence[Array], variances: Sequence[Numbers]) -> Numbers:
    """Return the degrees of freedom of a sum of variances of seeds' means (Welch, 1947)."""
    if len(parts) < 2:
        return float(parts[0].shape[-2] - 1) if parts else 1.0
    squares = sum(v**2 / (part.shape[-2] + 1) for part, v in zip(parts, variances, strict=True))
    freedom: Numbers = np.maximum(sum(variances, 0.0) ** 2 / np.maximum(squares, TINY) - 2, 1)
    return freedom
