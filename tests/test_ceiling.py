"""The most that a critic could explain, on rewards whose expectation is known."""

from __future__ import annotations

import pytest
import torch

from reproduction.ceiling import ceiling


def test_of_fair_coins_and_sure_things_a_half_can_be_explained() -> None:
    # Expected rewards 0, 1/2, 1/2, 1: their variance 1/8 is half of the rewards' 1/4.
    generator = torch.Generator().manual_seed(0)
    chances = torch.tensor([0.0, 0.5, 0.5, 1.0]).repeat(5000)
    rewards = torch.bernoulli(chances, generator=generator)
    continuations = torch.bernoulli(chances.unsqueeze(1).expand(-1, 8), generator=generator)
    # 20,000 beginnings: the deviation of either variance is below 0.3% of it
    assert ceiling(continuations, rewards) == pytest.approx(0.5, abs=0.02)


def test_chance_alone_explains_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.bernoulli(torch.full((20000, 4), 0.3), generator=generator)
    assert ceiling(draws[:, 1:], draws[:, 0]) == pytest.approx(0.0, abs=0.02)
