"""What computes: torch, GPUs, precisions, CPU threads, memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from reftune.config import Config
from reftune.launcher import available_cores
from reftune.planning.checkup.finding import Finding, fails, note, ok
from reftune.planning.estimate import matrix_rate
from reftune.planning.machine import this_machine
from reftune.planning.memory import gib

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
LITTLE_MEMORY = 4 * 2**30  # what the smallest pretrained models want to be trained in
WORTHWHILE = 1.2  # of float32's pace, below which bfloat16 on a CPU is no gain
SIDE = 1024  # of the matrices that every GPU multiplies


def torch_found(config: Config | None) -> Iterator[Finding]:
    """Tell which torch this is, and whether its build serves the machine."""
    told = f"{torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
    driver = Path("/proc/driver/nvidia/version").exists()
    if driver and not torch.backends.cuda.is_built():
        fix = "install the CUDA build: pip install --force-reinstall torch"
        yield fails("torch", f"{told}; it is built without CUDA, and there is a GPU", fix)
    else:
        yield ok("torch", told)


def gpus(config: Config | None) -> Iterator[Finding]:
    """Tell what GPUs there are, and multiply on each."""
    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        fix = f"unset CUDA_VISIBLE_DEVICES, which is {hidden!r}" if hidden is not None else (
            "if there is one, `nvidia-smi` must show it" if torch.backends.cuda.is_built() else ""
        )  # fmt: skip
        yield note("GPU", "none can be used: everything runs on the CPU", fix)
        return
    for index in range(torch.cuda.device_count()):
        yield _gpu(torch.device("cuda", index))


def _gpu(device: torch.device) -> Finding:
    card = torch.cuda.get_device_properties(device)
    free, _ = torch.cuda.mem_get_info(device)
    told = f"{device.index}: {card.name}, {gib(free)} of {gib(card.total_memory)} GiB free"
    try:
        product = torch.ones(SIDE, SIDE, device=device) @ torch.ones(SIDE, SIDE, device=device)
        right = bool((product == SIDE).all())
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        return fails("GPU", f"{told}; it does not compute: {reason}", "update the driver or torch")
    if not right:
        return fails("GPU", f"{told}; it multiplies wrongly", "do not use this card")
    if free < card.total_memory / 2:
        fix = "end what uses it (`nvidia-smi`), or lower compute.tokens_per_microbatch"
        return note("GPU", told, fix)
    return ok("GPU", told)


def precisions(config: Config | None) -> Iterator[Finding]:
    """Tell in which precision models compute well here."""
    wanted = config.model.dtype if config is not None else None
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            yield ok("precision", "the GPU computes in bfloat16")
        elif wanted == "bfloat16":
            fix = 'set model.dtype = "float16"'
            yield fails("precision", "the GPU has no bfloat16, which model.dtype asks for", fix)
        else:
            yield note("precision", "the GPU has no bfloat16", 'use model.dtype = "float16"')
        return
    cpu = torch.device("cpu")
    gain = matrix_rate(cpu, torch.bfloat16) / matrix_rate(cpu, torch.float32)
    told = f"bfloat16 multiplies {gain:.1f} times as fast as float32 on this CPU"
    if wanted == "bfloat16" and gain < 1:
        yield note("precision", told, 'model.dtype = "float32" is faster, and takes more memory')
    else:
        yield ok("precision", told if gain >= WORTHWHILE else f"{told}: float32 does")


def threads(config: Config | None) -> Iterator[Finding]:
    """Tell how many CPU threads a run would have, and whether the machine grants them."""
    cores = len(available_cores())
    wanted = (config.compute.threads if config is not None else None) or cores
    granted = cpu_limit()
    if granted is not None and granted < wanted:
        count = max(1, int(granted))
        told = f"{wanted} threads on {cores} cores, of which this container is granted {granted:g}"
        yield note("threads", told, f"set compute.threads = {count}, or they wait for each other")
    elif wanted > cores:
        fix = f"set compute.threads = {cores} or less"
        yield note("threads", f"compute.threads = {wanted} on {cores} cores", fix)
    else:
        yield ok("threads", f"{wanted} on {cores} cores")


def cpu_limit() -> float | None:
    """Return how many cores' time the container is granted, None where nothing limits it."""
    if not CPU_LIMIT.exists():
        return None
    quota, _, period = CPU_LIMIT.read_text().strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def memory(config: Config | None) -> Iterator[Finding]:
    """Tell how much of the machine's memory is there."""
    whole = this_machine(torch.device("cpu")).memory
    told = f"{gib(whole)} GiB for this process and its children"
    if whole < LITTLE_MEMORY:
        fix = "see with `reftune plan my.toml` whether your run fits"
        yield note("memory", told, fix)
    else:
        yield ok("memory", told)
