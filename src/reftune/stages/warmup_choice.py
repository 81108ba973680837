"""Choose the epoch of SFT from which the other methods start: `sft.warmup_epochs = "auto"`.

RL makes a model do always what it does now and then. Samples of the validation questions tell how much
that is: pass@1 is what the model does already, pass@k what RL can find. Choosing the start by pass@k on
validation, not by loss, is TailSFT's (arXiv 2608.25756); why pass@1 counts, too, stands at `worth`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reftune.config import Config
from reftune.evaluation.statistics import pass_at_k
from reftune.methods import WARMUP, directory_of
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import trained_at
from reftune.problem import UserError
from reftune.progress import counting
from reftune.runs.processes import by_main
from reftune.runs.records import read_result
from reftune.stages.stage import Stage
from reftune.stages.steps import Metrics, State
from reftune.training.rollouts import Generator
from reftune.training.types import GradedSample

TEMPERATURE = 1.0  # of the samples


def consider(
    stage: Stage, policy: PolicyWithValue, generator: Generator, state: State, epoch: int, solved: float
) -> Metrics:
    """Sample the validation questions; export the model if no epoch before was a better start.

    Args:
        state: its "starts" get a row for this epoch.
        solved: the greedy accuracy on the same questions.

    Returns what is logged of the epoch.
    """
    target, k = _place(stage.config), stage.config.sft.warmup_k
    held = by_main(stage.accelerator, lambda: trained_at(target))
    with counting("pass@k"):
        key = (stage.config.seed, "warmup")  # the same for all epochs, which are compared
        graded = generator.generate(stage.validation, k, TEMPERATURE, key=key)
    found = measures(graded, k)
    row = {"epoch": epoch, "validation_accuracy": solved, **found}
    state["starts"] = [*state.get("starts", ()), row]
    if worth(row) > worth(held):
        stage.export(policy, target, **row)
    return dict(found)


def worth(row: Mapping[str, Any]) -> float:
    """Return how good a start is: the mean of pass@1 and pass@k; -1 where nothing is known.

    A run of RL of some length gets from pass@1 a part of the way to pass@k, here half of it.
    """
    return float(row["pass_at_1"] + row["pass_at_k"]) / 2 if "pass_at_k" in row else -1.0


def measures(graded: Sequence[GradedSample], k: int) -> dict[str, float]:
    """Return pass@1, pass@k, and the share of questions with right and wrong samples, of k each.

    What our own infrastructure failed to judge is left out.
    """
    judged = [
        [g.verdict.correct for g in graded[i : i + k] if g.verdict.judged]
        for i in range(0, len(graded), k)
    ]
    counts = [(len(right), sum(right)) for right in judged if right]
    n = max(1, len(counts))
    return {
        "pass_at_1": sum(right / of for of, right in counts) / n,
        "pass_at_k": sum(pass_at_k(of, right, of) for of, right in counts) / n,
        "mixed": sum(0 < right < of for of, right in counts) / n,
    }


def chosen(config: Config, state: State) -> dict[str, Any]:
    """Return what `sft/result.json` says of the choice, once all epochs are done.

    The model that is there counts: a run that was killed may have exported it, and where steps do not
    repeat bit for bit, its epoch may have come out otherwise since.
    """
    held = trained_at(_place(config))
    row = {key: value for key, value in held.items() if key != "stage"}
    starts = [row if other["epoch"] == row["epoch"] else other for other in state["starts"]]
    told = {f"warmup_{key}": value for key, value in row.items()}
    return told | {"warmup_k": config.sft.warmup_k, "starts": starts}


def require_start(config: Config) -> None:
    """Raise UserError where "auto" has found no epoch with enough to reinforce."""
    if config.sft.warmup_epochs != "auto":
        return
    result = read_result(config.run_dir, "sft")
    best, k = max(row["pass_at_k"] for row in result["starts"]), config.sft.warmup_k
    if best < (gate := config.sft.warmup_gate):
        raise UserError(
            f"{config.run_dir}: nothing to reinforce: after no epoch of SFT do {k} samples per question"
            f" solve more than {best:.1%} of the validation questions (pass@{k}), and sft.warmup_gate"
            f" asks for {gate:.1%}; train SFT for more epochs or on more chains, ask easier questions,"
            " or take a larger model; sft.warmup_gate = 0 tries it all the same"
        )


def _place(config: Config) -> Path:
    return config.run_dir / directory_of(WARMUP) / "model"
