"""Refuse a run that cannot fit, before its first stage starts."""

from collections.abc import Sequence

import torch

from reftune.config import Config
from reftune.model.loading import load_architecture
from reftune.planning.machine import this_machine
from reftune.planning.memory import gib, kept, total
from reftune.planning.shapes import shape_of
from reftune.planning.workload import StageWork
from reftune.problem import UserError

LEARNING = ("sft", "offline_st", "online_st", "ppo", "reranker")


def refuse_too_large(config: Config, stages: Sequence[str], device: torch.device) -> None:
    """Raise UserError where a stage's weights, gradients, moments and reference alone are too much.

    What depends on the data is left out, and so are new models, which are small. A model that is not
    there, or of a kind that cannot be built without its weights, is left to whoever loads it.
    """
    if config.model.name is None or not stages:
        return
    try:
        shape = shape_of(load_architecture(config.model.name), config, activations=False)
    except Exception:
        return
    machine = this_machine(device)
    for stage in stages:
        name = stage.partition("/")[0]
        work = StageWork(stage, 1, learns=float(name in LEARNING), reference=name == "ppo")
        items = kept(work, shape, config, machine)
        if total(items) + machine.program > machine.memory:
            parts = ", ".join(f"{key} {gib(value)}" for key, value in items.items())
            raise UserError(
                f"{stage}: {config.model.name} takes {gib(total(items))} GiB before any text is read"
                f" ({parts}), and {machine.name} has {gib(machine.memory)}; `reftune plan` says what to"
                " change"
            )
