"""The table of what helps PPO, from runs and outcomes that are written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reftune.config.files import dump_config, load_config
from reftune.files import write_json
from reftune.runs.run_dir import take_over
from reproduction import outcomes, series, techniques
from reproduction.outcomes import Outcome, keep, kept
from reproduction.series import Cell, put_between, run_all
from reproduction.techniques import BEGIN, CHAINS, END, SERIES, cells, table


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let runs and their outcomes lie in a folder of the test's own."""
    monkeypatch.setattr(series, "RUNS", tmp_path)
    monkeypatch.setattr(outcomes, "KEPT", tmp_path / "outcomes")
    return tmp_path


@pytest.mark.parametrize("chains", CHAINS)
def test_every_technique_is_one_change_of_the_baseline(chains: str) -> None:
    folder = techniques.CONFIGS.parent
    start = load_config(folder / f"{chains}.toml")
    base = load_config(folder / f"{chains}.toml", [f"extends={techniques.CONFIGS / 'demo.toml'}"])
    assert base == start
    for name in techniques.techniques():
        over = [f"extends={techniques.CONFIGS / name}.toml", 'methods=["reft"]']
        config = load_config(folder / f"{chains}.toml", over)
        assert config.sft == base.sft, "or it could not start from the same warm-up"
        assert config.data == base.data
        assert name == "demo" or (config.ppo, config.model) != (base.ppo, base.model)


def test_all_start_from_the_warm_up_of_their_seed_which_comes_first(places: Path) -> None:
    plan = cells("program", ["demo", "group"], [1, 2])
    assert [one.run_dir.name for one in plan] == [
        "program-1", "program-demo-1", "program-group-1",
        "program-2", "program-demo-2", "program-group-2",
    ]  # fmt: skip
    command = plan[-1].command
    assert command[4] == "configs/techniques/program.toml"
    assert "extends=configs/techniques/ppo/group.toml" in command
    assert any(part.startswith("start_from=") and part.endswith("/program-2") for part in command)
    assert 'methods=["reft"]' in command
    assert not any("extends" in part for part in plan[0].command)


def write_run(cell: Cell, right: str, explained: list[float]) -> None:
    run = cell.run_dir
    for part in ("evaluation", "ppo"):
        (run / part).mkdir(parents=True)
    rows = [json.dumps({"correct": answer == "1"}) for answer in right]
    (run / "evaluation" / "reft.jsonl").write_text("\n".join(rows) + "\n")
    (run / "evaluation" / "result.json").write_text("{}")
    keys = ["explained_variance", *(f"explained_variance/quarter_{k}" for k in (1, 2, 3, 4))]
    first, last = dict.fromkeys(keys, 9.0), dict(zip(keys, explained, strict=False))
    rows = [json.dumps(row) for row in [first, *[last] * 5]]
    (run / "ppo" / "metrics.jsonl").write_text("\n".join(rows) + "\n")


def a_cell(name: str, seed: int = 1) -> Cell:
    return Cell("program", seed, SERIES, start="program", over=name)


@pytest.mark.parametrize("chains", CHAINS)
@pytest.mark.parametrize("name", techniques.techniques())
def test_every_technique_takes_over_the_warm_up_of_its_seed(
    chains: str, name: str, tmp_path: Path
) -> None:
    start, over = (techniques.CONFIGS.parent / f"{file}.toml" for file in (chains, f"ppo/{name}"))
    source = load_config(start, [f"output_dir={tmp_path}", "name=source"])
    write_json(source.run_dir / "sft" / "result.json", {})
    (source.run_dir / "warmup").mkdir()
    (source.run_dir / "config.toml").write_text(dump_config(source), encoding="utf-8")
    changes = [f"extends={over}", 'methods=["reft"]', f"start_from={source.run_dir}"]
    config = load_config(start, [f"output_dir={tmp_path}", "name=taking", *changes])
    take_over(config, "sft")
    assert (config.run_dir / "sft" / "result.json").exists()


def test_what_a_run_came_to_is_kept_and_not_run_again(places: Path) -> None:
    write_run(a_cell("demo"), "1100", [0.1, 0.0, 0.1, 0.2, 0.3])
    write_run(a_cell("group"), "1110", [0.0])
    told: list[Cell] = []
    run_all([a_cell("demo"), a_cell("group")], finish=told.append)
    assert [cell.over for cell in told] == ["demo", "group"]
    for cell in told:
        keep(cell)
    assert kept(SERIES) == {
        "program-demo-1": Outcome("program-demo-1", "1100", (0.1, 0.0, 0.1, 0.2, 0.3)),
        "program-group-1": Outcome("program-group-1", "1110"),
    }
    names = [one.run_dir.name for one in cells("program", ["demo", "group", "rloo"], [1])]
    assert names == ["program-1", "program-rloo-1"]
    assert cells("program", ["demo", "group"], [1]) == [], "no warm-up is needed, either"


def test_the_table_by_hand() -> None:
    demo = {1: Outcome("", "1100" * 5, (0.1, 0.0, 0.1, 0.2, 0.3))}
    found = {"demo": demo, "group": {1: Outcome("", "1110" * 5)}, "rloo": {1: Outcome("", "1110" * 5)}}
    head, _, *rows = table(found).splitlines()
    assert head.startswith("| technique | what it is | seeds | accuracy | less `demo`, points |")
    assert rows[0].startswith("| `demo` | PPO as the start has it: ")
    assert rows[0].endswith(
        "| 1 | 50.0% |  |  | \N{MINUS SIGN}25.0 [\N{MINUS SIGN}45.0, \N{MINUS SIGN}10.0] |"
        " 0.10 | 0.00 0.10 0.20 0.30 |"
    )
    # five questions of 20 are won and none is lost: 2 chances in 32, twice that with two techniques
    assert rows[1].endswith("| 1 | 75.0% | +25.0 [10.0, 45.0] | 0.12 |  |  |  |")
    assert rows[2].endswith("| 1 | 75.0% | +25.0 [10.0, 45.0] | 0.12 | +0.0 [0.0, 0.0] |  |  |")


def test_differences_are_over_the_seeds_that_both_have() -> None:
    demo = {1: Outcome("", "1100"), 2: Outcome("", "0000")}
    _, _, first, second = table({"demo": demo, "group": {1: Outcome("", "1110")}}).splitlines()
    assert "| 2 | 25.0% |" in first
    assert "| 1 | 75.0% | +25.0 [" in second


def test_the_critic_of_several_seeds_is_a_mean() -> None:
    one, two = (0.1, 0.0, 0.1, 0.2, 0.3), (0.3, 0.2, 0.3, 0.4, 0.5)
    found = table({"demo": {1: Outcome("", "10", one), 2: Outcome("", "10", two)}})
    assert found.endswith("| 0.20 | 0.10 0.20 0.30 0.40 |")


def test_what_stands_around_the_table_stays(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n", encoding="utf-8")
    put_between(page, BEGIN, END, lambda: "new")
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\nnew\n\n{END}after\n"
