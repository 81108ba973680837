"""Gradient checkpointing changes what is kept, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from reftune.model.batch import collate
from reftune.model.gradient_checkpointing import checkpointed_layers, checkpointing
from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.sampling.engine import BuiltinSampler
from reftune.training.learner import Learner
from reftune.training.optimizer import make_optimizer
from tiny_models import tiny_model

PROMPTS, RESPONSES = [[3, 4, 5], [3, 4, 5], [6]], [[7, 8, 1], [7, 9], [5, 5, 5, 1]]


def loss_of(model: nn.Module, mine: list[int], weights: Tensor) -> Any:
    stats = model(collate([PROMPTS[i] for i in mine], [RESPONSES[i] for i in mine]))
    return -(stats.logprobs.sum(1) * weights).sum() + stats.values.square().sum(), {}


def learn(critic: str, train: bool, gradient_checkpointing: bool) -> tuple[dict[str, Tensor], int]:
    """Take a step; return the new weights, and how often a layer ran."""
    model = PolicyWithValue(tiny_model(), critic)
    calls = []
    optimizer = make_optimizer(model, 1e-2, 0.0)
    learner = Learner(
        model, optimizer, Accelerator(cpu=True), 1000, 1.0, gradient_checkpointing=gradient_checkpointing
    )
    model.train(train)
    layer = model.policy.base_model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    learner.step([0, 1, 2], [6, 5, 5], loss_of)
    return {name: p.detach() for name, p in model.named_parameters()}, len(calls)


@pytest.mark.parametrize("critic", ["none", "shared", "separate"])
@pytest.mark.parametrize("train", [True, False])
def test_a_step_is_the_same_and_layers_run_once_more(critic: str, train: bool) -> None:
    expected, once = learn(critic, train, False)
    found, twice = learn(critic, train, True)
    assert twice == 2 * once
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def test_no_dropout_begins_in_a_model_that_is_not_in_training() -> None:
    model = tiny_model()
    layers = checkpointed_layers(model.eval())
    assert len(layers) == model.config.num_hidden_layers
    with checkpointing(layers):
        inner = [m.training for layer in layers for m in layer.modules() if m is not layer]
        assert not any(inner)
        assert all(layer.training for layer in layers)
    assert not any(module.training for module in model.modules())


def test_a_layer_that_drops_out_by_its_own_mode_stays_as_it_is_in_ppo() -> None:
    """OPT's layers ask for their own mode: checkpointing would let them drop out in PPO."""
    config = OPTConfig(
        vocab_size=60, hidden_size=16, word_embed_proj_dim=16, ffn_dim=16, num_hidden_layers=2,
        num_attention_heads=2, dropout=0.5,
    )  # fmt: skip
    found = []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(0)
        model = PolicyWithValue(OPTForCausalLM(config).eval())
        optimizer, accelerator = make_optimizer(model, 1e-2, 0.0), Accelerator(cpu=True)
        learner = Learner(
            model, optimizer, accelerator, 1000, 1.0, gradient_checkpointing=gradient_checkpointing
        )
        model.eval()
        found.append(learner.step([0, 1, 2], [6, 5, 5], loss_of)["loss"])
    assert found[0] == found[1]


def test_the_sampler_keeps_its_cache_between_steps() -> None:
    model = tiny_model().eval()
    checkpointed_layers(model)
    [expected], [found] = (
        BuiltinSampler(m, [1]).sample([[3, 4]], [5], max_new_tokens=6, temperature=1.0)
        for m in (tiny_model().eval(), model)
    )
    assert found.tokens == expected.tokens


def test_a_model_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedModel, "supports_gradient_checkpointing", False, raising=False)
    model = tiny_model()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False, raising=False)
    with pytest.raises(UserError, match=r"compute\.gradient_checkpointing: a model of type llama"):
        checkpointed_layers(model)
