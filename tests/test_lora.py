"""An adapter is all that is trained and stored; with it, without it, merged: a model is read exactly."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from precision import CLOSE, float64
from reftune.config import Lora, Model
from reftune.model.batch import collate
from reftune.model.loading import load_policy, make_policy, reference_of, set_trainable
from reftune.model.lora import add_adapter, has_adapter, merged, plain_weights, without_adapter
from reftune.model.policy import PolicyWithValue
from reftune.model.saving import save_policy
from reftune.problem import UserError
from reftune.runs.checkpoints import load_checkpoint, load_trained, save_checkpoint, trained_weights
from reftune.sampling.engine import BuiltinSampler
from reftune.stages.ppo.step import MAX_LOGPROB_GAP
from reftune.stages.reranker import Reranker
from reftune.training.learner import Learner
from reftune.training.optimizer import make_optimizer
from tiny_models import FAMILIES, tiny_model

IDS = torch.tensor([[20, 21, 22, 23, 24, 25]])
BATCH = collate([[20, 21], [20, 21], [22]], [[30, 31, 32], [30, 33], [34, 35]])
# Where peft takes names of dense layers for those of experts, only others can be adapted.
A, B, WEIGHT = "lora_A.default.weight", "lora_B.default.weight", "base_layer.weight"
TARGETS = {"deepseek_v3": ["q_b_proj", "o_proj"], "qwen3_next": ["q_proj", "out_proj"]}


def adapted(family: str = "llama", **settings: Any) -> PreTrainedModel:
    """Return a tiny model with an adapter that changes what it says."""
    model = tiny_model(family)
    set_trainable(model, True, Lora(**{"rank": 4, "targets": TARGETS.get(family, ["all"])} | settings))
    disturb(model)
    return model


def disturb(model: nn.Module) -> None:
    """Change whatever is trained of a model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def says(model: PreTrainedModel) -> Tensor:
    logits: Tensor = model(IDS).logits
    return logits


# What is trained.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_changes_nothing_and_all_of_it_alone_is_trained(family: str) -> None:
    model, expected = tiny_model(family), says(tiny_model(family))
    add_adapter(model, Lora(rank=4, targets=TARGETS.get(family, ["all"])))
    assert torch.equal(says(model), expected)
    assert type(model) is type(tiny_model(family))
    assert {name.split(".")[-3] for name in trained(model)} == {"lora_A", "lora_B"}
    disturb(model)
    assert (says(model) - expected).abs().max() > 0.01
    model(IDS).logits.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained(model).keys()


def test_all_linear_layers_but_the_one_of_logits_have_an_adapter() -> None:
    names = {name.split(".")[-4] for name in trained(adapted(targets=["all"]))}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    names = {
        name.rpartition(".lora_")[0] for name in trained(adapted(targets=["q_proj", "0.mlp.up_proj"]))
    }
    layers = "model.layers."
    assert names == {
        f"{layers}{x}" for x in ("0.self_attn.q_proj", "1.self_attn.q_proj", "0.mlp.up_proj")
    }


def test_a_model_with_eyes_learns_to_read_only() -> None:
    assert all(name.startswith("model.language_model.layers.") for name in trained(adapted("gemma3")))
    with pytest.raises(UserError, match=r'no linear layer "vision_tower'):
        adapted("gemma3", targets=["vision_tower.vision_model.encoder.layers.0.mlp.fc1"])


@pytest.mark.parametrize("target", ["nonsense", "lm_head", "proj", "embed_tokens", "input_layernorm"])
def test_targets_that_are_no_linear_layers_are_refused_with_those_that_are(target: str) -> None:
    with pytest.raises(
        UserError, match=rf'^lora.targets: .* "{target}" .* down_proj, gate_proj, k_proj'
    ):
        adapted(targets=["q_proj", target])


@pytest.mark.parametrize(("family", "targets"), [("deepseek_v3", ["all"]), ("qwen3_moe", ["gate_proj"])])
def test_experts_are_refused(family: str, targets: list[str]) -> None:
    with pytest.raises(UserError, match=r"^lora.targets: "):
        adapted(family, targets=targets)


def test_scale_and_dropout_are_those_of_the_settings() -> None:
    config = adapted().peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.0)
    config = adapted(rank=2, alpha=3.0, dropout=0.5).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 3.0, 0.5)


def test_dropout_works_in_training_alone_and_keeps_threads_away() -> None:
    model = adapted(dropout=0.5)
    assert torch.equal(says(model), says(model))
    model.train()
    assert not torch.equal(says(model), says(model))
    for dropout in (0.0, 0.5):
        policy = PolicyWithValue(adapted(dropout=dropout))
        learner = Learner(policy, make_optimizer(policy, 0.1, 0.0), Accelerator(cpu=True), 100, 1.0)
        assert learner._dropout == (dropout > 0)


def test_an_adapter_is_in_float32_whatever_the_model_is_in() -> None:
    model = tiny_model().bfloat16()
    add_adapter(model, Lora(rank=4))
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    assert says(model).dtype == torch.bfloat16
    disturb(model)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    a, b, weight = (dict(layer.named_parameters())[name] for name in (A, B, WEIGHT))
    assert not torch.equal(2 * (b @ a), (2 * (b @ a)).bfloat16())
    with merged(model):  # alpha is twice the rank: the scale is 2; sums are rounded once
        total = dict(layer.named_parameters())[WEIGHT]
    assert torch.equal(total, (weight.float() + 2 * (b @ a)).bfloat16())


def test_without_peft_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"LoRA needs peft; `pip install 'reftune\[lora\]'`$"):
        adapted()
    set_trainable(tiny_model(), True, Lora())


# How it is read.


@pytest.mark.parametrize("family", FAMILIES)
@float64()
def test_merged_and_bare_a_model_says_what_it_should(family: str) -> None:
    model, base = adapted(family), says(tiny_model(family))
    expected, weights = says(model), dict(model.named_parameters())
    assert (expected - base).abs().max() > 0.01
    with merged(model):
        torch.testing.assert_close(says(model), expected, atol=CLOSE, rtol=CLOSE)
        assert not any(torch.equal(a, b) for a, b in changed(model, weights))
    assert all(dict(model.named_parameters())[name] is p for name, p in weights.items()), "no rounding"
    assert torch.equal(says(model), expected)
    assert torch.equal(says(without_adapter(model)), base)


def changed(model: nn.Module, weights: dict[str, nn.Parameter]) -> Iterator[tuple[Tensor, Tensor]]:
    for name, parameter in model.named_parameters():
        if ".base_layer.weight" in name:
            yield parameter, weights[name]


def test_weights_come_back_after_an_error() -> None:
    model = adapted()
    expected, weights = says(model), dict(model.named_parameters())
    with pytest.raises(KeyError), merged(model):
        raise KeyError
    assert all(dict(model.named_parameters())[name] is p for name, p in weights.items())
    assert torch.equal(says(model), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_sampling_engine_is_given_the_usual_names_with_the_adapter_added(family: str) -> None:
    model, plain = adapted(family), tiny_model(family)
    weights = dict(plain_weights(model))
    assert weights.keys() == dict(plain.named_parameters()).keys()
    expected = says(model)
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(says(plain), expected)
    assert torch.equal(says(model), expected)
    assert dict(plain_weights(plain)) == dict(plain.named_parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@float64()
def test_samples_carry_what_the_trainer_says(family: str) -> None:
    """They are drawn from merged weights, with dropout off, and everything is as before afterwards."""
    policy = PolicyWithValue(adapted(family, dropout=0.3), "shared").eval()
    disturb(policy.value_head)  # type: ignore[arg-type]
    read, weights = policy(BATCH), dict(policy.named_parameters())
    sampler = BuiltinSampler(policy.policy, [1], value_head=policy.value_head)
    seen: list[bool] = []
    first: Any = next(m for m in policy.modules() if hasattr(m, "lora_A"))
    first.register_forward_pre_hook(lambda *_: seen.append(first.merged))
    prompts = [[20, 21], [20, 21], [22]]
    samples = sampler.sample(prompts, [1, 2, 3], max_new_tokens=5, temperature=1.0)
    assert seen
    assert all(seen)
    stats = policy(collate(prompts, [s.tokens for s in samples]))
    for row, sample in enumerate(samples):
        told, n = torch.tensor([sample.logprobs, sample.values]), len(sample.tokens)
        expected = torch.stack((stats.logprobs[row, :n], stats.values[row, :n]))
        torch.testing.assert_close(told, expected, atol=CLOSE, rtol=CLOSE)
    assert all(dict(policy.named_parameters())[name] is p for name, p in weights.items())
    assert torch.equal(policy(BATCH).logprobs, read.logprobs)


def test_only_in_float32_samples_are_exact() -> None:
    model = adapted()
    sampler = BuiltinSampler(model, [1])
    assert sampler.exact
    [sample] = sampler.sample([[20, 21]], [5], max_new_tokens=9, temperature=1.0)
    read = PolicyWithValue(model)(collate([[20, 21]], [sample.tokens])).logprobs[0]
    assert (torch.tensor(sample.logprobs) - read).abs().max() < MAX_LOGPROB_GAP / 100
    model = tiny_model().bfloat16()
    add_adapter(model, Lora(rank=4))
    assert not BuiltinSampler(model, [1]).exact


# How it is learnt.


def loss_fn(policy: Any, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    stats = policy(BATCH)
    return stats.logprobs.sum() + (stats.values - 1).square().sum(), {}


class Training:
    """A policy in training, that starts from a model in a directory."""

    def __init__(self, directory: Path, critic: str = "shared") -> None:
        torch.manual_seed(5)
        model = {"name": str(directory)} | ({} if critic == "none" else {"value_model": critic})
        settings, self.accelerator = Model.model_validate(model), Accelerator(cpu=True)
        kind = {"critic": critic != "none", "trainable": True, "lora": Lora(rank=2, targets=["q_proj"])}
        self.policy = load_policy(directory, settings, **kind)  # type: ignore[arg-type]
        self.reference = reference_of(self.policy)
        optimizer = make_optimizer(self.policy, 0.05, 0.0, 0.01)
        self.learner = Learner(self.policy, optimizer, self.accelerator, 1000, 1.0)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.learner.step([0], [9], loss_fn)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.policy.named_parameters()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


Critics = pytest.mark.parametrize("critic", ["none", "shared", "separate"])


@Critics
def test_only_adapters_and_heads_learn(base: Path, critic: str) -> None:
    training = Training(base, critic)
    before = training.weights()
    training.steps(4)  # the head is 0 at first, then B, and nothing below either has a gradient
    moved = {name for name, x in training.weights().items() if not torch.equal(x, before[name])}
    assert moved == trained(training.policy).keys()
    assert all("lora_" in name or name.startswith("value_head.") for name in moved)
    assert any(name.startswith("value_backbone.") for name in moved) == (critic == "separate")
    optimizer: Any = training.learner.optimizer
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(moved)


@Critics
def test_the_reference_is_the_start_and_takes_no_memory(base: Path, critic: str) -> None:
    """Bit for bit what a copy of its own says, before and after updates."""
    training, copy = Training(base, critic), load_policy(base, Model(name=str(base)))
    own = {p.data_ptr() for p in training.policy.policy.parameters()}
    assert {p.data_ptr() for p in training.reference.parameters()} < own
    assert not any(p.requires_grad for p in training.reference.parameters())
    for _ in range(2):
        expected = copy(BATCH)
        assert torch.equal(training.reference(BATCH).logprobs, expected.logprobs)
        training.steps(2)
        assert not torch.allclose(training.policy(BATCH).logprobs, expected.logprobs, atol=1e-3)
    with merged(training.policy.policy):
        assert torch.equal(training.reference(BATCH).logprobs, expected.logprobs)


def test_a_critic_of_its_own_shares_the_frozen_weights(base: Path) -> None:
    policy = Training(base, "separate").policy
    assert policy.value_backbone is not None
    frozen = [p for p in policy.value_backbone.parameters() if not p.requires_grad]
    assert {id(p) for p in frozen} < {id(p) for p in policy.policy.parameters()}
    mine, its = trained(policy.policy), trained(policy.value_backbone)
    assert len(mine) == len(its) > 0
    assert not {p.data_ptr() for p in mine.values()} & {p.data_ptr() for p in its.values()}


# What is kept.


@Critics
def test_a_checkpoint_holds_what_is_trained_and_training_goes_on_exactly(
    base: Path, critic: str
) -> None:
    folder, training = base.parent, Training(base, critic)
    training.steps(2)
    save_checkpoint(training.accelerator, folder, 2, {})
    [checkpoint] = folder.glob("checkpoints/*")
    numbers = sum(p.numel() for p in trained(training.policy).values())
    kept = load_file(checkpoint / "model.safetensors")
    assert kept.keys() == trained(training.policy).keys()
    assert sum(x.numel() for x in kept.values()) == numbers
    sizes = [(checkpoint / f).stat().st_size for f in ("model.safetensors", "optimizer.bin")]
    assert sizes[0] < 4 * numbers + 4000
    assert sizes[1] < 8 * numbers + 12000
    training.steps(2)
    resumed = Training(base, critic)
    resumed.steps(1)
    assert load_checkpoint(resumed.accelerator, folder) == {"step": 2}
    resumed.steps(2)
    expected = training.weights()
    assert all(torch.equal(x, expected[name]) for name, x in resumed.weights().items())


class Wrapped(nn.Module):
    """A model as accelerate wraps it where there are several processes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_one_process_goes_on_where_several_have_stopped(base: Path) -> None:
    training, one = Training(base), Training(base)
    training.steps(1)
    training.accelerator._models = [Wrapped(training.policy)]
    save_checkpoint(training.accelerator, base.parent, 1, {})
    assert load_checkpoint(one.accelerator, base.parent) == {"step": 1}
    expected = training.weights()
    assert all(torch.equal(x, expected[name]) for name, x in one.weights().items())
    training.steps(1)
    assert load_checkpoint(training.accelerator, base.parent) == {"step": 1}
    assert all(torch.equal(x, expected[name]) for name, x in training.weights().items())


@pytest.mark.parametrize(("missing", "more"), [(True, False), (False, True)])
def test_weights_that_lack_one_or_have_another_are_refused(
    missing: bool, more: bool, tmp_path: Path
) -> None:
    model = adapted()
    weights = {name: x.contiguous() for name, x in trained_weights(model).items()}
    save_file(weights, tmp_path / "right")
    load_trained(model, tmp_path / "right")
    extra = {"other": torch.zeros(1)} if more else {}
    save_file(dict(list(weights.items())[missing:]) | extra, tmp_path / "wrong")
    with pytest.raises(RuntimeError, match=r"^wrong lacks"):
        load_trained(model, tmp_path / "wrong")


def test_a_checkpoint_of_another_rank_is_refused(base: Path) -> None:
    training = Training(base)
    save_checkpoint(training.accelerator, base.parent, 1, {})
    other = PolicyWithValue(adapted())
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(other, make_optimizer(other, 0.1, 0.0))
    with pytest.raises(UserError, match=r"cannot be loaded .*; delete"):
        load_checkpoint(accelerator, base.parent)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers in words of old
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_an_export_is_an_ordinary_model_with_the_adapter_beside_it(
    family: str, dtype: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    plain = tiny_model(family, tie_word_embeddings=True)
    plain.save_pretrained(tmp_path / "base")
    policy = load_policy(tmp_path / "base", Model(name="any"), trainable=True, lora=Lora(rank=4))
    disturb(policy)
    expected = says(policy.policy)
    save_policy(policy, tmp_path / "model", dtype)
    assert torch.equal(says(policy.policy), expected)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == getattr(torch, dtype)
    stored = load_file(tmp_path / "model/model.safetensors")
    assert sum(x.numel() for x in stored.values()) == sum(p.numel() for p in plain.parameters())
    if dtype == "float32":
        torch.testing.assert_close(says(model), expected, atol=1e-4, rtol=1e-4)
    else:
        for name, weight in plain_weights(policy.policy):
            assert torch.equal(model.get_parameter(name), weight.bfloat16()), name
    settings = json.loads((tmp_path / "model/adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    opened = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"]),
        tmp_path / "model/adapter",
    )
    assert torch.equal(says(opened), expected)


def test_a_model_without_an_adapter_is_exported_without_one(tmp_path: Path) -> None:
    policy = make_policy(tiny_model(), Model(name="any"), trainable=True, lora=Lora())
    assert not has_adapter(policy.policy)
    save_policy(policy, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_a_reranker_is_its_adapter_and_its_head(tmp_path: Path) -> None:
    def fresh() -> Reranker:
        model = tiny_model()
        set_trainable(model, True, Lora(rank=4))
        return Reranker(model)

    reranker, again = fresh(), fresh()
    disturb(reranker)
    reranker.save(tmp_path / "model")
    stored: Sequence[str] = list(load_file(tmp_path / "model/reranker.safetensors"))
    assert set(stored) == trained(reranker).keys()
    assert not torch.equal(again(BATCH), reranker(BATCH))
    again.load(tmp_path / "model")
    assert torch.equal(again(BATCH), reranker(BATCH))
