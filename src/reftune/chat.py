"""Talk with a model: questions in, one at a time; chain, status and answer out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import typer

from reftune.ending import say
from reftune.problem import Cot, UserError

if TYPE_CHECKING:
    from reftune.training.types import GradedSample

PROMPT = "question: "


class _Stopped(KeyboardInterrupt):
    """Ctrl-C while a question is being answered."""


def chat(
    source: str,
    model: str | None = None,
    *,
    cot: Cot | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> None:
    """Answer the questions on standard input, a line each, until it ends; the model is loaded once.

    In a terminal there is a prompt with a history; Ctrl-C stops the answer that is being written. What
    is wrong with one question ends nothing. Question n is drawn as `reftune sample` draws it with the
    seed `seed` + n - 1. Raises UserError where the model cannot be asked at all; for the arguments see
    `choose_model` and `reftune.sample`.
    """
    from reftune.evaluation.inference import as_problems, model_config, open_model
    from reftune.methods import label_of
    from reftune.runs.run_dir import choose_model

    name, directory = choose_model(source, model)
    config = model_config(directory, overrides, cot=cot)
    as_problems([], temperature)
    opened = open_model(config)
    if name is not None:
        say(f"{label_of(name)} answers: {directory}")
    for number, question in enumerate(_questions()):
        try:
            with _ctrl_c_stops():
                [graded] = opened.ask([question], temperature, seed + number)
        except UserError as error:
            say(f"error: {error}")
        except _Stopped:
            say("stopped")
        else:
            show(graded)


def show(graded: GradedSample) -> None:
    """Print a chain, what came of it, and the answer."""
    answer = graded.verdict.answer
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    typer.echo(graded.completion)
    typer.echo(f"\nstatus:  {graded.verdict.status}")
    typer.echo(f"answer:  {'none' if answer is None else answer}")


def _questions() -> Iterator[str]:
    """Yield the lines of standard input that are not empty, with a prompt where somebody types them."""
    with suppress(AttributeError):  # what is no UTF-8 is then refused as any other question
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    lines = _typed() if sys.stdin.isatty() else (line.rstrip("\n") for line in sys.stdin)
    first = True
    for line in lines:
        if line.strip():
            if not first:
                typer.echo()
            first = False
            yield line


def _typed() -> Iterator[str]:
    with suppress(ImportError):  # not every Python has it
        import readline  # noqa: F401  # gives input() its history
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            typer.echo()
            return


@contextmanager
def _ctrl_c_stops() -> Iterator[None]:
    """Let Ctrl-C end this block alone, and not the process, unless the process ignores it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
