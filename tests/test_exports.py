"""What others find in a model directory: the weights, text and ends that the evaluation measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from reftune.evaluation.inference import ask, model_config
from reftune.model.loading import load_policy
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.runs.checkpoints import save_checkpoint
from reftune.stages.stage import Stage
from tiny_models import tiny_model
from tiny_stage import PROMPTER, TRAIN, VOCAB, ScriptedJudge, make_stage

SETTINGS = PROMPTER.settings.model_copy(update={"max_new_tokens": 12})


def stage_of(folder: Path, dtype: str, judge: ScriptedJudge | None = None) -> Stage:
    """Return a stage of a run in a precision, with a base model's chat template."""
    stage = make_stage(folder, judge=judge)
    model = stage.config.model.model_copy(update={"dtype": dtype})
    prompter = Prompter(PROMPTER.tokenizer, SETTINGS, "natural")
    return replace(stage, config=stage.config.model_copy(update={"model": model}), prompter=prompter)


def base(family: str) -> PolicyWithValue:
    """Return a policy whose generation settings are those of a chat model: none fits its training."""
    model = tiny_model(family, vocab_size=VOCAB)
    eos = PROMPTER.tokenizer.eos_token_id
    for name, value in {"temperature": 0.6, "do_sample": True, "repetition_penalty": 3.0}.items():
        setattr(model.generation_config, name, value)
    model.generation_config.eos_token_id = [eos, 7]
    return PolicyWithValue(model, "shared")


@pytest.fixture(params=[0o002, 0o022, 0o027, 0o077], ids=oct)
def rights(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set the umask; return what new files may then be."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_plain_transformers_gives_the_text_that_is_evaluated(
    tmp_path: Path, family: str, dtype: str
) -> None:
    stage, policy, target = stage_of(tmp_path, dtype), base(family), tmp_path / "model"
    stage.export(policy, target)
    assert AutoModelForCausalLM.from_pretrained(target).dtype == getattr(torch, dtype)
    assert model_config(str(target)).model.dtype == dtype, "it is evaluated in the same precision"
    # The same weights, computed in float32: in bfloat16 tokens are near enough to change places.
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(target)
    config, texts = model_config(str(target), ["model.dtype=float32"]), [p.question for p in TRAIN]
    for text, sampled in zip(texts, ask(config, texts, 0.0, 0), strict=True):
        plain = tokenizer(text, return_tensors="pt")
        chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], return_tensors="pt")
        assert chat["input_ids"].tolist() == plain.input_ids.tolist()
        ids = model.generate(**plain)[0, plain.input_ids.shape[1] :].tolist()
        assert ids == sampled.sample.tokens


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_weights_are_exported_in_the_runs_precision_and_trained_in_full(
    tmp_path: Path, family: str
) -> None:
    policy = PolicyWithValue(tiny_model(family), "none")
    before = {name: p.detach().clone() for name, p in policy.policy.named_parameters()}
    stage_of(tmp_path, "bfloat16").export(policy, tmp_path / "model")
    found = load_file(tmp_path / "model/model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    numbers = sum(p.numel() for p in policy.policy.parameters())  # what is tied counts once
    assert sum(tensor.numel() for tensor in found.values()) == numbers
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == "bfloat16"
    assert all(torch.equal(p, before[name]) for name, p in policy.policy.named_parameters())
    settings = stage_of(tmp_path, "bfloat16").config.model
    loaded = load_policy(tmp_path / "model", settings).policy
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, before[name].bfloat16()), name


def test_every_file_has_the_rights_that_the_umask_gives(tmp_path: Path, rights: int) -> None:
    stage, policy = stage_of(tmp_path, "float32"), base("llama")
    stage.export(policy, tmp_path / "model")
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(policy)
    save_checkpoint(accelerator, tmp_path, 1, {})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {"model", "step-00000001"}
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {p.name: rights for p in files}


def test_an_export_says_how_its_texts_end(tmp_path: Path) -> None:
    stage_of(tmp_path, "float32").export(base("llama"), tmp_path / "model")
    settings: dict[str, Any] = json.loads((tmp_path / "model/generation_config.json").read_text())
    eos = PROMPTER.tokenizer.eos_token_id
    assert settings["eos_token_id"] == sorted([eos, 7])
    assert settings["max_new_tokens"] == 12
    assert not settings.keys() & {"temperature", "do_sample", "repetition_penalty"}


def test_a_directory_with_a_critic_beside_the_model_still_opens(tmp_path: Path) -> None:
    """As versions before 0.1 wrote it."""
    policy = base("llama")
    stage_of(tmp_path, "float32").export(policy, tmp_path / "model")
    save_file({"weight": torch.zeros(1, 32)}, tmp_path / "model/value_head.safetensors")
    (tmp_path / "model/chat_template.jinja").unlink()
    settings = stage_of(tmp_path, "float32").config.model
    loaded = load_policy(tmp_path / "model", settings).policy
    weights = policy.policy.state_dict()
    assert all(torch.equal(p, weights[name]) for name, p in loaded.state_dict().items())
