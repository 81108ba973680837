from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from reftune.problem import UserError
from reftune.reporting.run import watch as module
from reftune.reporting.run.watch import watch_run


def run_of(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text('name = "live"\n')
    (tmp_path / "ppo").mkdir()
    return tmp_path


def step(run: Path, number: int) -> None:
    with (run / "ppo/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": number, "reward": 0.5}) + "\n")


def finish(run: Path) -> None:
    results = {
        "data/report.json": {"train": 1, "validation": 1, "test": 1},
        "sft/result.json": {"best_epoch": 1, "best_validation_accuracy": 0.5},
        "ppo/result.json": {"best_step": 1, "best_validation_accuracy": 0.5},
    }
    share = {"greedy": {"accuracy": 0.5, "interval": [0.4, 0.6]}}
    models = dict.fromkeys(("warmup", "sft", "reft"), share)
    results["evaluation/result.json"] = {"n": 1, "models": models, "comparisons": []}
    for name, result in results.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(json.dumps(result))


def reload_of(run: Path) -> str | None:
    found = re.search(r'<body data-reload="(\d+)">', (run / "report.html").read_text())
    return found and found[1]


def test_the_page_is_written_anew_until_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told, seen = run_of(tmp_path), list[str](), list[tuple[float, str | None]]()
    page = run / "report.html"

    def sleep(seconds: float) -> None:
        """Let the run go on: a step, nothing, and its end."""
        seen.append((seconds, reload_of(run)))
        if len(seen) == 1:
            step(run, 1)
        elif len(seen) == 2:
            assert "step 1 of" in page.read_text()
            page.write_text('<body data-reload="7">untouched')
        else:
            assert page.read_text().endswith("untouched"), "nothing was new"
            finish(run)

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    watch_run(run, 7, told.append)
    assert seen == [(7, "7")] * 3
    assert "Still missing" not in page.read_text()
    assert told == [f"open {page}: it renews itself every 7 s; Ctrl-C ends it"]


def test_a_watch_that_is_broken_off_leaves_a_page_that_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        assert reload_of(tmp_path) == "30"
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(KeyboardInterrupt):
        watch_run(run_of(tmp_path), 30, lambda _: None)
    assert "<body>" in (tmp_path / "report.html").read_text()


def test_what_is_no_run_is_not_watched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        watch_run(tmp_path, 30, lambda _: None)
