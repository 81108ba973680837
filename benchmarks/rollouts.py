"""(a) Sampling: the built-in engine, `model.generate`, transformers' continuous batching, and vLLM.

    python -m benchmarks.rollouts [--model-size 135m | --device cuda --dtype bfloat16 --model-size 1.5b]

All get the same model, and 64 questions (2 with the real model) with 8 samples each at temperature 1.

- own: the demo's prompts, or SVAMP's with the real model, and the lengths that the model gives them.
- uniform: the prompts cut or filled to one length; no id ends a response, so each runs to the limit.

Counted are tokens up to the end of each response, the end included. What differs: `generate` reads each
prompt for every sample and goes on until the longest response of the batch ends. Continuous batching
gets each question once with `num_return_sequences`; on a CPU its cache is sized by hand, because the
sizes that it would choose are meant for a GPU and make it several times slower; with the real model it
is left out there. vLLM, as `compute.sampler = "vllm"` has it, takes part where it is installed: run this
with the Python of .venv-vllm, which `make test-vllm` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.contest import REAL, Contestant, LeftOut, Options, Turns, compete, parse_options, table
from benchmarks.workload import Workload, described, open_workload, repeated, sample
from reftune.heap import keep_freed_memory
from reftune.model.lora import plain_weights
from reftune.sampling.vllm.colocated import architecture_of
from reftune.sampling.vllm.engine import VllmEngine
from reftune.sampling.vllm.sampler import EngineSettings, VllmSampler

# Of what was tried on two cores the fastest: 64 requests at once, few tokens each, small pages.
CPU_BATCHING = {
    "page_size": 32, "num_blocks": 320, "max_batch_tokens": 256, "max_requests_per_batch": 64,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Hold the contest on both workloads and print their tables."""
    options = parse_options(__doc__ or "", arguments)
    engines = (reftune, generate, continuous_batching, vllm)
    print(f"{described(options)}\n", flush=True)
    for name in ("own", "uniform"):
        options.workload = name
        contestants = [Contestant(engine.__name__.replace("_", " "), engine) for engine in engines]
        print(f"Workload {name}:\n", flush=True)
        print(table(compete(contestants, options), "tokens") + "\n", flush=True)


def reftune(turns: Turns, options: Options) -> None:
    """Sample with the built-in engine."""
    keep_freed_memory()  # as in reftune's runs
    workload, prompts, ends = _open(options)
    rows = repeated(prompts, options.samples)
    turns.serve(
        lambda turn: sum(len(s.tokens) for s in sample(workload, rows, ends, turn, workload.limit))
    )


def generate(turns: Turns, options: Options) -> None:
    """Sample with `model.generate`, the prompts padded on the left."""
    workload, prompts, ends = _open(options)
    rows = repeated(prompts, options.samples)
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=options.device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=options.device)
    call: Any = workload.model.generate
    settings = _settings(workload, ends)

    def act(_: int) -> int:
        output = call(ids, attention_mask=mask, generation_config=settings)
        return _count(output[:, width:].tolist(), ends)

    turns.serve(act)


def continuous_batching(turns: Turns, options: Options) -> None:
    """Sample with transformers' paged cache and scheduler."""
    from transformers import ContinuousBatchingConfig

    if options.model_size == REAL and options.device == "cpu":
        raise LeftOut("on a CPU it takes many times as long as `generate`")
    workload, prompts, ends = _open(options)
    settings = _settings(workload, ends, num_return_sequences=options.samples)
    batching = ContinuousBatchingConfig(**(CPU_BATCHING if options.device == "cpu" else {}))
    call: Any = workload.model.generate_batch

    def act(_: int) -> int:
        outputs = call(prompts, generation_config=settings, continuous_batching_config=batching)
        if len(outputs) != len(prompts) * options.samples:
            raise RuntimeError(f"continuous batching gave {len(outputs)} responses")
        return _count([output.generated_tokens for output in outputs.values()], ends)

    turns.serve(act)


def vllm(turns: Turns, options: Options) -> None:
    """Sample with vLLM's engine, in this process."""
    if find_spec("vllm") is None:
        raise LeftOut("it is not installed")
    if options.quick:
        raise LeftOut("it takes too long to start")
    workload, prompts, ends = _open(options)
    rows = repeated(prompts, options.samples)
    longest = max(map(len, prompts)) + workload.limit
    settings = EngineSettings(architecture_of(workload.model), options.dtype, longest, len(rows))
    sampler = VllmSampler(
        VllmEngine(settings, gpu=options.device == "cuda"),
        [end for end in ends if end < workload.model.get_output_embeddings().weight.shape[0]],
    )
    sampler.update_weights(plain_weights(workload.model))

    def act(turn: int) -> int:
        seeds = [turn * len(rows) + i for i in range(len(rows))]
        samples = sampler.sample(rows, seeds, max_new_tokens=workload.limit, temperature=1.0)
        return sum(len(one.tokens) for one in samples)

    turns.serve(act)


def _open(options: Options) -> tuple[Workload, list[list[int]], list[int]]:
    """Return the workload, its prompts and the ids that end a response."""
    workload = open_workload(options, options.questions)
    if options.workload == "own":
        return workload, workload.prompts, workload.eos
    width = sorted(map(len, workload.prompts))[len(workload.prompts) // 2]
    never = workload.model.get_output_embeddings().weight.shape[0]  # beyond the vocabulary
    return workload, [(prompt * width)[-width:] for prompt in workload.prompts], [never]


def _settings(workload: Workload, ends: list[int], **more: Any) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=ends, pad_token_id=0,
        max_new_tokens=workload.limit, **more,
    )  # fmt: skip


def _count(responses: list[list[int]], ends: list[int]) -> int:
    """Return the number of tokens, each response's first end included and nothing behind it."""
    known = set(ends)
    return sum(next((n for n, t in enumerate(row, 1) if t in known), len(row)) for row in responses)


if __name__ == "__main__":
    main()
