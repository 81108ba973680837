"""How many tokens a micro-batch has: the given number, or a power of two that fits into memory."""

from __future__ import annotations

import pytest

from reftune.training.token_budget import token_budget

MB, GB = 10**6, 10**9


def test_a_given_number_stays_as_it_is_however_little_memory_there_is() -> None:
    assert token_budget(77) == 77
    assert token_budget(10**6, 1.5 * MB, GB) == 10**6


def test_where_memory_is_not_known_it_is_the_upper_bound() -> None:
    assert token_budget(None) == 4096
    assert token_budget(None, activation_bytes_per_token=MB) == 4096
    assert token_budget(None, free_bytes=MB) == 4096


@pytest.mark.parametrize(
    ("free_bytes", "replicas", "tokens"),
    [
        (8.192 * GB, 1, 4096),  # half of it holds exactly 4096 tokens of 1 MB
        (8.191 * GB, 1, 2048),
        (4 * GB, 1, 1024),  # 2000 would fit
        (4 * GB, 2, 512),  # each of two replicas has half of that
        (1000 * GB, 1, 4096),  # more would be no faster
        (0.2 * GB, 1, 256),  # 100 would fit: a processor wants some work at a time
        (-GB, 1, 256),  # nothing would
    ],
)
def test_it_is_the_largest_power_of_two_within_bounds_that_fills_half_of_the_free_memory(
    free_bytes: float, replicas: int, tokens: int
) -> None:
    assert token_budget(None, 1.0 * MB, free_bytes, replicas) == tokens
