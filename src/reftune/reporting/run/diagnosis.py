"""What the metrics of a run say is wrong with it, for its page and for `reftune doctor`."""

from __future__ import annotations

import math
from typing import Any

from reftune.evaluation.doctor.diagnosis import SYMPTOMS, Finding, history, not_checked
from reftune.evaluation.doctor.windows import Settings, in_order, settings_of
from reftune.problem import Row
from reftune.reporting.run.run_files import Run

STAGE = "ppo"


def logged_steps(run: Run) -> list[Row]:
    """Return the metrics of a run's steps of PPO, and as the last one the step that ended it, if any."""
    rows = in_order(run.metrics[STAGE])
    ends = (run.directory / STAGE).glob("non_finite_step_*.json")
    steps = [int(number) for path in ends if (number := path.stem.rpartition("_")[2]).isdigit()]
    last = max(steps, default=0)
    if last > max((row["step"] for row in rows), default=0) and not run.results[STAGE]:
        rows.append({"step": last, "loss": math.nan})
    return rows


def run_settings(run: Run) -> Settings:
    """Return the numbers among a run's settings."""
    return settings_of(run.config)


def told(rows: list[Row], findings: list[Finding], unchecked: dict[str, str]) -> str:
    """Say in one sentence how much was found and looked for."""
    if not rows:
        return "no step of PPO has been logged yet, so there is nothing to look at"
    counts = [
        f"{count} {level}{'s' if count > 1 else ''}"
        for level in ("warning", "note")
        if (count := sum(f.level == level and not f.gone for f in findings))
    ]
    looked = f"{len(SYMPTOMS) - len(unchecked)} symptoms were looked for"
    return f"{len(rows)} steps of PPO: {' and '.join(counts) or 'nothing wrong was found'}; {looked}"


def diagnosis(run: Run) -> dict[str, Any]:
    """Return what the page shows: the findings, those that are gone last, and one sentence on all."""
    rows, settings = logged_steps(run), run_settings(run)
    findings = history(rows, settings)
    return (
        {"findings": findings, "told": told(rows, findings, not_checked(rows, settings))} if rows else {}
    )
