from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reftune.model.batch import collate
from reftune.model.policy import PolicyWithValue
from reftune.training.learner import Learner
from tiny_models import tiny_model

PROMPTS = [[20 + i % 3] * (1 + i % 3) for i in range(11)]
RESPONSES = [[7 + i] * (1 + i % 4) for i in range(11)]


def loss_fn(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    scores = model(collate([PROMPTS[i] for i in mine], [RESPONSES[i] for i in mine]))
    losses = -scores.logprobs.sum(1) * weights / 11
    return losses.sum(), {"rows": weights.sum()}


def learn(threads: int, train: bool = False, **changes: Any) -> tuple[list[Tensor], dict[str, float]]:
    """Take two plain gradient steps with so many threads; return the weights and the last sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        policy = PolicyWithValue(tiny_model("gpt2", **changes), "shared")
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        learner = Learner(policy, optimizer, Accelerator(cpu=True), 12, 1.0)
        learner.model.train(train)
        torch.manual_seed(0)
        lengths = [len(p) + len(r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        for _ in range(2):
            sums = learner.step(range(11), lengths, loss_fn)
        return [p.detach() for p in policy.parameters()], sums
    finally:
        torch.set_num_threads(before)


def test_lanes_change_a_step_by_no_more_than_rounding() -> None:
    expected, sums = learn(1)
    assert sums["rows"] == 11
    for threads in (2, 3):
        weights, others = learn(threads)
        assert others == pytest.approx(sums, rel=1e-4)
        for ours, theirs in zip(weights, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_a_step_in_lanes_repeats_bit_for_bit() -> None:
    for ours, theirs in zip(learn(3)[0], learn(3)[0], strict=True):
        assert torch.equal(ours, theirs)


def test_dropout_is_drawn_in_one_lane_and_so_repeats() -> None:
    plain, first, second = learn(3, True), learn(3, True, attn_pdrop=0.3), learn(3, True, attn_pdrop=0.3)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain[0], first[0], strict=True))
