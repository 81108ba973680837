"""What is kept of runs when their directories are gone: a line each, in `reproduction/outcomes/`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from reftune.files import read_jsonl, write_jsonl
from reproduction.series import ROOT, Cell

KEPT = ROOT / "reproduction" / "outcomes"
EXPLAINED, LAST = "explained_variance", 5  # the metric, and the steps at PPO's end that count


@dataclass(frozen=True)
class Outcome:
    """What a run of PPO came to.

    Args:
        run: name of its directory.
        right: a letter per test question, 1 where ReFT's greedy answer is right and 0 where not.
        explained: share of the returns' variance that the critic explains at PPO's end, over all
            tokens and in each quarter of a response; empty where there is no critic.
    """

    run: str
    right: str
    explained: tuple[float, ...] = ()


def kept(series: str) -> dict[str, Outcome]:
    """Return the outcomes of a series, by the names of the runs."""
    path = _path(series)
    rows = read_jsonl(path) if path.exists() else []
    return {row["run"]: Outcome(row["run"], row["right"], tuple(row["explained"])) for row in rows}


def keep(cell: Cell) -> None:
    """Keep the outcome of a finished run; one of the same name is replaced."""
    name = cell.run_dir.name
    answers = read_jsonl(cell.run_dir / "evaluation" / "reft.jsonl")
    right = "".join(str(int(row["correct"])) for row in answers)
    found = kept(cell.series) | {name: Outcome(name, right, _explained(cell.run_dir))}
    KEPT.mkdir(exist_ok=True)
    write_jsonl(_path(cell.series), [asdict(found[name]) for name in sorted(found)])


def _path(series: str) -> Path:
    return KEPT / f"{series}.jsonl"


def _explained(run_dir: Path) -> tuple[float, ...]:
    rows = read_jsonl(run_dir / "ppo" / "metrics.jsonl")[-LAST:]
    keys = [EXPLAINED, *(f"{EXPLAINED}/quarter_{k}" for k in (1, 2, 3, 4))]
    if keys[-1] not in rows[0]:
        return ()
    return tuple(round(float(np.mean([row[key] for row in rows])), 3) for key in keys)
