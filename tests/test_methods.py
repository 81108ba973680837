from __future__ import annotations

from reftune.methods import Lineup

ALL = ["reft", "online_st", "offline_st"]


def test_a_plain_run_has_three_models_in_three_stages() -> None:
    lineup = Lineup(["reft"])
    assert lineup.models == ["warmup", "sft", "reft"]
    assert lineup.stages == ["sft", "ppo", "evaluation"]
    assert (lineup.start, lineup.baseline) == ("warmup", "sft")


def test_samples_of_the_warm_up_are_drawn_for_whoever_learns_from_them() -> None:
    assert Lineup(["online_st"]).stages == ["sft", "online_st", "evaluation"]
    assert Lineup(["offline_st"]).stages[:3] == ["sft", "warmup_samples", "offline_st"]
    assert Lineup([], rerank=True).stages == ["sft", "warmup_samples", "reranker/sft", "evaluation"]


def test_the_order_is_the_pages_not_the_files() -> None:
    lineup = Lineup(ALL, rerank=True)
    assert lineup.models == ["warmup", "sft", "offline_st", "online_st", "reft"]
    assert lineup.stages[1:5] == ["warmup_samples", "offline_st", "online_st", "ppo"]
    assert lineup.stages[5:] == [*(f"reranker/{name}" for name in lineup.models[1:]), "evaluation"]


def test_without_sft_the_methods_start_from_the_given_model_and_are_compared_with_it() -> None:
    lineup = Lineup(ALL, rerank=True, epochs=0, warmup_epochs=0)
    assert (lineup.start, lineup.baseline) == ("base", "base")
    assert lineup.models == ["base", "offline_st", "online_st", "reft"]
    assert lineup.stages == [
        "warmup_samples", "offline_st", "online_st", "ppo",
        "reranker/base", "reranker/offline_st", "reranker/online_st", "reranker/reft", "evaluation",
    ]  # fmt: skip


def test_sft_without_a_warm_up_is_a_baseline_from_which_nobody_starts() -> None:
    lineup = Lineup(["offline_st", "reft"], rerank=True, epochs=4, warmup_epochs=0)
    assert (lineup.start, lineup.baseline) == ("base", "sft")
    assert lineup.models == ["base", "sft", "offline_st", "reft"]
    assert lineup.stages[:4] == ["sft", "warmup_samples", "offline_st", "ppo"]
    assert lineup.reranked == ["sft", "offline_st", "reft"]


def test_the_given_model_comes_first_where_it_is_wanted_beside_a_warm_up() -> None:
    lineup = Lineup(["reft"], rerank=True, base=True)
    assert lineup.models == ["base", "warmup", "sft", "reft"]
    assert lineup.reranked == ["sft", "reft"]
    assert lineup.stages == [
        "sft", "warmup_samples", "ppo", "reranker/sft", "reranker/reft", "evaluation",
    ]  # fmt: skip


def test_a_stage_needs_what_makes_the_model_that_it_starts_from() -> None:
    lineup = Lineup(ALL, rerank=True)
    assert lineup.needs("sft") == []
    assert lineup.needs("ppo") == lineup.needs("online_st") == lineup.needs("warmup_samples") == ["sft"]
    assert lineup.needs("offline_st") == ["sft", "warmup_samples"]
    assert lineup.needs("reranker/reft") == ["warmup_samples", "ppo"]
    assert lineup.needs("evaluation") == ["sft", "offline_st", "online_st", "ppo"]


def test_what_starts_from_the_given_model_needs_no_stage_that_makes_it() -> None:
    for epochs in (0, 4):
        lineup = Lineup(ALL, rerank=True, epochs=epochs, warmup_epochs=0)
        assert lineup.needs("ppo") == lineup.needs("online_st") == lineup.needs("warmup_samples") == []
        assert lineup.needs("offline_st") == ["warmup_samples"]
        sft = ["sft"] if epochs else []
        assert lineup.needs("evaluation") == [*sft, "offline_st", "online_st", "ppo"]
    assert Lineup(ALL, rerank=True, epochs=0, warmup_epochs=0).needs("reranker/base") == [
        "warmup_samples"
    ]
