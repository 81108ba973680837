"""The command `reftune grade`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reftune.options import AsJson, ColumnNames, FullPython, Most, RewardPlace, column_names, print_json
from reftune.problem import AnswerStyle, Cot


def grade(
    file: Annotated[Path, typer.Argument(help='JSONL: "id", "completion", "answer", maybe "choices"')],
    cot: Annotated[Cot, typer.Option(help="kind of chain")],
    out: Annotated[Path | None, typer.Option(help="default: FILE.graded.jsonl")] = None,
    reward: RewardPlace = None,
    trigger: Annotated[
        str | None, typer.Option(help='before a natural answer; default: "Therefore, the answer is:"')
    ] = None,
    answer_style: Annotated[
        AnswerStyle | None, typer.Option(help="how answers are written; default: as they come")
    ] = None,
    full_python: FullPython = False,
    columns: ColumnNames = None,
    most: Most = None,
    as_json: AsJson = False,
) -> None:
    """Judge the outputs of any system: was each final answer right?"""
    from reftune.config import Reward
    from reftune.grading.grade_file import KEYS, grade_file

    summary = grade_file(
        file, cot, out, reward=reward, trigger=trigger, answer_style=answer_style,
        columns=column_names(columns, KEYS), most=most, limits=Reward(full_python=full_python),
    )  # fmt: skip
    if as_json:
        print_json(asdict(summary) | {"accuracy": summary.accuracy})
        return
    typer.echo(f"correct: {summary.accuracy:.1%} ({summary.correct} of {summary.judged} judged)")
    for status, count in summary.statuses.items():
        typer.echo(f"  {status}: {count}")
    typer.echo(f"verdicts: {summary.out}")
