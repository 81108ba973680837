"""The commands `reftune data ...`: prepare the paper's data sets, check any data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reftune.problem import Cot, UserError

if TYPE_CHECKING:
    from reftune.config import Columns

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Prepare the paper's data sets with chains of either kind, and check any data set.",
)

SHOWN_FAULTS = 5

ColumnNames = Annotated[
    list[str] | None,
    typer.Option("--column", help="name of a column, e.g. --column question=problem (repeatable)"),
]
Split = Annotated[str, typer.Option(help="split of a directory or Hugging Face data set")]


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="gsm8k, svamp, mathqa_mcq or mathqa_numeric")],
    cot: Annotated[Cot, typer.Option(help="kind of chain")],
    source: Annotated[
        str | None, typer.Option(help="file or Hugging Face name; default: as published on the hub")
    ] = None,
    split: Split = "train",
    out: Annotated[Path | None, typer.Option(help="default: NAME_COT_SPLIT.jsonl")] = None,
) -> None:
    """Write a data set of the paper in our format, with chains that are proven right.

    The source is the published data set or a file of the official ReFT repository. Where there are no
    programs, they are derived: from GSM8K's solutions, MathQA's formulas, SVAMP's equations. Only
    problems whose chain gives the answer are written.
    """
    from reftune.data.derive.preparation import describe, prepare

    typer.echo("\n".join(describe(prepare(name, cot, source=source, split=split, out=out))))


@data_app.command()
def check(
    source: Annotated[str, typer.Argument(help="file, directory or Hugging Face data set")],
    cot: Annotated[Cot | None, typer.Option(help="kind of chain; default: as the chains are")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="model that measures lengths in tokens; default: characters")
    ] = None,
    split: Split = "train",
    subset: Annotated[str | None, typer.Option(help="configuration of a Hugging Face data set")] = None,
    columns: ColumnNames = None,
) -> None:
    """Check a data set: answers, chains, repeated questions, lengths.

    Programs are run; natural chains are read with their answer, as SFT trains on them. The exit code is
    2 if an answer cannot be graded or a chain does not give its answer.
    """
    from reftune.data.checking import check_source, describe

    found = check_source(
        source,
        cot=cot,
        split=split,
        subset=subset,
        columns=named_columns(columns or []),
        tokenizer=tokenizer,
    )
    faults = [f"fault      {fault}" for fault in found.faults[:SHOWN_FAULTS]]
    typer.echo("\n".join([*describe(found), *faults]))
    if faults:
        raise UserError(
            f"{source}: {len(found.faults):,} of {found.rows:,} rows are at fault; mend or drop them"
        )


def named_columns(pairs: list[str]) -> Columns | None:
    """Return the column names that `--column` gives, None without any."""
    from reftune.config import Columns

    names = dict(pair.partition("=")[::2] for pair in pairs)
    for key, name in names.items():
        if key not in Columns.model_fields or not name:
            raise UserError(
                f"--column {key}={name}: write KEY=NAME with one of {', '.join(Columns.model_fields)}"
            )
    return Columns(**names) if names else None
