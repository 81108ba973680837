"""The timing harness: every contestant in a process of its own, asked in turns.

A contestant is a function of its `Turns` and the options. It builds its state, then waits for its turn,
does one unit of work and says how much that was, again and again. All of them are built before the first
turn, and only one works at a time, so that a disturbance of the machine hits neighbours alike.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Options = argparse.Namespace
REAL = "135m"  # the size of the real model
ROUNDS, REAL_ROUNDS = 5, 3
QUESTIONS, REAL_QUESTIONS, SAMPLES = 64, 2, 8
Spread = tuple[float, float, float]  # median, lowest, highest


class LeftOut(Exception):
    """Say why a contestant or a workload cannot take part here."""


@dataclass(frozen=True)
class Turn:
    """One unit of work: how long, how much, and how much memory so far."""

    seconds: float
    work: float
    peak_mb: float
    rest_mb: float  # before the first turn
    phases: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """A name, and the module-level function that is run in the contestant's process."""

    name: str
    run: Callable[[Turns, Options], None]


class Turns:
    """A contestant's end of the line to the harness."""

    def __init__(self, pipe: Connection, device: str) -> None:
        self._pipe, self._cuda = pipe, device == "cuda"
        self._number, self._begin, self._rest_mb = 0, 0.0, 0.0

    def wait(self) -> int:
        """Wait for the next turn and return its number; ends the contestant when there is none."""
        if self._number == 0:
            self._synchronize()
            self._rest_mb = _memory_mb("VmRSS", self._cuda)
            self._pipe.send(None)
        try:
            if not self._pipe.recv():
                raise SystemExit
        except EOFError:  # the harness is gone
            raise SystemExit from None
        self._number += 1
        self._begin = time.perf_counter()
        return self._number

    def done(self, work: float, **phases: float) -> None:
        """Report the turn as over: `work` units were done; `phases` are seconds within it."""
        self._synchronize()
        seconds = time.perf_counter() - self._begin
        peak_mb = _memory_mb("VmHWM", self._cuda)
        self._pipe.send(Turn(seconds, work, peak_mb, self._rest_mb, phases))

    def serve(self, act: Callable[[int], float]) -> None:
        """Answer every turn with `act`, which gets the turn's number and returns the work done."""
        while True:
            self.done(act(self.wait()))

    def _synchronize(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.synchronize()


def compete(contestants: Sequence[Contestant], options: Options) -> dict[str, list[Turn]]:
    """Give each contestant one turn to warm up, then `options.rounds` turns, always one after another.

    Returns the turns by name. A contestant that cannot take part, or fails, is left out with a line that
    says why; an error in the first ends the contest.
    """
    workers: list[_Worker] = []
    try:
        for contestant in contestants:
            workers.append(_Worker(contestant, options))
            with _failing(workers[-1], workers):
                workers[-1].wait()
        present = [worker for worker in workers if worker.takes_part]
        turns: dict[str, list[Turn]] = {worker.name: [] for worker in present}
        for number in range(options.rounds + 1):
            for worker in [worker for worker in present if worker.takes_part]:
                with _failing(worker, present):
                    turn = worker.ask()
                    _say(f"{worker.name}, round {number} of {options.rounds}: {turn.seconds:.2f} s")
                    if number > 0:  # the first of each only warms up
                        turns[worker.name].append(turn)
    finally:
        for worker in workers:
            worker.close()
    return {worker.name: turns[worker.name] for worker in present if worker.takes_part}


@contextmanager
def _failing(worker: _Worker, among: Sequence[_Worker]) -> Iterator[None]:
    """Leave a contestant that fails out, unless it is the first, with which all are compared."""
    try:
        yield
    except RuntimeError as error:
        if worker is among[0]:
            raise
        worker.takes_part = False
        print(f"{worker.name} is left out: it failed, {error.__cause__}\n", flush=True)


def table(turns: dict[str, list[Turn]], unit: str) -> str:
    """Return the contest as a Markdown table; ratios say how much faster the first contestant is.

    Args:
        turns: measured turns by name, the first contestant's first.
        unit: of the work, "tokens" for example; "" shows seconds per turn instead of a rate.
    """
    measure = f"{unit}/s" if unit else "seconds"
    first = next(iter(turns.values()))
    lines = [
        f"| contestant | {measure} | lowest-highest | {next(iter(turns))} is faster by | lowest-highest"
        " | peak memory, MB | of it before the first turn |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, each in turns.items():
        middle, low, high = spread([speed(turn) if unit else turn.seconds for turn in each])
        ratio = spread(ratios(first, each))
        lines.append(
            f"| {name} | {_number(middle)} | {_number(low)}-{_number(high)}"
            f" | {ratio[0]:.2f} | {ratio[1]:.2f}-{ratio[2]:.2f}"
            f" | {max(turn.peak_mb for turn in each):,.0f} | {each[0].rest_mb:,.0f} |"
        )
    return "\n".join(lines)


def phases(turns: Sequence[Turn]) -> str:
    """Return the median seconds of each phase of a contestant's turns."""
    names = turns[0].phases
    medians = {name: statistics.median(turn.phases[name] for turn in turns) for name in names}
    return ", ".join(f"{name.replace('_', ' ')} {seconds:.2f} s" for name, seconds in medians.items())


def speed(turn: Turn) -> float:
    """Return the work per second of a turn."""
    return turn.work / turn.seconds


def ratios(ours: Sequence[Turn], theirs: Sequence[Turn]) -> list[float]:
    """Return by what factor we are faster, for each round by itself."""
    return [speed(a) / speed(b) for a, b in zip(ours, theirs, strict=True)]


def spread(numbers: Sequence[float]) -> Spread:
    """Return median, lowest and highest."""
    return statistics.median(numbers), min(numbers), max(numbers)


def parse_options(
    about: str, arguments: Sequence[str] | None, real_questions: int = REAL_QUESTIONS
) -> Options:
    """Read the command line that all benchmarks share; --quick makes everything tiny, for tests."""
    return with_defaults(make_parser(about).parse_args(arguments), real_questions)


def make_parser(about: str) -> argparse.ArgumentParser:
    """Return the parser of what all benchmarks share."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    add, real = parser.add_argument, f"with the model of {REAL}"
    add("--rounds", type=int, help=f"that count; default: {ROUNDS}, {real} {REAL_ROUNDS}")
    add("--questions", type=int, help=f"default: {QUESTIONS}, {real} {REAL_QUESTIONS} or fewer")
    add("--threads", type=int, help="per contestant; default: all cores")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--model", type=Path, default=Path("runs/demo/warmup/model"), help="trained model")
    sizes = ("tiny", "small", REAL, "0.5b", "1.5b")
    told = f"random weights instead of --model; {REAL}: the model of --smollm2, where it is there"
    add("--model-size", choices=sizes, help=told)
    place = Path("models/SmolLM2-135M-Instruct")
    add("--smollm2", type=Path, default=place, help="a directory; `make smollm2` brings the model")
    add("--data", type=Path, default=Path("../shared/data/mwp_reft"), help="SVAMP's folder")
    add("--quick", action="store_true", help="tiny sizes in this process; shows nothing")
    return parser


def with_defaults(options: Options, real_questions: int = REAL_QUESTIONS) -> Options:
    """Fill in what the command line leaves open: a real model gets less work, or it would take hours."""
    real = options.model_size == REAL
    options.rounds = options.rounds or (REAL_ROUNDS if real else ROUNDS)
    options.questions = options.questions or (real_questions if real else QUESTIONS)
    options.samples = SAMPLES
    if options.quick:
        options.rounds, options.questions, options.samples = min(options.rounds, 2), 4, 2
        options.model_size = options.model_size or "tiny"
    return options


class _Worker:
    """The harness's end of the line to one contestant."""

    def __init__(self, contestant: Contestant, options: Options) -> None:
        self.name, self.takes_part = contestant.name, False
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Importing torch takes seconds: a quick run is content with threads.
        start: Any = threading.Thread if options.quick else context.Process
        self._process = start(target=_run, args=(contestant.run, theirs, options), name=self.name)
        self._process.start()
        if not options.quick:
            theirs.close()  # so that the end of the process is the end of the line

    def wait(self) -> None:
        """Wait until the contestant is built, or left out."""
        reason = self._receive()
        self.takes_part = reason is None
        if not self.takes_part:
            print(f"{self.name} is left out: {reason}\n", flush=True)

    def ask(self) -> Turn:
        """Let the contestant have a turn."""
        self._pipe.send(True)
        turn = self._receive()
        assert isinstance(turn, Turn)
        return turn

    def close(self) -> None:
        """End the contestant."""
        with suppress(OSError):  # it may have ended already
            self._pipe.send(False)
        self._process.join(timeout=60)
        if isinstance(self._process, multiprocessing.process.BaseProcess):
            self._process.kill()  # nothing happens where it has ended

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            answer = RuntimeError("its process died")
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self.name} failed") from answer
        return answer


def _run(contestant: Callable[[Turns, Options], None], pipe: Connection, options: Options) -> None:
    """Run a contestant and tell the harness why it ended, unless that was the harness's wish."""
    try:
        contestant(Turns(pipe, options.device), options)
    except (ImportError, LeftOut) as reason:
        pipe.send(str(reason))
    except SystemExit:  # there is no further turn
        return
    except Exception as error:
        import traceback

        traceback.print_exc()
        pipe.send(RuntimeError(repr(error)))  # the error itself might not survive the journey
        if not options.quick:
            sys.exit(1)


def _memory_mb(field_name: str, cuda: bool) -> float:
    """Return what this process holds (VmRSS) or held at most (VmHWM); with CUDA, of the GPU's memory.

    Not `ru_maxrss`: it counts what the parent held when this process was started.
    """
    if cuda:
        import torch

        held = torch.cuda.memory_allocated if field_name == "VmRSS" else torch.cuda.max_memory_allocated
        return held() / 2**20
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # not Linux
        return float("nan")
    return float(status.partition(f"{field_name}:")[2].split()[0]) / 1024


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
