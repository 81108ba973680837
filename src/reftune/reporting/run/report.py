"""A run directory as one page that opens anywhere, as markdown, and as a table for the terminal."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from reftune.evaluation.aggregation import saved_curves
from reftune.files import atomic_file
from reftune.methods import BASELINE, METHODS, methods_by_stage
from reftune.problem import UserError
from reftune.reporting.pages import interval, percent, render, shown, write_pages
from reftune.reporting.run.costs import costs
from reftune.reporting.run.diagnosis import diagnosis
from reftune.reporting.run.metadata import facts, stage_states, stage_titles
from reftune.reporting.run.run_files import Run, read_run
from reftune.reporting.run.sample_browser import browser, packed
from reftune.reporting.run.summary import (
    accuracies,
    comparisons,
    cut_off,
    headline,
    outcomes,
    starts,
    verdict,
)

if TYPE_CHECKING:
    from reftune.reporting.plots import Plot

ONE_LINE_AGGREGATIONS = 2  # with more of them, each interval stands below its accuracy


class NotEvaluatedError(UserError):
    """The run has no accuracies yet."""


def write_report(run_dir: Path) -> Path:
    """Write report.html and report.md (its pictures in report_files/) into a run directory.

    A run that is not finished is shown as far as it got, with a list of what is missing. Returns the
    path of report.html. Raises UserError if `run_dir` is not a run directory.
    """
    run = read_run(run_dir)
    return write_pages("report", _context(run), _plots(run), run_dir)


def write_live_page(run_dir: Path, seconds: int) -> bool:
    """Write report.html alone, which a browser loads anew every so many seconds, as far as a run is.

    Returns whether all stages of the run are done. Raises UserError if `run_dir` is no run directory.
    """
    run = read_run(run_dir)
    live = {"reload": seconds, "written": datetime.now().strftime("%H:%M:%S")}
    page = render("report.html", _context(run) | live | {"plots": shown(_plots(run))})
    with atomic_file(run_dir / "report.html") as path:
        path.write_text(page, encoding="utf-8", errors="replace")
    return all(stage["state"] == "done" for stage in stage_states(run))


def final_table(run_dir: Path) -> Group:
    """Return the accuracies of a finished run as a table for the terminal, the headline below it.

    Raises UserError if `run_dir` is not a run directory, NotEvaluatedError if it holds no evaluation.
    """
    run = read_run(run_dir)
    if not run.evaluation:
        raise NotEvaluatedError(f"{run_dir}: not evaluated yet; finish the run with `reftune run` first")
    found = accuracies(run.evaluation)
    between = " " if len(found["columns"]) <= ONE_LINE_AGGREGATIONS else "\n"
    table = Table()
    table.add_column("model")
    for column in found["columns"]:
        table.add_column(column.replace(" of ", f"{between}of "), justify="right")
    for model in found["models"]:
        cells = [
            f"{percent(cell['accuracy'])}{between}{interval(cell['interval'])}" if cell else ""
            for cell in model["cells"]
        ]
        table.add_row(Text(model["label"]), *map(Text, cells))
    # Not the table's caption, which would be squeezed into the table's width.
    return Group(table, *(Text(line) for line in (headline(run), verdict(run), cut_off(run)) if line))


def _plots(run: Run) -> dict[str, list[Plot]]:
    """Draw the accuracies, then the stages in order, all but the baseline's beside the baseline."""
    # Only now: what draws takes half a second to import, for which a refusal need not wait.
    from reftune.reporting.plots import curve_plots
    from reftune.reporting.run.stage_plots import method_plots, reranker_plots

    models = run.evaluation.get("models", {})
    curves = {model: saved_curves(summary) for model, summary in models.items()}
    plots = {"Accuracy over the number of samples": curve_plots("accuracy", curves)}
    baseline = METHODS[BASELINE].stage
    for stage, method in methods_by_stage().items():
        beside = {} if stage == baseline else run.results[baseline]
        plots[method.title] = method_plots(
            method, run.metrics[stage], run.results[stage], beside, run.lineup.start
        )
    rerankers = {key.removeprefix("reranker/"): rows for key, rows in run.metrics.items() if "/" in key}
    return plots | {"Rerankers": reranker_plots(rerankers)}


def _context(run: Run) -> dict[str, Any]:
    """Return everything that both templates show, the plots aside."""
    browsed = browser(run)
    text, complete = packed(browsed)
    return {
        "name": run.config.get("name", run.directory.name),
        "headline": headline(run),
        "verdict": " ".join(line for line in (verdict(run), cut_off(run)) if line),
        "stages": stage_states(run),
        "unreadable": run.unreadable,
        "command": run.info.get("command"),
        "n": run.evaluation.get("n", 0),
        "accuracies": accuracies(run.evaluation),
        "comparisons": comparisons(run),
        "facts": facts(run),
        "diagnosis": diagnosis(run),
        "config": (run.directory / "config.toml").read_text(encoding="utf-8"),
        "costs": costs(run, stage_titles(run)),
        "outcomes": outcomes(run),
        "starts": starts(run),
        "reload": 0,
        "browser": browsed,
        "packed": text,
        "no_texts": not complete,
    }
