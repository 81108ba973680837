from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reftune.model.forward import backbone_of
from reftune.model.packing import take_over
from reftune.sampling.llama_step import LlamaStep, _norm, step_of
from reftune.sampling.shared_prefix import SharedPrefixDecoder
from tiny_models import EOS, FAMILIES, KNOWN, random_model, tiny_model

PROMPTS = [[20, 21, 22], [30, 31, 32, 33, 34]]


def make_trunk(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    model = random_model(family, **changes).to(dtype)
    assert take_over(model)
    return backbone_of(model)


@torch.no_grad()
def decode(backbone: Any, *, known: bool) -> Tensor:
    """Return the states of three prompts' steps: rows that branch, one that leaves, one that joins."""
    if not known:
        backbone.layers[0].register_forward_hook(lambda *_: None)
    decoder = SharedPrefixDecoder(backbone, 7, 8, 16)
    assert isinstance(decoder.read, LlamaStep) == known
    decoder.admit(PROMPTS, [3, 1])
    states = [decoder.step(torch.tensor([40, 43]))]
    decoder.branch(torch.tensor([0, 0]))
    states += [decoder.step(torch.tensor([50, 53, 51, 52]))]
    decoder.retain(torch.tensor([0, 1, 3]))
    decoder.admit([[EOS] * 7], [2])
    decoder.branch(torch.tensor([1]))
    states += [decoder.step(torch.tensor([2, 3, 4, 5, 6])), decoder.step(torch.tensor([9, 8, 7, 6, 5]))]
    return torch.cat(states)


@pytest.mark.parametrize("family", KNOWN)
def test_a_step_gives_what_the_model_gives(family: str) -> None:
    expected = decode(make_trunk(family, **KNOWN[family]), known=False)
    actual = decode(make_trunk(family, **KNOWN[family]), known=True)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", KNOWN)
def test_in_bfloat16_and_under_autocast_it_is_as_exact_as_the_model(family: str) -> None:
    exact = decode(make_trunk(family, **KNOWN[family]), known=True)

    def errors(dtype: torch.dtype) -> list[float]:
        found = [decode(make_trunk(family, dtype, **KNOWN[family]), known=k) for k in (True, False)]
        assert found[0].dtype == found[1].dtype
        return [float((states.float() - exact).norm() / exact.norm()) for states in found]

    plain = errors(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = errors(torch.float32)
    for ours, models in (plain, mixed):
        assert 1e-4 < ours < 1.5 * models


def test_norms_are_taken_in_float32() -> None:
    norm = make_trunk("llama", torch.bfloat16).norm
    states = torch.randn(50, 32).bfloat16()
    assert torch.equal(_norm(states, norm), norm(states))


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn"])
def test_scaled_positions_are_the_models(rope: str) -> None:
    parameters = {"rope_type": rope, "rope_theta": 10000.0, "factor": 4.0}
    if rope == "llama3":
        parameters |= {
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        }  # fmt: skip
    found = [decode(make_trunk("llama", rope_parameters=parameters), known=k) for k in (True, False)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], decode(make_trunk("llama"), known=True), atol=1e-2)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(KNOWN)))
def test_other_models_take_their_own_step(family: str) -> None:
    assert not isinstance(step_of(backbone_of(tiny_model(family)), 8), LlamaStep)


def test_a_changed_model_takes_its_own_step() -> None:
    class Adapted(nn.Linear):
        pass

    adapted = make_trunk("llama")
    adapted.layers[1].self_attn.q_proj = Adapted(32, 32, bias=False)
    moving = make_trunk(
        "llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    )
    replaced = make_trunk("llama")
    replaced.layers[0].mlp.forward = lambda x: x
    assert isinstance(step_of(make_trunk("llama"), 8), LlamaStep)
    for model in (adapted, moving, replaced, tiny_model("llama")):
        assert not isinstance(step_of(model, 8), LlamaStep)


def test_a_step_follows_the_weights() -> None:
    backbone = make_trunk("llama")
    before = decode(backbone, known=True)
    backbone.norm.weight.data *= 2
    torch.testing.assert_close(decode(backbone, known=True), 2 * before)
