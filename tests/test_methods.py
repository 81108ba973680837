from __future__ import annotations

from reftune.methods import planned_models, planned_stages


def test_a_plain_run_has_three_models_in_three_stages() -> None:
    assert planned_models(["reft"]) == ["warmup", "sft", "reft"]
    assert planned_stages(["reft"], rerank=False) == ["sft", "ppo", "evaluation"]


def test_samples_of_the_warm_up_are_drawn_for_whoever_learns_from_them() -> None:
    assert planned_stages(["online_st"], rerank=False) == ["sft", "online_st", "evaluation"]
    assert planned_stages(["offline_st"], rerank=False)[:3] == ["sft", "warmup_samples", "offline_st"]
    assert planned_stages([], rerank=True) == ["sft", "warmup_samples", "reranker/sft", "evaluation"]


def test_the_order_is_the_pages_not_the_files() -> None:
    methods = ["reft", "online_st", "offline_st"]
    assert planned_models(methods) == ["warmup", "sft", "offline_st", "online_st", "reft"]
    stages = planned_stages(methods, rerank=True)
    assert stages[1:5] == ["warmup_samples", "offline_st", "online_st", "ppo"]
    assert stages[5:] == [*(f"reranker/{name}" for name in planned_models(methods)[1:]), "evaluation"]
