"""What several processes change in a plan, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reftune.planning.machine import Machine
from reftune.planning.memory import kept, memory
from reftune.planning.sharing import exchange_seconds, needed_sharding, share_of, with_sharding
from reftune.planning.workload import Draw, StageWork
from test_planning import SHAPE, make_config

PPO = StageWork(
    "ppo", steps=10, learns=800.0, updates=2, reads=400.0, reference=True, microbatch=100.0,
    draws=Draw(6, 2, response=20.0, longest=50, prompt=30.0, longest_prompt=35, learning=True),
)  # fmt: skip
FOUR = Machine("four cards", 1e12, 0.0, gpu=True, processes=4)


def test_each_process_has_its_share_of_the_work() -> None:
    share = share_of(PPO, 4)
    assert (share.learns, share.reads, share.updates, share.microbatch) == (200.0, 100.0, 2, 100.0)
    assert share.draws is not None
    assert share.draws.rows == 2 * 2  # of six questions two, for the slowest
    assert share_of(PPO, 1) == PPO


def test_of_a_model_in_parts_each_process_keeps_its_part_and_a_copy_that_samples() -> None:
    whole = kept(PPO, SHAPE, make_config(), FOUR)
    assert whole == {
        "weights": 4000, "gradients": 4000, "optimizer": 8000, "gradients to exchange": 4000,
        "reference": 4000,
    }  # fmt: skip
    parts = make_config(compute={"sharding": "fsdp2"})
    assert kept(PPO, SHAPE, parts, FOUR) == {
        "weights": 1000, "gradients": 1000, "optimizer": 2000, "reference": 1000,
        "copy that samples": 4000,
    }  # fmt: skip
    alone = replace(FOUR, processes=1)
    assert kept(PPO, SHAPE, parts, alone) == kept(PPO, SHAPE, make_config(), alone)
    asks = StageWork("evaluation", 1)
    assert kept(asks, SHAPE, parts, FOUR) == {"weights": 4000}


def test_in_16_bits_parts_are_in_32_and_the_rest_is_not() -> None:
    half = replace(SHAPE, bytes_each=2, trained_bytes=2)
    found = kept(PPO, half, make_config(compute={"sharding": "fsdp2"}), FOUR)
    assert found == {
        "weights": 1000, "gradients": 1000, "optimizer": 2000, "reference": 500,
        "copy that samples": 2000,
    }  # fmt: skip


def test_an_adapter_stays_whole_and_its_base_is_cut() -> None:
    adapted = replace(SHAPE, trained=100, adapted=600)
    found = kept(PPO, adapted, make_config(compute={"sharding": "fsdp2"}), FOUR)
    assert found == {
        "weights": 400 + 1000, "gradients": 400, "optimizer": 800, "copy that samples": 4000,
    }  # fmt: skip


def test_layers_are_whole_while_they_run() -> None:
    """400 numbers outside, two layers of 300; gradients of one, and of what is outside, in two types."""
    shape, parts = replace(SHAPE, outside=400), make_config(compute={"sharding": "fsdp2"})
    update = memory(PPO, shape, parts, FOUR)["update"]
    assert update["gathered weights"] == 4 * (400 + 2 * 300)
    assert update["gathered gradients"] == (4 + 4) * (400 + 300)
    on_cpu = memory(PPO, shape, parts, replace(FOUR, gpu=False))
    assert on_cpu["saving"]["gathered checkpoint"] == 12 * 1000
    assert "saving" not in memory(PPO, shape, parts, FOUR)


def test_a_model_is_cut_where_a_process_cannot_hold_the_whole() -> None:
    """24,000 bytes beside the logits; and those of a CPU share its memory."""
    logits = 3 * 4 * 2**26
    config = make_config()
    for memory_, expected in ((24_000, "none"), (23_999, "fsdp2")):
        machine = replace(FOUR, memory=float(memory_ + logits))
        assert needed_sharding(config, SHAPE, machine) == expected
        assert needed_sharding(config, SHAPE, replace(machine, processes=1)) == "none"
    on_cpu = replace(FOUR, gpu=False, memory=4.0 * (24_000 + logits // 2))
    assert needed_sharding(config, SHAPE, on_cpu) == "none"
    assert needed_sharding(config, SHAPE, replace(on_cpu, memory=on_cpu.memory - 1)) == "fsdp2"
    assert needed_sharding(config, None, on_cpu) == "none"
    assert with_sharding(config, "fsdp2", None, FOUR).compute.sharding == "fsdp2"
    given = make_config(compute={"sharding": "fsdp2"})
    assert with_sharding(given, None, SHAPE, FOUR).compute.sharding == "fsdp2"


def test_what_gpus_tell_each_other_takes_time() -> None:
    """A share learns from 200 tokens, 100 at once, and reads 100."""
    share, config = share_of(PPO, 4), make_config()
    assert exchange_seconds(share, SHAPE, config, FOUR) == pytest.approx(2 * 2 * 4000 / 200e9)
    parts = make_config(compute={"sharding": "fsdp2"})
    told = 2 * (2 * 4000 + 4000) + 4000 + 4000
    assert exchange_seconds(share, SHAPE, parts, FOUR) == pytest.approx(told / 200e9)
    far = replace(FOUR, processes=16)
    assert exchange_seconds(share, SHAPE, parts, far) == pytest.approx(told / 40e9)
    for alone in (replace(FOUR, processes=1), replace(FOUR, gpu=False)):
        assert exchange_seconds(share, SHAPE, parts, alone) == 0
