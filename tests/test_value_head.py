"""The value head: what it says, in which units, and that it is the same one wherever it is used."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from precision import CLOSE, float64
from reftune.config import Model
from reftune.model.batch import collate
from reftune.model.loading import make_policy
from reftune.model.policy import PolicyWithValue
from reftune.model.value_head import ValueHead
from reftune.sampling.engine import BuiltinSampler
from reftune.training.cpu_threads import replicas
from tiny_models import tiny_model


def states(width: int = 3) -> Tensor:
    return torch.linspace(-2, 3, 4 * width).reshape(2, 2, width)


def trained(head: ValueHead, seed: int = 0) -> ValueHead:
    """Return the head with random weights, as if it had learnt something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def said(head: ValueHead, of: Tensor) -> Tensor:
    return head.value(head(of))


def test_the_papers_head_is_linear() -> None:
    head = trained(ValueHead(3))
    assert list(head.state_dict()) == ["weight", "bias"]
    expected = nn.functional.linear(states(), head.weight, head.bias).squeeze(2)
    torch.testing.assert_close(said(head, states()), expected)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("targets", ["plain", "normalised"])
def test_an_untrained_critic_says_0(hidden: int, targets: str) -> None:
    head = ValueHead(3, hidden, targets)  # type: ignore[arg-type]
    assert torch.equal(said(head, states()), torch.zeros(2, 2))


def test_an_untrained_classifier_says_the_value_next_to_0() -> None:
    # The bin at 0 weighs e^10, each of the 50 others 1; those of 0 to 1 add up to 25.5.
    expected = torch.full((2, 2), 25.5 / (math.exp(10) + 50))
    torch.testing.assert_close(said(ValueHead(3, 0, "two_hot"), states()), expected)
    symmetric = said(ValueHead(3, 4, "two_hot", (-1.0, 1.0)), states())
    torch.testing.assert_close(symmetric, torch.zeros(2, 2), atol=1e-6, rtol=0)
    above = said(ValueHead(3, 0, "two_hot", (1.0, 2.0)), states())  # next to 0 is 1
    torch.testing.assert_close(above, 1 + expected)


def test_a_hidden_layer_by_hand() -> None:
    head = ValueHead(2, 3)
    assert head.hidden is not None
    weights = [[1.0, 2.0], [-1.0, 0.5], [0.0, -3.0]]
    head.hidden.weight.data.copy_(torch.tensor(weights))
    head.hidden.bias.data.copy_(torch.tensor([0.5, 0.0, 1.0]))
    head.weight.data.copy_(torch.tensor([[2.0, -1.0, 4.0]]))
    head.bias.data.fill_(0.25)
    # at the state (1, -0.5): 1 - 1 + 0.5, -1 - 0.25, 1.5 + 1; GELU(x) = x Phi(x)
    raw = (0.5, -1.25, 2.5)
    gelu = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in raw]
    expected = 2 * gelu[0] - gelu[1] + 4 * gelu[2] + 0.25
    torch.testing.assert_close(said(head, torch.tensor([[1.0, -0.5]])), torch.tensor([expected]))


def test_a_hidden_layer_begins_the_same_in_every_run_with_states_of_its_own_size() -> None:
    torch.manual_seed(1)
    first = ValueHead(400, 300)
    torch.manual_seed(2)
    second = ValueHead(400, 300)
    assert first.hidden is not None
    assert second.hidden is not None
    assert torch.equal(first.hidden.weight, second.hidden.weight)
    assert not first.hidden.bias.any()
    # of states whose numbers have the variance 1 the layer makes numbers that have it, too
    assert first.hidden.weight.std().item() == pytest.approx(1 / 20, rel=0.02)
    assert first.hidden.weight.mean().item() == pytest.approx(0, abs=0.001)


def test_normalised_outputs_are_deviations_from_the_mean_by_hand() -> None:
    head = ValueHead(1, 0, "normalised")
    head.weight.data.fill_(2.0)
    head.bias.data.fill_(1.0)
    state = torch.tensor([[3.0]])
    assert (head(state).item(), said(head, state).item()) == (7.0, 7.0)  # mean 0, deviation 1
    head.renormalise(3.0, 2.0)
    assert (head(state).item(), said(head, state).item()) == (2.0, 7.0)  # (7 - 3) / 2
    head.renormalise(5.0, 0.5)
    assert (head(state).item(), said(head, state).item()) == (4.0, 7.0)  # (7 - 5) / 0.5


@pytest.mark.parametrize("hidden", [0, 5])
def test_new_units_change_no_value(hidden: int) -> None:
    head = trained(ValueHead(3, hidden, "normalised")).double()
    before = said(head, states().double())
    for mean, deviation in ((0.7, 0.3), (-2.0, 5.0), (0.1, 0.001)):
        head.renormalise(mean, deviation)
        torch.testing.assert_close(said(head, states().double()), before, atol=CLOSE, rtol=0)
        spread = (before - mean) / deviation
        torch.testing.assert_close(head(states().double()).squeeze(2), spread, atol=1e-6, rtol=1e-6)


def test_the_units_are_kept_with_the_weights() -> None:
    head, other = trained(ValueHead(3, 0, "normalised")), ValueHead(3, 0, "normalised")
    head.renormalise(0.25, 0.5)
    other.load_state_dict(head.state_dict())
    assert torch.equal(said(other, states()), said(head, states()))
    assert set(ValueHead(3, 0, "two_hot").state_dict()) == {"weight", "bias"}


def test_a_classifiers_value_is_the_mean_of_equal_steps_of_its_span() -> None:
    head = ValueHead(3, 0, "two_hot", (-1.0, 4.0))
    assert head(states()).shape == (2, 2, 51)
    probabilities = torch.zeros(51)
    probabilities[[0, 10, 50]] = torch.tensor([0.5, 0.25, 0.25])  # the values -1, 0 and 4
    value = head.value(probabilities.log().clamp(min=-1e4))
    torch.testing.assert_close(value, torch.tensor(0.5))


@pytest.mark.parametrize("targets", ["plain", "normalised", "two_hot"])
def test_it_computes_in_float32_whatever_the_states_are(targets: str) -> None:
    head = trained(ValueHead(3, 4, targets))  # type: ignore[arg-type]
    halves = states().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(halves)
    assert found.dtype == torch.float32
    assert torch.equal(found, head(halves.float()))


def test_copies_for_threads_speak_in_the_same_units() -> None:
    head = trained(ValueHead(3, 0, "normalised"))
    _, copy = replicas(head, 2)
    head.renormalise(0.5, 2.0)
    assert isinstance(copy, ValueHead)
    assert torch.equal(said(copy, states()), said(head, states()))


def test_a_policy_gets_the_head_of_the_settings() -> None:
    settings = Model(
        scratch="tiny", value_hidden_size=7, value_targets="two_hot", value_span=(-1.0, 2.0)
    )
    head = make_policy(tiny_model(), settings, critic=True).value_head
    assert head is not None
    assert head.hidden is not None
    assert (head.hidden.in_features, head.hidden.out_features) == (32, 7)
    torch.testing.assert_close(head.support, torch.linspace(-1, 2, 51))
    assert make_policy(tiny_model(), settings).value_head is None
    plain = make_policy(tiny_model(), Model(scratch="tiny"), critic=True).value_head
    assert plain is not None
    assert (plain.targets, plain.hidden, plain.in_features) == ("plain", None, 32)


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("targets", ["plain", "normalised", "two_hot"])
@float64()
def test_trainer_and_sampler_say_what_the_head_says_of_the_state_before_each_token(
    critic: str, targets: str
) -> None:
    policy = PolicyWithValue(tiny_model(), critic, lambda width: ValueHead(width, 6, targets))  # type: ignore[arg-type]
    head = policy.value_head
    assert head is not None
    trained(head)
    if targets == "normalised":
        head.renormalise(0.3, 2.5)
    texts = [([3, 4, 5], [10, 11, 12]), ([3, 4, 5], [10, 20]), ([6, 7], [8])]
    with torch.no_grad():
        stats = policy(collate(*(list(part) for part in zip(*texts, strict=True))))
        for i, (prompt, response) in enumerate(texts):
            ids = torch.tensor([prompt + response])
            hidden = policy.policy.base_model(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
            n = len(response)
            torch.testing.assert_close(stats.values[i, :n], said(head, hidden), atol=CLOSE, rtol=0)
            torch.testing.assert_close(stats.value_outputs[i, :n], head(hidden), atol=CLOSE, rtol=0)
            assert not stats.values[i, n:].any()
    sampler = BuiltinSampler(policy.policy, [1], value_head=head)
    for drawn in sampler.sample([[3, 4, 5], [6, 7]], [1, 2], max_new_tokens=4, temperature=1.0):
        with torch.no_grad():
            values = policy(collate([drawn.prompt], [drawn.tokens])).values[0]
        assert drawn.values == pytest.approx(values.tolist(), abs=CLOSE)


def test_without_a_critic_there_are_no_outputs() -> None:
    stats = PolicyWithValue(tiny_model())(collate([[3, 4]], [[5, 6]]))
    assert stats.value_outputs is None
    assert not stats.values.any()
