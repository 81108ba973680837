"""What does not need torch starts without it: seconds and hundreds of megabytes less."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import written_runs

HEAVY = {"torch", "transformers", "tokenizers", "accelerate", "datasets", "trl"}
SHOW = "import sys; print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
RUN = f"""
import atexit, sys
from reftune.cli import main
atexit.register(lambda: exec({SHOW!r}))
main()
"""


def modules(code: str, *arguments: str) -> set[str]:
    """Run code in a fresh interpreter; return the packages that it has imported at its end."""
    command = [sys.executable, "-c", code, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode in (0, 2), found.stderr
    assert "MODULES " in found.stdout
    return set(found.stdout.rpartition("MODULES ")[2].split())


def test_importing_the_package_imports_next_to_nothing() -> None:
    assert modules(f"import reftune; {SHOW}") & {*HEAVY, "pydantic", "numpy", "typer"} == set()
    assert "torch" in modules(f"import torch; {SHOW}")  # so that the claim above can fail


def test_help_imports_no_settings() -> None:
    assert modules(RUN, "--help") & {*HEAVY, "pydantic", "numpy"} == set()


@pytest.mark.parametrize("cot", ["program", "natural"])
def test_grade_and_data_check_import_nothing_heavy(tmp_path: Path, cot: str) -> None:
    chain = "It is 7." if cot == "natural" else "def solution():\n    return 7"
    (tmp_path / "answers.jsonl").write_text(json.dumps({"id": 1, "completion": chain, "answer": 7}))
    (tmp_path / "data.jsonl").write_text(json.dumps({"question": "?", "answer": 7, "chain": chain}))
    assert modules(RUN, "grade", str(tmp_path / "answers.jsonl"), "--cot", cot) & HEAVY == set()
    assert modules(RUN, "data", "check", str(tmp_path / "data.jsonl")) & HEAVY == set()


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_mistake_in_the_configuration_waits_for_no_import(tmp_path: Path, command: str) -> None:
    (tmp_path / "my.toml").write_text("[ppo]\nkl_cof = 1\n")
    refused = modules(RUN, command, str(tmp_path / "my.toml"))
    assert refused & HEAVY == set()
    assert "pydantic" in refused  # it was read


def test_compare_and_report_import_nothing_heavy(tmp_path: Path) -> None:
    runs = [
        written_runs.write_run(tmp_path / f"s{seed}", {"sft": [0, 1, 1], "reft": [1, 1, 1]}, seed=seed)
        for seed in (1, 2)
    ]
    heavy = HEAVY | {"scipy", "safetensors"}
    assert modules(RUN, "compare", *map(str, runs)) & heavy == set()
    refused = modules(RUN, "compare", str(tmp_path / "none"))
    assert refused & {*heavy, "matplotlib", "jinja2"} == set()
    assert "pydantic" in refused  # it came as far as that
    refused = modules(RUN, "report", str(tmp_path / "none"))
    assert refused & {*heavy, "matplotlib", "jinja2"} == set()
    assert "rich" in refused
    (runs[0] / "evaluation" / "result.json").unlink()  # of an unfinished run there is a page, too
    (runs[0] / "sft").mkdir()
    (runs[0] / "sft" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}')
    assert modules(RUN, "report", str(runs[0])) & heavy == set()
    assert (runs[0] / "report_files" / "sft_loss.png").exists()


def test_doctor_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "reward": 0.5, "accuracy": 0.5}')
    assert modules(RUN, "doctor", str(path)) & {*HEAVY, "matplotlib", "jinja2"} == set()
