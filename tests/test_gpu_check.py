"""The check of a GPU: what its parts print is read, and no part keeps the others from being told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402
import gpu_figures  # noqa: E402
from gpu_check import Part  # noqa: E402
from gpu_figures import Result  # noqa: E402

TABLE = """
reftune, round 0 of 2: 9.00 s
reftune, round 1 of 2: 0.50 s
| contestant | tokens/s | lowest-highest | reftune is faster by | lowest-highest |
|---|---:|---:|---:|---:|
| reftune | 900 | 1-2 | 1.00 | 1-1 |
| generate | 100 | 1-2 | 9.00 | 8-10 |
"""
ROOFLINE = """Measured rates: 700 GFLOP/s (copy).

| phase | ms | share of matrix rate |
|---|---:|---:|
| update | 5.0 | 41.0% |
"""


def test_tables_are_read_and_told() -> None:
    figures = gpu_figures.read_tables(TABLE)
    assert figures["rounds, s"] == {"reftune": [0.5]}
    assert figures["generate"][0]["tokens/s"] == "100"
    assert gpu_figures.gist("rollouts 135m", figures) == "reftune 900 (x1.00), generate 100 (x9.00)"
    told = gpu_figures.gist("roofline 1.5b", gpu_figures.read_tables(ROOFLINE))
    assert told == "700 GFLOP/s (copy).; update 41.0%"


def test_a_benchmark_that_was_cut_off_tells_its_rounds() -> None:
    figures = gpu_figures.read_tables(TABLE.partition("|")[0])
    assert gpu_figures.gist("rollouts 135m", figures) == "{'reftune': [0.5]}"


def test_the_plan_stands_beside_what_was_reached() -> None:
    plan = gpu_figures.read_plan(
        "│ run        │       │          │ 57.9 min │\nIt fits: peak 3.52 GiB of 80 GiB."
    )
    assert plan == {"peak GiB": 3.52, "time": "57.9 min"}
    run = gpu_figures.read_run(
        Path("nowhere"), "\npeak reserved GiB: 4.25\npeak allocated GiB: 3.50\nseconds: 9\n"
    )
    assert run == {"peak reserved GiB": 4.25, "peak allocated GiB": 3.5, "seconds": 9.0}
    table = gpu_figures.summary([Result("plan", "ok", 1, plan), Result("run", "ok", 2, run)])
    assert "| plan beside run | | | 3.52 GiB foretold, 4.25 GiB reached |" in table


def test_a_run_tells_its_models_and_their_differences(tmp_path: Path) -> None:
    result = {
        "models": {"sft": {"greedy": {"accuracy": 0.25}}, "reft": {"greedy": {"accuracy": 0.5}}},
        "comparisons": [{"a": "sft", "b": "reft", "difference": 0.25, "interval": [0.125, 0.375]}],
    }
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    figures = gpu_figures.read_run(tmp_path / "result.json", "seconds: 9")
    told = gpu_figures.gist("run", figures)
    assert told == "seconds: 9, sft: 25.0%, reft: 50.0%, reft - sft: +25.0% (+12.5% to +37.5%)"


def test_failed_tests_are_named() -> None:
    text = "FAILED tests/test_gpu.py::test_a[1] - AssertionError\n1 failed, 23 passed in 4.0s"
    assert gpu_figures.read_tests(text) == {"failed": 1, "passed": 23, "which": ["test_a[1]"]}


def part(name: str, code: str, seconds: float = 20, missing: str = "") -> Part:
    return Part(name, seconds, [sys.executable, "-c", code], gpu_figures.named_lines, missing)


def test_parts_that_fail_or_take_too_long_stop_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeping = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    monkeypatch.setattr(gpu_check, "parts", lambda options: [
        part("breaks", "print('found: 3'); raise SystemExit(7)"),
        part("sleeps", "print('found: 4', flush=True); " + sleeping, 1.0),
        part("lacks", "", missing="no data"),
        part("works", "print('found: 5')"),
    ])  # fmt: skip
    begin = time.monotonic()
    with pytest.raises(SystemExit) as ending:
        gpu_check.main(["--out", str(tmp_path), "--work", str(tmp_path / "work")])
    assert ending.value.code == 1
    assert time.monotonic() - begin < 30
    results = json.loads((tmp_path / "gpu-check.json").read_text(encoding="utf-8"))
    outcomes = {r["name"]: (r["outcome"], r["figures"]) for r in results}
    assert outcomes == {
        "breaks": ("failed (7)", {"found": "3"}), "sleeps": ("too long", {"found": "4"}),
        "lacks": ("left out: no data", {}), "works": ("ok", {"found": "5"}),
    }  # fmt: skip
    assert "| works | ok |" in (tmp_path / "gpu-check.md").read_text(encoding="utf-8")


def test_no_part_begins_when_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "parts", lambda options: [part("late", "")])
    with pytest.raises(SystemExit):
        gpu_check.main(["--out", str(tmp_path), "--work", str(tmp_path / "w"), "--minutes", "0.1"])
    assert "no time was left" in (tmp_path / "gpu-check.md").read_text(encoding="utf-8")


def test_without_a_model_or_data_the_run_is_left_out(tmp_path: Path) -> None:
    options = gpu_check.parse(["--model", str(tmp_path / "m"), "--gsm8k", str(tmp_path / "g")])
    missing = {x.name: x.missing for x in gpu_check.parts(options)}
    assert missing["run"] == f"no GSM8K at {tmp_path / 'g'} (--gsm8k); no model at {tmp_path / 'm'}"
    assert missing["tests"] == missing["rollouts 135m"] == ""


@pytest.mark.slow
def test_a_dry_run_goes_through_every_part(tmp_path: Path) -> None:
    command = [sys.executable, "tools/gpu_check.py", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--work", str(tmp_path / "work")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu-check.json").read_text(encoding="utf-8"))
    assert {r["outcome"] for r in results} == {"ok"}
    figures = {r["name"]: r["figures"] for r in results}
    assert figures["tests"]["passed"] >= 3
    assert figures["plan"]["peak GiB"] > 0
    assert figures["run"]["peak resident GiB"] > 0
    assert set(figures["run"]["models"]) == {"warmup", "sft", "reft"}
    assert "generate" in figures["rollouts 1.5b"]
    assert "update" in figures["roofline 135m"]
