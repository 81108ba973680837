"""What all training stages do the same way: optimizer, learning rates, one optimizer step, saving."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reftune.batches import cut, deal
from reftune.checkpoints import atomic_directory
from reftune.models import PolicyWithValue
from reftune.prompts import Prompter

# rows of one micro-batch and their weights -> (loss summed over the rows, sums of statistics)
LossFn = Callable[[list[int], Tensor], tuple[Tensor, dict[str, Tensor]]]


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, head_learning_rate: float | None = None
) -> torch.optim.AdamW:
    """Return AdamW with two groups: the trunk and head of the policy, and the critic (may be empty).

    Every group remembers its peak rate as `peak`, for `set_learning_rates`.
    """
    critic = [p for name, p in model.named_parameters() if name.startswith("value_")]
    policy = [p for name, p in model.named_parameters() if not name.startswith("value_")]
    groups: list[dict[str, Any]] = [{"params": policy, "lr": learning_rate, "peak": learning_rate}]
    if critic:
        rate = head_learning_rate or learning_rate
        groups.append({"params": critic, "lr": rate, "peak": rate})
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, policy: float, critic: float) -> None:
    """Set each group's rate to its peak times a factor."""
    for group, factor in zip(optimizer.param_groups, (policy, critic), strict=False):
        group["lr"] = group["peak"] * factor


def linear_schedule(step: int, total: int, warmup_share: float) -> float:
    """Return the factor of optimizer step `step` (from 0): up in the warm-up, then down towards 0."""
    warmup = max(1, round(total * warmup_share)) if warmup_share else 0
    if step < warmup:
        return (step + 1) / warmup
    return (total - step) / max(1, total - warmup)


def optimizer_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[int],
    lengths: Sequence[int],
    token_budget: int,
    max_grad_norm: float,
    loss_fn: LossFn,
    groups: Sequence[int] | None = None,
) -> dict[str, float]:
    """Take one exact optimizer step on `rows`, however they are cut and dealt.

    Args:
        accelerator: its processes share every micro-batch.
        model: as prepared by the accelerator.
        optimizer: likewise.
        rows: indices of the global minibatch, the same on every process.
        lengths: tokens per row, prompt included.
        token_budget: padded tokens per process and micro-batch.
        max_grad_norm: the gradient is scaled down to this norm.
        loss_fn: gives the loss of some rows, already divided by what the whole minibatch is divided by.
        groups: which rows share their prompt (see `cut`).

    Returns:
        Sums of the loss and the statistics over all rows and processes, and `grad_norm` before
        clipping. Where the norm is not finite the step is not taken.
    """
    optimizer.zero_grad()
    processes = accelerator.num_processes
    pieces = cut(rows, lengths, token_budget, processes, groups)
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    for i, piece in enumerate(pieces):
        mine, weights = deal(piece, accelerator.process_index, processes)
        with nullcontext() if i == len(pieces) - 1 else accelerator.no_sync(model):
            loss, statistics = loss_fn(mine, torch.tensor(weights, device=accelerator.device))
            accelerator.backward(loss * processes)  # gradients are averaged over processes: undo that
        for name, value in {"loss": loss, **statistics}.items():
            sums[name] = sums[name] + value.detach()
    norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    assert norm is not None
    if torch.isfinite(norm):
        optimizer.step()
    return {**_reduce(accelerator, sums), "grad_norm": float(norm)}


def save_model(
    policy: PolicyWithValue, target: Path, prompter: Prompter, accelerator: Accelerator
) -> None:
    """Write a model directory that is there as a whole or not at all (main process)."""
    if accelerator.is_main_process:
        with atomic_directory(target) as directory:
            policy.save(directory)
            prompter.save(directory)
    accelerator.wait_for_everyone()


def _reduce(accelerator: Accelerator, sums: dict[str, Tensor]) -> dict[str, float]:
    names: Iterable[str] = sorted(sums)
    stacked = torch.stack([sums[name].float() for name in names])
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, reduction="sum")
    return dict(zip(names, stacked.tolist(), strict=True))
