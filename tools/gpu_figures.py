"""Read what the parts of gpu_check.py printed, and tell it in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


@dataclass
class Result:
    """What became of a part."""

    name: str
    outcome: str  # ok, failed (N), too long, left out: ...
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    tables: str = ""


def no_figures(_: str) -> Figures:
    """Return nothing."""
    return {}


def named_lines(text: str) -> Figures:
    """Return what lines of "name: value" say."""
    return dict(re.findall(r"^([\w ]+): (.+)$", text, re.MULTILINE))


def read_tests(text: str) -> Figures:
    """Return how many tests passed and failed, and which failed."""
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", text)}
    failed = re.findall(r"^FAILED (?:\S+::)?(\S+)", text, re.MULTILINE)
    return counts | ({"which": failed} if failed else {})


def read_plan(text: str) -> Figures:
    """Return the peak that `reftune plan` foretells, and the time of the run."""
    peak = re.search(r"peak ([\d.]+) GiB", text)
    hours = re.search(r"^. run .*?([\d.,]+ \w+) +.$", text, re.MULTILINE)
    found = {"peak GiB": float(peak[1])} if peak else {}
    return found | ({"time": hours[1]} if hours else {})


def read_run(result: Path, text: str) -> Figures:
    """Return the run's peaks of memory and its seconds, its models' accuracies and their differences."""
    found = {
        k: float(v) for k, v in re.findall(r"^(peak \w+ GiB|seconds): ([\d.]+)$", text, re.MULTILINE)
    }
    return found | (json.loads(result.read_text(encoding="utf-8")) if result.exists() else {})


def read_tables(text: str) -> Figures:
    """Return the rows of all Markdown tables by their first cells, and what single rounds took."""
    found: Figures = {}
    for who, seconds in re.findall(r"^(.+), round [1-9]\d* of \d+: ([\d.]+) s$", text, re.MULTILINE):
        found.setdefault("rounds, s", {}).setdefault(who, []).append(float(seconds))
    head: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells
        elif not set(line) <= set("|-: "):
            found.setdefault(cells[0], []).append(dict(zip(head[1:], cells[1:], strict=False)))
    rates = re.search(r"Measured rates: (.*)", text)
    return found | ({"rates": rates[1]} if rates else {})


def summary(results: Sequence[Result]) -> str:
    """Return one table of all parts."""
    lines = ["| part | outcome | seconds | found |", "|---|---|---:|---|"]
    lines += [
        f"| {r.name} | {r.outcome} | {r.seconds:.0f} | {gist(r.name, r.figures)} |" for r in results
    ]
    by_name = {result.name: result.figures for result in results}
    foretold = by_name.get("plan", {}).get("peak GiB")
    run = by_name.get("run", {})
    reached = run.get("peak reserved GiB", run.get("peak resident GiB"))
    if foretold and reached:
        lines.append(f"| plan beside run | | | {foretold} GiB foretold, {reached} GiB reached |")
    return "\n".join(lines)


def gist(name: str, figures: Figures) -> str:
    """Return what matters of a part's figures in one cell."""
    if name.startswith(("rollouts", "rl_step")):
        told = [
            f"{who} {row.get('tokens/s', row.get('seconds'))} (x{row['reftune is faster by']})"
            for who, rows in figures.items() if isinstance(rows, list)
            for row in rows if "reftune is faster by" in row
        ]  # fmt: skip
        return ", ".join(told) or str(figures.get("rounds, s", ""))
    if name.startswith("roofline"):
        shares = [
            f"{phase} {row['share of matrix rate']}"
            for phase, rows in figures.items() if isinstance(rows, list)
            for row in rows if "share of matrix rate" in row
        ]  # fmt: skip
        return "; ".join(filter(None, [figures.get("rates", ""), ", ".join(shares)]))
    if name == "run":
        told = [f"{k}: {v:g}" for k, v in figures.items() if isinstance(v, float)]
        models = figures.get("models", {})
        told += [f"{model}: {_share(numbers)}" for model, numbers in models.items()]
        told += [
            f"{x['b']} - {x['a']}: {x['difference']:+.1%} ({low:+.1%} to {high:+.1%})"
            for x in figures.get("comparisons", []) for low, high in [x["interval"]]
        ]  # fmt: skip
        return ", ".join(told)
    return ", ".join(f"{k}: {v}" for k, v in figures.items()).replace("|", "/")


def _share(numbers: Figures) -> str:
    accuracy = numbers.get("greedy", numbers)
    return f"{accuracy['accuracy']:.1%}" if isinstance(accuracy, dict) else str(accuracy)
