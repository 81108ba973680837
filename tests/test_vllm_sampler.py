"""vLLM as a sampler, with a stand-in that has its traps; tests/test_vllm.py asks the real one."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

import fake_vllm
from fake_vllm import FakeLLM
from reftune import progress
from reftune.config import Compute, Config, Lora
from reftune.model.lora import add_adapter, merged, plain_weights
from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.sampling.sampler import Sample
from reftune.sampling.vllm import engine as module
from reftune.sampling.vllm.colocated import architecture_of, close_engines, colocated_engine
from reftune.sampling.vllm.engine import VllmEngine
from reftune.sampling.vllm.sampler import Draw, EngineSettings, VllmSampler
from reftune.training.first_prompts import check_first_prompts
from reftune.training.rollouts import make_generator, read_batch
from reftune.training.samplers import check_sampler, make_sampler, tied_names
from tiny_models import tiny_model
from tiny_stage import PROMPTER, TRAIN, VOCAB, ScriptedJudge, make_stage

ENDS = [5, 7]
CPU = torch.device("cpu")
PROMPTS = [[3, 4, 5], [9, 8], [3, 4, 5], [11]]
SEEDS = [5, -6, 7, 2**62]
VLLM = Compute(sampler="vllm", sampler_rows=6)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fake_vllm.install(monkeypatch)
    yield
    close_engines()


def tied_model(seed: int = 0) -> PreTrainedModel:
    """Return a model that says something else than one of another seed."""
    model = tiny_model(seed=seed, vocab_size=VOCAB, tie_word_embeddings=True)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def settings_of(model: PreTrainedModel, longest: int = 32) -> EngineSettings:
    return EngineSettings(architecture_of(model), "float32", longest, 4)


def sampler_of(model: PreTrainedModel, **options: Any) -> VllmSampler:
    engine = VllmEngine(settings_of(model), gpu=False, **options)
    sampler = VllmSampler(engine, ENDS, tied_names(model))
    sampler.update_weights(plain_weights(model))
    return sampler


def draw(sampler: VllmSampler, temperature: float = 0.7) -> list[Sample]:
    return sampler.sample(PROMPTS, SEEDS, max_new_tokens=6, temperature=temperature)


def gap(model: PreTrainedModel, samples: list[Sample], temperature: float = 0.7) -> float:
    """Return how far samples' log-probabilities are from what the model says of each text alone."""
    gaps = []
    for sample in samples:
        text = torch.tensor([sample.prompt + sample.tokens])
        with torch.no_grad():
            said = (model(text).logits[0, len(sample.prompt) - 1 : -1] / temperature).log_softmax(-1)
        read = said.gather(1, torch.tensor(sample.tokens).unsqueeze(1)).squeeze(1)
        gaps.append(float((read - torch.tensor(sample.logprobs)).abs().max()))
    return max(gaps)


def test_samples_are_in_order_with_the_models_log_probabilities() -> None:
    model = tied_model()
    samples = draw(sampler_of(model))
    assert [sample.prompt for sample in samples] == PROMPTS
    assert gap(model, samples) < 1e-4
    for sample in samples:
        assert sample.finished == (sample.tokens[-1] in ENDS)
        assert len(sample.tokens) == 6 or sample.finished
        assert not set(sample.tokens[:-1]) & {*ENDS}


def test_same_seeds_give_the_same_samples_and_each_is_counted() -> None:
    sampler = sampler_of(tied_model())
    with progress.counting("sampling", len(PROMPTS)) as count:
        first = draw(sampler)
    assert count.done == len(PROMPTS)
    assert draw(sampler) == first
    assert first[0].tokens != first[2].tokens, "one prompt, two seeds"
    assert sampler.sample([], [], max_new_tokens=3, temperature=1.0) == []
    assert not sampler.exact


def test_a_tied_head_is_in_the_stream_or_the_old_one_would_speak() -> None:
    model, other = tied_model(), tied_model(seed=1)
    sampler = sampler_of(model)
    sampler.update_weights(plain_weights(other))
    assert gap(other, draw(sampler)) < 1e-4
    sampler.update_weights(plain_weights(model))
    sampler.tied = {}
    sampler.update_weights(plain_weights(other))
    assert gap(other, draw(sampler)) > 1


def test_new_weights_forget_what_the_old_ones_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tied_model(), tied_model(seed=1)
    sampler = sampler_of(model)
    for reset, least, most in ((None, 0, 1e-4), (lambda self: True, 1, 1e9)):
        draw(sampler)
        if reset is not None:
            monkeypatch.setattr(FakeLLM, "reset_prefix_cache", reset)
        sampler.update_weights(plain_weights(other))
        assert least <= gap(other, draw(sampler)) <= most
        sampler.update_weights(plain_weights(model))


def test_a_cache_that_is_not_reset_is_no_silent_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(tied_model())
    old = sampler.version
    monkeypatch.setattr(FakeLLM, "reset_prefix_cache", lambda self: False)
    with pytest.raises(RuntimeError, match="still holds keys and values of the old weights"):
        sampler.update_weights(plain_weights(tied_model(seed=1)))
    for version in (old, sampler.version):  # it has neither the old weights nor the new ones
        with pytest.raises(UserError, match="holds weights of another model"):
            next(sampler.engine.draw(Draw(PROMPTS, SEEDS, ENDS, 6, 1.0), version))


def test_asleep_unless_it_works() -> None:
    sampler = sampler_of(tied_model(), sleeps=True)
    calls = FakeLLM.newest.calls
    assert calls == ["sleep 1", ("wake", "weights"), "reload_weights", "reset"]
    draw(sampler)
    assert calls[4:] == [("wake", "kv_cache"), "sleep 1"]
    draw(sampler)
    assert calls[6:] == [("wake", "weights", "kv_cache"), "sleep 1"]


def test_what_is_broken_off_is_forgotten() -> None:
    model = tied_model()
    sampler = sampler_of(model)
    engine = sampler.engine
    assert isinstance(engine, VllmEngine)
    steps = engine.steps(Draw(PROMPTS, SEEDS, [VOCAB], 9, 1.0), sampler.version)
    assert next(steps) == []
    assert len(FakeLLM.newest.requests) == 4
    steps.close()
    assert not FakeLLM.newest.requests
    sampler.update_weights(plain_weights(tied_model(seed=1)))
    assert gap(tied_model(seed=1), draw(sampler)) < 1e-4


def test_threads_share_the_engine_and_its_steps() -> None:
    model = tied_model()
    sampler = sampler_of(model)
    expected = draw(sampler)
    alone, found = FakeLLM.newest.steps, []
    gate = threading.Barrier(3)

    def ask() -> None:
        gate.wait()
        found.append(draw(sampler))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert found == [expected] * 3
    assert FakeLLM.newest.steps - alone <= 3 * alone


def test_weights_wait_until_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.1)
    sampler = sampler_of(tied_model())
    assert isinstance(sampler.engine, VllmEngine)
    steps = sampler.engine.steps(Draw(PROMPTS, SEEDS, ENDS, 9, 1.0), sampler.version)
    next(steps)
    with pytest.raises(UserError, match="new weights have come while others are still sampled from"):
        sampler.update_weights(plain_weights(tied_model()))


def test_its_start_and_its_steps_leave_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    build = FakeLLM.__init__

    def disturbing(self: FakeLLM, model: str, **options: Any) -> None:
        build(self, model, **options)
        np.random.seed(1), torch.manual_seed(1)
        os.environ["LD_PRELOAD"], os.environ["LOCAL_WORLD_SIZE"] = "x.so", "7"
        torch.set_num_threads = lambda count: None  # type: ignore[assignment]

    def state() -> list[Any]:
        arrays = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]  # type: ignore[index]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
        return [*arrays, kept, torch.set_num_threads, torch.get_num_threads()]

    monkeypatch.setattr(FakeLLM, "__init__", disturbing)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    model = tied_model()
    before = state()
    draw(sampler_of(model))
    assert state() == before


def test_pythons_random_numbers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """By themselves: the checks of types in these tests draw from them, too."""
    given: list[Any] = []
    monkeypatch.setattr(random, "getstate", lambda: "as it was")
    monkeypatch.setattr(random, "setstate", given.append)
    with module._same_process_after([]):
        assert not given
    assert given == ["as it was"]


def test_what_vllm_is_built_with() -> None:
    sampler_of(tied_model(), block_size=32)
    options = FakeLLM.newest.options
    wanted = {
        "load_format": "dummy", "skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 32,
        "max_num_seqs": 4, "logprobs_mode": "processed_logprobs", "enable_chunked_prefill": False,
        "generation_config": "vllm", "block_size": 32,
    }  # fmt: skip
    assert wanted.items() <= options.items()
    assert not {"distributed_executor_backend", "tensor_parallel_size"} & options.keys()


def test_one_engine_serves_all_models_of_a_kind_and_makes_room_for_another() -> None:
    model = tied_model()
    first = colocated_engine(settings_of(model), CPU, 0.4, 1)
    model.config.eos_token_id, model.config.dtype = 3, torch.bfloat16  # as exports differ
    assert colocated_engine(settings_of(model, longest=20), CPU, 0.4, 1) is first
    old = FakeLLM.newest
    other = colocated_engine(settings_of(model, longest=40), CPU, 0.4, 2)
    assert other is not first
    assert old.calls[-1] == "shutdown"
    assert FakeLLM.newest.options["distributed_executor_backend"] == "external_launcher"
    FakeLLM.newest.engine_core = _core_of_a_launched_process()


def _core_of_a_launched_process() -> Any:
    class Core:
        """Whose whole shutdown would end the connections of the trainer."""

        def __init__(self) -> None:
            self._finalizer = self.engine_core = self.model_executor = self

        def detach(self) -> None: ...
        def shutdown(self) -> None: ...

    return Core()


def test_two_models_that_take_turns_are_refused() -> None:
    model, other = tied_model(), tied_model(seed=1)
    engine = colocated_engine(settings_of(model), CPU, 0.4, 1)
    first, second = VllmSampler(engine, ENDS, name="a"), VllmSampler(engine, ENDS, name="b")
    first.update_weights(plain_weights(model))
    second.update_weights(plain_weights(other))
    draw(second)
    with pytest.raises(UserError, match="ask one model after the other"):
        draw(first)


def test_a_model_that_vllm_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakeLLM, model: str, **options: Any) -> None:
        raise ValueError("head_dim=8 is not supported\nand more")

    monkeypatch.setattr(FakeLLM, "__init__", refuse)
    with pytest.raises(
        UserError, match=r"^compute.sampler = .vllm.: vLLM cannot run this model here: head_dim=8 is not"
    ):
        sampler_of(tied_model())


def test_where_vllm_is_missing_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sampler(VLLM)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    check_sampler(Compute())
    for act in (lambda: check_sampler(VLLM), lambda: sampler_of(tied_model())):
        with pytest.raises(UserError, match=r'vLLM is not installed; `pip install "reftune\[vllm\]"`'):
            act()


def test_a_policys_sampler_has_its_weights_at_once_an_adapter_added() -> None:
    policy = PolicyWithValue(tied_model(), "shared")
    add_adapter(policy.policy, Lora(rank=2, targets=["q_proj"]))
    for parameter in policy.policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    sampler = make_sampler(policy, PROMPTER, Accelerator(cpu=True), VLLM)
    samples = sampler.sample(PROMPTS, SEEDS, max_new_tokens=6, temperature=0.7)
    with merged(policy.policy):
        assert gap(policy.policy, samples) < 1e-4
    options = FakeLLM.newest.options
    assert options["max_model_len"] == min(PROMPTER.settings.max_prompt_tokens + 2, 128)
    assert options["max_num_seqs"] == 6


def test_the_trainer_reads_what_vllm_has_drawn_and_says_values_itself() -> None:
    policy = PolicyWithValue(tied_model(), "shared")
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    generator = make_generator(policy, PROMPTER, ScriptedJudge(3), Accelerator(cpu=True), VLLM)
    graded = generator.generate(TRAIN[:2], 3, 1.0, key=("a",))
    assert all(one.sample.values is None for one in graded)
    rollouts = read_batch(generator, policy, None, graded, temperature=1.0, token_budget=99)
    torch.testing.assert_close(rollouts.logprobs, rollouts.sampler_logprobs, atol=1e-4, rtol=0)
    assert rollouts.values.abs().sum() > 0


def test_the_first_prompts_show_an_engine_that_speaks_of_another_model(tmp_path: Path) -> None:
    policy = PolicyWithValue(tied_model())
    stage = make_stage(tmp_path, compute=VLLM)
    generator = stage.generator(policy)
    generator.sampler.update_weights(plain_weights(tied_model(seed=1)))
    with pytest.raises(UserError, match="the sampler and the model's own forward pass differ by"):
        check_first_prompts(generator, policy, TRAIN)


def test_log_probabilities_that_are_none_are_refused() -> None:
    model = tied_model()
    sampler = sampler_of(model)
    FakeLLM.newest.worker.head *= float("nan")
    with pytest.raises((UserError, RuntimeError), match=r"no finite log-probability|inf"):
        draw(sampler, temperature=0.0)


def test_a_server_without_vllm_is_a_contradiction() -> None:
    with pytest.raises(ValueError, match=r"compute.vllm_server does nothing: set compute.sampler"):
        Config.model_validate({"model": {"name": "m"}, "compute": {"vllm_server": "here:1"}})
