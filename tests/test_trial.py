"""A model is tried when it is loaded: whatever is read or decoded wrong then falls back, or is refused.

Each case breaks one thing that the trial is there to notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reftune.model import forward
from reftune.model.batch import Sequences
from reftune.model.forward import PackedForward
from reftune.model.packing import Packed, pack
from reftune.problem import UserError
from reftune.sampling import trial
from reftune.sampling.decoders import PaddedDecoder, PreallocatedLayer
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.shared_prefix import SharedPrefixDecoder
from tiny_models import random_model, tiny_model

MODELS = ("llama", "gpt2", "opt")  # rotary angles, learned positions, those with an offset
Patch = pytest.MonkeyPatch


@pytest.fixture(params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def packs_with(change: Callable[[Packed], dict[str, Tensor]]) -> Callable[[Patch], None]:
    """Let packs be made wrong."""

    def broken(sequences: Sequences) -> Packed:
        packed = pack(sequences)
        return replace(packed, **change(packed))

    return lambda patch: patch.setattr(forward, "pack", broken)


def instead(cls: type, name: str, method: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(cls, name, method)


def before(cls: type, name: str, change: Callable[..., tuple[Any, ...]]) -> Callable[[Patch], None]:
    """Let a method be called with other arguments."""
    method = getattr(cls, name)
    return instead(cls, name, lambda self, *given: method(self, *change(self, *given)))


PACKS: dict[str, Callable[[Patch], None]] = {
    "positions that go on from another text": packs_with(
        lambda p: {"positions": torch.arange(p.positions.numel()).unsqueeze(0)}
    ),
    "responses one position late": packs_with(
        lambda p: {"positions": p.positions + (torch.arange(p.positions.numel()) >= 7)}
    ),
    "responses that do not see their prompt": packs_with(
        lambda p: {"attention_mask": p.attention_mask & (torch.arange(p.attention_mask.shape[-1]) >= 4)}
    ),
    "responses that see what follows": packs_with(
        lambda p: {"attention_mask": p.attention_mask | (torch.arange(p.attention_mask.shape[-1]) >= 4)}
    ),
    "padding that is seen": packs_with(lambda p: {"attention_mask": torch.ones_like(p.attention_mask)}),
    "the prompt of a neighbour": packs_with(lambda p: {"prompt_index": p.prompt_index.flip(0)}),
    "the states of a neighbour": packs_with(lambda p: {"logit_index": p.logit_index.roll(1)}),
    "responses that begin alike taken for one": packs_with(
        lambda p: {"responses": p.responses[:1].expand_as(p.responses)}
    ),
}

PADDED: dict[str, Callable[[Patch], None]] = {
    "padding that is seen": before(
        PaddedDecoder,
        "step",
        lambda self, tokens: (setattr(self, "attended", self.attended * 0 + 1), tokens)[1:],
    ),
    "the keys of rows that have left": instead(PreallocatedLayer, "reorder_cache", lambda *_: None),
    "the rows of neighbours": before(
        PreallocatedLayer, "reorder_cache", lambda _, rows: (rows.flip(0),)
    ),
    "a token too few": instead(PreallocatedLayer, "get_seq_length", lambda self: self.length - 1),
}

SHARED: dict[str, Callable[[Patch], None]] = {
    "padding that is seen": instead(
        SharedPrefixDecoder, "_find_padding", lambda self: setattr(self, "padding", None)
    ),
    "responses that forget their beginning as they fork": before(
        SharedPrefixDecoder, "_copy", lambda _, rows, start: (rows[:0] if start else rows, start)
    ),
    "the beginning of a neighbour": before(
        SharedPrefixDecoder, "_copy", lambda _, rows, start: (rows.flip(0), start)
    ),
    "rows that stay in the place of others": before(
        SharedPrefixDecoder, "_copy", lambda _, rows, start: (rows if start else rows[:0], start)
    ),
    "the prompt of a neighbour": instead(
        SharedPrefixDecoder, "_per_question", lambda self, rows: _grouped(self, rows.flip(0))
    ),
    "tokens that are written over those before": before(
        SharedPrefixDecoder, "step", lambda self, tokens: (setattr(self, "written", 0), tokens)[1:]
    ),
}


def _grouped(decoder: SharedPrefixDecoder, rows: Tensor) -> Tensor:
    moved = rows.index_select(0, decoder.members).unflatten(0, (-1, decoder.most))
    return moved.transpose(1, 2).flatten(2, 3)


@pytest.mark.parametrize("broken", PACKS.values(), ids=PACKS)
def test_what_is_packed_wrong_is_read_in_rows(
    broken: Callable[[Patch], None], family: str, monkeypatch: Patch
) -> None:
    assert PackedForward(random_model(family)).supports_packing
    broken(monkeypatch)
    assert not PackedForward(random_model(family)).supports_packing


@pytest.mark.parametrize("broken", PADDED.values(), ids=PADDED)
def test_what_is_decoded_wrong_in_rows_is_refused(
    broken: Callable[[Patch], None], family: str, monkeypatch: Patch
) -> None:
    model = random_model(family)
    packed_forward = PackedForward(model)
    packed_forward.supports_packing = False
    BuiltinSampler(model, [1], packed_forward=packed_forward)
    broken(monkeypatch)
    with pytest.raises(
        UserError, match=r"^a model of type \w+ cannot be sampled from: with a key-value"
    ):
        BuiltinSampler(model, [1], packed_forward=packed_forward)


@pytest.mark.parametrize("broken", SHARED.values(), ids=SHARED)
def test_what_is_decoded_wrong_with_shared_prompts_is_decoded_in_rows(
    broken: Callable[[Patch], None], family: str, monkeypatch: Patch
) -> None:
    model = random_model(family)
    assert BuiltinSampler(model, [1]).shares_prompts
    broken(monkeypatch)
    assert not BuiltinSampler(model, [1]).shares_prompts


def test_a_decoder_that_is_never_used_need_not_be_right(monkeypatch: Patch) -> None:
    PADDED["the rows of neighbours"](monkeypatch)
    assert BuiltinSampler(random_model("llama"), [1]).shares_prompts
    with pytest.raises(UserError):  # beyond its window a batch is padded
        BuiltinSampler(random_model("mistral"), [1])


class Sizes(TorchDispatchMode):
    """Note how many numbers each operation makes, apart from new views of what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known:
                self.made.append(x.numel())
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_trying_reads_a_few_short_texts_and_copies_no_weights(family: str, dtype: torch.dtype) -> None:
    """A model of a billion weights is tried as well."""
    model = tiny_model(family, hidden_size=256, vocab_size=4000).to(dtype)
    largest = sorted(p.numel() for p in model.parameters())[-1]
    read: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append([*args, *kwargs.values()][0].numel()), with_kwargs=True
    )
    with Sizes() as sizes:
        BuiltinSampler(model, [1], packed_forward=PackedForward(model))
    assert len(read) <= 30
    assert sum(read) <= 300
    assert max(sizes.made) < largest / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("broken", ["the prompt of a neighbour", "padding that is seen"])
def test_in_16_bits_what_is_decoded_wrong_is_noticed(
    broken: str, family: str, dtype: torch.dtype, monkeypatch: Patch
) -> None:
    model = random_model(family).to(dtype)
    assert BuiltinSampler(model, [1]).shares_prompts
    SHARED[broken](monkeypatch)
    assert not BuiltinSampler(model, [1]).shares_prompts


@pytest.mark.parametrize(
    ("dtype", "right", "trials"),
    [
        (torch.bfloat16, [True], 1),
        (torch.bfloat16, [False, False, True], 3),
        (torch.bfloat16, [False, False, False], 3),
        (torch.float32, [False], 1),
    ],
)
def test_in_16_bits_one_of_three_trials_must_be_right(
    dtype: torch.dtype, right: list[bool], trials: int, monkeypatch: Patch
) -> None:
    sampler = BuiltinSampler(tiny_model("llama").to(dtype), [1])
    answers = iter(right)
    monkeypatch.setattr(trial, "agrees", lambda *_: next(answers))
    fault = trial.find_fault(sampler, shares_prompts=True)
    assert fault == ("" if right[-1] else "with a key-value cache it says something else than without")
    assert trials == len(right)
    assert list(answers) == []


def test_ordinary_tokens_are_tried(monkeypatch: Patch) -> None:
    """A model has never seen the first ids of many vocabularies, and says anything of them."""
    model, seen = tiny_model("llama", vocab_size=4000), set()
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs["input_ids"].flatten().tolist()), with_kwargs=True
    )
    packed_forward = PackedForward(model)
    seen.clear()
    BuiltinSampler(model, [1], packed_forward=packed_forward)
    assert seen - {0} <= set(range(1000, 1010))  # 0 fills up
    assert len(seen) > 5
