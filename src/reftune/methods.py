"""What a run consists of: the models that it compares, and the stages that make them."""

from __future__ import annotations

from collections.abc import Sequence

# name in the comparison -> directory, in the order in which they are shown
MODELS = {
    "warmup": "warmup",
    "sft": "sft",
    "offline_st": "offline_st",
    "online_st": "online_st",
    "reft": "ppo",
}
METHODS = tuple(MODELS)[2:]  # what `methods` in the configuration can name


def planned_models(methods: Sequence[str]) -> list[str]:
    """Return the models that a run of these methods compares, in order."""
    return [name for name in MODELS if name in ("warmup", "sft", *methods)]


def planned_stages(methods: Sequence[str], rerank: bool) -> list[str]:
    """Return the stages of a run in order; a stage's name is its directory in the run's.

    Args:
        methods: as `methods` in the configuration.
        rerank: whether every model gets a reranker.
    """
    stages = ["sft"]
    stages += ["warmup_samples"] if rerank or "offline_st" in methods else []
    stages += [MODELS[name] for name in MODELS if name in methods]
    stages += [f"reranker/{name}" for name in planned_models(methods)[1:]] if rerank else []
    return [*stages, "evaluation"]
