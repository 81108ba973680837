"""A plan as tables for the terminal, and what follows from it in sentences."""

from rich.console import Group, RenderableType
from rich.table import Table

from reftune.planning.memory import gib, total
from reftune.planning.pace import DECODING_SHARE, TRAINING_SHARE
from reftune.planning.plan import Plan
from reftune.planning.sharing import BETWEEN, GPUS_EACH, WITHIN
from reftune.progress import duration


def tables(plan: Plan) -> RenderableType:
    """Return where the memory goes, how long everything takes, and whether it fits."""
    return Group(_memory(plan), _times(plan), *sentences(plan))


def sentences(plan: Plan) -> list[str]:
    """Return whether a run fits, and what to change if not."""
    machine = plan.machine
    told = f"peak {gib(plan.peak)} GiB of {gib(machine.share)} GiB"
    if machine.processes > 1:
        told += f' in each of {machine.processes} processes, compute.sharding = "{plan.sharding}"'
    found = [f"It fits: {told}." if plan.fits else f"It does not fit: {told}."]
    if not plan.fits:
        cure = f"With {', '.join(plan.cures)} it would." if plan.cures else (
            "No setting makes it fit: take a smaller model or a larger machine."
        )  # fmt: skip
        found.append(cure)
    if machine.card:
        found.append(
            f"Times are assumed, not measured: {machine.card.tflops:g} TFLOP/s, of which an update"
            f" reaches {TRAINING_SHARE:.0%}, and {machine.card.bandwidth:g} GB/s, of which a decoding"
            f" step reaches {DECODING_SHARE:.0%}."
        )
        if machine.processes > 1:
            found.append(
                f"Between GPUs {WITHIN / 1e9:g} GB/s are assumed on a machine of {GPUS_EACH},"
                f" {BETWEEN / 1e9:g} GB/s beyond, and that nobody computes meanwhile."
            )
    return found


def _memory(plan: Plan) -> Table:
    table = Table(title=f"Memory of a process in GiB, {plan.machine.name}", title_justify="left")
    stages = plan.stages
    table.add_column("")
    for stage in stages:
        table.add_column(stage.work.name, justify="right")
    for name in dict.fromkeys(name for stage in stages for name in stage.items):
        table.add_row(name, *(gib(stage.items[name]) if name in stage.items else "" for stage in stages))
    table.add_row("the program itself", *(gib(plan.machine.program) for _ in stages))
    peaks = [total(stage.items) + plan.machine.program for stage in stages]
    table.add_row("peak", *map(gib, peaks), style="bold")
    table.add_row("reached in", *(stage.fullest for stage in stages))
    return table


def _times(plan: Plan) -> Table:
    table = Table(title="Time", title_justify="left")
    table.add_column("")
    for name in ("steps", "a step", "in all"):
        table.add_column(name, justify="right")
    for stage in plan.stages:
        times = duration(stage.step_seconds), duration(stage.seconds)
        table.add_row(stage.work.name, f"{stage.work.steps:,}", *times)
    table.add_row("run", "", "", duration(plan.seconds), style="bold")
    return table
