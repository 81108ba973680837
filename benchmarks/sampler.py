"""Compare the built-in sampler with transformers' `model.generate`, in tokens per second.

    python benchmarks/sampler.py [--model runs/demo/warmup/model] [--config configs/demo.toml]

Both get the same model, prompts and settings: 64 training questions of the config, 8 samples each at
temperature 1, in turns. Without --model a random model is used; it hardly ever ends a response, so
the ratio then shows nothing of what leaving rows save. Counted are tokens up to the end of each
response, the end included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from reftune.config import Config, load_config
from reftune.models import build_model, load_model, load_tokenizer
from reftune.problems import load_splits
from reftune.prompts import Prompter, Wording
from reftune.samplers.builtin import BuiltinSampler
from reftune.types import Problem


def main() -> None:
    """Time both in turns; print medians, spread and ratio."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = load_config(options.config)
    problems = load_splits(config.data, config.seed).train
    model, prompter = open_model(config, options.model, problems)
    questions = [prompter.encode_prompt(problem) for problem in problems[: options.questions]]
    prompts = [prompt for prompt in questions for _ in range(options.samples)]

    contestants: dict[str, Callable[[int], int]] = {
        "reftune": lambda seed: run_builtin(model, prompter, prompts, seed),
        "generate": lambda seed: run_generate(model, prompter, prompts, seed),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(-1, options.repeats):  # the first of each only warms up
        for name, contestant in contestants.items():
            begin = time.perf_counter()
            tokens = contestant(repeat)
            if repeat >= 0:
                rates[name].append(tokens / (time.perf_counter() - begin))

    print(
        f"{len(prompts)} prompts of {min(map(len, prompts))}-{max(map(len, prompts))} tokens, at most"
        f" {config.prompt.max_new_tokens} new ones, {torch.get_num_threads()} threads"
    )
    for name, each in rates.items():
        print(
            f"{name:9} {statistics.median(each):8,.0f} tokens/s (median of {len(each)}; "
            f"lowest {min(each):,.0f}, highest {max(each):,.0f})"
        )
    ratios = [ours / theirs for ours, theirs in zip(rates["reftune"], rates["generate"], strict=True)]
    print(
        f"ratio     {statistics.median(ratios):8.2f} (median over pairs; "
        f"lowest {min(ratios):.2f}, highest {max(ratios):.2f})"
    )


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="directory of a trained model; default: a random one")
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8, help="per question")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: torch's")
    return parser.parse_args()


def open_model(
    config: Config, directory: Path | None, problems: list[Problem]
) -> tuple[PreTrainedModel, Prompter]:
    """Return the model to sample from, in eval mode, with its prompter."""
    if directory is not None:
        model, tokenizer = load_model(directory), load_tokenizer(directory)
    else:
        wording = Wording(config.prompt, config.data.cot)
        texts = [text for problem in problems for text in wording.pieces(problem)]
        model, tokenizer = build_model(config.model, texts, config.seed)
    return model.eval(), Prompter(tokenizer, config.prompt, config.data.cot)


def run_builtin(model: PreTrainedModel, prompter: Prompter, prompts: list[list[int]], seed: int) -> int:
    """Sample with reftune; return the number of tokens."""
    seeds = [seed * len(prompts) + i for i in range(len(prompts))]
    samples = BuiltinSampler(model, [prompter.eos]).sample(
        prompts, seeds, max_new_tokens=prompter.settings.max_new_tokens, temperature=1.0
    )
    return sum(len(sample.tokens) for sample in samples)


@torch.no_grad()
def run_generate(model: PreTrainedModel, prompter: Prompter, prompts: list[list[int]], seed: int) -> int:
    """Sample with transformers; return the number of tokens."""
    torch.manual_seed(seed)
    width, eos = max(map(len, prompts)), prompter.eos
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=eos, pad_token_id=eos,
        max_new_tokens=prompter.settings.max_new_tokens,
    )  # fmt: skip
    generate: Any = model.generate  # typed as if it were a tensor
    output = generate(
        torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        generation_config=settings,
    )
    responses: list[list[int]] = output[:, width:].tolist()
    return sum(row.index(eos) + 1 if eos in row else len(row) for row in responses)


if __name__ == "__main__":
    main()
