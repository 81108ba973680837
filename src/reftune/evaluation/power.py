"""How many questions show a difference between two models, and which difference so many show.

A comparison of two models on the same questions hangs on those that exactly one of them answers. Of n
questions these are a binomial number, and the better model wins each with the same chance; McNemar's
exact test then sees a difference or does not. The chance that it does, its power, is summed up here.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from reftune.evaluation.statistics import Array
from reftune.problem import UserError

LEVEL = 0.05
MOST_EXACT = 20_000  # questions; beyond, the normal approximation is within a percent


@dataclass(frozen=True)
class Pair:
    """Two models: how often the weaker one is right, by how much the other is better, and on what share
    of the questions exactly one of them is right.
    """

    accuracy: float
    difference: float
    disagreement: float

    @property
    def wins(self) -> float:
        """Return the better one's share of the questions on which they disagree."""
        return (self.disagreement + self.difference) / (2 * self.disagreement)


def independent(accuracy: float, difference: float) -> float:
    """Return how often two models disagree whose answers have nothing to do with each other."""
    better = accuracy + difference
    return accuracy * (1 - better) + better * (1 - accuracy)


def largest_disagreement(accuracy: float, difference: float) -> float:
    """Return how often exactly one of two models can be right: the better one alone, and the other."""
    return 2 * min(accuracy + difference, 1 - accuracy) - difference


def make_pair(accuracy: float, difference: float, disagreement: float | None = None) -> Pair:
    """Return two models; by default they disagree as if they had nothing to do with each other.

    Raises UserError for shares that no two models have.
    """
    better = accuracy + difference
    if difference <= 0 or accuracy < 0 or better > 1 + 1e-9:
        raise UserError(
            f"--accuracy {100 * accuracy:g} --difference {100 * difference:g}: give a difference above"
            " 0, and an accuracy that together with it is 100 at most"
        )
    disagreement = independent(accuracy, difference) if disagreement is None else disagreement
    most = largest_disagreement(accuracy, difference)
    if not difference - 1e-9 <= disagreement <= most + 1e-9:
        raise UserError(
            f"--disagreement {100 * disagreement:g}: of two models that answer {100 * accuracy:g}% and"
            f" {100 * better:g}%, exactly one is right on {100 * difference:g} to {100 * most:g} percent"
            " of the questions"
        )
    return Pair(accuracy, difference, disagreement)


def mcnemar_power(pair: Pair, questions: int, level: float = LEVEL) -> float:
    """Return the chance that McNemar's exact test on so many questions sees the difference."""
    chances = _binomial(questions, pair.disagreement)
    counts = np.flatnonzero(chances > 1e-10)  # the rest is not worth its time
    seen = [_seen(int(count), pair.wins, level) for count in counts]
    return float(chances[counts] @ np.array(seen))


def questions_for(pair: Pair, power: float, level: float = LEVEL) -> int:
    """Return how many questions show the difference with a chance of `power`.

    Beyond MOST_EXACT it is the formula of Connor (1987), "Sample size for testing differences in
    proportions for the paired-sample design", Biometrics 43.
    """
    wanted, z = NormalDist().inv_cdf(power), NormalDist().inv_cdf(1 - level / 2)
    spread = pair.disagreement - pair.difference**2
    guess = (z * pair.disagreement**0.5 + wanted * max(0.0, spread) ** 0.5) ** 2 / pair.difference**2
    if guess > MOST_EXACT:
        return int(np.ceil(guess))
    low, high = 0, int(2 * guess) + 50  # so many are too few, and enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mcnemar_power(pair, middle, level) >= power else (middle, high)
    return high


def difference_for(
    questions: int,
    accuracy: float,
    power: float,
    disagreement: float | None = None,
    level: float = LEVEL,
) -> float | None:
    """Return the smallest difference that so many questions show with a chance of `power`.

    None where no difference is large enough for them.
    """
    low, high = 0.0, 1 - accuracy if disagreement is None else min(1 - accuracy, disagreement)

    def enough(difference: float) -> bool:
        most = largest_disagreement(accuracy, difference)
        pair = make_pair(accuracy, difference, None if disagreement is None else min(disagreement, most))
        if questions > MOST_EXACT:
            return questions_for(pair, power, level) <= questions
        return mcnemar_power(pair, questions, level) >= power

    if not enough(high):
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _seen(count: int, wins: float, level: float) -> float:
    """Return the chance that the test sees a difference of models that disagree on `count` questions."""
    tail = np.cumsum(_binomial(count, 0.5))
    lost = int(np.searchsorted(tail, level / 2, side="right"))  # fewer losses than this are significant
    chances = _binomial(count, wins)
    return float(chances[:lost].sum() + chances[count + 1 - lost :].sum())


def _binomial(n: int, p: float) -> Array:
    """Return the chances of 0 to n successes."""
    p = min(max(p, 1e-12), 1 - 1e-12)
    k = np.arange(n + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    ways = logs[n] - logs[k] - logs[n - k]
    chances: Array = np.exp(ways + k * np.log(p) + (n - k) * np.log1p(-p))
    return chances
