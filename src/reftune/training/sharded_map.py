"""Read rows with a model that does not learn: each process a share of every micro-batch."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor

from reftune.interrupts import breakable
from reftune.progress import counting
from reftune.training.microbatches import make_microbatches, shard


@torch.no_grad()
def sharded_map(
    empty: Tensor,
    read: Callable[[list[int]], None],
    lengths: Sequence[int],
    token_budget: int,
    accelerator: Accelerator,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """Return `empty` as filled by all processes, whole on each of them.

    Args:
        empty: zeros, with a place for every row.
        read: writes what the model finds for some rows into `empty`; gradients are off.
        lengths: tokens of every row, prompt included.
        token_budget, groups: as for `make_microbatches`.
    """
    processes = accelerator.num_processes
    pieces = make_microbatches(range(len(lengths)), lengths, token_budget, processes, groups)
    # A signal to one of several processes must not keep the others waiting for its share.
    alone = breakable() if processes == 1 else nullcontext()
    with counting("reading", len(lengths)) as count, alone:
        for rows in pieces:
            mine, weights = shard(rows, accelerator.process_index, processes)
            before = None if any(weights) else empty.clone()  # another process fills in that row
            with accelerator.autocast():
                read(mine)  # all together: a model that lies on all processes is gathered by all
            if before is not None:
                empty.copy_(before)
            count.advance(len(rows))
    filled = accelerator.reduce(empty, reduction="sum") if processes > 1 else empty
    assert isinstance(filled, Tensor)
    return filled
