"""A method that has a row in the table of methods, and nothing else, is shown like the others."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from reftune.methods import METHODS, Method
from reftune.reporting.comparison.compare import compare_runs
from reftune.reporting.comparison.page import write_comparison
from reftune.reporting.run.report import write_report
from written_runs import write_run

ROW = Method(
    "DPO", "Direct preference optimisation", "preference", "somebody.elses:start", (), "step",
    ("#123456", "#abcdef"),
)  # fmt: skip
SAMPLE = {"id": "q0", "question": "How many?", "answer": "7", "completion": "return 7", "status": "ok"}
SAMPLE |= {"correct": True, "value": 7.0, "reward": 0.875, "step": 1}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a run of SFT, ReFT and a made-up method, which comes last in the table."""
    monkeypatch.setitem(METHODS, "dpo", ROW)
    right = {"warmup": [0, 0, 0, 0], "sft": [1, 0, 0, 0], "reft": [1, 1, 1, 0], "dpo": [1, 1, 0, 0]}
    return write_run(tmp_path / "run", right)


def rows(*values: dict[str, Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def test_its_stage_is_on_the_page(run: Path) -> None:
    stage = run / "preference"
    stage.mkdir()
    step = {"step": 1, "kl": 0.5, "reward": 0.25, "statuses": {"ok": 4}, "accuracy": 0.5}
    (stage / "metrics.jsonl").write_text(rows(step, step | {"step": 2, "validation_accuracy": 0.5}))
    (stage / "samples.jsonl").write_text(rows(SAMPLE))
    (run / "config.toml").write_text(
        'methods = ["reft", "dpo"]\n[preference]\nsteps = 4\nlearning_rate = 0.125\n'
    )
    cell = {"correct": 2, "accuracy": 0.5, "interval": [0.25, 0.75]}
    models = {model: {"greedy": cell} for model in ("warmup", "sft", "reft", "dpo")}
    result = {"n": 4, "models": models, "comparisons": []}
    (run / "evaluation/result.json").write_text(json.dumps(result))

    path = write_report(run)
    markdown, page = path.with_suffix(".md").read_text(), path.read_text()
    assert "- DPO: unfinished (step 2 of 4)\n" in markdown
    assert "| DPO | 50.0% [25.0, 75.0] |" in markdown
    assert "## Direct preference optimisation\n" in markdown
    assert "Direct preference optimisation:\n\n- steps: 4\n- learning rate: 0.125\n" in markdown
    figures = {picture.stem for picture in (run / "report_files").glob("preference_*.png")}
    assert figures == {f"preference_{name}" for name in ("kl", "reward", "validation", "statuses")}
    assert "--dpo: #123456;" in page
    assert ".model-dpo { --model: var(--dpo); }" in page
    assert "stroke: var(--dpo)" in page
    packed = page.partition('id="data">')[2].partition("</script>")[0]
    browser = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert {"key": "dpo", "label": "DPO"} in browser["models"]
    (shown,) = browser["rollouts"]
    assert (shown["stage"], shown["steps"][0]["samples"][0]["reward"]) == ("DPO", "0.875")


def test_its_model_is_compared_with_sft_and_with_reft(run: Path, tmp_path: Path) -> None:
    found = compare_runs([run])
    greedy = [cell.method for cell in found.cells if cell.aggregation == "greedy"]
    assert greedy == ["warmup", "sft", "reft", "dpo"]
    assert [(row.base_method, row.method) for row in found.differences] == [
        ("sft", "reft"),
        ("sft", "dpo"),
        ("dpo", "reft"),
    ]
    page = write_comparison(found, tmp_path / "out").read_text()
    assert "<h1>ReFT answers 75.0% of 4 unseen questions" in page  # the main method, not the last
    assert '<tr class="model-dpo">\n      <th scope="row"><i class="dot"></i>DPO</th>' in page
    assert "fill: var(--dpo)" in page
