"""The commands `reftune plan` and `reftune check`: what a run needs, and what of the machine works."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reftune.launcher import rank
from reftune.options import AsJson, ConfigFile, Name, Overrides, Sharding, print_json


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    name: Name = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="for a GPU that is not at hand: its memory, such as 24GB, or its name"),
    ] = None,
    processes: Annotated[
        int, typer.Option("--gpus", "--processes", min=1, help="how many share the work")
    ] = 1,
    sharding: Sharding = None,
) -> None:
    """Tell, before anything starts, what each stage needs: memory, whether it fits, and time.

    For this machine the model is tried for a moment; for a GPU that is not at hand times are assumed,
    and so they are for what several GPUs tell each other.
    """
    from rich.console import Console

    from reftune.config.files import load_config

    settings = load_config(config, overrides or [], name)
    from reftune.planning.plan import plan_run
    from reftune.planning.table import tables

    Console().print(tables(plan_run(settings, gpu, processes, sharding)))


def check(
    config: Annotated[Path | None, typer.Argument(help="a run that the machine is for")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Tell what will work on this machine and what will not, each with the fix.

    It looks at torch, GPUs, precisions, threads, memory, the executor of programs, the disk, optional
    packages, trackers, the model hub, and whether processes find each other. Exit code 1: a run would
    fail here.
    """
    from reftune.config.files import load_config

    settings = load_config(config, overrides or []) if config is not None else None
    from reftune.planning.checkup.finding import shown
    from reftune.planning.checkup.machine_check import check_machine

    findings, width = [], shutil.get_terminal_size().columns
    for found in check_machine(settings):
        findings.append(found)
        if not as_json and rank() == 0:
            print(shown(found, width), flush=True)
    if as_json and rank() == 0:
        print_json([asdict(found) for found in findings])
    if any(found.state == "fails" for found in findings):
        raise typer.Exit(1)
