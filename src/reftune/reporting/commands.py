"""The commands `reftune compare`, runs and files of answers side by side, and `reftune doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reftune.options import AsJson, print_json
from reftune.problem import UserError

if TYPE_CHECKING:
    from reftune.reporting.comparison.compare import Comparison


def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="directories of finished runs, or files of judged answers; LABEL=FILE names a model,"
            " and files of one label are its seeds"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="directory; default: comparison/ beside the runs")
    ] = None,
    k: Annotated[int | None, typer.Option(help="samples per question to use; default: all")] = None,
    reported: Annotated[
        Path | None,
        typer.Option(help="TOML file of others' numbers to show beside, as reproduction/paper.toml"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="plain, lm-eval, trl, verl, prime-rl or verifiers; default: as the keys of a file say",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="of the files: the key that says what is right; of lm-eval METRIC,FILTER, too"
        ),
    ] = None,
) -> None:
    """Put runs, or answers that other systems have written, side by side.

    Shows accuracies, paired differences, corrected p-values, and the questions that one of two models
    answers. Runs that differ in their seed only are pooled; others are told apart by what they differ
    in. Files are paired question by question, by id or by text.
    """
    from rich.console import Console

    from reftune.evaluation.pairing import has_files, split_label
    from reftune.reporting.comparison.page import default_directory, terminal_tables, write_comparison

    paths = [split_label(source)[1] for source in sources]
    if has_files(sources):
        comparison = _compare_files(sources, k, reported, kind, metric)
    else:
        comparison = _compare_runs(paths, k, reported, kind, metric)
    Console().print(terminal_tables(comparison))  # first: drawing the page takes a second
    directory = out or default_directory(paths)
    before = (directory / "comparison.html").exists()
    page = write_comparison(comparison, directory)
    told = f"reftune: comparison: {page}{', in place of the one that was there' * before}"
    typer.echo(told, err=True)


def _compare_runs(
    runs: Sequence[Path], k: int | None, reported: Path | None, kind: str | None, metric: str | None
) -> Comparison:
    from reftune.reporting.comparison.compare import compare_runs

    _refuse({"--format": kind, "--metric": metric}, "on runs, which say what is right")
    return compare_runs(runs, k, reported)


def _refuse(options: Mapping[str, object], where: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{option}: has no effect {where}; leave it out")


def _compare_files(
    sources: Sequence[str], k: int | None, reported: Path | None, kind: str | None, metric: str | None
) -> Comparison:
    from reftune.evaluation.pairing import pair, read_pooled
    from reftune.reporting.comparison.compare import compare_answers

    _refuse({"--k": k, "--reported": reported}, "where files are compared")
    return compare_answers(pair(read_pooled(sources, kind, metric)))


def doctor(
    path: Annotated[
        Path,
        typer.Argument(
            help="directory of a run, whatever became of it; or another software's: TRL's output"
            " directory or trainer_state.json, verl's metrics as JSONL"
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with a run of PPO, what that most likely means, and which key to change.

    It ends with 0 where nothing is wrong, with 1 where a warning holds at the end of the run. Notes, and
    what was seen earlier and is gone, are no warnings.
    """
    from reftune.evaluation.doctor.diagnosis import history, not_checked
    from reftune.evaluation.doctor.foreign import OURS, in_their_words, read_foreign
    from reftune.reporting.run.diagnosis import logged_steps, run_settings, told
    from reftune.reporting.run.run_files import read_run

    if (path / "config.toml").exists():
        run = read_run(path)
        software, rows, settings = OURS, logged_steps(run), run_settings(run)
    else:
        (software, rows), settings = read_foreign(path), {}
    findings, unchecked = history(rows, settings), not_checked(rows, settings)
    if software != OURS:
        findings = [replace(f, sentence=in_their_words(f.sentence)) for f in findings]
    if as_json:
        found = [asdict(finding) for finding in findings]
        print_json({"software": software, "steps": len(rows), "found": found, "not_checked": unchecked})
    else:
        typer.echo(f"{path}: {told(rows, findings, unchecked)}")
        for finding in findings:
            typer.echo(str(finding))
        for name, needs in unchecked.items() if rows else ():
            typer.echo(f"not checked, {name}: needs {needs.replace('|', ' or ')}")
    if any(finding.level == "warning" and not finding.gone for finding in findings):
        raise typer.Exit(1)
