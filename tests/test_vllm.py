"""vLLM itself, on CPUs, in one process: `make test-vllm` installs it apart and runs these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from reftune.config import Compute, Lora, Prompt
from reftune.model.loading import load_both
from reftune.model.lora import add_adapter, plain_weights
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.problem import Problem
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.vllm import colocated
from reftune.sampling.vllm.colocated import close_engines, colocated_engine
from reftune.sampling.vllm.engine import VllmEngine
from reftune.sampling.vllm.sampler import EngineSettings, VllmSampler
from reftune.training.samplers import make_sampler, tied_names
from test_vllm_sampler import gap, settings_of
from tiny_stage import PROMPTER

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # other people's warnings

SMOLLM2 = Path(__file__).parents[1] / "models/SmolLM2-135M-Instruct"
CPU = torch.device("cpu")
ENDS = [1, 2]
LONG = [[*range(3, 73)], [*range(3, 60), 9, 11]]  # longer than a block of the cache
PROMPTS = [*LONG, [3, 4, 5], [11]] * 2
SEEDS = [5, -6, 7, 2**62, 1, 2, 3, 4]


def llama(seed: int = 0, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, max_position_embeddings=256,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def engine() -> VllmEngine:
    """Return an engine that tests share which follow each other: its start takes most of their time.

    Others take its place: a process has one at a time.
    """
    if not colocated._engines or colocated._engines[0].settings != settings_of(llama(), 128):
        close_engines()
        colocated._engines.append(VllmEngine(settings_of(llama(), 128), gpu=False, block_size=32))
    return colocated._engines[0]


@pytest.fixture(scope="module", autouse=True)
def _none_is_left() -> Iterator[None]:
    yield
    close_engines()


def sampler_of(engine: VllmEngine, model: PreTrainedModel) -> VllmSampler:
    sampler = VllmSampler(engine, ENDS, tied_names(model))
    sampler.update_weights(plain_weights(model))
    return sampler


def draw(sampler: Any, temperature: float = 0.7, prompts: Any = PROMPTS, seeds: Any = SEEDS) -> Any:
    return sampler.sample(prompts, seeds, max_new_tokens=12, temperature=temperature)


def assert_same(model: PreTrainedModel, sampler: VllmSampler) -> None:
    """Compare greedy text with the built-in sampler's, and log-probabilities with the model's own."""
    assert gap(model, draw(sampler)) < 1e-3
    greedy = draw(sampler, temperature=0.0)
    expected = draw(BuiltinSampler(model, ENDS), temperature=0.0)
    assert [one.tokens for one in greedy] == [one.tokens for one in expected]
    assert gap(model, greedy, temperature=1.0) < 1e-3


def test_it_says_what_a_model_with_a_tied_head_does(engine: VllmEngine) -> None:
    model = llama()
    assert_same(model, sampler_of(engine, model))


def test_the_same_seed_gives_the_same_sample_in_whatever_batch(engine: VllmEngine) -> None:
    sampler = sampler_of(engine, llama())
    state = torch.get_rng_state()
    together = draw(sampler)
    assert draw(sampler) == together
    assert torch.equal(torch.get_rng_state(), state)
    alone = [draw(sampler, prompts=[p], seeds=[s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert [one.tokens for one in alone] == [one.tokens for one in together]
    assert together[0].tokens != together[4].tokens, "one prompt, two seeds"


def test_a_tied_head_must_be_in_the_stream(engine: VllmEngine) -> None:
    model, other = llama(), llama(seed=1)
    sampler = sampler_of(engine, model)
    sampler.update_weights(plain_weights(other))
    assert gap(other, draw(sampler)) < 1e-3
    sampler.update_weights(plain_weights(model))
    sampler.tied = {}
    sampler.update_weights(plain_weights(other))
    assert gap(other, draw(sampler)) > 1, "vLLM needs the head no more"


def test_the_prefix_cache_must_be_reset(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = llama(), llama(seed=1)
    sampler = sampler_of(engine, model)
    draw(sampler)
    sampler.update_weights(plain_weights(other))
    assert gap(other, draw(sampler)) < 1e-3
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: True)
    sampler.update_weights(plain_weights(model))
    assert gap(model, draw(sampler)) > 1, "vLLM forgets by itself: the reset is needed no more"


def test_it_says_what_a_model_with_a_head_of_its_own_does() -> None:
    model = llama(tied=False)
    engine = colocated_engine(settings_of(model, 128), CPU, 0.4, 1)
    assert_same(model, sampler_of(engine, model))


def test_an_adapter_arrives_merged() -> None:
    policy = PolicyWithValue(llama())
    add_adapter(policy.policy, Lora(rank=4))
    for parameter in policy.policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    sampler = make_sampler(policy, PROMPTER, Accelerator(cpu=True), Compute(sampler="vllm"))
    samples = draw(sampler, prompts=[[3, 4, 5], [11]], seeds=[1, 2])
    assert gap(llama(), samples) > 0.1, "the adapter says something"
    assert gap(policy.policy, samples) < 1e-3


def test_in_bfloat16_its_numbers_are_near_the_trainers() -> None:
    model = llama().to(torch.bfloat16)
    settings = EngineSettings(settings_of(model).architecture, "bfloat16", 128, 8)
    engine = colocated_engine(settings, CPU, 0.4, 1)
    sampler = VllmSampler(engine, ENDS, tied_names(model))
    sampler.update_weights(plain_weights(model))
    assert 1e-4 < gap(model, draw(sampler)) < 0.5


@pytest.mark.skipif(not SMOLLM2.exists(), reason="make smollm2 brings the model")
def test_smollm2_says_the_same() -> None:
    model, tokenizer = load_both(SMOLLM2)
    prompter = Prompter(tokenizer, Prompt(style="chat", max_new_tokens=48), "natural")
    questions = ["Ann has 3 coins and finds 4. How many?", "What is 12 times 11?", "Name a prime."]
    prompts = [prompter.encode_prompt(Problem(text, text, "")) for text in questions]
    policy = PolicyWithValue(model)
    ends = [prompter.eos]
    engine = colocated_engine(settings_of(model, longest=256), CPU, 0.4, 1)
    sampler = VllmSampler(engine, ends, tied_names(model))
    sampler.update_weights(plain_weights(model))
    asked = {"max_new_tokens": 48, "temperature": 0.0}
    greedy = sampler.sample(prompts, [0] * 3, **asked)  # type: ignore[arg-type]
    built_in = BuiltinSampler(policy.policy, ends, packed_forward=policy.packed_forward)
    expected = built_in.sample(prompts, [0] * 3, **asked)  # type: ignore[arg-type]
    assert [tokenizer.decode(a.tokens) for a in greedy] == [tokenizer.decode(b.tokens) for b in expected]
    samples = sampler.sample(prompts * 2, range(6), max_new_tokens=32, temperature=1.0)
    assert gap(model, samples, temperature=1.0) < 1e-3
