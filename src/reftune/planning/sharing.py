"""What several processes change: the share of each, what they tell each other, what must be cut."""

import math
from collections.abc import Sequence
from dataclasses import replace

from reftune.config import Config
from reftune.planning.machine import Machine
from reftune.planning.memory import FLOAT, chunk_bytes, in_parts, kept, total
from reftune.planning.shapes import Shape
from reftune.planning.workload import Draw, StageWork, has_reference

GPUS_EACH = 8  # of a machine
WITHIN, BETWEEN = 200e9, 40e9  # bytes per second of a GPU: NVLink, and a 400 Gb/s network
LEARNING = ("sft", "offline_st", "online_st", "ppo", "reranker")


def share_of(work: StageWork, processes: int) -> StageWork:
    """Return what one of several processes does of a stage."""
    if processes == 1:
        return work
    return replace(
        work,
        learns=work.learns / processes,
        reads=work.reads / processes,
        draws=_share(work.draws, processes),
        validates=_share(work.validates, processes),
    )


def _share(draw: Draw | None, processes: int) -> Draw | None:
    if draw is None:
        return None
    return replace(draw, questions=math.ceil(draw.questions / processes))


def exchange_seconds(work: StageWork, shape: Shape, config: Config, machine: Machine) -> float:
    """Return the seconds per step in which GPUs tell each other weights and gradients; an assumption.

    Nothing of it is hidden behind computing, though much may be.

    Args:
        work: the share of one process.
    """
    if machine.processes == 1 or not machine.gpu:
        return 0.0
    rate = WITHIN if machine.processes <= GPUS_EACH else BETWEEN
    weights, learning = shape.weights * shape.bytes_each, shape.trained * FLOAT
    if not in_parts(work, config, machine):
        return work.updates * 2 * learning / rate  # an all-reduce passes everything twice
    pieces = max(work.updates, math.ceil(work.learns / max(1.0, work.microbatch)))
    gathered = pieces * (2 * weights + learning)  # in forward and backward, and the gradients
    copied = weights if work.draws else 0  # for the copy that samples
    read = math.ceil(work.reads / max(1.0, work.microbatch)) * weights
    return (gathered + copied + read) / rate


def with_sharding(config: Config, sharding: str | None, shape: Shape | None, machine: Machine) -> Config:
    """Return settings with the given `compute.sharding`; by default theirs, or what is needed."""
    if sharding is None and config.compute.sharding == "none":
        sharding = needed_sharding(config, shape, machine)
    if sharding is None:
        return config
    compute = config.compute.model_copy(update={"sharding": sharding})
    return config.model_copy(update={"compute": compute})


def needed_sharding(config: Config, shape: Shape | None, machine: Machine) -> str:
    """Return "none" where the model fits into each process as a whole, with what learns, else "fsdp2".

    Args:
        shape: the model's sizes; a model without known ones is taken as small.
        machine: where they work.
    """
    if shape is None or machine.processes == 1:
        return "none"
    whole = with_sharding(config, "none", shape, machine)
    fullest = max(total(kept(work, shape, whole, machine)) for work in learning(config))
    return "none" if fullest + chunk_bytes(machine) + machine.program <= machine.share else "fsdp2"


def learning(config: Config, stages: Sequence[str] | None = None) -> list[StageWork]:
    """Return what stages hold whatever they read, as far as it is known without the data."""
    names = config.lineup.stages if stages is None else stages
    return [
        StageWork(
            stage, 1, float(stage.partition("/")[0] in LEARNING),
            reference=has_reference(stage.partition("/")[0], config),
        )
        for stage in names
    ]  # fmt: skip
