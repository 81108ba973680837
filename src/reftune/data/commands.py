"""The commands `reftune data ...`: prepare the paper's data sets, check or divide any data set."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reftune.options import (
    AsJson,
    ColumnNames,
    FullPython,
    Keep,
    Most,
    RewardPlace,
    Split,
    Subset,
    named_columns,
    print_json,
)
from reftune.problem import Cot, UserError

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Prepare the paper's data sets with chains of either kind, check and divide any data set.",
)

SHOWN_FAULTS = 5


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="gsm8k, svamp, mathqa_mcq or mathqa_numeric")],
    cot: Annotated[Cot, typer.Option(help="kind of chain")],
    source: Annotated[
        str | None, typer.Option(help="file or Hugging Face name; default: as published on the hub")
    ] = None,
    split: Split = "train",
    columns: ColumnNames = None,
    most: Most = None,
    out: Annotated[Path | None, typer.Option(help="default: NAME_COT_SPLIT.jsonl")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a data set of the paper in our format, with chains that are proven right.

    The source is the published data set or a file of the official ReFT repository. Where there are no
    programs, they are derived: from GSM8K's solutions, MathQA's formulas, SVAMP's equations. Only
    problems whose chain gives the answer are written.
    """
    from reftune.data.derive.preparation import describe, prepare

    found = prepare(
        name, cot, source=source, split=split, columns=named_columns(columns), most=most, out=out
    )
    if as_json:
        print_json(asdict(found))
    else:
        typer.echo("\n".join(describe(found)))


@data_app.command()
def check(
    source: Annotated[str, typer.Argument(help="file, directory or Hugging Face data set")],
    cot: Annotated[Cot | None, typer.Option(help="kind of chain; default: as the chains are")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="model that measures lengths in tokens; default: characters")
    ] = None,
    split: Split = "train",
    subset: Subset = None,
    columns: ColumnNames = None,
    most: Most = None,
    reward: RewardPlace = None,
    keep: Keep = None,
    full_python: FullPython = False,
    as_json: AsJson = False,
) -> None:
    """Check a data set: answers, chains, repeated questions, lengths.

    Programs are run; natural chains are read with their answer, as SFT trains on them. The exit code is
    2 if an answer cannot be graded or a chain does not give its answer.
    """
    from reftune.data.checking import as_object, check_source, describe

    found = check_source(
        source, cot=cot, split=split, subset=subset, columns=named_columns(columns), most=most,
        reward=reward, keep=keep or [], tokenizer=tokenizer, full_python=full_python,
    )  # fmt: skip
    if as_json:
        print_json(as_object(found))
    else:
        faults = [f"fault      {fault}" for fault in found.faults[:SHOWN_FAULTS]]
        typer.echo("\n".join([*describe(found), *faults]))
    if found.faults:
        raise UserError(
            f"{source}: {len(found.faults):,} of {found.rows:,} rows are at fault; mend or drop them"
        )


@data_app.command()
def split(
    source: Annotated[str, typer.Argument(help="file, directory or Hugging Face data set")],
    test: Annotated[
        int | None, typer.Option(min=1, help="questions to test on; default: a fifth, at most 1,000")
    ] = None,
    seed: Annotated[int, typer.Option(help="another seed chooses other questions")] = 0,
    split: Split = "train",
    subset: Subset = None,
    columns: ColumnNames = None,
    most: Most = None,
    out: Annotated[Path | None, typer.Option(help="directory; default: where the file is")] = None,
    as_json: AsJson = False,
) -> None:
    """Divide one data set: NAME_train.jsonl to train on, NAME_test.jsonl to test on.

    The rows stay as they are, and the two files share no question.
    """
    from reftune.data.dividing import divide

    found = divide(
        source, test_size=test, seed=seed, split=split, subset=subset, columns=named_columns(columns),
        most=most, out=out,
    )  # fmt: skip
    if as_json:
        print_json(asdict(found))
        return
    typer.echo(f"train    {found.train_rows:,} rows in {found.train}")
    typer.echo(f"test     {found.test_rows:,} rows in {found.test}")
    first = ["reftune", "init", f"{Path(source).stem}.toml", "--model", "DIR_OR_NAME"]
    first += ["--train", str(found.train), "--test", str(found.test)]
    first += [part for pair in columns or () for part in ("--column", pair)]
    typer.echo(f"reftune: next: {shlex.join(first)}", err=True)
