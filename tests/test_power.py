from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from reftune import cli
from reftune.evaluation.power import (
    difference_for,
    independent,
    make_pair,
    mcnemar_power,
    questions_for,
)
from reftune.evaluation.statistics import mcnemar
from reftune.problem import UserError


def test_power_by_hand() -> None:
    """Six questions, always one of both right: only 6 of 6 reaches 5% (2 / 64 = 3%)."""
    pair = make_pair(0.05, 0.9, 1.0)
    assert pair.wins == pytest.approx(0.95)
    assert mcnemar_power(pair, 6) == pytest.approx(0.95**6 + 0.05**6)
    assert mcnemar_power(pair, 5) == 0  # 2 / 32 = 6%


@pytest.mark.parametrize(
    ("accuracy", "difference", "disagreement", "questions"),
    [(0.4, 0.1, 0.2, 150), (0.3, 0.2, None, 60)],
)
def test_power_is_how_often_our_own_test_sees_the_difference(
    accuracy: float, difference: float, disagreement: float | None, questions: int
) -> None:
    pair = make_pair(accuracy, difference, disagreement)
    gain, loss = (pair.disagreement + difference) / 2, (pair.disagreement - difference) / 2
    shares = [gain, loss, accuracy - loss, 1 - accuracy - gain]
    rng = np.random.default_rng(0)
    kinds = np.array([(False, True), (True, False), (True, True), (False, False)])
    seen = []
    for _ in range(1000):
        both = kinds[rng.choice(4, size=questions, p=shares)]
        seen.append(mcnemar(both[:, 0].tolist(), both[:, 1].tolist()) < 0.05)
    # 1000 simulations of a share near 1/2 scatter by 0.016.
    assert mcnemar_power(pair, questions) == pytest.approx(np.mean(seen), abs=0.05)


def test_power_agrees_with_sums_over_scipys_binomials() -> None:
    pair, n = make_pair(0.4, 0.15, 0.25), 60
    expected = 0.0
    for m in range(n + 1):
        x = np.arange(m + 1)
        lost = x[2 * binom.cdf(np.minimum(x, m - x), m, 0.5) <= 0.05]
        expected += binom.pmf(m, n, 0.25) * binom.pmf(lost, m, pair.wins).sum()
    assert mcnemar_power(pair, n) == pytest.approx(expected, rel=1e-6)


def test_so_many_questions_are_enough_and_one_in_ten_fewer_are_not() -> None:
    pair = make_pair(0.4, 0.05, 0.15)
    needed = questions_for(pair, 0.8)
    assert mcnemar_power(pair, needed) >= 0.8 > mcnemar_power(pair, int(0.9 * needed))
    assert questions_for(pair, 0.9) > needed
    # (1.96 sqrt(0.15) + 0.8416 sqrt(0.1475))^2 / 0.05^2 = 468; the exact test needs some more.
    assert 468 < needed < 500


def test_beyond_the_exact_sum_the_formula_goes_on() -> None:
    # (1.96 sqrt(0.2) + 0.8416 sqrt(0.199991))^2 / 0.003^2 by a pocket calculator.
    assert questions_for(make_pair(0.4, 0.003, 0.2), 0.8) == pytest.approx(174_420, rel=1e-3)


def test_the_smallest_difference_is_the_one_that_needs_so_many_questions() -> None:
    least = difference_for(500, 0.4, 0.8, 0.2)
    assert least is not None
    assert questions_for(make_pair(0.4, least, 0.2), 0.8) == pytest.approx(500, rel=0.02)
    assert difference_for(4, 0.4, 0.8) is None
    assert (
        difference_for(200, 0.05, 0.8, 0.5) is not None
    )  # more than a small difference leaves room for


def test_models_that_know_nothing_of_each_other_disagree_most() -> None:
    assert independent(0.5, 0.1) == pytest.approx(0.5 * 0.4 + 0.6 * 0.5)


def test_shares_that_no_two_models_have_are_refused() -> None:
    with pytest.raises(UserError, match="give a difference above 0"):
        make_pair(0.99, 0.03)
    with pytest.raises(UserError, match="exactly one is right on 3 to 83 percent"):
        make_pair(0.4, 0.03, 0.002)


def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[object, str]:
    monkeypatch.setattr("sys.argv", ["reftune", "power", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    return end.value.code, shown.out + shown.err


def test_the_command_tells_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, shown = run_cli(monkeypatch, capsys, "--difference", "10", "--accuracy", "40")
    assert code == 0
    assert "40.0% against 50.0% with a chance of 80%" in shown
    *_, last, note, more = shown.strip().replace("methods no", "methods\nno").splitlines()
    assert last.endswith("of them, as if independent")
    assert note == "That is for one pair of trained models. Of two methods"
    assert more.endswith("train several, and reftune compare counts both.")
    for name, rights in (("a", [0] * 6 + [1] * 4), ("b", [1] * 2 + [0] * 5 + [1] * 3)):
        rows = [{"id": i, "correct": bool(right)} for i, right in enumerate(rights * 10)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"--from={tmp_path / name}.jsonl" for name in ("a", "b")]
    code, shown = run_cli(monkeypatch, capsys, *files, "--questions", "1000")
    assert "a and b: 40.0% and 50.0% of 100 questions, exactly one is right on 30.0%" in shown
    assert "1,000 questions show 4.9 points or more above 40.0%" in shown
    for arguments in ([], ["--questions", "10"], ["--questions", "10", files[0]]):
        assert run_cli(monkeypatch, capsys, *arguments)[0] == 2
