"""Keep worker processes that run programs: start them, hand programs out, kill what hangs, try again.

A worker is any process that speaks the protocol of `sandbox_worker.py` on a socket; what it runs
programs in is its own matter.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from reftune.launcher import available_cores, local_processes
from reftune.problem import ANSWERED, STATUSES, Execution, Status, UserError

START_SECONDS, START_ATTEMPTS = 60.0, 2
# Programs queued at a worker, so that it need not wait for us between two of them.
MAX_QUEUED, MIN_QUEUED = 8, 4
MAX_LINE_BYTES = 1 << 16
FAILURES: dict[str, Status] = {name: name for name in STATUSES if name not in ANSWERED}


class _WorkerLost(Exception):
    """The worker hung, ended or talked nonsense; `result` is for the program that it was running."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.result = Execution(status, None, message)


@dataclass(frozen=True)
class Executor:
    """How a worker is started: `command`, then its socket's descriptor and core, then `arguments`.

    Attributes:
        environment: all that it gets.
        seconds: of the clock, after which a worker that has not answered is killed.
        fix: what to do where none can start, for an error message.
    """

    command: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    seconds: float
    fix: str


class WorkerPool:
    """Run programs in the workers of an executor, which start at the first run and stay warm.

    There is one worker per available core, shared among the processes of a launcher, unless `workers`
    says otherwise. No worker outlives this process.
    """

    def __init__(self, executor: Executor, workers: int | None = None) -> None:
        self.cores = _rotated_cores()
        self._max_workers = workers or max(1, len(self.cores) // local_processes())
        self._executor = executor
        self._workers: list[_Worker] = []
        self._works = False  # whether a worker has ever started
        self.lacks: list[str] = []  # what the last worker that started had to do without
        self._lock = threading.Lock()
        weakref.finalize(self, _stop_all, self._workers)  # also at the interpreter's exit

    def run(self, programs: Iterable[str]) -> dict[str, Execution]:
        """Return what each program gave, none twice; raise UserError if no worker ever starts."""
        batch = _Batch(deque(programs))
        with self._lock:
            try:
                self._execute(batch)
            except BaseException:  # Ctrl-C: what is still queued must not answer the next run
                self.close()
                raise
        return batch.results

    def close(self) -> None:
        """Stop the workers; a later run would start new ones."""
        _stop_all(self._workers)

    def _execute(self, batch: _Batch) -> None:
        while batch.pending or any(worker.queue for worker in self._workers):
            self._start_workers(batch)
            self._hand_out(batch)
            now = time.monotonic()
            self._collect(batch, now)
            self._kill_late(batch, now)

    def _start_workers(self, batch: _Batch) -> None:
        wanted = min(self._max_workers, len(self._workers) + len(batch.pending))
        while len(self._workers) < wanted and len(batch.failed_starts) < START_ATTEMPTS:
            taken = [worker.core for worker in self._workers]
            core = min(self.cores, key=taken.count)
            try:
                self._workers.append(_Worker(core, self._executor))
            except OSError as error:
                batch.failed_starts.append(str(error))
        if not self._workers:
            self._give_up(batch)

    def _give_up(self, batch: _Batch) -> None:
        """Name our own fault for every program left, or say that there is no sandbox at all."""
        if not self._works:
            told = "the sandbox does not work, none of its workers can start"
            fix = self._executor.fix
            raise UserError(f"{told}: {batch.failed_starts[-1]}; {fix}, or free memory and processes")
        message = f"no sandbox worker could be started: {batch.failed_starts[-1]}"
        while batch.pending:
            batch.results[batch.pending.popleft()] = Execution("sandbox_error", None, message)

    def _hand_out(self, batch: _Batch) -> None:
        for worker in self._workers:
            share = math.ceil(len(batch.pending) / len(self._workers))
            if len(worker.queue) < MIN_QUEUED and share:
                room = min(share, MAX_QUEUED - len(worker.queue))
                worker.send([batch.pending.popleft() for _ in range(room)])

    def _collect(self, batch: _Batch, now: float) -> None:
        """Wait until a worker answers or is late, and record the answers."""
        by_descriptor = {worker.channel.fileno(): worker for worker in self._workers}
        poll = select.poll()
        for descriptor, worker in by_descriptor.items():
            poll.register(descriptor, select.POLLIN | (select.POLLOUT if worker.outgoing else 0))
        deadlines = [worker.deadline for worker in self._workers if worker.queue]
        patience = max(0.0, min(deadlines, default=now) - now)
        for descriptor, _ in poll.poll(math.ceil(patience * 1000)):
            worker = by_descriptor[descriptor]
            try:
                worker.flush()
                for result in worker.receive():
                    self._works, self.lacks = True, worker.lacks
                    batch.settle(worker.queue.popleft(), result)
            except _WorkerLost as lost:
                self._drop(worker, lost, batch)

    def _kill_late(self, batch: _Batch, now: float) -> None:
        """Replace workers that were late before we last listened (it may be us who slept)."""
        for worker in [w for w in self._workers if w.queue and now > w.deadline]:
            self._drop(worker, _WorkerLost("timeout", "killed by the wall clock"), batch)

    def _drop(self, worker: _Worker, lost: _WorkerLost, batch: _Batch) -> None:
        """Stop a worker, charge the program that it was running, and put the others back."""
        self._workers.remove(worker)
        worker.stop()
        if not worker.ready:
            batch.failed_starts.append(str(lost))
        elif worker.queue:
            batch.settle(worker.queue.popleft(), lost.result, lost=True)
        batch.pending.extendleft(reversed(worker.queue))


@dataclass(slots=True)
class _Batch:
    """The state of one run: programs to hand out, results so far, and who had a second chance."""

    pending: deque[str] = field(default_factory=deque)
    results: dict[str, Execution] = field(default_factory=dict)
    retried: set[str] = field(default_factory=set)
    failed_starts: list[str] = field(default_factory=list)

    def settle(self, program: str, result: Execution, lost: bool = False) -> None:
        """Keep a result, but run once more what took a worker down: that may have come from outside."""
        if (lost or result.status == "crash") and program not in self.retried:
            self.retried.add(program)
            self.pending.append(program)
        else:
            self.results[program] = result


class _Worker:
    """A worker process, the programs queued at it (it is running the first) and their deadline."""

    def __init__(self, core: int, executor: Executor) -> None:
        self.core = core
        self.queue: deque[str] = deque()
        self.ready = False
        self.lacks: list[str] = []
        self.deadline = time.monotonic() + START_SECONDS
        self._program_seconds = executor.seconds
        self.outgoing = bytearray()
        self._incoming = b""
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        with theirs:
            try:
                self._process = _start_process(executor, theirs.fileno(), core)
            except BaseException:
                self.channel.close()
                raise

    def send(self, programs: Iterable[str]) -> None:
        """Queue programs; they leave as fast as the channel takes them."""
        if self.ready and not self.queue:
            self._restart_clock()
        for program in programs:
            self.queue.append(program)
            self.outgoing += json.dumps(program).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what the channel takes without blocking."""
        with suppress(BlockingIOError, ConnectionError):  # a closed channel shows when it is read
            while self.outgoing:
                del self.outgoing[: self.channel.send(self.outgoing)]

    def receive(self) -> Iterator[Execution]:
        """Yield the results that have arrived, in the order of the queue; raise _WorkerLost."""
        try:
            data = self.channel.recv(MAX_LINE_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise _WorkerLost("crash", "the worker process ended")
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        for line in lines:
            self._restart_clock()
            if self.ready and self.queue:
                yield _parse(line)
            elif line.split(b";")[0] == b"ready":
                self.ready, self.lacks = True, line.decode(errors="replace").split(";")[1:]
            else:
                raise _WorkerLost("sandbox_error", line.decode(errors="replace"))
        if len(self._incoming) > MAX_LINE_BYTES:
            raise _WorkerLost("sandbox_error", "the worker sent an endless line")

    def stop(self) -> None:
        """Kill the worker with the monty process below it, and wait for its end."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.channel.close()

    def _restart_clock(self) -> None:
        self.deadline = time.monotonic() + self._program_seconds


def _parse(line: bytes) -> Execution:
    """Return the execution that a worker's line stands for; raise _WorkerLost for any other line."""
    with suppress(ValueError, RecursionError, OverflowError):
        match json.loads(line):
            case ["ok", float(value) | int(value), str(message)] if value is not True and math.isfinite(
                value
            ):
                return Execution("ok", value, message)
            case ["ok_text", str(value), str(message)]:
                return Execution("ok_text", value, message)
            case [str(name), None, str(message)] if name in FAILURES:
                return Execution(FAILURES[name], None, message)
    raise _WorkerLost("sandbox_error", "the worker sent a line that is no result")


def _start_process(executor: Executor, descriptor: int, core: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*executor.command, str(descriptor), str(core), *executor.arguments],
        env=dict(executor.environment),
        pass_fds=(descriptor,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal is ours; and one kill reaches the whole group
    )


def _stop_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().stop()


def _rotated_cores() -> list[int]:
    """Return the cores that we may use, rotated by our process id."""
    cores = available_cores()
    first = os.getpid() % len(cores)  # two trainers with one worker each should not share a core
    return cores[first:] + cores[:first]
