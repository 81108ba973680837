"""The nouns: their shapes are really checked here, which every other test relies on."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from reftune.model.batch import Sequences
from reftune.problem import Verdict
from reftune.training.types import AdvantagesAndReturns


def test_tensors_of_one_batch_share_their_shape() -> None:
    wide, narrow = torch.zeros(2, 4), torch.zeros(2, 3)
    assert AdvantagesAndReturns(wide, wide, wide, wide, wide).returns is wide
    with pytest.raises(TypeCheckError, match="returns"):
        AdvantagesAndReturns(wide, wide, narrow, wide, wide)


def test_token_ids_are_integers() -> None:
    lengths = torch.ones(2, dtype=torch.long)
    ids = torch.ones(2, 4, dtype=torch.long)
    assert Sequences(ids, lengths, lengths, ids, lengths, ids, lengths).prompts is ids
    with pytest.raises(TypeCheckError, match="responses"):
        Sequences(ids, lengths, lengths, ids.float(), lengths, ids, lengths)


def test_an_int_passes_for_a_float() -> None:
    assert Verdict("ok", 3, True, 1).reward == 1.0
