"""What helps PPO, measured: each technique of configs/techniques from the same warm-ups, several seeds.

    python -m reproduction.techniques [--seeds 1 2 3 4 5] [--only demo sees_both ...]

The same command resumes what was broken off. It puts a table into docs/results.md: of each technique
the accuracy on the test questions, the paired difference to the demo's PPO, and how much of the returns
its critic explains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from reftune.evaluation.seeds import ONE_SEED, compare
from reftune.evaluation.statistics import holm
from reftune.files import read_jsonl
from reftune.problem import UserError
from reftune.reporting.pages import interval, p_value, percent, signed
from reproduction.series import ROOT, Cell, put_between, run_all

SERIES, START, BASELINE = "techniques", "sft", "demo"
CONFIGS = ROOT / "configs" / SERIES
BEGIN, END = "<!-- techniques: begin -->\n", "<!-- techniques: end -->\n"
RESAMPLES = 10_000
EXPLAINED, LAST = "explained_variance", 5  # the metric, and the steps at PPO's end that count


def main() -> None:
    """Run what is not finished, then write the table."""
    parser = argparse.ArgumentParser(
        prog="reproduction.techniques", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--only", nargs="+", choices=techniques(), help="default: all")
    options = parser.parse_args()
    names = [BASELINE, *(n for n in options.only or techniques() if n != BASELINE)]
    try:
        run_all(cells(names, options.seeds))
        put_between(ROOT / "docs" / "results.md", BEGIN, END, lambda: table(names, options.seeds))
    except UserError as error:
        sys.exit(f"reproduction: {error}")


def techniques() -> list[str]:
    """Return the names of all techniques."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml") if path.stem != START)


def cells(names: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Return all runs in order, one seed after the other; the warm-ups come first."""
    starts = [Cell(START, seed, SERIES) for seed in seeds]
    return starts + [Cell(name, seed, SERIES, START) for seed in seeds for name in names]


def table(names: Sequence[str], seeds: Sequence[int]) -> str:
    """Return a row for each technique; differences are to the first one, over the same seeds."""
    right = {name: np.array([_right(name, seed) for seed in seeds]) for name in names}
    base, *others = names
    found = {n: compare(right[base], right[n], paired=True, resamples=RESAMPLES, seed=0) for n in others}
    corrected = dict(zip(others, holm([p for _, p in found.values()]), strict=True))
    lines = [
        "| technique | what it is | accuracy | difference, points | p (Holm) | explained | by quarter |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for name in names:
        cells = [f"`{name}`", _purpose(name), percent(float(right[name].mean()))]
        if name == base:
            cells += ["", ""]
        else:
            gain = float(right[name].mean() - right[base].mean())
            p = p_value(corrected[name]).removeprefix("p = ")
            cells += [f"{signed(gain)} {interval(found[name][0])}", p]
        lines.append(f"| {' | '.join([*cells, *_explained(name, seeds)])} |")
    told = f"{len(seeds)} seeds" if len(seeds) > 1 else ONE_SEED
    told += (
        f"; explained: the share of the returns' variance that the critic explains, in {LAST} steps at"
    )
    told += " PPO's end, over all tokens and in each quarter of a response"
    return "\n".join([*lines, "", f"({told}.)"])


def _right(name: str, seed: int) -> list[int]:
    rows = read_jsonl(Cell(name, seed, SERIES).run_dir / "evaluation" / "reft.jsonl")
    return [int(row["correct"]) for row in rows]


def _explained(name: str, seeds: Sequence[int]) -> tuple[str, str]:
    """Return what the critic explains at PPO's end, and in each quarter; nothing where there is none."""
    rows = [
        row
        for seed in seeds
        for row in read_jsonl(Cell(name, seed, SERIES).run_dir / "ppo" / "metrics.jsonl")[-LAST:]
    ]
    keys = [f"{EXPLAINED}/quarter_{k}" for k in (1, 2, 3, 4)]
    if keys[0] not in rows[0]:
        return "", ""
    means = [float(np.mean([row[key] for row in rows])) for key in (EXPLAINED, *keys)]
    return f"{means[0]:.2f}", " ".join(f"{mean:.2f}" for mean in means[1:])


def _purpose(name: str) -> str:
    """Return what a config's first line says of it."""
    return (CONFIGS / f"{name}.toml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


if __name__ == "__main__":
    main()
