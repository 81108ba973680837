"""What the contestants work on: problems, prompts, the model, and the built-in sampler's samples.

The trained model is the demo's warm-up. A model of another size has random weights, made from a
configuration; as it never learned to end a response, one in forty of its ids is taken for an end, and
the lengths are geometric around forty tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config
from transformers.utils import logging

from benchmarks.contest import LeftOut, Options
from reftune.config import Config
from reftune.config.files import load_config
from reftune.data.problems import load_splits
from reftune.model.forward import PackedForward
from reftune.model.loading import build_model, load_model, load_tokenizer
from reftune.model.prompts import Prompter
from reftune.model.wording import Wording
from reftune.problem import Problem
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.sampler import Sample

logging.set_verbosity_error()

CONFIGS = Path(__file__).parents[1] / "configs"
SVAMP = "svamp_python_sdp.json"
PIECES = 4096  # of SVAMP's vocabulary: more than the run has, because real models have many
MEAN_LENGTH = 40  # of a random model's responses
# The shapes of Qwen2.5, a current family of small models; its vocabulary is the prompter's here.
LARGE: dict[str, dict[str, Any]] = {
    "0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
    },
    "1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2,
    },
}  # fmt: skip
LARGE_VOCABULARY = 151_936


@dataclass(frozen=True)
class Workload:
    """A model with the questions that it is asked."""

    config: Config
    model: PreTrainedModel
    prompter: Prompter
    problems: list[Problem]  # one per question
    eos: list[int]

    @property
    def limit(self) -> int:
        """Return the most tokens that a response may have."""
        return self.config.prompt.max_new_tokens

    @cached_property
    def packed_forward(self) -> PackedForward:
        """Return the model's packed_forward, found out once."""
        return PackedForward(self.model)

    @cached_property
    def samplers(self) -> dict[tuple[int, ...], BuiltinSampler]:
        """Return the samplers so far, by the ids that end a response; to make one takes a trial."""
        return {}

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Return the ids of each question's prompt."""
        return [self.prompter.encode_prompt(problem) for problem in self.problems]


def open_workload(options: Options, questions: int, name: str = "demo") -> Workload:
    """Return the workload "demo" or "svamp" on the device; the model is in eval mode.

    Args:
        options: the command line.
        questions: how many.
        name: "svamp" has the model and the prompts of configs/svamp_program.toml, with random weights
            and PIECES tokens.
    """
    set_threads(options)
    config = open_config(options, name)
    problems = load_splits(config.data, config.seed).train
    model, prompter = _open_model(options, config, problems, trained=name == "demo")
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    model = model.to(device=options.device, dtype=dtype).eval()
    ends = [prompter.eos] if _is_trained(options, name) else _many_ends(model)
    return Workload(config, model, prompter, problems[:questions], ends)


def open_config(options: Options, name: str = "demo") -> Config:
    """Return the configuration of a workload; raises LeftOut where its data are not there."""
    changes = ["prompt.max_new_tokens=12", "data.max_train=300"] if options.quick else []
    if name == "demo":
        changes += ["data.synthetic.train_size=300"] if options.quick else []
        return load_config(CONFIGS / "demo.toml", changes)
    if not (options.data / SVAMP).exists():
        raise LeftOut(f"no {SVAMP} in {options.data}; name the folder with --data")
    test = options.data / "svamp_test_set.json"
    changes += [f"data.train={options.data / SVAMP}", f"data.test={test}", f"model.vocab_size={PIECES}"]
    return load_config(CONFIGS / "svamp_program.toml", changes)


def set_threads(options: Options) -> None:
    """Use the threads of the command line, or all cores, and the same random numbers each time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(options.threads or cores)
    torch.manual_seed(0)


def sample(
    workload: Workload, prompts: Sequence[list[int]], ends: list[int], turn: int, limit: int
) -> list[Sample]:
    """Sample one response per prompt at temperature 1 with reftune; another turn gives others."""
    seeds = [turn * len(prompts) + i for i in range(len(prompts))]
    rows = workload.config.compute.sampler_rows
    if tuple(ends) not in workload.samplers:
        workload.samplers[tuple(ends)] = BuiltinSampler(
            workload.model, ends, rows, packed_forward=workload.packed_forward
        )
    return workload.samplers[tuple(ends)].sample(prompts, seeds, max_new_tokens=limit, temperature=1.0)


def repeated(prompts: Sequence[list[int]], samples: int) -> list[list[int]]:
    """Return each prompt `samples` times, side by side."""
    return [prompt for prompt in prompts for _ in range(samples)]


def _open_model(
    options: Options, config: Config, problems: list[Problem], trained: bool
) -> tuple[PreTrainedModel, Prompter]:
    if trained and options.model_size is None:
        if not options.model.exists():
            raise LeftOut(
                f"no trained model at {options.model}; make one with `reftune sft configs/demo.toml`"
            )
        model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    else:
        scratch = (
            options.model_size if options.model_size not in (None, *LARGE) else config.model.scratch
        )
        settings = config.model.model_copy(update={"scratch": scratch})
        wording = Wording(config.prompt, config.data.cot)
        texts = [text for problem in problems for text in wording.pieces(problem)]
        model, tokenizer = build_model(settings, texts, config.seed)
    if options.model_size in LARGE:
        model = _large(options.model_size, options.device)
    return model, Prompter(tokenizer, config.prompt, config.data.cot)


def _large(size: str, device: str) -> PreTrainedModel:
    """Return a model with random weights, made where it will be used."""
    config = Qwen2Config(vocab_size=LARGE_VOCABULARY, tie_word_embeddings=True, **LARGE[size])
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def _is_trained(options: Options, name: str) -> bool:
    return name == "demo" and options.model_size is None


def _many_ends(model: PreTrainedModel) -> list[int]:
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return list(range(0, vocabulary, MEAN_LENGTH))
