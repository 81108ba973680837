"""What tests compute in float64 is computed in float64 throughout, and nothing stays so after them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from precision import float64
from reftune.config import Model
from reftune.model.batch import length_mask, pad
from reftune.model.loading import build_model, load_model, load_policy
from reftune.model.policy import PolicyWithValue
from tiny_models import FAMILIES, tiny_model


def ways(x: Tensor) -> list[torch.dtype]:
    """Return what comes of all ways in which code asks for float32."""
    layer = torch.nn.Linear(1, 1)
    return [
        x.float().dtype, x.to(torch.float32).dtype, x.to(torch.float).dtype,
        torch.zeros(1).dtype, torch.zeros(1, dtype=torch.float).dtype, torch.tensor([0.5]).dtype,
        torch.softmax(x, dim=-1, dtype=torch.float32).dtype, layer.weight.dtype,
        pad([[1.0]]).dtype, length_mask([1]).dtype, torch.promote_types(torch.bfloat16, torch.float32),
        torch.get_default_dtype(),
    ]  # fmt: skip


def test_whatever_asks_for_float32_gets_float64_and_only_then() -> None:
    half = torch.ones(1, dtype=torch.bfloat16)
    assert set(ways(half)) == {torch.float32}
    with float64():
        assert set(ways(half)) == {torch.float64}
        assert half.bfloat16().dtype == half.dtype == torch.bfloat16  # what asks for less gets it
    assert set(ways(half)) == {torch.float32}


def test_an_error_leaves_nothing_behind() -> None:
    with pytest.raises(KeyError), float64():
        raise KeyError
    assert set(ways(torch.ones(1))) == {torch.float32}


def test_models_are_loaded_in_float64_with_all_that_is_built_on_them(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    with float64():
        new, _ = build_model(Model(scratch="tiny", scratch_overrides=sizes, vocab_size=300), ["a"], 0)
        new.save_pretrained(tmp_path)
        settings = Model(name=str(tmp_path))
        policies = [load_policy(tmp_path, settings, trainable=t, critic=True) for t in (True, False)]
        for module in (load_model(tmp_path), new, *policies):
            assert {p.dtype for p in module.parameters()} == {torch.float64}
    assert load_model(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
@float64()
def test_no_model_rounds_on_the_way(family: str) -> None:
    """A change of the ninth digit in a weight is seen in what is said."""
    policy, ids = PolicyWithValue(tiny_model(family)), torch.tensor([[20, 21, 22]])
    with torch.no_grad():
        before = policy.policy(input_ids=ids).logits
        policy.policy.get_input_embeddings().weight *= 1 + 1e-9
        moved = (policy.policy(input_ids=ids).logits - before).abs().max()
    assert before.dtype == torch.float64
    assert 1e-13 < float(moved) < 1e-6
