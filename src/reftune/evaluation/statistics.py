"""How sure we are of an accuracy, and of the difference between two models on the same questions."""

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import NormalDist
from typing import Any

import numpy as np

from reftune.grading.answers import same_answer
from reftune.problem import Answer

Array = np.ndarray[Any, np.dtype[Any]]


def wilson_interval(correct: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of an accuracy of `correct` out of `n` (Wilson, 1927).

    Without questions nothing is known: n = 0 gives (0, 1). Where several answers to a question count as
    their mean, `correct` is the sum of the means, and the interval is too wide rather than too narrow: a
    mean varies less than a coin. Raises ValueError unless 0 <= correct <= n.
    """
    _check_count(correct, n)
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (correct + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(correct * (n - correct) / n + z**2 / 4)
    return (middle - half if correct else 0.0), (middle + half if correct < n else 1.0)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return the exact two-sided McNemar p-value of two models judged on the same questions.

    Only questions that exactly one model answers count: under the null hypothesis each is a fair coin
    (McNemar, 1947). No such question gives 1. Raises ValueError if the lengths differ.
    """
    return sign_flip([int(y) - int(x) for x, y in zip(a, b, strict=True)])


def bootstrap_difference(
    a: Sequence[bool], b: Sequence[bool], *, resamples: int, seed: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of accuracy(b) - accuracy(a) over the same questions.

    Questions are resampled in pairs (Efron, 1979). Raises ValueError if there are no questions or the
    lengths differ.
    """
    pairs = list(zip(a, b, strict=True))
    n, gains, losses = len(pairs), pairs.count((False, True)), pairs.count((True, False))
    if n == 0:
        raise ValueError("a difference needs at least one question")
    # Drawing n pairs with replacement is one multinomial draw of how many gains, losses and ties come
    # up: the same distribution, with three numbers per resample instead of n.
    shares = np.array([gains, losses, n - gains - losses]) / n
    draws = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    differences = (draws[:, 0] - draws[:, 1]) / n
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_mean(
    values: Array, *, resamples: int, seed: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean over questions (Efron, 1979).

    Raises ValueError if there are no questions.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one question")
    # As above: questions with the same value are one category of a multinomial draw.
    values, counts = np.unique(values, return_counts=True)
    means = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples) @ values / n
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def sign_flip(differences: Sequence[int]) -> float:
    """Return the exact two-sided p-value of a sum of paired differences by flipping their signs.

    Under the null hypothesis the two sides of a pair could be exchanged: each difference has either sign
    with probability 1/2 (Fisher, 1935). The distribution of the sum follows from that without sampling:
    differences of one size are a binomial number of pluses. Differences of 0 and 1 alone give McNemar's
    exact test.
    """
    values = np.asarray(differences, dtype=int)
    values = values // max(1, np.gcd.reduce(values))
    chances = np.ones(1)  # of the sums -reach, ..., reach; those of the wrong parity have none
    for size, count in zip(*np.unique(np.abs(values[values != 0]), return_counts=True), strict=True):
        flips = np.zeros(2 * size * count + 1)
        flips[:: 2 * size] = coin_flips(int(count))
        chances = np.convolve(chances, flips)
    reach = len(chances) // 2
    as_far = np.abs(np.arange(-reach, reach + 1)) >= abs(values.sum())
    return min(1.0, float(chances[as_far].sum()))


def whole_multiples(values: Array, most: int = 60) -> list[int]:
    """Return values times the least number that makes them whole; where that is beyond `most`, round.

    Rounding treats both signs alike, so that `sign_flip` of what comes out is still exact.
    """
    found = (m for m in range(1, most) if np.allclose(values * m, np.rint(values * m), 0, 1e-6))
    return [int(value) for value in np.rint(values * next(found, most))]


def coin_flips(n: int) -> list[float]:
    """Return the chances of 0, 1, ..., n heads among n flips of a fair coin.

    Counted in whole numbers, so that no n is too large and no tail too thin.
    """
    ways = accumulate(range(n), lambda ways, heads: ways * (n - heads) // (heads + 1), initial=1)
    all_ways = 2**n
    return [count / all_ways for count in ways]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in their order (Holm, 1979).

    Calling all of those below 5% significant is wrong anywhere with a chance of at most 5%.
    """
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, (len(p_values) - rank) * p_values[i])
        corrected[i] = min(1.0, highest)
    return corrected


def majority_vote(
    answers: Sequence[Answer | None], weights: Sequence[float] | None = None
) -> Answer | None:
    """Return the answer with the most votes, each of its weight (1); of equals, the one seen first.

    None (nothing could be extracted) and NaN have no vote. An answer joins the first seen that is the
    `same_answer`; that one stands for the group.
    """
    votes: dict[Answer, float] = {}
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        if answer is None or answer != answer:
            continue
        if answer not in votes:  # else it stands for a group already, and no earlier one is the same
            answer = next((other for other in votes if same_answer(answer, other)), answer)
        votes[answer] = votes.get(answer, 0.0) + weight
    return max(votes, key=votes.__getitem__, default=None)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of P(at least one of k samples is right), from n samples.

    1 - C(n - correct, k) / C(n, k), equation 1 of Chen et al. (2021), "Evaluating Large Language Models
    Trained on Code". Raises ValueError unless 1 <= k <= n and 0 <= correct <= n.
    """
    _check_count(correct, n)
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n, and there are n = {n} samples")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def area_under_curve(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Return the chance that a positive scores above a negative, ties counting half (ROC AUC).

    It is the Mann-Whitney statistic over the number of pairs (Hanley and McNeil, 1982). Without both
    kinds nothing is known: 0.5.
    """
    positives = sum(labels)
    negatives = len(labels) - positives
    if not positives * negatives:
        return 0.5
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # of equal scores the mean of theirs
    above = sum(rank for rank, label in zip(ranks[places], labels, strict=True) if label)
    return float((above - positives * (positives + 1) / 2) / (positives * negatives))


def _check_count(correct: float, n: int) -> None:
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} cannot be correct")
