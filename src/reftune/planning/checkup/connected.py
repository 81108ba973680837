"""Whether processes find each other: those of a launcher, or two that are started to try."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

from reftune.config import Config
from reftune.launcher import all_processes, free_port
from reftune.planning.checkup.finding import Finding, note, ok

SECONDS = 90.0
# What each of two processes does: connect, and add up what both have.
ADD = """
import datetime, sys, torch, torch.distributed as dist
rank, address, backend = int(sys.argv[1]), sys.argv[2], sys.argv[3]
device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
dist.init_process_group(backend, init_method=address, rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=60))
x = torch.tensor([rank + 1.0], device=device)
dist.all_reduce(x)
assert x.item() == 3, x
dist.barrier()
dist.destroy_process_group()
"""


def processes(config: Config | None) -> Iterator[Finding]:
    """Let the processes of a launcher tell each other where they are, or two try to work together."""
    if all_processes() > 1:
        yield _launched()
        return
    yield _two_together("gloo")
    if torch.cuda.device_count() > 1:
        yield _two_together("nccl")


def _launched() -> Finding:
    began = time.perf_counter()
    state = PartialState(parse_flag_from_env("ACCELERATE_USE_CPU"))  # as a run begins
    hosts = Counter(gather_object([socket.gethostname()]))
    told = ", ".join(f"{number} on {host}" for host, number in sorted(hosts.items()))
    seconds = time.perf_counter() - began
    count = state.num_processes
    state.destroy_process_group()
    return ok("processes", f"{count} found each other in {seconds:.1f} s: {told}")


def _two_together(backend: str) -> Finding:
    address = f"tcp://127.0.0.1:{free_port()}"
    began = time.perf_counter()
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, str(rank), address, backend],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    reasons = [_end_of(one, SECONDS) for one in pair]
    if wrong := next(filter(None, reasons), ""):
        fix = "see that nothing blocks 127.0.0.1; a run of one process does not need it"
        return note("processes", f"two cannot work together by {backend}: {wrong}", fix)
    seconds = time.perf_counter() - began
    return ok("processes", f"two found each other by {backend} and added up, in {seconds:.1f} s")


def _end_of(process: subprocess.Popen[str], seconds: float) -> str:
    """Return what went wrong in a process, nothing where it ended well."""
    try:
        _, told = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"no answer in {seconds:.0f} s"
    lines = told.strip().splitlines()
    return (lines[-1] if lines else f"exit code {process.returncode}") if process.returncode else ""
