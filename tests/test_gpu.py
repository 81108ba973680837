"""What differs on a GPU: kernels, CUDA graphs, precisions, where things lie.

`make test` leaves these tests out. Without a GPU, `pytest -m gpu` runs them on the CPU, which shows
whether the tests themselves work.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from precision import CLOSE, float64
from reftune.config import Config, Lora
from reftune.model.batch import collate
from reftune.model.lora import add_adapter
from reftune.model.policy import PolicyWithValue
from reftune.pipeline import run_stages
from reftune.runs.checkpoints import load_checkpoint, save_checkpoint
from reftune.sampling import engine, rng
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.sampler import Sample
from reftune.sampling.static_batch import StaticBatch
from reftune.training.learner import Learner
from reftune.training.optimizer import make_optimizer, optimized
from tiny_models import random_model
from tiny_pipeline import make_config

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TORCH_DEVICE = torch.device(DEVICE)
ROWS = 512 if DEVICE == "cuda" else 8  # of a large vocabulary
NEW = 40  # tokens of a response
ENDS = list(range(1, 9))
PROMPTS = [[20 + i % 7] * (1 + 5 * (i % 7)) for i in range(70)]
SEEDS = [31 * i - 2**62 for i in range(70)]
TEXTS = [[3, 4, 5], [3, 4, 5], [6]], [[7, 8, 1], [7, 9], [5, 5, 5, 1]]
ROUNDING = {torch.float64: CLOSE, torch.float32: 2e-3, torch.bfloat16: 0.2}


@pytest.fixture(autouse=True)
def _static(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "pays_on", lambda device: device.type == DEVICE)


def grouped_model(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a model of which three heads share keys of 64 numbers, as in SmolLM2."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=384, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.08, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device=DEVICE, dtype=dtype).eval()


def draw(model: Any, captures: bool = True, rows: int = 512, **more: Any) -> list[Sample]:
    sampler = BuiltinSampler(model, ENDS, rows, **more)
    sampler.captures = sampler.captures and captures
    samples = sampler.sample(PROMPTS, SEEDS, max_new_tokens=NEW, temperature=1.0)
    assert sampler.captures or not captures or DEVICE == "cpu", "no step could be captured"
    return samples


def assert_same(samples: list[Sample], expected: list[Sample], dtype: torch.dtype, share: float) -> None:
    """Assert that so many samples are the same; where they part another token was about as likely."""
    same = [a.tokens == b.tokens for a, b in zip(samples, expected, strict=True)]
    assert sum(same) >= share * len(same)
    for a, b in zip(samples, expected, strict=True):
        alike = next(
            (i for i, pair in enumerate(zip(a.tokens, b.tokens, strict=False)) if pair[0] != pair[1]),
            None,
        )
        assert a.logprobs[:alike] == pytest.approx(b.logprobs[:alike], abs=ROUNDING[dtype])


@float64()
def test_random_numbers_are_the_cpu_s() -> None:
    seeds, steps = torch.tensor([-(2**63), -1, 0, 7, 2**63 - 1]), torch.tensor([0, 1, 2, 300, 4])
    expected = rng.uniform(seeds, steps)
    assert torch.equal(rng.uniform(seeds.to(DEVICE), steps.to(DEVICE)).cpu(), expected)


def test_no_token_without_probability_is_chosen_of_many() -> None:
    torch.manual_seed(0)
    logits = torch.randn(ROWS, 151_936, device=DEVICE) * 12
    logits[:, ::2] = -torch.inf
    seeds = torch.arange(ROWS, device=DEVICE)
    for t in range(4):
        chosen, logprobs = rng.sample_tokens(logits, seeds, t, 1.0)
        assert logprobs.isfinite().all()
        assert (chosen % 2 == 1).all()


@pytest.mark.parametrize("rows", [512, 24])
@float64()
def test_samples_are_the_cpu_s(rows: int) -> None:
    expected = draw(random_model("llama"), captures=False)
    samples = draw(random_model("llama").to(DEVICE), rows=rows)
    assert_same(samples, expected, torch.float64, 1.0)


def test_samples_in_float32_are_nearly_the_cpu_s() -> None:
    expected = draw(grouped_model().cpu(), captures=False)
    assert_same(draw(grouped_model()), expected, torch.float32, 0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("critic", ["none", "shared"])
def test_graphs_give_what_their_steps_give(
    dtype: torch.dtype, critic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[tuple[int, int]] = []
    capture = StaticBatch._capture

    def watched(self: StaticBatch, rows: int, width: int) -> None:
        captured.append((rows, width))
        capture(self, rows, width)

    monkeypatch.setattr(StaticBatch, "_capture", watched)
    policy = PolicyWithValue(grouped_model(dtype), critic)
    head = {"value_head": policy.value_head}
    expected = draw(policy.policy, captures=False, **head)
    assert not captured
    samples = draw(policy.policy, **head)
    assert len(set(captured)) == len(captured)
    assert bool(captured) is (DEVICE == "cuda")
    assert_same(samples, expected, dtype, 0.9)
    assert_same(draw(policy.policy, rows=16, **head), expected, dtype, 0.5)


def test_a_graph_of_the_next_call_reads_new_weights() -> None:
    policy = grouped_model()
    sampler = BuiltinSampler(policy, ENDS)
    limits = {"max_new_tokens": NEW, "temperature": 1.0}
    before = sampler.sample(PROMPTS, SEEDS, **limits)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.5)
    after = sampler.sample(PROMPTS, SEEDS, **limits)  # type: ignore[arg-type]
    assert [s.tokens for s in after] != [s.tokens for s in before]
    assert_same(after, draw(policy), torch.float32, 0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sampler_says_what_the_trainer_says(dtype: torch.dtype) -> None:
    policy = PolicyWithValue(grouped_model(dtype))
    samples = draw(policy.policy)
    batch = collate([s.prompt for s in samples], [s.tokens for s in samples]).to(TORCH_DEVICE)
    with torch.no_grad():
        read = policy(batch).logprobs.cpu()
    gaps = [
        abs(float(a) - b)
        for row, s in zip(read, samples, strict=True)
        for a, b in zip(row, s.logprobs, strict=False)
    ]
    assert sum(gaps) / len(gaps) < (1e-4 if dtype == torch.float32 else 0.03)
    assert max(gaps) < ROUNDING[dtype] * 2


def test_an_adapter_is_sampled_from_and_trained() -> None:
    pytest.importorskip("peft")
    model = grouped_model(torch.bfloat16)
    add_adapter(model, Lora(rank=4))
    policy = PolicyWithValue(model)
    frozen = model.get_input_embeddings().weight.detach().clone()
    before = draw(model)
    for _ in range(3):
        learn(policy, rate=1e-1)
    assert torch.equal(model.get_input_embeddings().weight, frozen)
    assert [s.tokens for s in draw(model)] != [s.tokens for s in before]


def loss_of(model: nn.Module, mine: list[int], weights: Tensor) -> Any:
    batch = collate([TEXTS[0][i] for i in mine], [TEXTS[1][i] for i in mine]).to(TORCH_DEVICE)
    stats = model(batch)
    return -(stats.logprobs.sum(1) * weights).sum() + stats.values.square().sum(), {}


def learn(model: nn.Module, precision: str = "no", rate: float = 1e-2, **more: Any) -> dict[str, float]:
    AcceleratorState._reset_state()  # it would hold this process to the precision of the first one
    accelerator = Accelerator(mixed_precision=precision, cpu=DEVICE == "cpu")
    learner = Learner(model, make_optimizer(model, rate, 0.0), accelerator, 1000, 1.0, **more)
    sums = learner.step([0, 1, 2], [6, 5, 5], loss_of)
    assert math.isfinite(sums["loss"])
    assert 0 < sums["grad_norm"] < math.inf
    return sums


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().float().cpu().clone() for name, p in model.named_parameters()}


def test_a_step_in_float32_is_the_cpu_s() -> None:
    here, there = (PolicyWithValue(random_model("llama").to(x), "shared") for x in (DEVICE, "cpu"))
    stats = there(collate(*TEXTS))  # by hand: accelerate knows one device per process
    loss = -stats.logprobs.sum() + stats.values.square().sum()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(there.parameters(), 1.0)
    sums = learn(here)
    assert sums["loss"] == pytest.approx(float(loss.detach()), rel=1e-3)
    assert sums["grad_norm"] == pytest.approx(float(norm), rel=1e-2)


def test_weights_in_bfloat16_follow_masters_in_float32() -> None:
    policy = PolicyWithValue(grouped_model(torch.bfloat16), "shared")
    before = weights_of(policy)
    optimizer = make_optimizer(policy, 1e-2, 0.0)
    accelerator = Accelerator(mixed_precision="no", cpu=DEVICE == "cpu")
    learner = Learner(policy, optimizer, accelerator, 1000, 1.0)
    first = learner.step([0, 1, 2], [6, 5, 5], loss_of)
    second = learner.step([0, 1, 2], [6, 5, 5], loss_of)
    assert second["loss"] < first["loss"]
    masters = optimized(optimizer)
    assert {x.dtype for x in masters} == {torch.float32}
    assert {x.device.type for x in masters} == {DEVICE}
    assert policy.policy.dtype == torch.bfloat16
    assert any(not torch.equal(x, before[name]) for name, x in weights_of(policy).items())


def test_float16_scales_the_loss_and_takes_the_step() -> None:
    precision = "fp16" if DEVICE == "cuda" else "no"
    policy = PolicyWithValue(grouped_model(), "shared")
    before = weights_of(policy)
    expected = learn(PolicyWithValue(grouped_model(), "shared"))
    sums = learn(policy, precision)
    assert sums["loss"] == pytest.approx(expected["loss"], rel=2e-2)
    assert sums["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.1)
    assert any(not torch.equal(x, before[name]) for name, x in weights_of(policy).items())


def test_float16_samples_what_it_trains_on() -> None:
    accelerator = Accelerator(mixed_precision="fp16" if DEVICE == "cuda" else "no", cpu=DEVICE == "cpu")
    samples = draw(grouped_model(), context=accelerator.autocast)
    assert_same(samples, draw(grouped_model(), captures=False), torch.bfloat16, 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_changes_nothing_but_rounding(dtype: torch.dtype) -> None:
    found, expected = (PolicyWithValue(grouped_model(dtype), "shared") for _ in range(2))
    twice, once = learn(found, gradient_checkpointing=True), learn(expected)
    assert twice["loss"] == pytest.approx(once["loss"], rel=1e-3)
    assert twice["grad_norm"] == pytest.approx(once["grad_norm"], rel=1e-2)


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def make() -> tuple[Accelerator, Learner]:
        accelerator = Accelerator(cpu=DEVICE == "cpu")
        policy = PolicyWithValue(grouped_model(torch.bfloat16), "shared")
        return accelerator, Learner(policy, make_optimizer(policy, 1e-3, 0.0), accelerator, 1000, 1.0)

    def step(learner: Learner) -> float:
        return learner.step([0, 1, 2], [6, 5, 5], loss_of)["loss"]

    accelerator, learner = make()
    step(learner)
    save_checkpoint(accelerator, tmp_path, 1, {})
    expected = [step(learner), step(learner)]
    accelerator, learner = make()
    assert load_checkpoint(accelerator, tmp_path) == {"step": 1}
    assert [step(learner), step(learner)] == pytest.approx(expected, rel=1e-3)


REWARD = "def reward(question, completion, answer):\n    return len(completion) % 3 / 2\n"


def run(folder: Path, dtype: str, **sections: Any) -> Config:
    """Run SFT, PPO and the evaluation of a tiny model."""
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    steps = {"steps": 3, "questions_per_step": 3, "samples_per_question": 4, "learning_rate": 1e-2}
    model = make_config(folder).model.model_dump(exclude_defaults=True) | {"dtype": dtype}
    config = make_config(
        folder, "reft", model=model, prompt={"trigger": " so ", "max_new_tokens": 16},
        reward={"function": f"{folder / 'reward.py'}:reward"},
        sft={"epochs": 4, "warmup_epochs": 2, "learning_rate": 2e-2}, ppo=steps, **sections,
    )  # fmt: skip
    run_stages(config)
    rows = (config.run_dir / "ppo/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3
    assert all(math.isfinite(json.loads(row)["loss"]) for row in rows)
    return config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_run_goes_from_the_first_stage_to_the_last(dtype: str, tmp_path: Path) -> None:
    config = run(tmp_path, dtype)
    assert (config.run_dir / "evaluation/reft.jsonl").exists()


def test_a_reference_may_rest_in_the_cpu_s_memory(tmp_path: Path) -> None:
    compute = {"threads": 1, "sampler_rows": 7, "tokens_per_microbatch": 99}
    run(
        tmp_path,
        "bfloat16",
        compute=compute | {"offload_reference": True, "gradient_checkpointing": True},
    )
