from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from reftune.evaluation.statistics import (
    area_under_curve,
    bootstrap_difference,
    bootstrap_mean,
    coin_flips,
    holm,
    majority_vote,
    mcnemar,
    pass_at_k,
    sign_flip,
    wilson_interval,
)


def paired(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_agrees_with_published_values(
    correct: int, n: int, low: float, high: float
) -> None:
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_all_correct_mirrors_that_of_none() -> None:
    # With p = 1 the lower limit is n / (n + z^2): 20 / (20 + 3.8415) = 0.83887.
    assert wilson_interval(20, 20) == pytest.approx((0.83887, 1.0), abs=1e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 1 - 0.83887), abs=1e-5)


def test_wilson_interval_widens_with_confidence() -> None:
    # p = 1/2: half-width is z / (2 sqrt(n + z^2)); z(99%) = 2.575829
    half = 2.575829 / (2 * math.sqrt(100 + 2.575829**2))
    assert wilson_interval(50, 100, confidence=0.99) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


@pytest.mark.parametrize(
    ("correct", "n"), [(0, 1), (1, 1), (3, 7), (0, 1319), (712, 1000), (1319, 1319)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_interval_agrees_with_scipy(correct: int, n: int, confidence: float) -> None:
    expected = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    found = wilson_interval(correct, n, confidence)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-12, abs=0)


def test_wilson_interval_never_leaves_the_shares_there_are() -> None:
    for n in range(1, 300):
        assert wilson_interval(0, n)[0] == 0.0
        assert wilson_interval(n, n)[1] == 1.0  # exactly: rounding would go beyond


def test_wilson_interval_without_questions_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("correct", "n"), [(3, 2), (-1, 2), (0, -1)])
def test_wilson_interval_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="cannot be correct"):
        wilson_interval(correct, n)


def test_mcnemar_by_hand() -> None:
    # One loss against five gains: 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64; the concordant pairs are silent.
    assert mcnemar(*paired(both=40, only_a=1, only_b=5, neither=7)) == pytest.approx(14 / 64)
    assert mcnemar(*paired(both=0, only_a=5, only_b=1, neither=0)) == pytest.approx(14 / 64)


@pytest.mark.parametrize(("losses", "gains"), [(0, 1), (3, 3), (2, 11), (40, 171)])
def test_mcnemar_is_the_exact_binomial_tail(losses: int, gains: int) -> None:
    n = losses + gains
    tail = Fraction(sum(math.comb(n, i) for i in range(min(losses, gains) + 1)), 2**n)
    expected = float(min(Fraction(1), 2 * tail))
    assert mcnemar(*paired(10, losses, gains, 10)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64, 1319, 5000])
def test_flips_of_a_fair_coin_agree_with_scipy(n: int) -> None:
    expected = stats.binom.pmf(np.arange(n + 1), n, 0.5)
    likely = expected > 1e-300  # scipy's thin tails are not exact
    found = np.array(coin_flips(n))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[likely], expected[likely], rtol=1e-10)


def test_mcnemar_of_thousands_agrees_with_scipy() -> None:
    expected = stats.binomtest(2600, 5000).pvalue
    assert mcnemar(*paired(100, 2400, 2600, 100)) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_without_discordant_pairs_is_one() -> None:
    assert mcnemar([], []) == 1.0
    assert mcnemar([True, False], [True, False]) == 1.0


def test_mcnemar_refuses_different_lengths() -> None:
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, False], [True])


def test_bootstrap_difference_agrees_with_scipy() -> None:
    a, b = paired(both=120, only_a=20, only_b=46, neither=64)
    differences = np.array(b, float) - np.array(a, float)
    reference = stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, batch=1000, method="percentile", rng=1
    ).confidence_interval
    low, high = bootstrap_difference(a, b, resamples=20_000, seed=0)
    # One question is 0.004 here; two bootstraps may differ by that.
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.0041)
    assert low < 26 / 250 < high


def test_bootstrap_difference_keeps_the_pairs_together() -> None:
    # Equal accuracies: identical answers leave no doubt, opposite answers leave much.
    half = [True] * 50 + [False] * 50
    assert bootstrap_difference(half, half, resamples=1000, seed=0) == (0.0, 0.0)
    low, high = bootstrap_difference(half, half[::-1], resamples=10_000, seed=0)
    # differences of +-1 have a standard error of 0.1
    assert (low, high) == pytest.approx((-0.196, 0.196), abs=0.021)


def test_bootstrap_difference_sign_edges_and_seed() -> None:
    assert bootstrap_difference([False] * 9, [True] * 9, resamples=100, seed=0) == (1.0, 1.0)
    assert bootstrap_difference([True] * 9, [False] * 9, resamples=100, seed=0) == (-1.0, -1.0)
    a, b = paired(20, 3, 9, 8)
    first = bootstrap_difference(a, b, resamples=500, seed=3)
    assert first == bootstrap_difference(a, b, resamples=500, seed=3)
    wider = bootstrap_difference(a, b, resamples=500, seed=3, confidence=0.999)
    assert wider[0] < first[0] < first[1] < wider[1]


def test_bootstrap_difference_refuses_nothing_and_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"^a difference needs at least one question$"):
        bootstrap_difference([], [], resamples=100, seed=0)
    with pytest.raises(ValueError, match="longer"):
        bootstrap_difference([True], [True, False], resamples=100, seed=0)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        ([1.0, 2.0, 2.0], 2.0),
        ([3.0, 5.0, 5.0, 3.0], 3.0),  # a tie: first seen
        ([5.0, 3.0, 3.0, 5.0], 5.0),
        ([None, None, None, 7.0], 7.0),  # the unparsable do not vote
        ([math.nan, math.nan, 7.0], 7.0),
        ([2.0, 3.333, 3.34, 2.0, 3.3334], 3.333),  # one number within 1e-2
        ([2.0, 1.0, 1.01], 1.0),  # exactly 1e-2 apart, but for binary rounding: as in grading
        ([math.inf, 5.0, 5.0], 5.0),
        ([1.0, 1.02, 1.02], 1.02),  # two numbers beyond 1e-2
        (["b", "a", "a"], "a"),
        (["1", 1.0, 1.0], 1.0),  # a text is never a number
        ([math.inf, math.inf, 1.0], math.inf),
        ([0.0, 0.0, 1.0], 0.0),  # zero is an answer
        ([None], None),
        ([], None),
    ],
)
def test_majority_vote(answers: list[float | str | None], winner: float | str | None) -> None:
    assert majority_vote(answers) == winner


@pytest.mark.parametrize(("n", "correct"), [(5, 0), (5, 1), (5, 3), (6, 6)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int, correct: int) -> None:
    samples = [True] * correct + [False] * (n - correct)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(samples, k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_stays_exact_for_many_samples() -> None:
    # 1 - prod_{i=n-c+1..n} (1 - k/i), the product form of Chen et al.
    product = 1 - np.prod(1 - 100 / np.arange(10_000 - 7 + 1, 10_001))
    assert pass_at_k(10_000, 7, 100) == pytest.approx(product, rel=1e-9)
    assert pass_at_k(10_000, 2_500, 1) == 0.25


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 2, 6), (0, 0, 1), (5, 2, 0), (5, 6, 1), (5, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"needs 1 <= k <= n|cannot be correct"):
        pass_at_k(n, correct, k)


def test_area_under_curve_counts_pairs_in_right_order() -> None:
    # Positives 0.9, 0.4; negatives 0.4, 0.1, 0.5: of six pairs 4 are in order, one is a tie.
    scores, labels = [0.9, 0.4, 0.1, 0.4, 0.5], [True, False, False, True, False]
    assert area_under_curve(scores, labels) == pytest.approx(4.5 / 6)
    assert area_under_curve([-x for x in scores], labels) == pytest.approx(1 - 4.5 / 6)
    assert area_under_curve([0.2, 0.7], [True, True]) == 0.5
    assert area_under_curve([], []) == 0.5
    with pytest.raises(ValueError, match="shorter"):
        area_under_curve([0.2, 0.7, 0.1], [True, False])


def test_area_under_curve_agrees_with_scipy_where_many_tie() -> None:
    rng = np.random.default_rng(5)
    scores, labels = rng.integers(0, 9, 200).astype(float), rng.random(200) < 0.3
    u = stats.mannwhitneyu(scores[labels], scores[~labels]).statistic
    found = area_under_curve(scores.tolist(), labels.tolist())
    assert found == pytest.approx(u / (labels.sum() * (~labels).sum()), rel=1e-12)


def test_weights_count_instead_of_heads() -> None:
    assert majority_vote([1.0, 2.0, 2.0], [0.9, 0.4, 0.4]) == 1.0
    assert majority_vote([1.0, 2.0, 2.0], [0.9, 0.5, 0.5]) == 2.0
    assert majority_vote([None, 2.0], [9.0, 0.0]) == 2.0
    assert majority_vote([1.0, 2.0], [1e-20, 2e-20]) == 2.0  # on any scale
    with pytest.raises(ValueError, match="shorter"):
        majority_vote([1.0, 2.0], [1.0])


def enumerated(differences: list[int]) -> float:
    """Try all signs: how often the sum is as far from 0 as it is."""
    sums = [
        sum(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(abs(x) >= abs(sum(differences)) for x in sums) / len(sums)


@pytest.mark.parametrize(
    "differences",
    [
        [3, 1, 1, -2, 0, 2, -1, 3, 0, 1],
        [2, 2, 2, -2],
        [5, -5, 1],
        [4, 6, -2, 8],  # one divisor in all
        [-3, -3, -1, 0, -2],
        [1] * 10,
    ],
)
def test_sign_flip_agrees_with_trying_all_signs(differences: list[int]) -> None:
    assert sign_flip(differences) == pytest.approx(enumerated(differences), rel=1e-12)
    assert sign_flip([-d for d in differences]) == pytest.approx(sign_flip(differences), rel=1e-12)


def test_sign_flip_by_hand() -> None:
    # 2, 1, 1: the sum 4 and its mirror image come up in 2 of the 8 ways to sign them.
    assert sign_flip([2, 1, 0, 1]) == pytest.approx(2 / 8)
    assert sign_flip([0, 0]) == sign_flip([]) == sign_flip([1, -1]) == 1.0


def test_sign_flip_of_single_answers_is_mcnemars_test() -> None:
    differences = [0] * 47 + [-1] * 11 + [1] * 25
    assert sign_flip(differences) == pytest.approx(stats.binomtest(11, 36).pvalue, rel=1e-9)


def test_sign_flip_keeps_small_p_values_small() -> None:
    assert sign_flip([3] * 200) == pytest.approx(2 * 0.5**200, rel=1e-9)


def test_holm_by_hand() -> None:
    # 0.005 x 4, 0.01 x 3, 0.03 x 2; then 0.04 x 1, which must not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.7, 0.6]) == [1.0, 1.0]  # 0.6 x 2 is no probability
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


SHARES = np.random.default_rng(7).integers(0, 5, size=400) / 4  # of four answers to each question


def test_bootstrap_of_means_agrees_with_drawing_questions_one_by_one() -> None:
    rng = np.random.default_rng(1)
    naive = SHARES[rng.integers(0, 400, size=(20000, 400))].mean(axis=1)
    expected = np.quantile(naive, [0.025, 0.975])
    assert bootstrap_mean(SHARES, resamples=20000, seed=3) == pytest.approx(expected, abs=0.004)
    differences = (SHARES > 0.4).astype(int) - (SHARES[::-1] > 0.6)
    a, b = (SHARES[::-1] > 0.6).tolist(), (SHARES > 0.4).tolist()
    found = bootstrap_mean(differences, resamples=20000, seed=3)
    assert found == pytest.approx(bootstrap_difference(a, b, resamples=20000, seed=4), abs=0.006)


def test_bootstraps_are_drawn_alike_from_one_seed() -> None:
    first = bootstrap_mean(SHARES, resamples=200, seed=3)
    assert first == bootstrap_mean(SHARES, resamples=200, seed=3)
    assert first != bootstrap_mean(SHARES, resamples=200, seed=4)


def test_bootstrap_needs_questions() -> None:
    with pytest.raises(ValueError, match=r"^an interval needs at least one question$"):
        bootstrap_mean(np.zeros(0), resamples=100, seed=0)


def test_a_vote_keeps_to_the_first_of_numbers_that_are_the_same() -> None:
    # 1.000 and 1.009 are the same, 1.009 and 1.018 too: each joins the first seen that it equals.
    assert majority_vote([1.0, 1.009, 1.018, 1.018, 1.009]) == 1.0
    assert majority_vote([1.0, 1.018, 1.009, 1.018, 1.018]) == 1.018
