"""Fit a run to the machine before its first stage: refuse what cannot fit, choose what is left open."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from reftune.config import MOST_ROWS, Config
from reftune.launcher import local_processes, tell_once
from reftune.planning.machine import Machine, this_machine
from reftune.planning.memory import (
    Items,
    activation_bytes,
    chunk_bytes,
    gib,
    kept,
    replicas,
    sampling,
    total,
)
from reftune.planning.shapes import Shape
from reftune.planning.sharing import learning
from reftune.planning.workload import Draw, StageWork
from reftune.problem import UserError
from reftune.training.token_budget import MOST_TOKENS, token_budget

FEWEST_ROWS = 16  # where not even they fit, memory is too small for anything else, too


def fit(config: Config, stages: Sequence[str], device: torch.device, shape: Shape | None) -> Config:
    """Return the settings of a run with what they leave to the machine (see `with_choices`).

    What depends on the data is left out, and so is a model without known sizes (see `given_shape`).

    Args:
        stages: those that are still to run; without any nothing is looked at.
        device: where they run.
        shape: the model's sizes.

    Raises UserError where a stage's weights, gradients, moments and reference alone are too much.
    """
    if shape is None or not stages:
        return config
    machine = this_machine(device)
    for work in learning(config, stages):
        _refuse(work.name, kept(work, shape, config, machine), config, machine)
    fitted = with_choices(config, stages, shape, machine)
    for key, most in (("tokens_per_microbatch", MOST_TOKENS), ("sampler_rows", MOST_ROWS)):
        chosen = getattr(fitted.compute, key)
        if chosen != getattr(config.compute, key) and chosen < most:
            tell_once(f"compute.{key} = {chosen}: more would not fit into {machine.name}")
    return fitted


def _sharing(machine: Machine) -> int:
    """Return how many processes share the machine's memory: those of a CPU do, each GPU has its own."""
    return 1 if machine.gpu else local_processes()


def _free(works: Sequence[StageWork], shape: Shape, config: Config, machine: Machine) -> float:
    """Return the bytes that a process has beside the program and what the fullest stage keeps."""
    fullest = max(total(kept(work, shape, config, machine)) for work in works)
    share = min(machine.share, machine.memory / _sharing(machine))
    return share - machine.program - fullest


def _refuse(stage: str, items: Items, config: Config, machine: Machine) -> None:
    """Raise UserError where the processes of a machine cannot hold what a stage keeps."""
    processes = _sharing(machine)
    if processes * (total(items) + machine.program) <= machine.memory:
        return
    parts = ", ".join(f"{key} {gib(value)}" for key, value in items.items())
    raise UserError(
        f"{stage}: {config.model.name} takes {gib(total(items))} GiB before any text is read ({parts})"
        f"{f' in each of {processes} processes' if processes > 1 else ''}, and {machine.name} has"
        f" {gib(machine.memory)}; `reftune plan` says what to change"
    )


def with_choices(config: Config, stages: Sequence[str], shape: Shape, machine: Machine) -> Config:
    """Return settings that leave nothing open: see `with_microbatches` and `with_rows`."""
    return with_rows(with_microbatches(config, stages, shape, machine), stages, shape, machine)


def with_rows(config: Config, stages: Sequence[str], shape: Shape, machine: Machine) -> Config:
    """Return settings that name how many responses are decoded at once, as many as fit on a CPU.

    Each is taken to be as long as the settings let it be, with a prompt of its own, as where validation
    questions are answered. On a GPU the sampler sees what is free.
    """
    compute, prompt = config.compute, config.prompt
    is_open = compute.sampler_rows is None and config.model.name is not None
    if not is_open or compute.sampler != "builtin" or machine.gpu:
        return config
    free, rows = _free(learning(config, stages), shape, config, machine), MOST_ROWS
    longest, longest_prompt = prompt.max_new_tokens, prompt.max_prompt_tokens
    draw = Draw(rows, 1, longest, longest, longest_prompt, longest_prompt, learning=True)
    while rows > FEWEST_ROWS and total(sampling(draw, shape, config, machine)) > free:
        rows //= 2
        draw = replace(draw, questions=rows)
    return config.model_copy(update={"compute": compute.model_copy(update={"sampler_rows": rows})})


def with_microbatches(config: Config, stages: Sequence[str], shape: Shape, machine: Machine) -> Config:
    """Return settings that name the tokens of a micro-batch, the same for all stages.

    What the model keeps in the fullest of them leaves memory for so many (see `token_budget`).

    Args:
        shape: the model's sizes, activations among them.
        machine: its memory is shared among the processes of a CPU; each GPU has its own.
    """
    if config.compute.tokens_per_microbatch is not None or config.model.name is None:
        return config
    works, count = learning(config, stages), replicas(shape, machine)
    free = _free(works, shape, config, machine) - count * chunk_bytes(machine)
    each = max(activation_bytes(shape, config, work.name) for work in works)
    tokens = token_budget(None, each, free, count, gpu=machine.gpu)
    compute = config.compute.model_copy(update={"tokens_per_microbatch": tokens})
    return config.model_copy(update={"compute": compute})
