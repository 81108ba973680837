"""(e) Roofline: how much of the machine's matrix and memory rates prefill, decode and update reach.

    python -m benchmarks.roofline [--model-size 135m | --device cuda --dtype bfloat16 --model-size 1.5b]

The rates are measured in the same rounds: the best of several matrix products, and copying a tensor that
no cache holds (bytes read and written). Prefill and decode are of the rollouts' uniform workload: 64
prompts of one length with 8 responses each that run to the limit (2 prompts with the real model). The
update is on the demo's samples, with the real model on responses as long as SVAMP's programs.

- FLOPs: 2 per weight of the layers and token, 4 per attended position, head and its dimension, and the
  output embedding where logits are needed. Shared prompts, and what responses begin with alike, count
  once. The update's backward pass counts twice the forward pass, and recomputation not at all.
- Bytes: what has to move at least: the weights, the keys and values, logits in float32, and for the
  update gradients and AdamW's states. Activations do not count, which in a small model are most of the
  traffic: its memory share is a lower bound.
- Bound: the time in which the machine could do it at these two rates, as a share of the time taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks.contest import REAL, Options, parse_options, spread
from benchmarks.update import make_experience, reftune_update
from benchmarks.workload import described, open_workload, repeated, sample, set_threads
from reftune.heap import keep_freed_memory
from reftune.model.batch import collate
from reftune.sampling.sampler import Sample

Act = Callable[[], object]

COPIED_BYTES = 2**28
SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 1024))
CUDA_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 4096))


@dataclass(frozen=True)
class Work:
    """What a phase has to do at least."""

    flops: float
    bytes: float
    repeats: int = 1  # how often it is done in one act


@dataclass(frozen=True)
class Shape:
    """What the count needs to know of a model."""

    layer_weights: int  # of all matrices in all layers
    head_weights: int
    layers: int
    attention_width: int  # heads times their dimension
    vocabulary: int
    cache_width: int  # numbers kept per token and layer, keys and values
    weight_bytes: int

    def forward(self, tokens: float, attended: float, logits: float) -> float:
        """Return the FLOPs for `tokens` that attend to `attended` positions each, with `logits`."""
        attention = 4 * self.layers * self.attention_width * attended * tokens
        return 2 * self.layer_weights * tokens + attention + 2 * self.head_weights * logits

    def cache(self, tokens: float) -> float:
        """Return the bytes of the keys and values of `tokens`."""
        return self.layers * self.cache_width * self.weight_bytes * tokens

    @property
    def weights(self) -> int:
        """Return the number of weights."""
        return self.layer_weights + self.head_weights


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in rounds; print the machine's rates and each phase's share of them."""
    options = parse_options(__doc__ or "", arguments)
    set_threads(options)
    keep_freed_memory()
    options.workload = "svamp x 8" if options.model_size == REAL else "demo"
    print(f"{described(options)}\n", flush=True)
    sampling, sampling_work = _sampling(options)
    updating, updating_work = _updating(options)
    acts = _products(options) | {"copy": _copy(options)} | sampling | updating
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for number in range(options.rounds + 1):
        for name, act in acts.items():
            taken = _clock(act, options)
            if number > 0:  # the first of each only warms up
                seconds[name].append(taken)
    pairs = zip(seconds["decode step"], seconds["prefill"], strict=True)
    seconds["decode step"] = [whole - prefill for whole, prefill in pairs]
    print(report(seconds, sampling_work | updating_work, options) + "\n", flush=True)


def report(seconds: dict[str, list[float]], works: dict[str, Work], options: Options) -> str:
    """Return the rates and a Markdown table of shares, from the seconds of each act per round."""
    products = [2 * math.prod(shape) / min(seconds[_name(shape)]) for shape in _shapes(options)]
    matrix_rate, copy_rate = max(products), 2 * COPIED_BYTES / min(seconds["copy"])
    lines = [
        f"Measured rates: {matrix_rate / 1e9:,.1f} GFLOP/s ({options.dtype} matrix products), "
        f"{copy_rate / 1e9:,.1f} GB/s (copy).\n",
        "| phase | ms | lowest-highest | GFLOP | MB | share of matrix rate | of memory rate"
        " | of the bound |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, work in works.items():
        taken, low, high = spread([each / work.repeats for each in seconds[name]])
        compute, memory = work.flops / matrix_rate, work.bytes / copy_rate
        lines.append(
            f"| {name} | {taken * 1e3:,.1f} | {low * 1e3:,.1f}-{high * 1e3:,.1f}"
            f" | {work.flops / 1e9:,.2f} | {work.bytes / 1e6:,.1f} | {compute / taken:.1%}"
            f" | {memory / taken:.1%} | {max(compute, memory) / taken:.1%} |"
        )
    return "\n".join(lines)


def model_shape(model: PreTrainedModel) -> Shape:
    """Return the shape of a Llama-like model."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    matrices = [p for p in model.base_model.layers.parameters() if p.ndim == 2]
    return Shape(
        layer_weights=sum(p.numel() for p in matrices),
        head_weights=model.get_output_embeddings().weight.numel(),
        layers=config.num_hidden_layers,
        attention_width=config.num_attention_heads * head_dim,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        cache_width=2 * config.num_key_value_heads * head_dim,
        weight_bytes=model.dtype.itemsize,
    )


def prefill_work(shape: Shape, prompts: int, width: int) -> Work:
    """Return what reading the prompts once takes; a position attends to half of the width on average."""
    tokens = prompts * width
    moved = shape.weights * shape.weight_bytes + shape.cache(tokens) + 4 * prompts * shape.vocabulary
    return Work(shape.forward(tokens, width / 2, prompts), moved)


def decode_work(shape: Shape, rows: float, context: float, steps: int) -> Work:
    """Return what one more token for each different row takes, behind `context` positions on average."""
    moved = shape.weights * shape.weight_bytes + shape.cache(rows * context)
    moved += 4 * rows * shape.vocabulary
    return Work(shape.forward(rows, context, rows), moved, repeats=steps)


def update_work(shape: Shape, prompts: int, width: float, tokens: int, time: float, steps: int) -> Work:
    """Return what `steps` optimizer steps on so many distinct tokens behind shared prompts take."""
    forward = shape.forward(prompts * width, width / 2, 0)
    forward += shape.forward(tokens, width + time / 2, tokens)
    # Forward and backward read the weights, the gradients are written and read; AdamW reads gradient,
    # weight and two states, and writes the last three, all in float32.
    return Work(3 * forward * steps, (2 * shape.weight_bytes + 9 * 4) * shape.weights * steps)


def _sampling(options: Options) -> tuple[dict[str, Act], dict[str, Work]]:
    """Return prefill and whole sampling, of which `main` makes decode steps by taking the former off."""
    workload = open_workload(options, options.questions)
    width = sorted(map(len, workload.prompts))[len(workload.prompts) // 2]
    prompts = [(prompt * width)[-width:] for prompt in workload.prompts]
    rows, limit = repeated(prompts, options.samples), workload.limit
    shape = model_shape(workload.model)
    never = [shape.vocabulary]  # no id ends a response
    steps = limit - 1
    different = _distinct(sample(workload, rows, never, 1, steps)) / steps
    acts: dict[str, Act] = {
        "prefill": lambda: sample(workload, prompts, never, 1, 1),
        "decode step": lambda: sample(workload, rows, never, 1, limit),
    }
    works = {
        "prefill": prefill_work(shape, len(prompts), width),
        "decode step": decode_work(shape, different, width + limit / 2, steps),
    }
    return acts, works


def _updating(options: Options) -> tuple[dict[str, Act], dict[str, Work]]:
    """Return the update on the demo's samples."""
    experience = make_experience(options)
    act, shape = reftune_update(experience, options), model_shape(experience.workload.model)
    prompts, rows = experience.workload.prompts, experience.samples
    tokens = _distinct(rows)
    width = sum(map(len, prompts)) / len(prompts)
    time_steps = sum(len(row.tokens) for row in rows) / len(rows)
    steps = experience.workload.config.ppo.ppo_epochs
    work = update_work(shape, len(prompts), width, tokens, time_steps, steps)
    return {"update": lambda: act(1)}, {"update": work}


def _distinct(samples: Sequence[Sample]) -> int:
    """Return how many tokens are left when what responses begin with alike counts once."""
    return len(collate([s.prompt for s in samples], [s.tokens for s in samples]).first_occurrence)


def _products(options: Options) -> dict[str, Act]:
    """Return a matrix product of each shape, in the layout that models use."""
    acts: dict[str, Act] = {}
    for rows, inner, columns in _shapes(options):
        a = torch.randn(rows, inner, device=options.device).to(_dtype(options))
        b = torch.randn(columns, inner, device=options.device).to(_dtype(options))
        acts[_name((rows, inner, columns))] = partial(torch.nn.functional.linear, a, b)
    return acts


def _copy(options: Options) -> Act:
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _shapes(options: Options) -> tuple[tuple[int, int, int], ...]:
    return CUDA_SHAPES if options.device == "cuda" else SHAPES[:1] if options.quick else SHAPES


def _name(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def _dtype(options: Options) -> torch.dtype:
    return torch.bfloat16 if options.dtype == "bfloat16" else torch.float32


def _clock(act: Act, options: Options) -> float:
    synchronize = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    synchronize()
    begin = time.perf_counter()
    act()
    synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
