"""Where a run's time and memory went: a row per stage for the table, and figures per step."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from reftune.methods import label_of
from reftune.problem import Row
from reftune.progress import duration
from reftune.reporting.run.run_files import Run

PARTS = ("sampling", "judging", "reading", "update", "validation")  # `seconds_PART` in metrics.jsonl


def costs(run: Run, titles: dict[str, str]) -> dict[str, Any]:
    """Return what each stage took as rows of texts, under `columns`; what nobody measured is empty.

    Args:
        run: finished or not.
        titles: of the stages that are told, by stage.
    """
    rows = [
        (title, _taken(run, stage), *_parts(run.metrics[stage]), *_pace(run.metrics[stage]))
        for stage, title in titles.items()
        if run.metrics[stage]
    ]
    blank = ("",) * (len(PARTS) + 2)
    asked = [
        (f"Evaluation of {label_of(model)}", duration(taken), *blank)
        for model, taken in run.asked.items()
    ]
    columns = ("stage", "time", *PARTS, "tokens/s", "peak memory")
    kept = [i for i in range(len(columns)) if i < 2 or any(row[i] for row in rows)]
    return {
        "columns": [columns[i] for i in kept],
        "rows": [[row[i] for i in kept] for row in (*rows, *asked)],
    }


def _taken(run: Run, stage: str) -> str:
    found = _numbers(run.metrics[stage], "seconds")
    if stage == "warmup_samples":  # whose rows are pieces, and not where a clock stands
        found = [sum(found)]
    return duration(found[-1]) if found else ""


def _parts(rows: Sequence[Row]) -> list[str]:
    """Return how long each part of the steps took in all."""
    sums = [sum(_numbers(rows, f"seconds_{part}")) for part in PARTS]
    return [duration(seconds) if seconds else "" for seconds in sums]


def _pace(rows: Sequence[Row]) -> tuple[str, str]:
    """Return the median of the tokens per second, and the most memory that was held."""
    tokens, memory = _numbers(rows, "tokens_per_second"), _numbers(rows, "memory_gib")
    return f"{median(tokens):,.0f}" if tokens else "", f"{max(memory):.1f} GiB" if memory else ""


def _numbers(rows: Sequence[Row], key: str) -> list[float]:
    found = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return [value for value in found if np.isfinite(value)]
