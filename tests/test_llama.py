from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reftune.model import llama
from reftune.model.batch import collate
from reftune.model.forward import PackedForward, backbone_of
from tiny_models import KNOWN, WINDOW, random_model

# Prompts of unequal lengths; a response that ends early, one of a single token.
BATCH = collate(
    [[20, 21, 22], [30, 31, 32, 33, 34], [40]], [[7, 8, 9, 10, 11, 12, 13, 14], [5], [6, 4, 2]]
)


def read(model: Any, *, narrow: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the states, and the gradients of a weighted sum of them."""
    packed_forward, backbone = PackedForward(model), backbone_of(model)
    if not narrow:
        backbone.norm.register_forward_hook(lambda *_: None)  # no known backbone any more
    model.zero_grad()
    states = packed_forward(backbone, BATCH)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    (weights * states).sum().backward()
    return states, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def narrow_readings(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Return the shapes that the last layer's MLP is given in readings that leave something out."""
    seen: list[torch.Size] = []

    def finish(layer: Any, states: Tensor, wanted: Tensor, *angles: Tensor) -> Tensor:
        finished = original(layer, states, wanted, *angles)
        seen.append(finished.shape)
        return finished

    original = llama._finish
    monkeypatch.setattr(llama, "_finish", finish)
    return seen


@pytest.mark.parametrize("family", KNOWN)
def test_states_and_gradients_are_the_models(family: str, narrow_readings: list[torch.Size]) -> None:
    actual, gradients = read(random_model(family, **KNOWN[family]), narrow=True)
    assert narrow_readings == [(3, 8, 32)]  # not 11 columns
    expected, expected_gradients = read(random_model(family, **KNOWN[family]), narrow=False)
    assert len(narrow_readings) == 1
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-4)


def test_scaled_positions_are_the_models() -> None:
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    found = [read(random_model("llama", rope_parameters=rope), narrow=n)[0] for n in (True, False)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", KNOWN)
def test_in_bfloat16_and_under_autocast_they_are_as_exact_as_the_models(family: str) -> None:
    exact = read(random_model(family, **KNOWN[family]), narrow=True)[0]

    def errors(dtype: torch.dtype) -> list[float]:
        models = [random_model(family, **KNOWN[family]).to(dtype) for _ in range(2)]
        found = [read(m, narrow=n)[0] for m, n in zip(models, (True, False), strict=True)]
        assert found[0].dtype == found[1].dtype
        return [((states.float() - exact).norm() / exact.norm()).item() for states in found]

    plain = errors(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = errors(torch.float32)
    for ours, models in (plain, mixed):
        assert 1e-4 < ours < 1.5 * models


def test_a_window_shorter_than_the_rows_is_left_to_the_model(narrow_readings: list[torch.Size]) -> None:
    read(random_model("mistral", sliding_window=WINDOW), narrow=True)
    assert not narrow_readings


def test_attention_is_dropped_in_training_alone() -> None:
    model = random_model("llama", attention_dropout=0.999999)
    kept = read(model.eval(), narrow=True)[0]
    dropped = read(model.train(), narrow=True)[0]
    for layer in backbone_of(model).layers:
        layer.self_attn.o_proj.weight.data.zero_()
    torch.testing.assert_close(dropped, read(model.eval(), narrow=True)[0])
    assert not torch.allclose(kept, dropped, atol=0.1)
