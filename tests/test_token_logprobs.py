"""Log-probabilities and entropies against torch's own operations, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reftune.model.token_logprobs import TokenLogprobs


def test_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64, requires_grad=True)
    logprobs, entropies = TokenLogprobs.apply(logits, torch.tensor([0]))
    assert logprobs.tolist() == pytest.approx([math.log(1 / 4)])
    assert entropies.tolist() == pytest.approx([-(1 / 4) * math.log(1 / 4) - (3 / 4) * math.log(3 / 4)])
    (2 * logprobs).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [pytest.approx([2 * (1 - 1 / 4), 2 * -3 / 4])]


def given(rows: int = 5, vocabulary: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocabulary, dtype=torch.float64, generator=generator) * 3
    return logits.requires_grad_(), torch.randint(vocabulary, (rows,), generator=generator)


def test_as_torch_differentiates_its_own_operations() -> None:
    logits, tokens = given()
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    logprobs, entropies = TokenLogprobs.apply(logits, tokens)
    found = torch.autograd.grad((weights * logprobs).sum(), logits)[0]
    plain = torch.log_softmax(logits, dim=-1)
    chosen = plain[torch.arange(5), tokens]
    expected = torch.autograd.grad((weights * chosen).sum(), logits)[0]
    torch.testing.assert_close(logprobs, chosen)
    torch.testing.assert_close(entropies, -(plain.exp() * plain).sum(-1))
    torch.testing.assert_close(found, expected)


def test_the_numerical_gradient_agrees() -> None:
    logits, tokens = given()
    torch.autograd.gradcheck(lambda x: TokenLogprobs.apply(x, tokens)[0], (logits,))


def test_entropies_have_their_gradient_where_it_is_asked_for() -> None:
    logits, tokens = given()
    torch.autograd.gradcheck(lambda x: TokenLogprobs.apply(x, tokens, True), (logits,))
    logprobs, entropies = TokenLogprobs.apply(logits, tokens, True)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    found = torch.autograd.grad((weights * logprobs - weights.flip(0) * entropies).sum(), logits)[0]
    plain = torch.log_softmax(logits, dim=-1)
    chosen, spread = plain[torch.arange(5), tokens], -(plain.exp() * plain).sum(-1)
    expected = torch.autograd.grad((weights * chosen - weights.flip(0) * spread).sum(), logits)[0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropies, spread)


def test_the_entropys_gradient_by_hand() -> None:
    # p = (1/4, 3/4), H = 0.5623; dH/dz = -p * (log p + H) = (0.2060, -0.2060)
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64, requires_grad=True)
    TokenLogprobs.apply(logits, torch.tensor([0]), True)[1].sum().backward()
    slope = 3 / 16 * math.log(3)  # p q log(q / p)
    assert logits.grad is not None
    assert logits.grad.tolist() == [pytest.approx([slope, -slope])]


def test_else_entropies_have_no_gradient_and_logits_stay_as_they_are() -> None:
    logits, tokens = given()
    before = logits.detach().clone()
    logprobs, entropies = TokenLogprobs.apply(logits, tokens)
    assert (logprobs.requires_grad, entropies.requires_grad) == (True, False)
    logprobs.sum().backward()
    assert torch.equal(logits, before)
