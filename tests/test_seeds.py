"""What a few seeds tell of a method: variances by hand, t by scipy, coverage by simulation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from reftune.evaluation.seeds import (
    SeedMean,
    accuracy_interval,
    compare,
    of_accuracy,
    of_difference,
    pooled,
    student_quantile,
    student_tail,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import coverage

TWO = np.array([[1, 1, 1, 0], [1, 0, 1, 0]], dtype=float)
RNG = np.random.default_rng(7)
SEEDS = (RNG.random((3, 400)) < np.array([[0.55], [0.6], [0.65]])).astype(float)


def test_the_variance_of_two_seeds_by_hand() -> None:
    # An analysis of variance with the mean squares 1/8 (seeds), 11/24 (questions) and 1/8 (residual):
    # (1/8 + 11/24 - 1/8) / 8 in all, of which (1/8) / 8 lies in the seeds.
    found = pooled([TWO])
    assert (found.mean, found.df) == (5 / 8, 1)
    assert found.variance == pytest.approx(11 / 24 / 8)
    assert found.share == pytest.approx(3 / 11)
    z, t = stats.norm.ppf(0.975), stats.t.ppf(0.975, 1)
    half = np.sqrt(11 / 192 * (z**2 + (t**2 - z**2) * (3 / 11) ** 1.75))
    assert found.interval() == pytest.approx((5 / 8 - half, 5 / 8 + half))


@pytest.mark.parametrize("df", [1.0, 1.3, 2.0, 4.0, 9.5, 99.0, 5000.0])
def test_students_t_is_scipys(df: float) -> None:
    x = np.array([0.0, 0.1, 1.0, 2.0, 5.0, 12.7])
    assert student_tail(x, df) == pytest.approx(2 * stats.t.sf(x, df), rel=1e-9)
    for tail in (0.05, 0.2):
        assert student_quantile(tail, df) == pytest.approx(stats.t.isf(tail / 2, df), rel=1e-9)


@pytest.mark.parametrize("df", [1.0, 2.0, 7.0])
def test_where_all_or_nothing_lies_in_the_seeds_it_is_students_test_or_the_normal_one(df: float) -> None:
    for x in (0.5, 3.0, 20.0):
        assert SeedMean(x, 1.0, 1.0, df).p() == pytest.approx(2 * stats.t.sf(x, df), rel=1e-6)
        assert SeedMean(-x, 1.0, 0.0, df).p() == pytest.approx(2 * stats.norm.sf(x), rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("df", [1.0, 2.0, 4.7])
def test_the_p_value_is_that_of_the_interval(share: float, df: float) -> None:
    for confidence in (0.95, 0.5, 0.999):
        _, half = SeedMean(0.0, 0.3, share, df).interval(confidence)
        assert SeedMean(float(half), 0.3, share, df).p() == pytest.approx(1 - confidence, rel=1e-6)


def test_a_seed_thrice_knows_no_more_than_once() -> None:
    found = of_accuracy(np.repeat(SEEDS[:1], 3, axis=0))
    assert found.share == 0
    p = (SEEDS[0].sum() + 2) / 404
    half = stats.norm.ppf(0.975) * np.sqrt(p * (1 - p) / 403)
    assert found.interval() == pytest.approx((p - half, p + half))


def test_seeds_that_move_apart_widen_the_interval() -> None:
    far = SEEDS.copy()
    far[0, :200], far[2, :200] = 0, 1  # about the same mean
    (low, high), (wide_low, wide_high) = accuracy_interval(SEEDS), accuracy_interval(far)
    assert low < SEEDS.mean() < high
    assert wide_high - wide_low > 2 * (high - low)


def test_seeds_that_belong_together_make_the_interval_narrower() -> None:
    better = np.maximum(SEEDS, RNG.random(SEEDS.shape) < 0.1)  # each seed gains about as much
    together, p = compare(SEEDS, better, paired=True, resamples=0, seed=0)
    apart, p_apart = compare(SEEDS, better, paired=False, resamples=0, seed=0)
    assert together[1] - together[0] < apart[1] - apart[0]
    assert apart[0] < better.mean() - SEEDS.mean() < apart[1]
    assert p < p_apart


def test_of_two_methods_both_scatters_count() -> None:
    # Twice the same seeds on different sides: as many degrees of freedom as Welch gives equal variances,
    # (1 + 1)^2 / (1/3 + 1/3) - 2.
    found = pooled([TWO, -TWO[::-1]])
    assert found.mean == 0
    assert found.df == pytest.approx(4)
    # The questions' means differ nowhere, less than chance alone gives: what is left is 2 x (1/8) / 8.
    assert found.variance == pytest.approx(2 / 64)
    assert found.share == 1


def test_a_side_of_one_seed_is_a_model() -> None:
    once, thrice = of_difference(SEEDS[:1], SEEDS, paired=False), np.repeat(SEEDS[:1], 3, axis=0)
    beside = of_difference(thrice, SEEDS, paired=True)
    for name in ("mean", "variance", "share", "df"):
        assert getattr(once, name) == pytest.approx(getattr(beside, name))


def test_nothing_is_certain() -> None:
    right = np.ones((3, 50))
    low, high = accuracy_interval(right)
    assert 0.85 < low < 0.95
    assert high == 1
    (low, high), p = compare(right, right, paired=True, resamples=0, seed=0)
    assert low == pytest.approx(-high)
    assert 0.03 < high < 0.08
    assert p == 1
    (low, high), p = compare(0 * right, right, paired=True, resamples=0, seed=0)
    assert 0 < p < 1e-10
    assert 0.8 < low < high == 1


def test_an_interval_needs_questions() -> None:
    with pytest.raises(ValueError, match=r"^an interval over seeds needs at least two questions$"):
        pooled([np.zeros((2, 1))])


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("case", coverage.CASES[1:5], ids=lambda case: case.name)
def test_95_percent_intervals_hold_the_truth_about_as_often(case: coverage.Case, seeds: int) -> None:
    """Within 95 +- 2%, and three standard errors of 1,000 trials."""
    rng, trials = np.random.default_rng(3), 1000
    for sd in (0.0, 0.25):
        right = coverage.draw(rng, case, trials, seeds, 150, sd)
        low, high = coverage.new_mean(case, right).interval()
        covered = ((low <= case.truth) & (case.truth <= high)).mean()
        assert abs(covered - 0.95) < 0.02 + 3 * np.sqrt(0.95 * 0.05 / trials)


def test_the_table_has_a_row_per_case_and_number_of_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    coverage.main(["--trials", "40", "--questions", "60", "--seeds", "1", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(coverage.CASES) + 2 * 2
    assert lines[2].startswith("| accuracy, 20% | 1 | ")
    (cell,) = {cell.strip() for cell in lines[2].split("|")[3:4]}
    old, new = cell.split(" / ")
    assert old == new  # one seed: there is nothing else
