from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MptConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    WhisperConfig,
)

from precision import CLOSE, float64
from reftune.model.batch import collate
from reftune.model.forward import PackedForward
from reftune.model.packing import pack, position_limit
from reftune.model.policy import PolicyWithValue
from tiny_models import FAMILIES, random_model, tiny_model

PLAIN = {"rope_type": "default", "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
}  # fmt: skip
FACTORS = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
PADDED = {"codegen", "gemma2", "qwen3_next"}  # attend in their own way, or keep recurrent states


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_let_us_say_how_they_attend_read_packs(family: str) -> None:
    assert PackedForward(tiny_model(family)).supports_packing == (family not in PADDED)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (LlamaConfig(max_position_embeddings=128), 128),
        (Gemma3Config(text_config={"max_position_embeddings": 64}), 64),  # nested settings
        (BloomConfig(), math.inf),  # none: it weighs distances
        (MptConfig(max_seq_len=40), 40),  # so does this one, in a table of such a size
        (WhisperConfig(max_target_positions=50), 50),
        # The very configuration counts, where it is said twice.
        (Phi3Config(original_max_position_embeddings=16, rope_parameters=FACTORS), 16),
        (Qwen2Config(max_position_embeddings=128, rope_parameters={**LONG}), 16),
        (  # one setting for each kind of layer
            Gemma3TextConfig(
                max_position_embeddings=128,
                rope_parameters={"sliding_attention": {**PLAIN}, "full_attention": {**LONG}},
            ),
            16,
        ),
        # Its angles change beyond its positions.
        (LlamaConfig(max_position_embeddings=32, rope_parameters={**PLAIN, **DYNAMIC}), 32),
    ],
)
def test_a_text_is_no_longer_than_what_its_neighbours_do_not_change(
    config: PreTrainedConfig, limit: float
) -> None:
    assert position_limit(config) == limit


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"max_position_embeddings": 16}),
        ("opt", {"max_position_embeddings": 16}),  # two more rows in its table, which it skips
        ("mpt", {"max_seq_len": 16}),
    ],
)
def test_the_limit_is_the_last_length_that_a_model_can_read(
    family: str, changes: dict[str, Any]
) -> None:
    model = tiny_model(family, **changes)
    assert position_limit(model.config) == 16
    model(torch.full((1, 16), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 17), 5))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {**LONG}},
        {"rope_parameters": {**PLAIN, **DYNAMIC}, "max_position_embeddings": 16},
    ],
    ids=["longrope", "dynamic"],
)
def test_beyond_the_limit_a_text_depends_on_its_neighbours(changes: dict[str, Any]) -> None:
    model = random_model("llama", **changes)
    assert position_limit(model.config) == 16
    rows = torch.randint(2, 60, (2, 17), generator=torch.Generator().manual_seed(0))
    for length, same in ((16, True), (17, False)):
        alone = model(rows[:1, :10]).logits[0]
        beside = model(rows[:, :length]).logits[0, :10]
        assert torch.allclose(alone, beside, atol=1e-4) is same


def test_a_pack_by_hand() -> None:
    prompts = [[20, 21], [30, 31, 32], [20, 21], [20, 21]]
    packed = pack(collate(prompts, [[7, 8, 9], [5], [6, 4], [7, 8, 4, 2]]))
    # prompts first, each once; then the responses without their last tokens, what begins alike once
    assert packed.ids.tolist() == [[20, 21, 30, 31, 32, 7, 8, 6, 4]]
    assert packed.positions.tolist() == [[0, 1, 0, 1, 2, 2, 3, 2, 4]]
    assert packed.prompts.tolist() == [[0, 1, 0], [2, 3, 4]]
    # the second response has no token but its last
    assert packed.responses.tolist() == [[5, 6, 0], [7, 0, 0], [5, 6, 8]]
    assert packed.prompt_index.tolist() == [0, 0, 0]
    # after six places of prompts: two tokens of the first row, one of the second, the last of the third
    assert packed.unpack_index.tolist() == [0, 1, 3, 4, 5, 6, 7, 9, 14]
    # of 7, 8, 9 | 5 | 6, 4 | 4, 2
    assert packed.logit_index.tolist() == [1, 5, 6, 4, 1, 7, 6, 8]
    # the second token of the first response sees two prompt tokens, not the padding, and two of its own
    assert packed.attention_mask[0, 0, 1].tolist() == [True, True, False, True, True, False]


@float64()
def test_a_longer_response_may_go_on_from_where_one_before_it_was_cut() -> None:
    """The last token of the first stands in the pack then, though nothing follows it there."""
    batch = collate([[20, 21]] * 3, [[7, 8], [7, 8, 9, 3], [7, 5]])
    found = []
    for packs in (True, False):
        policy = PolicyWithValue(tiny_model())
        policy.packed_forward.supports_packing = packs
        found.append(policy(batch).logprobs.detach())
    torch.testing.assert_close(*found, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - PADDED))
@float64()
def test_packed_and_padded_reading_have_the_same_gradients(family: str) -> None:
    batch = collate(
        [[20, 21, 22], [30, 31, 32, 33, 34], *[[20, 21, 22]] * 5],
        # They begin alike, end within one another, are the same; the same tokens follow another prompt.
        [[7, 8, 9, 10, 11], [7, 8], [6, 4, 2], [7, 8, 9, 3], [7, 8], [3, 1], [6, 4, 2]],
    )
    gradients = []
    for packs in (True, False):
        policy = PolicyWithValue(tiny_model(family), "shared")
        policy.packed_forward.supports_packing = packs
        scores = policy(batch, 0.7)
        weights = torch.linspace(-1, 1, scores.logprobs.numel()).view_as(scores.logprobs)
        (weights * (scores.logprobs + scores.values)).sum().backward()
        gradients.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=CLOSE, rtol=CLOSE)


def test_the_models_own_use_stays_as_it_was(tmp_path: Path) -> None:
    model, ids = tiny_model(), torch.tensor([[1, 20, 21, 22], [30, 31, 32, 33]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    expected = model(ids, attention_mask=mask).logits
    PackedForward(model)
    assert torch.equal(model(ids, attention_mask=mask).logits[1], expected[1])
    assert torch.equal(model(ids, attention_mask=mask).logits[0, 1:], expected[0, 1:])
    model.save_pretrained(tmp_path)
    assert "reftune" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
