"""Print docs/comparing.md's table: how often 95% intervals over seeds and questions hold the truth.

    python tools/coverage.py [--trials 1000] [--questions 500] [--seeds 1 2 3 5]

Every trial trains a method again: the logit of a right answer is that of the method plus what the
question, the question with this method and the seed add, each normal. Questions scatter by 2 and,
within a method, by 1; seeds by `sd`, and where two methods share their seeds (same data, same warm-up)
by as much again in both. Old: a percentile bootstrap over seeds and questions (Owen, 2007, "The
pigeonhole bootstrap", Annals of Applied Statistics 1), for which the questions' part is drawn as normal,
and the sign-flip test over questions, by its normal approximation. New: `reftune.evaluation.seeds`. One
seed: Wilson's interval, and the old ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reftune.evaluation.seeds import SeedMean, of_accuracy, of_difference
from reftune.evaluation.statistics import Array, wilson_interval

SDS = (0.0, 0.1, 0.2, 0.3)
QUESTION, METHOD_QUESTION = 2.0, 1.0  # how far questions scatter, for all methods and for one
RESAMPLES = 400
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


@dataclass(frozen=True)
class Case:
    """What is measured: an accuracy, or a difference of two, whose seeds are shared or not."""

    name: str
    accuracies: tuple[float, ...]
    paired: bool = False

    @property
    def truth(self) -> float:
        """Return what an interval is to hold."""
        return self.accuracies[-1] - sum(self.accuracies[:-1])


CASES = [
    *(Case(f"accuracy, {100 * share:g}%", (share,)) for share in (0.2, 0.5, 0.9)),
    Case("difference 0 at 50%, same seeds", (0.5, 0.5), paired=True),
    Case("difference 0 at 50%, other seeds", (0.5, 0.5)),
    Case("difference 80 to 90%, same seeds", (0.8, 0.9), paired=True),
]


def draw(
    rng: np.random.Generator, case: Case, trials: int, seeds: int, n: int, sd: float
) -> list[Array]:
    """Return what each method answers right: (trials, seeds, questions)."""
    questions = rng.normal(0, QUESTION, (trials, 1, n))
    shared = rng.normal(0, sd, (trials, seeds, 1)) * case.paired
    spread = np.sqrt(QUESTION**2 + METHOD_QUESTION**2 + sd**2 * (1 + case.paired))
    found = []
    for accuracy in case.accuracies:
        logits = logit_of(accuracy, spread) + questions + shared
        logits = logits + rng.normal(0, METHOD_QUESTION, (trials, 1, n))
        logits = logits + rng.normal(0, sd, (trials, seeds, 1))
        found.append((rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float))
    return found


def logit_of(accuracy: float, spread: float) -> float:
    """Return the logit around which logits scatter so that `accuracy` is the mean over all of them."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = (WEIGHTS / (1 + np.exp(-middle - spread * NODES))).sum() / WEIGHTS.sum()
        low, high = (middle, high) if mean < accuracy else (low, middle)
    return low


def new_mean(case: Case, right: Sequence[Array]) -> SeedMean:
    """Return the method's mean, or the difference of two methods."""
    return of_difference(*right, paired=case.paired) if len(right) > 1 else of_accuracy(right[0])


def old_interval(rng: np.random.Generator, case: Case, right: Sequence[Array]) -> tuple[Array, Array]:
    """Return the bootstrap's interval of every trial; of the accuracy of one seed Wilson's."""
    if len(right) == 1 and right[0].shape[1] == 1:
        rows = right[0][:, 0]
        bounds = np.array([wilson_interval(float(row.sum()), len(row)) for row in rows])
        return bounds[:, 0], bounds[:, 1]
    parts = [right[1] - right[0]] if case.paired else [right[-1], *(-part for part in right[:-1])]
    rows = np.concatenate(parts, axis=1)
    means = rows.mean(axis=2, keepdims=True)
    rest = rows - means
    covariance = rest @ rest.swapaxes(1, 2) / rows.shape[2] ** 2
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(rows.shape[1]))
    normal = rng.normal(size=(len(rows), RESAMPLES, rows.shape[1]))
    drawn = means[:, None, :, 0] + normal @ root.swapaxes(1, 2)
    counts = [rng.multinomial(s, np.full(s, 1 / s), size=drawn.shape[:2]) / s
              for s in (part.shape[1] for part in parts)]  # fmt: skip
    low, high = np.quantile((drawn * np.concatenate(counts, axis=2)).sum(axis=2), [0.025, 0.975], axis=1)
    return low, high


def old_rejects(right: Sequence[Array]) -> float:
    """Return how often the sign-flip test over questions says 5% or less."""
    differences = right[1].mean(axis=1) - right[0].mean(axis=1)
    return float((np.abs(differences.sum(axis=1)) > 1.96 * np.sqrt((differences**2).sum(axis=1))).mean())


def measure(
    case: Case, seeds: int, sd: float, trials: int, n: int, rng: np.random.Generator
) -> list[float]:
    """Return coverage and mean width, old and new, and how often the old test rejects a 0."""
    right = draw(rng, case, trials, seeds, n, sd)
    old = old_interval(rng, case, right)
    new = old if seeds == 1 else new_mean(case, right).interval()
    covered = [float(((low <= case.truth) & (case.truth <= high)).mean()) for low, high in (old, new)]
    widths = [float(np.mean(high - low)) for low, high in (old, new)]
    return [*covered, *widths, old_rejects(right) if case.truth == 0 else math.nan]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per case and number of seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 5])
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    print(f"| | seeds | {' | '.join(f'sd {sd:g}' for sd in SDS)} | width at sd 0.2, points |")
    print(f"|---|---:|{'---:|' * (len(SDS) + 1)}")
    tests = []
    for case in CASES:
        for seeds in options.seeds:
            found = [measure(case, seeds, sd, options.trials, options.questions, rng) for sd in SDS]
            cells = [f"{100 * old:.1f} / {100 * new:.1f}" for old, new, *_ in found]
            width = f"{100 * found[2][2]:.1f} / {100 * found[2][3]:.1f}"
            print(f"| {case.name} | {seeds} | {' | '.join(cells)} | {width} |", flush=True)
            if case.truth == 0:
                shares = [f"{100 * row[4]:.1f} / {100 * (row[4] if seeds == 1 else 1 - row[1]):.1f}"
                          for row in found]  # fmt: skip
                tests.append(f"| p < 5%, {case.name} | {seeds} | {' | '.join(shares)} | |")
    print("\n".join(tests))


if __name__ == "__main__":
    main()
