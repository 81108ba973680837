from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reftune.reporting.run.costs import costs
from reftune.reporting.run.run_files import read_run

TITLES = {"sft": "SFT", "warmup_samples": "Samples", "ppo": "PPO"}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_parts_of_a_stage_are_summed_over_its_steps(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    parts = {"seconds_sampling": 30.0, "seconds_judging": 0.25, "seconds_update": 2.0}
    rows: list[dict[str, Any]] = [
        {
            "step": s,
            "seconds": 40.0 * s,
            "tokens_per_second": 1000.0 + s,
            "memory_gib": 1.5 + s / 10,
            **parts,
        }
        for s in (1, 2, 3)
    ]
    rows[2] |= {"seconds_validation": 5.0, "tokens_per_second": None}  # null, as a damaged log has it
    write_rows(tmp_path / "ppo/metrics.jsonl", rows)
    write_rows(tmp_path / "warmup_samples/metrics.jsonl", [{"step": s, "seconds": 4.0} for s in (1, 2)])
    asked = [{"step": 1, "model": "sft", "seconds": 90.0}, {"step": 2, "model": "reft", "accuracy": 1}]
    write_rows(tmp_path / "evaluation/metrics.jsonl", asked)
    columns = ["stage", "time", "sampling", "judging", "update", "validation", "tokens/s", "peak memory"]
    assert costs(read_run(tmp_path), TITLES) == {
        "columns": columns,  # nothing was read once more
        "rows": [
            ["Samples", "8 s", *[""] * 6],  # whose seconds are those of a piece
            ["PPO", "2 min", "1.5 min", "750 ms", "6 s", "5 s", "1,002", "1.8 GiB"],
            ["Evaluation of SFT", "1.5 min", *[""] * 6],
        ],
    }


def test_a_run_that_has_logged_nothing_has_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    assert costs(read_run(tmp_path), TITLES)["rows"] == []
