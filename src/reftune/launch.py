"""`reftune launch`: start a run in several processes, one for each GPU, here or on several machines.

A thin layer: on GPUs it writes a configuration for accelerate and starts `accelerate launch` with it, on
CPUs it starts torchrun, as accelerate does. What it adds is the choice of how the model is cut, and
exit codes: a launcher's own is always 1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reftune.launcher import available_cores, free_port
from reftune.options import ConfigFile, Name, Overrides, Sharding
from reftune.problem import UserError

if TYPE_CHECKING:
    from reftune.config import Config


@dataclass(frozen=True)
class Start:
    """Which processes work on a run: so many on each of so many machines."""

    processes: int
    gpu: bool
    nodes: int = 1
    node: int = 0
    host: str = "127.0.0.1"
    port: int = 29500

    @property
    def all_processes(self) -> int:
        """Return how many there are on all machines."""
        return self.processes * self.nodes

    @property
    def by_accelerate(self) -> bool:
        """Tell whether `accelerate launch` starts them: not one process, which nothing would end."""
        return self.gpu and self.all_processes > 1

    def accelerate(self) -> dict[str, Any]:
        """Return the configuration for `accelerate launch` on this machine."""
        several = self.all_processes > 1
        kind = ("MULTI_GPU" if self.gpu else "MULTI_CPU") if several else "NO"
        return {
            "compute_environment": "LOCAL_MACHINE", "distributed_type": kind,
            "num_machines": self.nodes, "machine_rank": self.node, "num_processes": self.all_processes,
            "main_process_ip": self.host, "main_process_port": self.port, "rdzv_backend": "static",
            "same_network": True, "use_cpu": not self.gpu, "mixed_precision": "no", "debug": False,
        }  # fmt: skip


def launch(
    config: ConfigFile,
    overrides: Overrides = None,
    name: Name = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="of each machine; default: all of them")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="on the CPU of each machine, without any GPU")
    ] = None,
    sharding: Sharding = None,
    nodes: Annotated[int, typer.Option(min=1, help="machines; start the same command on each")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="number of this machine, from 0")] = 0,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="of machine 0, for several machines")
    ] = None,
) -> None:
    """Start `reftune run` in several processes, and say how: one for each GPU, or on the CPU.

    Where each process cannot hold the model as a whole, with all that it learns by, it is cut.
    """
    from reftune.config.files import load_config

    settings = load_config(config, overrides or [], name)  # a mistake speaks before anything starts
    start = _start(gpus, processes, nodes, node_rank, address)
    chosen = sharding or _needed(settings, start)
    path = write_configuration(settings, start)
    from reftune.ending import say

    say(f"{start.all_processes} processes, compute.sharding = {chosen}; accelerate's file: {path}")
    changes = [*(overrides or []), f"compute.sharding={chosen}"]
    arguments = ["run", str(config), *(part for change in changes for part in ("--set", change))]
    raise typer.Exit(run_processes(start, path, [*arguments, *(["--name", name] if name else [])]))


def write_configuration(config: Config, start: Start) -> Path:
    """Write the configuration of `accelerate launch` into a run's directory, and return its place."""
    from reftune.files import write_json

    path = config.run_dir / (f"accelerate-{start.node}.json" if start.nodes > 1 else "accelerate.json")
    write_json(path, start.accelerate())
    return path


def run_processes(start: Start, path: Path, arguments: Sequence[str]) -> int:
    """Run reftune in all processes of this machine; return the exit code of the first that failed."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    cores = len(available_cores())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // start.processes)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes have said it
    try:
        program = ["-m", "reftune", *arguments]
        _by_accelerate(path, program) if start.by_accelerate else _by_torchrun(start, program)
    except ChildFailedError as error:
        code = int(error.get_first_failure()[1].exitcode)
        return code if code > 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _by_accelerate(path: Path, program: Sequence[str]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    launch_command(launch_command_parser().parse_args(["--config_file", str(path), *program]))


def _by_torchrun(start: Start, program: Sequence[str]) -> None:
    from torch.distributed.run import parse_args, run

    if not start.gpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    where = [f"--nnodes={start.nodes}", f"--node-rank={start.node}"]
    where += [f"--master-addr={start.host}", f"--master-port={start.port}"]
    run(parse_args([*where, f"--nproc-per-node={start.processes}", *program]))


def _start(gpus: int | None, processes: int | None, nodes: int, node: int, address: str | None) -> Start:
    if gpus and processes:
        raise UserError("--gpus and --processes: give one of them; --processes are on the CPU")
    if node >= nodes:
        raise UserError(f"--node-rank {node}: the machines are numbered from 0 to {nodes - 1} (--nodes)")
    if nodes > 1 and address is None:
        raise UserError("--address: say where machine 0 is, as HOST:PORT, the same on all machines")
    host, port = _address(address)
    if processes:
        return Start(processes, False, nodes, node, host, port)
    import torch

    found = torch.cuda.device_count()
    if not found:
        raise UserError("there is no GPU here; --processes 2 starts two processes on the CPU")
    if gpus and gpus > found:
        raise UserError(f"--gpus {gpus}: this machine has {found}")
    return Start(gpus or found, True, nodes, node, host, port)


def _address(given: str | None) -> tuple[str, int]:
    if given is None:
        return "127.0.0.1", free_port()
    host, _, port = given.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--address {given}: give HOST:PORT, such as 10.0.0.1:29500")
    return host, int(port)


def _needed(config: Config, start: Start) -> str:
    """Return how the model has to be cut, by the calculation of `reftune plan`."""
    from dataclasses import replace

    import torch

    from reftune.planning.machine import this_machine
    from reftune.planning.shapes import given_shape
    from reftune.planning.sharing import with_sharding

    machine = this_machine(torch.device("cuda" if start.gpu else "cpu"))
    machine = replace(machine, processes=start.processes if not start.gpu else start.all_processes)
    return with_sharding(config, None, given_shape(config), machine).compute.sharding
