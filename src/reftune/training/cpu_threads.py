"""Data-parallel training on the cores of one CPU: threads with replicas that share their weights.

A small model's operations are too small to be shared out: two threads that work on one matrix product
wait for each other longer than they compute. So micro-batches run next to each other, each on one
thread. A large model's operations fill all cores by themselves.
"""

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

PARAMETERS_IN_REPLICAS = 2**27  # of all replicas together: 512 MiB of gradients
Piece = TypeVar("Piece")
Result = TypeVar("Result")


class CpuThreads:
    """Run pieces of work side by side.

    Args:
        count: how many at once; 1 runs everything in the calling thread.
        threads_each: threads of each one's operations.
    """

    def __init__(self, count: int = 1, threads_each: int | None = None) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            self._pool = ThreadPoolExecutor(
                count, "replica", initializer=torch.set_num_threads, initargs=(threads_each or 1,)
            )

    def map(self, function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
        """Return what `function` gives for each piece, in their order."""
        if self._pool is None:
            return [function(piece) for piece in pieces]
        futures = [self._pool.submit(function, piece) for piece in pieces]
        try:
            return [future.result() for future in futures]
        except BaseException:  # do not begin what nobody waits for any more
            for future in futures:
                future.cancel()
            raise


def make_cpu_threads(model: nn.Module, accelerator: Accelerator) -> CpuThreads:
    """Return as many as this process may use, fewer for a large model.

    There is one on any other device, beside other processes, where accelerate has wrapped the model's
    forward pass (mixed precision), and where gradients go to masters.
    """
    threads = torch.get_num_threads()
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
    halves = any(p.requires_grad and p.dtype.itemsize < 4 for p in model.parameters())  # with masters
    if not alone or halves or accelerator.mixed_precision != "no":
        return CpuThreads()
    count = replica_count(sum(p.numel() for p in model.parameters() if p.requires_grad), threads)
    return CpuThreads(count, threads // count)


def replica_count(parameters: int, threads: int) -> int:
    """Return how many replicas with so many parameters that learn share the work of so many threads."""
    return max(1, min(threads, PARAMETERS_IN_REPLICAS // max(1, parameters)))


def replicas(model: nn.Module, count: int) -> list[nn.Module]:
    """Return the model and `count - 1` copies that share its weights but have gradients of their own."""
    return [model, *(_replica(model) for _ in range(count - 1))]


def _replica(model: nn.Module) -> nn.Module:
    shared: dict[int, Tensor] = {
        id(p): nn.Parameter(p.data, p.requires_grad) for p in model.parameters()
    }
    shared |= {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, shared)
