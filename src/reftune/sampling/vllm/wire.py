"""What a trainer and a server of samples say to each other: JSON and safetensors over HTTP.

    GET  /health                    what the server is
    POST /open                      settings; builds the engine, or sees that it fits
    PUT  /weights/VERSION/NUMBER    one safetensors file with some of the weights
    POST /load                      version; takes over the files that have come
    POST /draw                      a draw; a line per response as it is finished, blank ones meanwhile

Errors come as {"error": sentence}; status 409 says that the engine holds other weights.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

TOKEN = "REFTUNE_VLLM_TOKEN"  # variable of the environment: what both sides must know
OTHER_WEIGHTS = 409
BEAT_SECONDS = 5.0  # between two lines of a draw, at most
PART_BYTES = 2**29  # of a file of weights, unless one tensor is larger


def authorization() -> str:
    """Return what a request carries, where the environment has a token."""
    return f"Bearer {token}" if (token := os.environ.get(TOKEN)) else ""


def parts(weights: Iterable[tuple[str, Tensor]], dtype: str) -> Iterator[bytes]:
    """Cut weights into safetensors files of a bounded size, in the precision of the engine."""
    part: dict[str, Tensor] = {}
    size = 0
    wanted: torch.dtype = getattr(torch, dtype)
    for name, tensor in weights:
        kind = wanted if tensor.is_floating_point() else tensor.dtype
        copied = tensor.detach().to("cpu", kind, copy=True).contiguous()  # tied ones share no memory
        if part and size + copied.nbytes > PART_BYTES:
            yield save(part)
            part, size = {}, 0
        part[name], size = copied, size + copied.nbytes
    if part:
        yield save(part)


def as_rows(found: Iterable[Any]) -> list[list[Any]]:
    """Return responses as a line of a draw has them."""
    return [[drawn.index, drawn.tokens, drawn.logprobs] for drawn in found]
