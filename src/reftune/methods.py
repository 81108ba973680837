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
        stage: the stage that makes the model; `[stage]` in the configuration has its settings. Of the
            given model there is none.
        run: `module:function`, which is called with the `Run` and fills the stage's directory.
        needs: stages that must be finished before, beside the one that makes the model to start from.
        unit: what the stage counts in; how far it counts is the setting `epochs` or `steps`.
        color: of the model's lines and bars, on a light and on a dark page.
        directory: where the run keeps the model; default: the stage's.
        optional: whether `methods` in the configuration chooses it; `Lineup` says when others are there.
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
    "base": Method(
        "Base", "The given model", "", "", (), "epoch", ("#8c7a4f", "#c4b183"), optional=False,
    ),
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
        "reftune.stages.self_training:start_offline", ("warmup_samples",), "epoch",
        ("#a4488c", "#de8fca"),
    ),
    "online_st": Method(
        "Online-ST", "Online self-training", "online_st",
        "reftune.stages.self_training:start_online", (), "step", ("#1f8a80", "#58c4b8"),
    ),
    "reft": Method(
        "ReFT", "Reinforced fine-tuning (PPO)", "ppo", "reftune.stages.ppo.step:start", (), "step",
        ("#2458c5", "#7fabff"),
    ),
}  # fmt: skip

OPTIONAL = tuple(name for name, method in METHODS.items() if method.optional)
BASE, WARMUP, BASELINE, MAIN = "base", "warmup", "sft", "reft"


@dataclass(frozen=True, slots=True)
class Lineup:
    """What a run makes and compares, and what it starts from.

    Args:
        methods: as `methods` in the configuration.
        rerank: as `evaluation.rerank`.
        base: whether the given model is compared, too; where the methods start from it, it always is.
        epochs: of SFT; with 0 there is none.
        warmup_epochs: after how many the methods start; with 0 from the given model; "auto" is chosen.
    """

    methods: Sequence[str]
    rerank: bool = False
    base: bool = False
    epochs: int = 1
    warmup_epochs: int | Literal["auto"] = 1

    @property
    def start(self) -> str:
        """Return the model from which the methods start."""
        return WARMUP if self.warmup_epochs else BASE

    @property
    def baseline(self) -> str:
        """Return the model with which every method is compared."""
        return BASELINE if self.epochs else BASE

    @property
    def models(self) -> list[str]:
        """Return the models that are compared, in order."""
        always = {self.start, self.baseline, *([BASE] if self.base else [])}
        return [name for name in METHODS if name in always or name in self.methods]

    @property
    def reranked(self) -> list[str]:
        """Return the models that get a reranker: the baseline and the methods', in order."""
        return [name for name in self.models if METHODS[name].optional or name == self.baseline]

    @property
    def stages(self) -> list[str]:
        """Return the stages in order; a stage's name is its directory in the run's."""
        makers = [METHODS[name].stage for name in self.models if METHODS[name].stage]
        stages = list(dict.fromkeys(makers))
        if self.rerank or any("warmup_samples" in METHODS[name].needs for name in self.models):
            stages.insert(stages.count("sft"), "warmup_samples")
        stages += [f"reranker/{name}" for name in self.reranked] if self.rerank else []
        return [*stages, "evaluation"]

    def needs(self, stage: str) -> list[str]:
        """Return the stages that must be finished before one of the run's can begin."""
        kind, _, model = stage.partition("/")
        start = [METHODS[self.start].stage]
        if kind == "evaluation":
            found = [METHODS[name].stage for name in self.models]
        elif kind == "reranker":
            found = ["warmup_samples", METHODS[model].stage]
        elif kind == "warmup_samples":
            found = start
        else:
            method = methods_by_stage()[kind]
            found = [*start, *method.needs] if method.optional else []
        return [needed for needed in dict.fromkeys(found) if needed]


def label_of(model: str) -> str:
    """Return the name under which a model is shown."""
    return METHODS[model].label if model in METHODS else model


def methods_by_stage() -> dict[str, Method]:
    """Return what each stage is for: of several models that it makes, the last."""
    return {method.stage: method for method in METHODS.values() if method.stage}


def directory_of(model: str) -> str:
    """Return the directory of a run in which one of the models that it makes lies."""
    method = METHODS[model]
    return method.directory or method.stage
