"""Fit a run to the machine before its first stage: refuse what cannot fit, choose what is left open."""

from collections.abc import Sequence

import torch

from reftune.config import Config
from reftune.launcher import local_processes, tell_once
from reftune.planning.machine import Machine, this_machine
from reftune.planning.memory import activation_bytes, chunk_bytes, gib, kept, replicas, total
from reftune.planning.shapes import Shape
from reftune.planning.sharing import learning
from reftune.problem import UserError
from reftune.training.token_budget import MOST_TOKENS, token_budget


def fit(config: Config, stages: Sequence[str], device: torch.device, shape: Shape | None) -> Config:
    """Return the settings of a run with what they leave to the machine (see `with_microbatches`).

    What depends on the data is left out, and so is a model without known sizes (see `given_shape`).

    Args:
        stages: those that are still to run; without any nothing is looked at.
        device: where they run.
        shape: the model's sizes.

    Raises UserError where a stage's weights, gradients, moments and reference alone are too much.
    """
    if shape is None or not stages:
        return config
    is_open = config.compute.tokens_per_microbatch is None
    machine = this_machine(device)
    for work in learning(config, stages):
        items, stage = kept(work, shape, config, machine), work.name
        if total(items) + machine.program > machine.memory:
            parts = ", ".join(f"{key} {gib(value)}" for key, value in items.items())
            raise UserError(
                f"{stage}: {config.model.name} takes {gib(total(items))} GiB before any text is read"
                f" ({parts}), and {machine.name} has {gib(machine.memory)}; `reftune plan` says what to"
                " change"
            )
    fitted = with_microbatches(config, stages, shape, machine)
    tokens = fitted.compute.tokens_per_microbatch
    if is_open and tokens is not None and tokens < MOST_TOKENS:
        tell_once(f"compute.tokens_per_microbatch = {tokens}: more would not fit into {machine.name}")
    return fitted


def with_microbatches(config: Config, stages: Sequence[str], shape: Shape, machine: Machine) -> Config:
    """Return settings that name the tokens of a micro-batch, the same for all stages.

    What the model keeps in the fullest of them leaves memory for so many (see `token_budget`).

    Args:
        shape: the model's sizes, activations among them.
        machine: its memory is shared among the processes of a CPU; each GPU has its own.
    """
    if config.compute.tokens_per_microbatch is not None or config.model.name is None:
        return config
    fullest = max(total(kept(work, shape, config, machine)) for work in learning(config, stages))
    share = min(machine.share, machine.memory / (1 if machine.gpu else local_processes()))
    count = replicas(shape, machine)
    free = share - machine.program - fullest - count * chunk_bytes(machine)
    tokens = token_budget(None, activation_bytes(shape, config), free, count, gpu=machine.gpu)
    compute = config.compute.model_copy(update={"tokens_per_microbatch": tokens})
    return config.model_copy(update={"compute": compute})
