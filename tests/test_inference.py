"""What settings a model is asked with outside of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from reftune.config import Config, Data, Model, Prompt
from reftune.evaluation.inference import ask, model_config
from reftune.model.scratch import new_model
from reftune.problem import UserError
from reftune.runs import setup
from reftune.runs.setup import make_accelerator
from reftune.sampling.engine import BuiltinSampler
from reftune.training.rollouts import Generator


@pytest.fixture
def trained(tmp_path: Path) -> str:
    """Return a model directory as far as its settings go: natural chains with prompts of their own."""
    prompt = {"template": "Q {question} A ", "trigger": " so ", "max_new_tokens": 7}
    (tmp_path / "reftune_prompt.json").write_text(json.dumps({"cot": "natural", "prompt": prompt}))
    return str(tmp_path)


def test_a_model_is_asked_as_it_was_trained(trained: str) -> None:
    config = model_config(trained, test="t.jsonl")
    own = Prompt(style="plain", template="Q {question} A ", trigger=" so ", max_new_tokens=7)
    assert config.prompt == own  # written before there were styles
    assert (config.model.name, config.data.cot, config.data.test) == (trained, "natural", "t.jsonl")


def test_what_the_caller_says_wins_over_what_the_model_says(trained: str) -> None:
    changes = ["prompt.max_new_tokens=9", "prompt.trigger=' => '", "data.max_test=3"]
    config = model_config(trained, changes)
    assert (config.prompt.template, config.prompt.trigger) == ("Q {question} A ", " => ")
    assert config.prompt.max_new_tokens == 9
    assert (config.data.cot, config.data.max_test) == ("natural", 3)
    assert model_config(trained, cot="program").data.cot == "program"
    assert model_config(trained, ["data.cot=program"]).data.cot == "program"


def test_a_model_from_elsewhere_gets_the_papers_prompts_and_must_be_told_its_chains() -> None:
    config = model_config("some/hub-model", ["prompt.max_new_tokens=9"], cot="natural")
    assert config.prompt == Prompt(max_new_tokens=9)
    with pytest.raises(UserError, match="some/hub-model: say with --cot"):
        model_config("some/hub-model", test="t.jsonl")


def test_models_of_two_precisions_are_asked_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate keeps one precision for a process, whoever asks."""
    names = {"float32": "no", "bfloat16": "bf16"}
    monkeypatch.setattr(setup, "mixed_precision", lambda dtype, device: names[dtype])
    for dtype, expected in (("float32", "no"), ("bfloat16", "bf16"), ("float32", "no")):
        config = model_config("some/hub-model", [f"model.dtype={dtype}"], cot="natural")
        assert make_accelerator(config).mixed_precision == expected


@pytest.mark.parametrize("question", ["a\0b", "x\ud83d"])
def test_a_question_that_is_no_text_is_refused(question: str) -> None:
    config = model_config("some/hub-model", cot="natural")
    with pytest.raises(UserError, match="question 2: 'question' holds"):
        ask(config, ["How many?", question], 0.0, 0)


def test_the_directory_of_a_run_is_no_model_but_names_its_models(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    with pytest.raises(UserError, match="is the directory of a run, not of a model; it has no model"):
        model_config(str(tmp_path))
    (tmp_path / "ppo/model").mkdir(parents=True)
    (tmp_path / "ppo/model/config.json").touch()
    with pytest.raises(UserError, match=r"; its models are .*/ppo/model$"):
        model_config(str(tmp_path))


def test_a_model_without_weights_cannot_be_asked() -> None:
    config = Config(model=Model(scratch="tiny"), data=Data(cot="natural"))
    with pytest.raises(UserError, match=r"model\.scratch = tiny has no weights"):
        ask(config, ["How many?"], 0.0, 0)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_a_model_is_asked_in_the_precision_and_to_the_end_that_the_caller_says(
    dtype: str, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.dtype, list[int]]] = []

    def generate(self: Generator, problems: Any, *_: Any, **__: Any) -> list[Any]:
        assert isinstance(self.sampler, BuiltinSampler)
        seen.append((self.sampler.model.dtype, self.sampler.eos.tolist()))
        return []

    monkeypatch.setattr(Generator, "generate", generate)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model, tokenizer = new_model(
        Model(scratch="tiny", scratch_overrides=sizes, vocab_size=300), ["a"], 0
    )
    model.generation_config.eos_token_id = [7, 5]  # chat models have several
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    changes = [f"model.dtype={dtype}", "model.eos_token=a"]
    ask(model_config(str(tmp_path), changes, cot="natural"), ["How many?"], 0.0, 0)
    assert seen == [(expected, sorted([5, 7, tokenizer.convert_tokens_to_ids("a")]))]
