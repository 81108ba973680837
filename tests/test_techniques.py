"""The table of what helps PPO, from runs that are written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reftune.config.files import load_config
from reproduction import series, techniques
from reproduction.series import Cell, put_between
from reproduction.techniques import BEGIN, END, SERIES, START, cells, table


def test_every_technique_is_one_change_of_the_demos_ppo() -> None:
    base = load_config(techniques.CONFIGS / "demo.toml")
    for name in techniques.techniques():
        config = load_config(techniques.CONFIGS / f"{name}.toml")
        assert config.sft == base.sft, "or it could not start from the same warm-up"
        assert config.data == base.data
        assert config.methods == ["reft"]
        assert name == "demo" or (config.ppo, config.model) != (base.ppo, base.model)


def test_all_start_from_the_warm_up_of_their_seed_which_comes_first() -> None:
    plan = cells(["demo", "group"], [1, 2])
    assert plan[:2] == [Cell(START, 1, SERIES), Cell(START, 2, SERIES)]
    assert [one.run_dir.name for one in plan[2:]] == ["demo-1", "group-1", "demo-2", "group-2"]
    assert "start_from=runs/techniques/sft-2" in plan[-1].command


def write_run(folder: Path, name: str, right: str, explained: list[float]) -> None:
    run = folder / SERIES / name
    for part in ("evaluation", "ppo"):
        (run / part).mkdir(parents=True)
    rows = [json.dumps({"correct": answer == "1"}) for answer in right]
    (run / "evaluation" / "reft.jsonl").write_text("\n".join(rows) + "\n")
    keys = ["explained_variance", *(f"explained_variance/quarter_{k}" for k in (1, 2, 3, 4))]
    first, last = dict.fromkeys(keys, 9.0), dict(zip(keys, explained, strict=False))
    rows = [json.dumps(row) for row in [first, *[last] * 5]]
    (run / "ppo" / "metrics.jsonl").write_text("\n".join(rows) + "\n")


def test_the_table_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "RUNS", tmp_path)
    write_run(tmp_path, "demo-1", "1100" * 5, [0.1, 0.0, 0.1, 0.2, 0.3])
    write_run(tmp_path, "group-1", "1110" * 5, [0.0])
    head, _, demo, group, _, told = table(["demo", "group"], [1]).splitlines()
    assert head.startswith("| technique | what it is | accuracy")
    assert demo.startswith("| `demo` | The demo's PPO: ")
    assert demo.endswith("| 50.0% |  |  | 0.10 | 0.00 0.10 0.20 0.30 |")
    # five questions of 20 are won and none is lost: 2 chances in 32
    assert group.endswith("| 75.0% | +25.0 [10.0, 45.0] | 0.062 |  |  |")
    assert "one seed: this model, not this method" in told
    write_run(tmp_path, "demo-2", "1100" * 5, [0.3, 0.2, 0.3, 0.4, 0.5])
    assert "| 0.20 | 0.10 0.20 0.30 0.40 |" in table(["demo"], [1, 2])


def test_what_stands_around_the_table_stays(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n", encoding="utf-8")
    put_between(page, BEGIN, END, lambda: "new")
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\nnew\n\n{END}after\n"
