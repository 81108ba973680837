"""Run directories as an evaluation leaves them, with answers that are right where a test says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

Right = Sequence[Any]  # per question: 1 right, 0 wrong; of samples: a list of these per question


def write_run(
    directory: Path,
    right: Mapping[str, Right],
    *,
    seed: int = 1,
    samples: Mapping[str, Sequence[Right]] | None = None,
    **settings: Any,
) -> Path:
    """Write a finished run whose models ("sft", "reft", ...) answer as told, and return its directory.

    Args:
        right: by model, per question: was the greedy answer right?
        samples: by model, per question: was each sample right? A wrong one answers 8 instead of 7.
        settings: tables of the configuration, such as `ppo={"kl_coef": 0.0}`; also `question` (a prefix
            of all questions) and `curves` (by model).
    """
    question, curves = settings.pop("question", "How many?"), settings.pop("curves", {})
    drawn = len(next(iter(samples.values()))[0]) if samples else 0
    settings = {"model": {"scratch": "tiny"}} | settings
    settings["evaluation"] = {"samples": drawn} | settings.get("evaluation", {})
    (directory / "evaluation").mkdir(parents=True)
    config = {"name": directory.name, "output_dir": str(directory.parent), "seed": seed} | settings
    (directory / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    for model, answers in right.items():
        rows = [
            {"id": f"q{i}", "question": f"{question} {i}", "answer": "7", "correct": bool(answer)}
            | {"completion": f"{model} {answer} {seed} {settings}", "status": "ok", "value": 7.0}
            for i, answer in enumerate(answers)
        ]
        for row, drawings in zip(rows, (samples or {}).get(model, ()), strict=bool(samples)):
            row["samples"] = [
                {"completion": "", "status": "ok", "value": 7.0 if one else 8.0, "correct": bool(one)}
                for one in drawings
            ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"evaluation/{model}.jsonl").write_text(lines, encoding="utf-8")
    summaries = {
        model: {"curves": curves[model], "pass": {}} if model in curves else {} for model in right
    }
    (directory / "evaluation/result.json").write_text(
        json.dumps({"models": summaries}), encoding="utf-8"
    )
    return directory


def add_reranker(directory: Path, model: str) -> None:
    """Score a model's samples: right ones first, in the order in which they were drawn."""
    path = directory / f"evaluation/{model}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for sample in row["samples"]:
            sample["rerank"] = 0.9 if sample["correct"] else 0.1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
