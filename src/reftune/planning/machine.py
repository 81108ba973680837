"""The machine that a plan is for: this one, or a card that is not at hand."""

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from reftune.launcher import all_processes
from reftune.planning.pace import CARDS, Card
from reftune.problem import UserError

GPU_PROGRAM = 0.7e9  # what CUDA, its libraries and its kernels take before any tensor
AT_WORK = 0.2e9  # what a CPU's kernels, threads and libraries take beside that, once they are used
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a process of a run works, and how many others do; bytes."""

    name: str
    memory: float
    program: float  # that a process takes without any model
    gpu: bool
    card: Card | None = None  # its data sheet, where it is not at hand
    threads: int = 1  # of the CPU
    processes: int = 1  # of the run, on all machines: on GPUs each has one

    @property
    def share(self) -> float:
        """Return the memory of one process: those of a CPU are taken to be on this machine."""
        return self.memory / (1 if self.gpu else self.processes)


def this_machine(device: torch.device) -> Machine:
    """Return the machine at hand; on a CPU the program is as large as it is now, and will be at work."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return Machine(found.name, found.total_memory, GPU_PROGRAM, gpu=True, processes=all_processes())
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with_limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    memory = min(pages, int(with_limit)) if with_limit.isdigit() else pages
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = f"this machine with {device_name(device)}"
    threads = torch.get_num_threads()
    return Machine(told, memory, used + AT_WORK, gpu=False, threads=threads, processes=all_processes())


def device_name(device: torch.device) -> str:
    """Return what computes at hand: a GPU's name, or the CPU's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' * (threads > 1)}"


def named_machine(name: str) -> Machine:
    """Return a GPU that is not at hand, by its name or its memory ("24GB").

    Raises UserError for a name that is not known.
    """
    key = name.lower().replace(" ", "").replace("nvidia", "").strip("-_")
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)g(?:i?b)?", key):
        memory = float(size[1])
        card = min(CARDS.values(), key=lambda one: (abs(one.memory - memory), one.tflops))
        told = f"a GPU of {memory:g} GB"
        return Machine(told, memory * 1e9, GPU_PROGRAM, True, Card(memory, card.tflops, card.bandwidth))
    if key not in CARDS:
        raise UserError(
            f"--gpu {name}: not known; give its memory, such as 24GB, or one of {', '.join(CARDS)}"
        )
    return Machine(name, CARDS[key].memory * 1e9, GPU_PROGRAM, True, CARDS[key])
