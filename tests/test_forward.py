"""What a model says of responses is what its plain forward pass says of each row by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from precision import CLOSE, float64
from reftune.config import Lora, Model
from reftune.model import forward as module
from reftune.model.batch import Sequences, collate
from reftune.model.forward import PackedForward, backbone_of
from reftune.model.loading import load_policy, reference_of
from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.sampling.engine import BuiltinSampler
from tiny_models import WINDOW, random_model, tiny_model

PROMPTS = {
    "shared": [[20, 21, 22], [30, 31, 32, 33, 34], [20, 21, 22], [20, 21, 22], [50]],
    "different": [[20, 21, 22], [30, 31, 32, 33, 34], [23], [24, 25, 26, 27], [50]],
}
# They begin alike, one is the beginning of another, one has a single token; two have the same prompt.
RESPONSES = [[7, 8, 9, 10], [7, 8, 1], [7, 8, 4], [7], [11, 12, 13, 14, 15, 1]]
FAMILIES = ("gemma2", "gpt2", "llama", "opt", "qwen3")  # each counts positions or attends in its own way


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return how batches were read: packed, as rows, or as rows."""
    seen: list[str] = []

    def packed(model: PreTrainedModel, sequences: Sequences) -> Tensor:
        seen.append("packed")
        return read_packed(model, sequences)

    def rows(model: PreTrainedModel, sequences: Sequences) -> Tensor:
        seen.append("rows")
        return read_rows(model, sequences)

    read_packed, read_rows = module._read_packed, module.read_rows
    monkeypatch.setattr(module, "_read_packed", packed)
    monkeypatch.setattr(module, "read_rows", rows)
    return seen


def say(packed_forward: PackedForward, model: PreTrainedModel, prompts: list[list[int]]) -> list[Tensor]:
    """Return what a packed_forward says at each token of each of RESPONSES."""
    batch = collate(prompts, RESPONSES)
    states = packed_forward(model, batch)
    assert len(states) == len(batch.first_occurrence)  # each distinct token once
    return [states[batch.node_index[i, : len(r)]] for i, r in enumerate(RESPONSES)]


def say_plainly(model: PreTrainedModel, prompts: list[list[int]], what: str) -> list[Tensor]:
    """Return what transformers says there, row by row, without padding or anything of ours."""
    said = []
    for prompt, response in zip(prompts, RESPONSES, strict=True):
        output = model(torch.tensor([prompt + response]))
        said.append(output[what][0, len(prompt) - 1 : len(prompt) - 1 + len(response)])
    return said


@torch.no_grad()
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
@float64()
def test_states_are_those_of_the_plain_forward_pass(
    family: str, prompts: list[list[int]], read: list[str]
) -> None:
    model = random_model(family)
    plain = copy.deepcopy(model)
    packed_forward = PackedForward(model)
    read.clear()  # the packed_forward tries packing on its own
    for ours, theirs, what in (
        (backbone_of(model), backbone_of(plain), "last_hidden_state"), (model, plain, "logits"),
    ):  # fmt: skip
        actual, expected = say(packed_forward, ours, prompts), say_plainly(theirs, prompts, what)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, atol=CLOSE, rtol=CLOSE)
    packs = family != "gemma2"
    shared = prompts is PROMPTS["shared"]
    first = "packed" if packs and shared else "rows"
    assert read == [
        first,
        "packed" if packs and shared else "rows",
    ]  # a whole model is no known backbone


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma3", "mistral"])  # nested settings, and plain ones
@pytest.mark.parametrize(("longest", "how"), [(WINDOW, "packed"), (WINDOW + 1, "rows")])
@float64()
def test_beyond_the_window_rows_are_read_as_the_model_reads_them(
    longest: int, how: str, family: str, read: list[str]
) -> None:
    model = random_model(family)
    plain = copy.deepcopy(model)
    packed_forward = PackedForward(model)
    read.clear()
    prompts, responses = [[20, 21, 22], [20, 21, 22], [30]], [[7, 8], [7, 9, 4, 5][: longest - 3], [6]]
    batch = collate(prompts, responses)
    states = packed_forward(backbone_of(model), batch)
    assert read == [how]
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        expected = backbone_of(plain)(torch.tensor([prompt + response])).last_hidden_state[0]
        actual = states[batch.node_index[i, : len(response)]]
        torch.testing.assert_close(actual, expected[len(prompt) - 1 : -1], atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("family", ["roberta", "bert"])  # counts positions from 2; sees what follows
def test_a_model_that_reads_a_batch_otherwise_is_refused(family: str) -> None:
    with pytest.raises(
        UserError, match=r"^a model of type \w+ cannot be used: what it says of a text in"
    ):
        PackedForward(random_model(family))


def test_a_model_that_cannot_read_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Tensor:
        raise KeyError("a fault\nand its story")

    monkeypatch.setattr(module, "read_rows", fail)
    with pytest.raises(
        UserError, match=r"^a model of type llama cannot read a few tokens: .*a fault.*$"
    ):
        PackedForward(tiny_model())


def test_trying_leaves_its_model_in_the_mode_it_had() -> None:
    for training in (True, False):
        model = tiny_model(attention_dropout=0.5).train(training)
        packed_forward = PackedForward(model)
        assert packed_forward.supports_packing  # tried without dropout
        assert packed_forward.lm_head_is_linear
        assert model.training is training


@pytest.mark.parametrize(
    "error", [AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError]
)
def test_a_model_that_cannot_read_a_pack_reads_rows(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Tensor:
        raise error("within")

    monkeypatch.setattr(module, "_read_packed", refuse)
    model = tiny_model().train()
    assert not PackedForward(model).supports_packing
    assert model.training


def test_other_faults_of_a_model_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Tensor:
        raise KeyError("a fault")

    monkeypatch.setattr(module, "_read_packed", fail)
    with pytest.raises(KeyError):
        PackedForward(tiny_model())


@pytest.mark.parametrize(
    ("dtype", "wrong", "packs"),
    [
        (torch.float32, 0.9e-3, True), (torch.float32, 1.1e-3, False), (torch.float32, -1.1e-3, False),
        (torch.bfloat16, 4e-2, True), (torch.bfloat16, 7e-2, False),
    ],
)  # fmt: skip
def test_a_pack_that_is_read_otherwise_is_not_used(
    dtype: torch.dtype, wrong: float, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(model: PreTrainedModel, sequences: Sequences) -> Tensor:
        return module.read_rows(model, sequences).float() * (1 + wrong)

    monkeypatch.setattr(module, "_read_packed", off)
    assert PackedForward(tiny_model().to(dtype)).supports_packing is packs


def test_a_pack_that_says_less_of_everything_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read_packed", lambda *given: module.read_rows(*given) - 1)
    assert not PackedForward(tiny_model()).supports_packing


def test_a_head_is_plain_where_logits_are_what_it_says_of_the_trunks_states() -> None:
    assert PackedForward(tiny_model("llama")).lm_head_is_linear
    assert not PackedForward(tiny_model("gemma2")).lm_head_is_linear  # a soft cap on top
    small = {"initializer_range": 0.02, "final_logit_softcapping": 30.0}
    capped = PackedForward(tiny_model("gemma2", **small))
    assert not capped.lm_head_is_linear  # even if it hardly shows yet
    assert PackedForward(tiny_model("gemma2", final_logit_softcapping=None)).lm_head_is_linear
    for error in (AttributeError, RuntimeError, TypeError):
        model = tiny_model().train()

        def refuse(error: type[Exception] = error) -> None:
            raise error

        model.get_output_embeddings = refuse
        assert not PackedForward(model).lm_head_is_linear
        assert model.training


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@float64()
def test_gradients_flow_through_every_way_of_reading(family: str) -> None:
    for prompts in PROMPTS.values():
        model = tiny_model(family)
        plain = copy.deepcopy(model)
        torch.cat(say(PackedForward(model), backbone_of(model), prompts)).square().sum().backward()
        torch.cat(
            say_plainly(backbone_of(plain), prompts, "last_hidden_state")
        ).square().sum().backward()
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)  # none for the head
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, atol=CLOSE, rtol=CLOSE)


def test_a_head_in_float32_rounds_no_logit_to_16_bits_to_learn_and_to_sample() -> None:
    model = tiny_model("llama").bfloat16()
    policies = [PolicyWithValue(model, float32_head=exact) for exact in (True, False)]
    batch = collate(PROMPTS["shared"], RESPONSES)
    states = policies[0].packed_forward(backbone_of(model), batch).detach()
    exact = states.float() @ model.lm_head.weight.detach().float().T
    targets = batch.responses.flatten()[batch.first_occurrence]
    expected = exact.log_softmax(-1)[torch.arange(len(targets)), targets][batch.node_index]
    real = torch.arange(batch.responses.shape[1]) < batch.response_lengths.unsqueeze(1)
    gaps = [(policy(batch).logprobs - expected)[real].abs().max().item() for policy in policies]
    assert gaps[0] < 1e-5  # a dozen roundings of float32
    assert gaps[1] > 1e-3  # logits of bfloat16, which has 8 bits
    said = [
        BuiltinSampler(model, [1], packed_forward=policy.packed_forward).logits(states)
        for policy in policies
    ]
    assert said[0].dtype == said[1].dtype == torch.float32
    torch.testing.assert_close(said[0], exact, rtol=1e-5, atol=1e-5)
    assert (said[1] - exact).abs().max() > 1e-3


def test_a_head_in_float32_learns() -> None:
    model = tiny_model("llama").bfloat16()
    policy = PolicyWithValue(model, float32_head=True)
    policy(collate(PROMPTS["shared"], RESPONSES)).logprobs.sum().backward()
    for weight in (model.lm_head.weight, model.model.layers[0].mlp.up_proj.weight):
        assert weight.grad is not None
        assert weight.grad.dtype == torch.bfloat16
        assert weight.grad.any()


def test_a_head_that_is_not_all_of_the_logits_cannot_be_in_float32() -> None:
    message = "^model.float32_head: the logits of a model of type gemma2 come not from a linear head"
    with pytest.raises(UserError, match=message):
        PackedForward(tiny_model("gemma2"), float32_head=True)


def test_every_policy_of_a_run_has_the_settings_head(tmp_path: Path) -> None:
    tiny_model("llama").bfloat16().save_pretrained(tmp_path)
    settings = Model(name=str(tmp_path), dtype="bfloat16", float32_head=True)
    policy = load_policy(tmp_path, settings, trainable=True, lora=Lora(rank=2))
    assert policy.packed_forward.float32_head
    assert reference_of(policy).packed_forward.float32_head
    plain = load_policy(tmp_path, settings.model_copy(update={"float32_head": False}))
    assert not plain.packed_forward.float32_head
