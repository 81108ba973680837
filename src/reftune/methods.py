"""The one table of what a run compares: how each method is called, made, and shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Method:
    """A way to train a model, and how its model is shown.

    Args:
        label: the model's name in tables and figures.
        title: the stage's name in headings.
        stage: the stage that makes the model; `[stage]` in the configuration has its settings.
        run: `module:function`, which is called with the `Run` and fills the stage's directory.
        needs: stages that must be finished before.
        unit: what the stage counts in; how far it counts is the setting `epochs` or `steps`.
        color: of the model's lines and bars, on a light and on a dark page.
        directory: where the run keeps the model; default: the stage's.
        optional: whether `methods` in the configuration chooses it; the others are always there.
    """

    label: str
    title: str
    stage: str
    run: str
    needs: tuple[str, ...]
    unit: Literal["epoch", "step"]
    color: tuple[str, str]
    directory: str = ""
    optional: bool = True


# By the name that the configuration, files and comparisons use, in the order in which they are shown.
METHODS: dict[str, Method] = {
    "warmup": Method(
        "Warm-up", "Warm-up", "sft", "reftune.stages.sft:start", (), "epoch", ("#7f8a9a", "#a3adbb"),
        directory="warmup", optional=False,
    ),
    "sft": Method(
        "SFT", "Supervised fine-tuning", "sft", "reftune.stages.sft:start", (), "epoch",
        ("#c2691b", "#f0a45d"), optional=False,
    ),
    "offline_st": Method(
        "Offline-ST", "Offline self-training", "offline_st",
        "reftune.stages.self_training:start_offline", ("sft", "warmup_samples"), "epoch",
        ("#a4488c", "#de8fca"),
    ),
    "online_st": Method(
        "Online-ST", "Online self-training", "online_st",
        "reftune.stages.self_training:start_online", ("sft",), "step", ("#1f8a80", "#58c4b8"),
    ),
    "reft": Method(
        "ReFT", "Reinforced fine-tuning (PPO)", "ppo", "reftune.stages.ppo:start", ("sft",), "step",
        ("#2458c5", "#7fabff"),
    ),
}  # fmt: skip

OPTIONAL = tuple(name for name, method in METHODS.items() if method.optional)
BASELINE, MAIN = "sft", "reft"  # every method is compared with the one, and the other with every method


def label_of(model: str) -> str:
    """Return the name under which a model is shown."""
    return METHODS[model].label if model in METHODS else model


def methods_by_stage() -> dict[str, Method]:
    """Return what each stage is for: of several models that it makes, the last."""
    return {method.stage: method for method in METHODS.values()}


def directory_of(model: str) -> str:
    """Return the directory of a run in which one of its models lies."""
    method = METHODS[model]
    return method.directory or method.stage


def planned_models(methods: Sequence[str]) -> list[str]:
    """Return the models that a run of these methods compares, in order."""
    return [name for name, method in METHODS.items() if not method.optional or name in methods]


def planned_stages(methods: Sequence[str], rerank: bool) -> list[str]:
    """Return the stages of a run in order; a stage's name is its directory in the run's.

    Args:
        methods: as `methods` in the configuration.
        rerank: whether every model but the warm-up gets a reranker.
    """
    models = planned_models(methods)
    stages = list(dict.fromkeys(METHODS[name].stage for name in models))
    needed = {stage for name in models for stage in METHODS[name].needs}
    if rerank or "warmup_samples" in needed:
        stages.insert(1, "warmup_samples")
    stages += [f"reranker/{name}" for name in models[1:]] if rerank else []
    return [*stages, "evaluation"]
