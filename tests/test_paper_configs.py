"""Every config of the paper runs end to end with a tiny model on a handful of questions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from reftune.config import Config
from reftune.config.files import load_config
from reftune.files import read_json
from reftune.pipeline import models_of, run_stages

PAPER = Path(__file__).parents[1] / "configs" / "paper"
CELLS = sorted(path for path in PAPER.rglob("*.toml") if path.parent.name != "parts")
# For `make test`: all methods on text with letters as answers, and an ablation on programs with numbers.
QUICK = ("codellama-7b/mathqa_mcq_natural", "ablations/separate_value_model")

SMALL = [
    "model.scratch=tiny", "model.dtype=float32", "data.validation_size=8",
    "model.scratch_overrides={hidden_size = 32, intermediate_size = 48, num_hidden_layers = 1}",
    "prompt.max_new_tokens=24", "compute.threads=1", "compute.sandbox_workers=1",
    "sft.epochs=24", "sft.warmup_epochs=20", "sft.batch_size=8", "sft.learning_rate=5e-3",
    "sft.validate_every_epochs=24", "warmup_samples.per_question=8", "offline_st.epochs=1",
    "offline_st.batch_size=8", "online_st.steps=2", "ppo.steps=2", "ppo.questions_per_step=4",
    "reranker.epochs=1",
]  # fmt: skip


def _cells() -> list[object]:
    names = [str(path.relative_to(PAPER).with_suffix("")) for path in CELLS]
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", _cells())
def test_a_cell_runs_end_to_end(name: str, tmp_path: Path) -> None:
    config = _shrink(PAPER / f"{name}.toml", tmp_path)
    if config.start_from is not None:
        main = _shrink(PAPER / "codellama-7b/gsm8k_program.toml", tmp_path)
        run_stages(main, ("sft", "warmup_samples"))
        config = config.model_copy(update={"start_from": str(main.run_dir)})
    run_stages(config)
    result = read_json(config.run_dir / "evaluation/result.json")
    assert list(result["models"]) == models_of(config)
    aggregations = (
        {"greedy", "vote", "rerank", "weighted vote"} if config.evaluation.rerank else {"greedy"}
    )
    assert aggregations <= result["models"]["reft"].keys()


def _shrink(path: Path, folder: Path) -> Config:
    """Return a config whose data, in the official files' format, and steps are few."""
    full = load_config(path)
    idle = {"offline_st", "online_st"} - {*full.methods}
    if not full.evaluation.rerank:
        idle |= {"reranker", "warmup_samples"}  # settings of these would be refused
    small = [change for change in SMALL if change.partition(".")[0] not in idle]
    changes = [f"output_dir={folder / path.parent.name}", *small]
    if full.evaluation.samples:
        changes.append("evaluation.samples=2")
    for role, count in (("train", 40), ("test", 6)):
        target = folder / f"{role}_{full.data.cot}.json"
        rows = _rows(count, full.data.cot, "mcq" in path.stem)
        target.write_text(json.dumps(rows), encoding="utf-8")
        changes.append(f"data.{role}={target}")
    return load_config(path, changes)


def _rows(count: int, cot: str, choices: bool) -> list[dict[str, object]]:
    """Return questions whose answer, 7 or 8, nobody can know: some samples are right, some wrong."""
    rng = random.Random(count)
    rows: list[dict[str, object]] = []
    for i in range(count):
        value = rng.choice((7, 8))
        options = "\na ) 7 , b ) 8" if choices else ""
        answer = {7: "a", 8: "b"}[value] if choices else str(value)
        chain = f"def solution():\n    return {value}"
        if cot == "natural":
            chain = f"It is {value}.\nTherefore, the answer is: {answer}"
        rows.append(
            {
                "item_id": f"{count}-{i}", "question": f"Guess number {count}{i}.{options}",
                "answer_cot": chain, "answer_value": answer,
            }
        )  # fmt: skip
    return rows
