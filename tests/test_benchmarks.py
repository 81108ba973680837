"""The benchmarks run at tiny sizes, their arithmetic is right, and contestants do the same work."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.contest import Turn, parse_options, ratios, spread, table
from benchmarks.roofline import Shape, decode_work, model_shape, prefill_work
from benchmarks.update import make_experience, plain_update, reftune_update
from child import Child
from precision import CLOSE, float64

HEADLINES = {"rollouts": 2, "update": 3, "rl_step": 1, "programs": 2, "roofline": 1}  # tables of each


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what all benchmarks together print with --quick, on a SVAMP of our own making."""
    folder = tmp_path_factory.mktemp("svamp")
    _write_svamp(folder)
    options = ["--quick", "--rounds", "1", "--threads", "1", "--data", str(folder)]
    return Child("benchmarks", *options).finish()


def test_every_benchmark_prints_finite_figures(document: str) -> None:
    for name, tables in HEADLINES.items():
        section = document.partition(f"-m benchmarks.{name} ")[2].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("|")]
        assert sum(row.startswith("|---") for row in rows) == tables, name
        figures = re.findall(r"(?<=\| )-?[\d.,]+", "\n".join(rows))
        assert len(figures) >= 6 * tables  # of one contestant at least
        assert all(math.isfinite(float(figure.replace(",", ""))) for figure in figures)
        assert "nan" not in section
        assert "inf" not in section


def test_missing_libraries_are_named_and_left_out(document: str) -> None:
    for library, contestant in (("trl", "TRL GRPO"), ("pebble", "pebble")):
        row, reason = f"| {contestant} |", f"{contestant} is left out"
        installed = importlib.util.find_spec(library) is not None
        assert (row in document, reason in document) == (installed, not installed)


def test_ratios_are_of_pairs_and_spread_is_median_lowest_highest() -> None:
    ours = [Turn(2.0, 100, 50, 10), Turn(1.0, 100, 60, 10), Turn(4.0, 100, 60, 10)]  # 50, 100, 25 per s
    theirs = [Turn(10.0, 100, 80, 20), Turn(4.0, 80, 80, 20), Turn(8.0, 100, 80, 20)]  # 10, 20, 12.5
    assert ratios(ours, theirs) == [5.0, 5.0, 2.0]
    assert spread([3.0, 1.0, 10.0]) == (3.0, 1.0, 10.0)
    rows = table({"ours": ours, "theirs": theirs}, "tokens").splitlines()
    assert rows[2] == "| ours | 50.00 | 25.00-100 | 1.00 | 1.00-1.00 | 60 | 10 |"
    assert rows[3] == "| theirs | 12.50 | 10.00-20.00 | 5.00 | 2.00-5.00 | 80 | 20 |"
    assert "| theirs | 8.00 | 4.00-10.00 |" in table({"ours": ours, "theirs": theirs}, "")


@float64()
def test_both_updates_have_the_same_gradient() -> None:
    gradients = []
    for make in (reftune_update, plain_update):
        options = parse_options("", ["--quick", "--threads", "1"])
        options.workload = "demo"
        experience = make_experience(options)
        make(experience, options)(1)
        weights = experience.workload.model.parameters()
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
    assert gradients[0].norm() > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=CLOSE, atol=CLOSE)


def test_flops_of_a_forward_pass_are_counted_by_hand() -> None:
    from tiny_models import tiny_model

    shape = model_shape(tiny_model())
    # Two layers: queries and output 32 x 32 each, keys and values 16 x 32 each, three matrices 32 x 48.
    assert shape == Shape(2 * (2 * 1024 + 2 * 512 + 3 * 1536), 60 * 32, 2, 32, 60, 32, 4)
    # 10 tokens that see 5 positions on average (4 * 2 * 32 * 5 FLOPs each), logits of one of them.
    assert prefill_work(shape, 1, 10).flops == 2 * 15360 * 10 + 1280 * 10 + 2 * 1920
    # All weights, 2 layers x 32 numbers x 4 bytes for each of 3 x 7 positions, and 3 x 60 logits.
    assert decode_work(shape, 3, 7, 1).bytes == 17280 * 4 + 256 * 21 + 720


def _write_svamp(folder: Path) -> None:
    """Write training and test problems in the format of the official files."""
    import json

    def row(i: int) -> dict[str, Any]:
        chain = f"def solution():\n    boxes = {i}\n    return boxes + 1"
        return {
            "item_id": f"svamp_{i}", "question": f"A shop has {i} boxes and gets one. How many?",
            "answer_cot": chain, "answer_value": float(i + 1),
        }  # fmt: skip

    (folder / "svamp_python_sdp.json").write_text(json.dumps([row(i) for i in range(300)]))
    (folder / "svamp_test_set.json").write_text(json.dumps([row(i) for i in range(300, 310)]))
