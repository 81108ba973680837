"""Let the product compute in float64, where rounding is too small to have a say in any comparison.

Two computations of the same function differ by rounding, and by how much depends on the processor:
the width of its vectors decides in which order sums are taken. In float32 a tolerance that holds on
every machine is wider than some real faults, training amplifies what rounding leaves, and where two
tokens are nearly as likely another one is drawn. In float64 the same code agrees to about 1e-14.

As a script it is the command line in float64: `python tests/precision.py run tiny.toml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

# What two computations of the same function in float64 may differ by. The numbers compared are below
# 1000 and come from some hundred roundings one after the other: 1000 * 1.1e-16 * 100 = 1e-11. The rest
# is for training, which amplifies it.
CLOSE = 1e-9


@contextmanager
def float64() -> Iterator[None]:
    """Let whatever asks for float32 get float64, in reftune and in transformers; also a decorator."""
    import reftune.model.loading  # noqa: F401  # libraries make tables of types when they are imported

    torch.storage._storage_type_to_dtype_map()  # and torch one when it first reads a file
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch, "float32", torch.float64),
            mock.patch.object(torch, "float", torch.float64),
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    with float64():
        from reftune import cli

        cli.main()
