"""What the contestants work on: problems, prompts, the model, and the built-in sampler's samples.

The trained models are the demo's warm-up and, with --model-size 135m, SmolLM2-135M-Instruct, which is
asked SVAMP's questions by its chat template, or what reftune has trained from it, which is asked as it
was trained (--smollm2 runs/smollm2_svamp/warmup/model). A model of another size has random weights, made
from a configuration; as it never learned to end a response, one in forty of its ids is taken for an end,
and the lengths are geometric around forty tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from benchmarks.contest import REAL, LeftOut, Options
from reftune.config import Config
from reftune.config.files import load_config
from reftune.data.problems import load_splits
from reftune.launcher import available_cores
from reftune.model.forward import PackedForward
from reftune.model.loading import build_model, load_both, response_ends
from reftune.model.prompts import Prompter, make_prompter, saved_settings
from reftune.model.wording import Wording
from reftune.problem import Problem
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.sampler import Sample

logging.set_verbosity_error()

CONFIGS = Path(__file__).parents[1] / "configs"
SVAMP, SVAMP_TEST = "svamp_python_sdp.json", "svamp_test_set.json"
PIECES = 4096  # of SVAMP's vocabulary: more than the run has, because real models have many
MEAN_LENGTH = 40  # of a random model's responses
REAL_NAME = "SmolLM2-135M-Instruct"
REAL_LIMIT = 96  # tokens of its responses; a program of SVAMP has 70 or so
# The shapes of the real model and of Qwen2.5, a family of small models; the tokenizer is of our own.
LARGE: dict[str, dict[str, Any]] = {
    REAL: {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49_152,
    },
    "0.5b": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936,
    },
    "1.5b": {
        "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_936,
    },
}  # fmt: skip


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

    def set(self, **sections: dict[str, Any]) -> Workload:
        """Return the same with other settings, by section."""
        copies = {
            name: getattr(self.config, name).model_copy(update=values)
            for name, values in sections.items()
        }
        return replace(self, config=self.config.model_copy(update=copies))

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
            and PIECES tokens; with the real model both are the same.
    """
    set_threads(options)
    config = open_config(options, name)
    problems = load_splits(config.data, config.seed).train
    model, prompter = _open_model(options, config, problems, trained=name == "demo")
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    model = model.to(device=options.device, dtype=dtype).eval()
    trained = has_real(options) or (name == "demo" and options.model_size is None)
    ends = response_ends(model, prompter.eos) if trained else _many_ends(model)
    return Workload(config, model, prompter, problems[:questions], ends)


def open_config(options: Options, name: str = "demo") -> Config:
    """Return the configuration of a workload; raises LeftOut where its data are not there."""
    if options.model_size == REAL:
        return _real_config(options)
    changes = ["prompt.max_new_tokens=12", "data.max_train=300"] if options.quick else []
    if name == "demo":
        return demo_config(options)
    if not _has_svamp(options):
        raise LeftOut(f"no {SVAMP} in {options.data}; name the folder with --data")
    test = options.data / SVAMP_TEST
    changes += [f"data.train={options.data / SVAMP}", f"data.test={test}", f"model.vocab_size={PIECES}"]
    return load_config(CONFIGS / "svamp_program.toml", changes)


def demo_config(options: Options) -> Config:
    """Return the demo's configuration."""
    quick = ["prompt.max_new_tokens=12", "data.max_train=300", "data.synthetic.train_size=300"]
    return load_config(CONFIGS / "demo.toml", quick if options.quick else [])


def has_real(options: Options) -> bool:
    """Tell whether the real model is asked for and there."""
    return options.model_size == REAL and (options.smollm2 / "config.json").exists()


def described(options: Options) -> str:
    """Say which model is at work, and on which questions."""
    if options.model_size is None:
        return f"Model: {options.model}, trained."
    if options.model_size != REAL:
        return f"Model: {options.model_size}, random weights."
    questions = (
        "SVAMP's questions" if _has_svamp(options) else f"the demo's, no {SVAMP} in {options.data}"
    )
    size = f"{options.questions} x {options.samples} responses, {questions}"
    if has_real(options):
        asked = "as it was trained" if saved_settings(str(options.smollm2)) else "by its chat template"
        return f"Model: {REAL_NAME}, {asked}; {size}."
    missing = f"no model in {options.smollm2} (`make smollm2` brings it, --smollm2 names another place)"
    return f"Model: random weights in the shape of {REAL_NAME}, because there is {missing}; {size}."


def set_threads(options: Options) -> None:
    """Use the threads of the command line, or all cores, and the same random numbers each time."""
    cores = len(available_cores())
    torch.set_num_threads(options.threads or cores)
    torch.manual_seed(0)


def sample(
    workload: Workload, prompts: Sequence[list[int]], ends: list[int], turn: int, limit: int
) -> list[Sample]:
    """Sample one response per prompt at temperature 1 with reftune; another turn gives others."""
    seeds = [turn * len(prompts) + i for i in range(len(prompts))]
    rows = workload.config.compute.rows
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
    if has_real(options):
        model, tokenizer = load_both(options.smollm2)
    elif trained and options.model_size is None:
        if not options.model.exists():
            raise LeftOut(
                f"no trained model at {options.model}; make one with `reftune sft configs/demo.toml`"
            )
        model, tokenizer = load_both(options.model)
    else:
        scratch = (
            options.model_size if options.model_size not in (None, *LARGE) else config.model.scratch
        )
        settings = config.model.model_copy(update={"scratch": scratch})
        wording = Wording(config.prompt, config.data.cot)
        texts = [text for problem in problems for text in wording.pieces(problem)]
        model, tokenizer = build_model(settings, texts, config.seed)
        if options.model_size in LARGE:
            model = new_large(options.model_size, options.device)
    return model, make_prompter(tokenizer, config.prompt, config.data.cot)


def new_large(size: str, device: str) -> PreTrainedModel:
    """Return a model with random weights, made where it will be used."""
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**LARGE[size], tie_word_embeddings=True)
        )
    return model


def _real_config(options: Options) -> Config:
    """Return the settings of the real model, or of its shape with a tokenizer of our own."""
    sources = {"train": str(options.data / SVAMP), "test": str(options.data / SVAMP_TEST)}
    new = {"scratch": "tiny", "vocab_size": PIECES}
    untrained = {"data": {"cot": "program"}, "prompt": {"repeat_question": False}}
    saved = saved_settings(str(options.smollm2)) or untrained
    limit = 12 if options.quick else REAL_LIMIT
    return Config.model_validate(
        {
            "data": saved["data"] | (sources if _has_svamp(options) else {}),
            "prompt": saved["prompt"] | {"max_new_tokens": limit},
            "model": {"name": str(options.smollm2)} if has_real(options) else new,
            "compute": {"tokens_per_microbatch": 2048},  # some GB of activations
        }
    )


def _has_svamp(options: Options) -> bool:
    return bool((options.data / SVAMP).exists())


def _many_ends(model: PreTrainedModel) -> list[int]:
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return list(range(0, vocabulary, MEAN_LENGTH))
