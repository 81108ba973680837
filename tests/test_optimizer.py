"""Masters: weights in 16 bits are the rounded masters of an AdamW in float32, resumed byte for byte."""

from __future__ import annotations

import copy
import sys
import types
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from reftune.problem import UserError
from reftune.training.learner import Learner
from reftune.training.optimizer import make_optimizer, optimized


class Pair(nn.Module):
    """A "language model" in 16 bits and a head in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 3, dtype=torch.bfloat16)
        self.value_head = nn.Linear(3, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.value_head(self.body(inputs.bfloat16()).float())


def learn(model: Pair, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        for parameter in optimized(optimizer):
            parameter.grad = None
        for half in range(2):  # two micro-batches
            inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(2 * step + half))
            model(inputs).square().sum().backward()
        optimizer.step()


def test_masters_take_the_steps_that_adamw_takes_in_float32() -> None:
    """An independent statement: AdamW on float32 copies, whose gradients are set by hand."""
    model, twin = Pair(), Pair()
    optimizer = make_optimizer(model, 1e-2, 0.1)
    copies = [nn.Parameter(p.detach().float()) for p in twin.body.parameters()]
    plain = torch.optim.AdamW([*copies, *twin.value_head.parameters()], lr=1e-2, weight_decay=0.1)
    for step in range(5):
        learn(model, optimizer, 1, step)
        plain.zero_grad()
        for half in range(2):
            inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(2 * step + half))
            loss = twin(inputs).square().sum()
            grads = torch.autograd.grad(loss, [*twin.body.parameters(), *twin.value_head.parameters()])
            for p, grad in zip([*copies, *twin.value_head.parameters()], grads, strict=True):
                p.grad = grad.float() if p.grad is None else p.grad + grad.float()
        plain.step()
        for p, master in zip(twin.body.parameters(), copies, strict=True):
            p.data = master.data.bfloat16()
        for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(found, expected)


def test_steps_that_16_bits_cannot_hold_add_up() -> None:
    """1 + 2^-10 rounds to 1 in bfloat16, but eight such steps are two of its last bits."""
    model = Pair()
    nn.init.ones_(model.body.weight)
    optimizer = make_optimizer(model, 2.0**-10, 0.0)
    for _ in range(8):
        for master in optimized(optimizer)[:2]:
            master.grad = -torch.ones_like(master)  # AdamW moves by the rate where all gradients agree
        optimizer.step()
    assert model.body.weight.unique().tolist() == [1 + 2.0**-7]


def test_gradients_are_freed_as_soon_as_masters_have_them() -> None:
    model = Pair()
    optimizer = make_optimizer(model, 1e-2, 0.0)
    model(torch.ones(1, 4)).sum().backward()
    assert all(p.grad is None for p in model.body.parameters())
    assert {p.grad.dtype for p in optimized(optimizer) if p.grad is not None} == {torch.float32}


def test_weights_of_float32_have_no_master_and_frozen_ones_do_not_move() -> None:
    model = Pair()
    model.body.bias.requires_grad_(False)
    optimizer = make_optimizer(model, 1e-2, 0.0, 5e-2)
    assert [[p.shape for p in group["params"]] for group in optimizer.param_groups] == [
        [model.body.weight.shape], [model.value_head.weight.shape, model.value_head.bias.shape],
    ]  # fmt: skip
    assert optimizer.param_groups[1]["params"][0] is model.value_head.weight
    assert [group["peak"] for group in optimizer.param_groups] == [1e-2, 5e-2]


def resumed(model: Pair, optimizer: torch.optim.Optimizer) -> tuple[Pair, torch.optim.Optimizer]:
    """Return what a new process makes of a checkpoint."""
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again = Pair()
    nn.init.zeros_(again.body.weight)  # whatever it starts with, the checkpoint has the last word
    other = make_optimizer(again, 1e-2, 0.0)
    again.load_state_dict(weights)
    other.load_state_dict(state)
    return again, other


def test_a_checkpoint_goes_on_byte_for_byte() -> None:
    model = Pair()
    optimizer = make_optimizer(model, 1e-2, 0.0)
    learn(model, optimizer, 3)
    again, other = resumed(model, optimizer)
    learn(model, optimizer, 4, first=3)
    learn(again, other, 4, first=3)
    for found, expected in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(optimized(other), optimized(optimizer), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("kept_gradients")
def test_a_learner_clips_the_gradients_of_masters() -> None:
    model = Pair()
    optimizer = make_optimizer(model, 1e-2, 0.0)
    learner = Learner(model, optimizer, Accelerator(cpu=True), 1000, 0.5)

    def loss(model: nn.Module, mine: list[int], weights: torch.Tensor) -> Any:
        return 100 * model(torch.ones(1, 4)).sum(), {}

    norm = learner.step([0], [1], loss)["grad_norm"]
    assert norm > 0.5
    clipped = torch.stack([p.grad.norm() for p in optimized(optimizer) if p.grad is not None]).norm()
    assert clipped.item() == pytest.approx(0.5, rel=1e-4)  # torch adds 1e-6 to the norm it divides by


def test_8_bits_need_bitsandbytes_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r'8bit" needs bitsandbytes; `pip install "reftune\[8bit\]"'):
        make_optimizer(Pair(), 1e-2, 0.0, kind="adamw_8bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    fake = types.ModuleType("bitsandbytes.optim")
    fake.AdamW8bit = WithoutHooks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", fake)
    with pytest.raises(UserError, match="needs a GPU"):
        make_optimizer(Pair(), 1e-2, 0.0, kind="adamw_8bit")


class WithoutHooks(torch.optim.AdamW):
    """Stands in for AdamW8bit, whose `load_state_dict` is its own and calls none of torch's hooks."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        hooks = dict(self._optimizer_load_state_dict_pre_hooks)
        self._optimizer_load_state_dict_pre_hooks.clear()
        super().load_state_dict(state_dict)
        self._optimizer_load_state_dict_pre_hooks.update(hooks)


def test_masters_are_resumed_with_8_bits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("bitsandbytes.optim")
    fake.AdamW8bit = WithoutHooks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", fake)
    monkeypatch.setattr("reftune.training.optimizer.on_gpu", lambda parameter: True)
    model, again = Pair(), Pair()
    optimizer = make_optimizer(model, 1e-2, 0.0, kind="adamw_8bit")
    learn(model, optimizer, 3)
    other = make_optimizer(again, 1e-2, 0.0, kind="adamw_8bit")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for found, expected in zip(optimized(other)[:2], optimized(optimizer)[:2], strict=True):
        assert torch.equal(found, expected)
