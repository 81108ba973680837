"""What an interval decides about a claim, and that the plan's runs and the claims fit together."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest

from reftune.config.files import load_config
from reftune.methods import OPTIONAL
from reproduction import __main__ as main
from reproduction import claims as module
from reproduction import plan, results, series, warmup
from reproduction.claims import Expected, Finding, Side, Verdict, claims, find, judge
from reproduction.plan import cell, cells
from reproduction.results import claim_table, write_results
from reproduction.series import Cell


@pytest.mark.parametrize(
    ("expected", "interval", "verdict"),
    [
        ("better", (0.01, 0.05), "held"),
        ("better", (-0.05, -0.01), "did not hold"),
        ("better", (-0.01, 0.05), "undecided"),
        ("different", (-0.05, -0.01), "held"),
        ("different", (-0.01, 0.02), "undecided"),
        ("equal", (-0.03, 0.02), "held"),
        ("equal", (-0.04, 0.02), "undecided"),
        ("equal", (0.04, 0.06), "did not hold"),
        ("equal", (-0.06, -0.04), "did not hold"),
    ],
)
def test_an_interval_decides(
    expected: Expected, interval: tuple[float, float], verdict: Verdict
) -> None:
    assert judge(expected, interval) == verdict


def test_every_claim_is_about_runs_of_the_plan_and_models_that_they_have() -> None:
    planned = {cell.config for cell in cells([1], [1])}
    for claim in claims():
        for side in (claim.side, claim.other):
            assert side.config in planned
            config = load_config(plan.CONFIGS / f"{side.config}.toml")
            assert side.model in ("sft", *config.methods)
            assert side.aggregation == "greedy" or config.evaluation.rerank
    assert {path.stem for path in plan.CONFIGS.glob("*.toml")} == planned


def test_all_runs_but_multiple_choice_have_the_same_test_questions() -> None:
    configs = {c.config: load_config(plan.CONFIGS / f"{c.config}.toml") for c in cells([1], [1])}
    data = {name: config.data.synthetic for name, config in configs.items() if name != "choices"}
    # A larger set starts with the smaller one, and questions do not depend on the kind of chain.
    free = {"train_size": 0, "retold": False}
    assert len({repr(settings.model_copy(update=free)) for settings in data.values()}) == 1
    assert all(settings.seed is not None for settings in data.values())


def test_some_of_the_runs_can_be_done_alone_and_then_no_table_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Cell] = []
    monkeypatch.setattr(main, "run_all", done.extend)
    monkeypatch.setattr(
        main, "write_results", lambda *_: pytest.fail("tables of runs that are not there")
    )
    monkeypatch.setattr(
        "sys.argv", ["reproduction", "--only", "natural", "choices", "--seeds", "1", "2"]
    )
    main.main()
    assert [cell.run_dir.name for cell in done] == ["natural-1", "natural-2", "choices-1"]


def test_ablations_start_from_the_main_run_of_their_seed() -> None:
    assert "start_from=runs/mini/program-2" in cell("no_kl", 2).command
    assert not any("start_from" in part for part in cell("warmup_4", 2).command)
    order = [one.run_dir.name for one in cells([1, 2], [1, 2])]
    assert order.index("program-2") < order.index("no_kl-2")
    assert len(set(order)) == len(order)


def test_findings_pair_questions_and_pool_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "RUNS", tmp_path)
    monkeypatch.setattr(module, "claims", lambda: [CLAIM])
    module.answers.cache_clear()
    # ReFT is right on 3 and 4 of 4 questions, SFT on 1 and 2: half of the answers more.
    right = {("reft", 1): "1110", ("reft", 2): "1111", ("sft", 1): "1000", ("sft", 2): "1100"}
    for (model, seed), answers in right.items():
        path = tmp_path / "mini" / f"program-{seed}" / "evaluation" / f"{model}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"correct": a == "1"}) + "\n" for a in answers))
    [finding] = find([1, 2], [1])
    assert (finding.accuracy, finding.other_accuracy) == (7 / 8, 3 / 8)
    assert finding.difference == 0.5
    # Both seeds gain 2 of 4 questions, 2 of 6 with one won and one lost: no variance lies in them. The
    # questions' means 0, 1/2, 1, 1/2, 1, -1 vary by 17/30, the rows by 2/3; the tenth between is what
    # single answers do: (17/30 - 1/10) / 6 = 7/90.
    half = 1.959964 * (7 / 90) ** 0.5
    assert finding.interval == pytest.approx((1 / 3 - half, 1 / 3 + half))
    assert finding.p == pytest.approx(2 * NormalDist().cdf(-(1 / 3) / (7 / 90) ** 0.5))
    assert finding.seeds == 2


def test_findings_are_put_between_the_marks(tmp_path: Path) -> None:
    finding = Finding(CLAIM, 0.875, 0.375, 0.5, (0.1, 0.75), 0.25, "held")
    row = claim_table([finding]).splitlines()[-1]
    assert row == (
        "| ReFT beats SFT | P-CoT | 87.5% | 37.5% | +50.0 [10.0, 75.0] | 0.25 | **held**"
        " (one seed: this model, not this method) |"
    )
    assert claim_table([replace(finding, seeds=3)]).endswith("**held** |")
    path = tmp_path / "results.md"
    path.write_text("no marks\n")
    with pytest.raises(ValueError, match="are missing"):
        write_results(path, [], [], [])


def test_what_stands_around_the_marks_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("reranking", "costs", "hacking", "times"):
        monkeypatch.setattr(results, name, lambda *_: "")
    path = tmp_path / "results.md"
    path.write_text(f"before\n{results.BEGIN}old\n{results.END}after\n", encoding="utf-8")
    for _ in range(2):  # again, as the next run does
        write_results(path, [], [1], [1])
    table = claim_table([])
    assert path.read_text() == f"before\n{results.BEGIN}\n{table}\n\n{results.END}after\n"


def test_reranking_stands_beside_one_sample_and_the_vote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "RUNS", tmp_path)
    module.answers.cache_clear()
    # Two of three samples are right, and the reranker prefers the wrong one to one of them.
    samples = [
        {"value": value, "correct": value == 5, "rerank": p}
        for value, p in ((5, 0.9), (5, 0.2), (7, 0.5))
    ]
    for config, model in itertools.product(plan.MAIN, ("sft", *OPTIONAL)):
        path = tmp_path / "mini" / f"{config}-1" / "evaluation" / f"{model}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"correct": True, "samples": samples}) + "\n")
    rows = results.reranking([1]).splitlines()
    assert rows[2] == "| P-CoT | SFT | 66.7% | 100.0% | 100.0% | 100.0% | 50.0% |"
    assert [row.split(" | ")[1] for row in rows[6:10]] == ["SFT", "Offline-ST", "Online-ST", "ReFT"]


CLAIM = module.Claim("ReFT beats SFT", "P-CoT", Side("program"), Side("program", "sft"))


def test_the_table_of_starts_tells_the_chosen_one_from_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "RUNS", tmp_path)
    row = {"validation_accuracy": 0.5, "pass_at_1": 0.25, "pass_at_k": 0.75, "mixed": 0.5}
    starts = {"warmup_epoch": 8, "starts": [row | {"epoch": epoch} for epoch in (4, 8, 12)]}
    answers = {("mini-4", "reft"): "1110", ("mini-8", "reft"): "1100"}  # from 12 PPO was not run
    files = {f"{run}/evaluation/{model}.jsonl": text for (run, model), text in answers.items()}
    files |= {f"{run}/evaluation/warmup.jsonl": "1000" for run in ("mini-4", "mini-8")}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps({"correct": a == "1"}) + "\n" for a in text))
        (tmp_path / name).with_name("result.json").touch()
    (tmp_path / "mini/sft").mkdir(parents=True)
    (tmp_path / "mini/sft/result.json").write_text(json.dumps(starts))
    lines = warmup.table("mini").splitlines()
    shares = "50.0% | 25.0% | 75.0% | 50.0%"
    assert f"| 4 | {shares} | 25.0% | 75.0% [30.1, 95.4] | best |" in lines
    assert f"| 8 | {shares} | 25.0% | 50.0% [15.0, 85.0] |  **chosen** |" in lines
    assert f"| 12 | {shares} |  |  |  |" in lines
    assert lines[-1].startswith("Chosen - best: \N{MINUS SIGN}25.0 points")


def test_the_worlds_start_ppo_from_epochs_that_are_validated() -> None:
    for world in warmup.WORLDS.values():
        config = load_config(plan.ROOT / world.config, [*warmup.COMMON, *world.changes])
        every, epochs = config.sft.validate_every_epochs, config.sft.epochs
        assert {*world.starts} <= {*range(every, epochs + 1, every), epochs}
