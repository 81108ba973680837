"""The commands. Heavy modules are imported when a command runs, so that --help answers at once."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

# Read by GNU's OpenMP runtime when torch is loaded. Threads that wait for each other spin a little,
# which small models need, but not for long: beside other work that makes everything many times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import typer

from reftune.asking import OneOfRun, Source, chat_command, evaluate, sample
from reftune.data.commands import data_app
from reftune.ending import run_to_end, say
from reftune.evaluation.commands import power, reward_app
from reftune.grading.commands import grade
from reftune.launch import launch
from reftune.launcher import rank
from reftune.options import (
    AsJson,
    ColumnNames,
    ConfigFile,
    Keep,
    Most,
    Name,
    Overrides,
    RewardPlace,
    Subset,
    fill_help,
    named_columns,
    print_json,
)
from reftune.planning.commands import check, plan
from reftune.problem import Cot
from reftune.reporting.commands import compare, doctor
from reftune.sampling.vllm.commands import serve

if TYPE_CHECKING:
    from reftune.config import Config

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Make a language model reason better, and prove it.\n\n"
        "You bring a model, questions with final answers, and some worked solutions. reftune first"
        " trains on the worked solutions (SFT), then lets the model try each question again and again"
        " and reinforces what led to the right answer (PPO). At the end it compares both on questions"
        " that neither has seen.\n\n"
        "Start with: [bold]reftune run configs/demo.toml[/bold]"
    ),
)

app.add_typer(data_app, name="data")
app.add_typer(reward_app, name="reward")


def _show_version(wanted: bool | None) -> None:
    if wanted:
        from reftune.runs.run_dir import known_version

        print(f"reftune {known_version('reftune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_show_version, is_eager=True, help="show the version"),
    ] = None,
) -> None:
    pass


_running: list[Config] = []  # the run that this process works on


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, name: Name = None) -> None:
    """Do everything: train, improve, compare, report.

    The stages are SFT (the warm-up and the baseline; with sft.epochs = 0 there is none), what `methods`
    names (PPO by default, which gives ReFT), rerankers if wanted, and the evaluation of all models on
    the test questions. Interrupt it at any time: the same command goes on where it was.
    """
    _show_report(_run_stages(config, overrides, name, None))


@app.command()
def sft(config: ConfigFile, overrides: Overrides = None, name: Name = None) -> None:
    """Only the first stage: train on the worked solutions."""
    run_dir = _run_stages(config, overrides, name, ("sft",))
    models = [path for place in ("warmup", "sft") if (path := run_dir / place / "model").exists()]
    say(f"models: {' and '.join(map(str, models))}")


@app.command()
def ppo(config: ConfigFile, overrides: Overrides = None, name: Name = None) -> None:
    """Only the second stage: improve the warm-up model with PPO on checked answers.

    It needs the model of the first stage: `reftune sft`, with the same config file, runs first. With
    sft.warmup_epochs = 0 it starts from the given model, and needs nothing before.
    """
    run_dir = _run_stages(config, overrides, name, ("ppo",))
    say(f"model: {run_dir / 'ppo' / 'model'}")


app.command()(plan)
app.command()(check)
app.command()(launch)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="the new TOML file")],
    model: Annotated[str, typer.Option(help="directory, GGUF file or Hugging Face name")],
    train: Annotated[str, typer.Option(help="questions with answers, and perhaps chains: file or name")],
    test: Annotated[str, typer.Option(help="questions that nothing is trained on")],
    cot: Annotated[Cot | None, typer.Option(help="kind of chain; default: as the chains are")] = None,
    subset: Subset = None,
    columns: ColumnNames = None,
    most: Most = None,
    reward: RewardPlace = None,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented configuration for your model and data."""
    from reftune.first_config import write_first_config

    names = named_columns(columns)
    found = write_first_config(
        path, model=model, train=train, test=test, cot=cot, subset=subset, columns=names,
        most=most, reward=reward, keep=keep or [],
    )  # fmt: skip
    if as_json:
        print_json(asdict(found) | {"config": path})
        return
    kind = f"{found.chains:,} with a {found.cot} chain" if found.chains else "none with a chain: no SFT"
    say(f"{path}: written for {found.problems:,} problems, {kind}")
    say(f"next: reftune plan {path}, which tells memory and time; then reftune run {path}")


@app.command("config")
def config_command(
    section: Annotated[str, typer.Argument(help="a section or a key, such as ppo; default: all")] = "",
    as_page: Annotated[bool, typer.Option("--markdown", help="as docs/configuration.md")] = False,
    as_schema: Annotated[bool, typer.Option("--schema", help="JSON schema, for editors")] = False,
) -> None:
    """Show the settings: what each may be, its default, what it is, and what TRL calls it."""
    from reftune.config import reference

    if as_schema or as_page:
        print(reference.editors_schema() if as_schema else reference.markdown(), end="")
    else:
        print(reference.listing(section, shutil.get_terminal_size().columns))


app.command()(evaluate)
app.command()(sample)
app.command("chat")(chat_command)


@app.command()
def export(
    source: Source,
    out: Annotated[Path, typer.Option(help="the new directory")],
    model: OneOfRun = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="default: as it is")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="for the model card, such as apache-2.0; default: yours to choose")
    ] = None,
    origin: Annotated[str | None, typer.Option(help="for the card: where it comes from")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="NAME", help="upload to the Hugging Face hub, as OWNER/NAME")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="let everybody see what is pushed")] = False,
) -> None:
    """Write a model as a directory for anybody: weights, tokenizer, chat template, model card."""
    import reftune

    card: dict[str, Any] = {"license": license, "origin": origin, "push": push, "public": public}
    found = reftune.export(source, out, model=model, dtype=dtype, **card)
    say(f"model: {found}")


app.command()(grade)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="directory of a run, finished or not")],
    watch: Annotated[bool, typer.Option("--watch", help="go on until the run is finished")] = False,
    every: Annotated[int, typer.Option(min=1, help="seconds, with --watch")] = 30,
) -> None:
    """Write report.html and report.md of a run: comparison, learning curves, samples."""
    if watch:
        from reftune.reporting.run.watch import watch_run

        watch_run(run_dir, every, say)
    _show_report(run_dir)


app.command()(doctor)
app.command()(compare)
app.command()(power)
app.command()(serve)
for group in (app, data_app, reward_app):
    fill_help(group)


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2, Ctrl-C with 130."""
    run_to_end(app, _again)


def _again() -> str:
    """Say what starting the command once more will do."""
    if not _running:
        return "start the same command again"
    from reftune.runs.run_dir import goes_on

    return goes_on(_running[-1])


def _run_stages(
    path: Path, overrides: list[str] | None, name: str | None, stages: tuple[str, ...] | None
) -> Path:
    """Run some stages, all of them by default, and return the directory of the run."""
    from reftune.config.files import load_config

    settings = load_config(path, overrides or [], name)
    _running.append(settings)
    from reftune.pipeline import run_stages  # seconds, for which a mistake in the file need not wait

    if not run_stages(settings, stages, sys.argv):
        say(f"{settings.run_dir}: already finished, nothing to do")
    return settings.run_dir


def _show_report(run_dir: Path) -> None:
    if rank() > 0:  # under accelerate launch one process reports
        return
    from rich.console import Console

    from reftune.reporting.run.report import NotEvaluatedError, final_table, write_report

    page = write_report(run_dir)
    try:
        Console().print(final_table(run_dir))
    except NotEvaluatedError as unfinished:
        say(str(unfinished))
    say(f"report: {page}")
