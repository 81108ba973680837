from __future__ import annotations

import itertools
import random
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from reftune.evaluation.evaluate import compare, summarise
from reftune.evaluation.seeds import of_difference
from reftune.evaluation.statistics import wilson_interval
from reftune.problem import UserError
from reftune.reporting.comparison import tables
from reftune.reporting.comparison.compare import Cell, Comparison, Difference, compare_runs
from reftune.reporting.comparison.finished_runs import read_finished_runs
from written_runs import add_reranker, write_run

PAPER = Path(__file__).parents[1] / "reproduction" / "paper.toml"
METHODS = ("sft", "offline_st", "online_st", "reft")


def answers(share: float, seed: int, n: int = 60) -> list[int]:
    rng = random.Random(f"{share} {seed}")
    return [int(rng.random() < share) for _ in range(n)]


def cell(found: Comparison, method: str, aggregation: str = "greedy", group: str = "") -> Cell:
    rows = [c for c in found.cells if (c.group, c.method, c.aggregation) == (group, method, aggregation)]
    assert len(rows) == 1
    return rows[0]


def difference(found: Comparison, base: str, method: str, aggregation: str = "greedy") -> Difference:
    pair = (base, method, aggregation)
    rows = [d for d in found.differences if (d.base_method, d.method, d.aggregation) == pair]
    assert len(rows) == 1
    return rows[0]


def pairs(found: Comparison) -> list[tuple[str, str]]:
    return [(d.base_method, d.method) for d in found.differences if d.aggregation == "greedy"]


def test_one_run_gives_the_numbers_of_its_own_evaluation(tmp_path: Path) -> None:
    right = {"sft": answers(0.5, 1), "reft": answers(0.7, 2)}
    drawn = {model: [answers(0.6, i, 4) for i in range(60)] for model in right}
    run = write_run(tmp_path / "run", right, samples=drawn, seed=5)
    rows = {
        model: [
            {"correct": bool(one)}
            | {"samples": [{"value": 7.0 if s else 8.0, "correct": bool(s)} for s in samples]}
            for one, samples in zip(right[model], drawn[model], strict=True)
        ]
        for model in right
    }
    found = compare_runs([run])
    for model in right:
        summary = summarise(rows[model])
        for aggregation in ("greedy", "vote"):
            mine = cell(found, model, aggregation)
            assert mine.accuracy == pytest.approx(summary[aggregation]["accuracy"])
            assert mine.interval == tuple(summary[aggregation]["interval"])
            assert (mine.lowest, mine.highest, mine.seeds) == (mine.accuracy, mine.accuracy, 1)
        curves = found.curves[""][model]["vote"]
        assert {str(k): value for k, value in curves.items()} == pytest.approx(summary["curves"]["vote"])
    for row in compare(rows["sft"], rows["reft"], resamples=10000, seed=5):
        mine_too = difference(found, "sft", "reft", row["aggregation"])
        assert mine_too.difference == pytest.approx(row["difference"])
        assert mine_too.interval == tuple(row["interval"])
        assert mine_too.p == pytest.approx(row["mcnemar_p"], rel=1e-9)


def test_seeds_are_pooled_by_hand(tmp_path: Path) -> None:
    sft = {1: [1, 1, 0, 0, 0, 0, 0, 1], 2: [1, 0, 0, 0, 0, 0, 1, 1]}
    reft = {1: [1, 1, 1, 1, 1, 0, 0, 0], 2: [1, 1, 1, 0, 1, 0, 1, 1]}
    runs = [
        write_run(tmp_path / f"run-{seed}", {"sft": sft[seed], "reft": reft[seed]}, seed=seed)
        for seed in (1, 2)
    ]
    found = compare_runs(runs)
    mine = cell(found, "reft")
    assert (mine.accuracy, mine.lowest, mine.highest) == (11 / 16, 5 / 8, 6 / 8)
    assert (mine.seeds, mine.questions, mine.samples) == (2, 8, 1)
    assert mine.interval[0] < mine.accuracy < mine.interval[1]
    row = difference(found, "sft", "reft")
    assert row.difference == pytest.approx(11 / 16 - 6 / 16)
    assert (row.seeds, row.base_seeds) == (2, 2)
    assert row.p_holm == row.p  # the only comparison
    assert 0.05 < row.p < 0.6
    low, high = row.interval
    assert low < 0 < row.difference < high
    assert (low + high) / 2 == pytest.approx(
        5 / 20
    )  # a question that ReFT wins and one that SFT wins more
    expected = of_difference(np.array([sft[1], sft[2]]), np.array([reft[1], reft[2]]), paired=True)
    assert (low, high) == pytest.approx(expected.interval())


def test_seeds_that_disagree_make_the_interval_wider_than_one_run_has(tmp_path: Path) -> None:
    shares = {1: 0.2, 2: 0.5, 3: 0.8}
    runs = [
        write_run(tmp_path / f"run-{seed}", {"sft": answers(share, seed, 400)}, seed=seed)
        for seed, share in shares.items()
    ]
    mine = cell(compare_runs(runs), "sft")
    low, high = wilson_interval(200, 400)
    assert mine.interval[1] - mine.interval[0] > 2 * (high - low)


def test_every_method_meets_sft_and_reft_meets_every_method(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {m: answers(0.5, i) for i, m in enumerate(("warmup", *METHODS))})
    found = compare_runs([run])
    assert pairs(found) == [
        ("sft", "offline_st"),
        ("sft", "online_st"),
        ("sft", "reft"),
        ("offline_st", "reft"),
        ("online_st", "reft"),
    ]
    assert [c.method for c in found.cells] == ["warmup", *METHODS]


def test_a_aggregation_that_one_side_lacks_is_not_compared(tmp_path: Path) -> None:
    right = {m: answers(0.5, i) for i, m in enumerate(("sft", "online_st", "reft"))}
    samples = {m: [answers(0.5, i, 4) for i in range(60)] for m in right}
    run = write_run(tmp_path / "run", right, samples=samples)
    add_reranker(run, "sft")
    add_reranker(run, "reft")
    found = compare_runs([run])
    by_pair = {
        pair: [d.aggregation for d in found.differences if (d.base_method, d.method) == pair]
        for pair in pairs(found)
    }
    everything = ["greedy", "vote", "rerank", "weighted vote"]
    assert by_pair[("sft", "reft")] == everything
    assert by_pair[("sft", "online_st")] == by_pair[("online_st", "reft")] == everything[:2]
    assert found.aggregations == everything
    assert found.samples == 4
    assert cell(found, "reft", "rerank").samples == 4


def test_p_values_are_corrected_for_all_comparisons_of_the_table(tmp_path: Path) -> None:
    # discordant questions, all in one direction: p = 2 / 2^n
    def lead(count: int) -> list[int]:
        return [1] * count + [0] * (20 - count)

    right = {"sft": lead(0), "offline_st": lead(5), "online_st": lead(10), "reft": lead(12)}
    found = compare_runs([write_run(tmp_path / "run", right)])
    p = {pair: difference(found, *pair).p for pair in pairs(found)}
    assert p == {
        ("sft", "offline_st"): pytest.approx(2 / 2**5),
        ("sft", "online_st"): pytest.approx(2 / 2**10),
        ("sft", "reft"): pytest.approx(2 / 2**12),
        ("offline_st", "reft"): pytest.approx(2 / 2**7),
        ("online_st", "reft"): pytest.approx(2 / 2**2),
    }
    assert {pair: difference(found, *pair).p_holm for pair in p} == {
        ("sft", "offline_st"): pytest.approx(2 * 2 / 2**5),
        ("sft", "online_st"): pytest.approx(4 * 2 / 2**10),
        ("sft", "reft"): pytest.approx(5 * 2 / 2**12),
        ("offline_st", "reft"): pytest.approx(3 * 2 / 2**7),
        ("online_st", "reft"): pytest.approx(2 / 2**2),
    }


def groups_of(tmp_path: Path, shares: dict[tuple[str, int], float], **shared: Any) -> list[Path]:
    """Write a run per (kl_coef, seed) whose ReFT answers that share; SFT depends on the seed alone."""
    return [
        write_run(
            tmp_path / f"kl-{kl}-{seed}",
            {"sft": answers(0.5, seed), "reft": answers(share, seed)} | shared,
            seed=seed,
            ppo={"kl_coef": float(kl)},
        )
        for (kl, seed), share in shares.items()
    ]


def test_groups_are_compared_with_the_first_method_by_method(tmp_path: Path) -> None:
    runs = groups_of(tmp_path, {("0.01", 1): 0.8, ("0.01", 2): 0.8, ("0", 1): 0.3, ("0", 2): 0.3})
    found = compare_runs(runs)
    assert [group.label for group in found.groups] == ["kl_coef = 0.01", "kl_coef = 0"]
    assert found.groups[1].changes == {"ppo.kl_coef": 0.0}
    assert [run.directory for run in found.groups[0].runs] == runs[:2]
    between = [d for d in found.differences if d.group != d.base_group]
    assert [(d.base_group, d.group, d.base_method, d.method) for d in between] == [
        ("kl_coef = 0.01", "kl_coef = 0", "sft", "sft"),
        ("kl_coef = 0.01", "kl_coef = 0", "reft", "reft"),
    ]
    reft = between[1]
    before, after = (cell(found, "reft", group=group.label).accuracy for group in found.groups)
    assert reft.difference == pytest.approx(after - before)
    assert reft.interval[1] < 0
    assert reft.p < 0.05


def test_the_very_same_model_is_not_compared_with_itself(tmp_path: Path) -> None:
    runs = groups_of(tmp_path, {("0.01", 1): 0.8, ("0", 1): 0.3})
    for directory in runs:  # as `start_from` makes it: the other run's SFT model, and so its answers
        path = directory / "evaluation/sft.jsonl"
        path.write_text((runs[0] / "evaluation/sft.jsonl").read_text())
    between = [d.method for d in compare_runs(runs).differences if d.group != d.base_group]
    assert between == ["reft"]


def test_groups_of_different_seeds_are_compared_by_their_means(tmp_path: Path) -> None:
    shares = {("0.01", 1): 0.8, ("0.01", 2): 0.6, ("0.01", 3): 0.7, ("0", 4): 0.3}
    runs = groups_of(tmp_path, shares)
    reft = [d for d in compare_runs(runs).differences if d.group != d.base_group][-1]
    means = [sum(answers(share, seed)) / 60 for (_, seed), share in shares.items()]
    assert reft.difference == pytest.approx(means[3] - sum(means[:3]) / 3)
    assert (reft.base_seeds, reft.seeds) == (3, 1)
    before = np.array([answers(share, seed) for (_, seed), share in shares.items()][:3])
    after = np.array([answers(0.3, 4)])
    found = of_difference(before, after, paired=False)
    assert reft.interval == pytest.approx(found.interval())
    assert reft.p == pytest.approx(found.p())
    assert 0 < reft.p < 0.05
    assert reft.scope == "one seed of ReFT (kl_coef = 0): this model, not this method"


def test_as_many_seeds_of_other_names_do_not_belong_together(tmp_path: Path) -> None:
    shares = {("0.01", 1): 0.8, ("0.01", 2): 0.6, ("0", 3): 0.5, ("0", 4): 0.3}
    reft = [d for d in compare_runs(groups_of(tmp_path, shares)).differences if d.method == "reft"][-1]
    rows = [np.array([answers(share, seed)]) for (_, seed), share in shares.items()]
    before, after = np.concatenate(rows[:2]), np.concatenate(rows[2:])
    assert reft.p == pytest.approx(of_difference(before, after, paired=False).p())
    assert reft.p != pytest.approx(of_difference(before, after, paired=True).p())


def test_means_over_different_numbers_of_seeds_weigh_every_seed_alike(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"ppo": {"kl_coef": 0.0}}
    one = write_run(tmp_path / "1", {"sft": [0, 0, 1, 0]}, seed=1)
    two = write_run(tmp_path / "2", {"sft": [1, 0, 0, 0]}, seed=2)
    three = write_run(tmp_path / "3", {"sft": [1, 1, 1, 0]}, seed=3, **settings)
    (found,) = compare_runs([one, two, three]).differences
    assert found.difference == pytest.approx(2 / 4)  # question by question 1/2, 1, 1/2 and 0 more
    # With a question won and one lost the mean is 2/6. Both seeds of the base answer one question: no
    # variance lies in them. The questions' is (1/4 + 1 + 1/4 + 2 - 4/6) / 5, over 6; the base's rows
    # vary by 4/15, their mean by 1/6, and the tenth between is what single answers do: 17/180 - 1/60.
    assert found.p == pytest.approx(2 * NormalDist().cdf(-(1 / 3) / (7 / 90) ** 0.5))
    assert found.scope == "one seed of SFT (kl_coef = 0): this model, not this method"


def test_a_method_that_some_seeds_lack_is_compared_on_those_that_have_it(tmp_path: Path) -> None:
    right = {seed: {"sft": answers(0.5, seed), "reft": answers(0.7, seed)} for seed in (1, 2)}
    right[2]["online_st"] = answers(0.6, 2)
    runs = [write_run(tmp_path / f"run-{seed}", right[seed], seed=seed) for seed in (1, 2)]
    found = compare_runs(runs)
    assert (cell(found, "online_st").seeds, cell(found, "reft").seeds) == (1, 2)
    row = difference(found, "sft", "online_st")
    assert (row.seeds, row.base_seeds) == (1, 1)
    assert row.difference == pytest.approx((sum(answers(0.6, 2)) - sum(answers(0.5, 2))) / 60)


def test_the_order_of_the_runs_changes_nothing_within_a_group(tmp_path: Path) -> None:
    shares = {("0.01", seed): 0.5 + seed / 10 for seed in (1, 2, 3)}
    runs = groups_of(tmp_path, shares)
    table, *others = [compare_runs(list(order)) for order in itertools.permutations(runs)]
    assert all(other == table for other in others)


def test_curves_are_means_over_seeds(tmp_path: Path) -> None:
    runs = []
    for seed, drawn in ((1, [[1, 0], [1, 1]]), (2, [[0, 0], [1, 0]])):
        right = {"sft": [1, 1]}
        runs.append(write_run(tmp_path / f"run-{seed}", right, seed=seed, samples={"sft": drawn}))
    singles = [read_finished_runs([run])[0][0].answers["sft"].curves for run in runs]
    assert [single["pass"] for single in singles] == [{1: 0.75, 2: 1.0}, {1: 0.25, 2: 0.5}]
    found = compare_runs(runs)
    assert found.curves[""]["sft"]["pass"] == {1: 0.5, 2: 0.75}
    assert found.curves[""]["sft"]["vote"][2] == pytest.approx((1.0 + 0.5) / 2)


def test_curves_that_one_seed_lacks_are_left_out(tmp_path: Path) -> None:
    samples = {"sft": [[1, 0], [1, 1]]}
    runs = [write_run(tmp_path / f"{n}", {"sft": [1, 1]}, seed=n, samples=samples) for n in (1, 2)]
    add_reranker(runs[0], "sft")
    assert compare_runs(runs[:1]).curves[""]["sft"].keys() > {"vote", "rerank", "pass"}
    assert compare_runs(runs).curves[""]["sft"].keys() == {"vote", "pass"}


def test_runs_of_a_reported_setting_carry_its_numbers(tmp_path: Path) -> None:
    data = {"test": "data/gsm8k_test_set.json", "cot": "program"}
    model = {"name": "codellama/CodeLlama-7b-hf"}
    right = {"sft": answers(0.5, 1), "online_st": answers(0.5, 2), "reft": answers(0.7, 1)}
    run = write_run(tmp_path / "run", right, data=data, model=model)
    found = compare_runs([run], reported=PAPER)
    numbers = {method: cell(found, method).reported for method in ("sft", "online_st", "reft")}
    assert {method: str(number) for method, number in numbers.items()} == {
        "sft": "63.68%",
        "online_st": "~67.85%",
        "reft": "75.28%",
    }
    assert found.source.startswith("the paper (Luong et al.")
    assert cell(compare_runs([run]), "reft").reported is None
    other = write_run(tmp_path / "other", right)
    assert cell(compare_runs([other], reported=PAPER), "reft").reported is None


def test_a_run_without_methods_has_nothing_to_compare(tmp_path: Path) -> None:
    found = compare_runs([write_run(tmp_path / "run", {"warmup": [0, 1], "sft": [1, 1]})])
    assert found.differences == []
    assert [c.accuracy for c in found.cells] == [0.5, 1.0]


def test_refusals_come_through(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"sft": [1, 0]})
    twin = write_run(tmp_path / "twin", {"sft": [1, 0]})
    with pytest.raises(UserError, match="the same settings and the same seed"):
        compare_runs([run, twin])


BASE: dict[str, Any] = {"model": {"name": "m"}, "sft": {"epochs": 0}}


def test_without_sft_every_method_meets_the_given_model(tmp_path: Path) -> None:
    models = ("base", "offline_st", "online_st", "reft")
    run = write_run(tmp_path / "run", {m: answers(0.5, i) for i, m in enumerate(models)}, **BASE)
    assert pairs(compare_runs([run])) == [
        ("base", "offline_st"), ("base", "online_st"), ("base", "reft"),
        ("offline_st", "reft"), ("online_st", "reft"),
    ]  # fmt: skip


def test_runs_with_and_without_sft_are_compared_by_what_both_have_learnt(tmp_path: Path) -> None:
    right = {"base": answers(0.1, 0), "sft": answers(0.4, 1), "reft": answers(0.6, 2)}
    first = write_run(tmp_path / "first", right, model={"name": "m"})
    bare = {"base": right["base"][::-1], "reft": answers(0.7, 3)}  # as if other samples were drawn
    second = write_run(tmp_path / "second", bare, **BASE)
    found = compare_runs([first, second])
    assert pairs(found) == [("sft", "reft"), ("base", "reft"), ("reft", "reft")]
    assert tables.headline(found).startswith("ReFT against SFT: +")
    assert "; ReFT against Base: +" in tables.headline(found)
    with_sft, without = tables.sentences(found)
    assert ", SFT " in with_sft
    assert ", Base " in without


def test_given_models_are_compared_where_they_are_the_baseline_of_both(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / name, {"base": answers(0.2, i), "reft": answers(0.6, i)},
            **BASE | {"model": {"name": name}},
        )
        for i, name in enumerate(("small", "large"))
    ]  # fmt: skip
    assert ("base", "base") in pairs(compare_runs(runs))


def test_whether_the_given_model_was_asked_makes_no_other_group(tmp_path: Path) -> None:
    model = {"name": "m"}
    runs = [
        write_run(
            tmp_path / f"{seed}", {"sft": answers(0.4, seed), "reft": answers(0.6, seed)}, seed=seed,
            model=model, evaluation={"base": base},
        )
        for seed, base in ((1, True), (2, False))
    ]  # fmt: skip
    assert len(compare_runs(runs).groups) == 1
