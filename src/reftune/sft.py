"""Stage 1: supervised fine-tuning. One run gives two models: ReFT's warm-up, and the SFT baseline.

As in the paper, the warm-up is an early epoch of the very run whose best epoch is the baseline.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from reftune.batches import collate, length_mask, length_sorted, shuffled
from reftune.checkpoints import load_checkpoint, remove_checkpoints, save_checkpoint, write_json
from reftune.config import Config, Sft
from reftune.losses import cross_entropy
from reftune.models import PolicyWithValue
from reftune.prompts import Prompter
from reftune.rewards import Judge
from reftune.rollouts import accuracy, make_actor
from reftune.run_log import RunLog
from reftune.training import Learner, linear_schedule, make_optimizer, save_model
from reftune.types import Problem, UserError

Example = tuple[list[int], list[int]]


def run_sft(
    config: Config,
    policy: PolicyWithValue,
    prompter: Prompter,
    judge: Judge,
    train: Sequence[Problem],
    validation: Sequence[Problem],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Train on the annotated chains; write `warmup/model` and `sft/model` into the run directory.

    Goes on from the newest checkpoint if there is one. Returns what it also writes to `sft/result.json`.
    """
    settings, directory = config.sft, config.run_dir / "sft"
    examples = _encode(prompter, train, settings.max_tokens)
    lengths = [len(prompt) + len(response) for prompt, response in examples]
    learner = Learner(
        policy, make_optimizer(policy, settings.learning_rate, settings.weight_decay), accelerator,
        config.compute.tokens_per_microbatch, settings.max_grad_norm,
    )  # fmt: skip
    actor = make_actor(policy, prompter, judge, accelerator, config.compute.sampler_rows)
    total = settings.epochs * math.ceil(len(examples) / settings.batch_size)
    state = load_checkpoint(accelerator, directory) or {
        "step": 0, "seconds": 0.0, "best_validation_accuracy": -1.0, "best_epoch": 0,
        "warmup_validation_accuracy": None,
    }  # fmt: skip
    with RunLog(directory, accelerator, "sft", total, state["step"]) as log:
        if len(examples) < len(train):
            log.say(f"sft: {len(train) - len(examples)} examples exceed sft.max_tokens and are left out")
        for step, rows, finished_epoch in _plan(lengths, settings, config.seed, state["step"]):
            started = time.perf_counter()
            factor = linear_schedule(step - 1, total, settings.lr_warmup_share)
            learner.set_learning_rates(factor, factor)
            row = {
                "epoch": step / total * settings.epochs,
                "learning_rate": settings.learning_rate * factor,
            }
            row |= _train_on(learner, rows, examples, lengths, settings.learning_rate)
            if finished_epoch and _validation_is_due(finished_epoch, settings):
                solved = accuracy(actor.attempt(validation, 1, 0.0, config.seed, "validation"))
                row["validation_accuracy"] = solved
                _keep(config, policy, prompter, accelerator, state, finished_epoch, solved)
            state["seconds"] += time.perf_counter() - started
            log.metrics(step, {**row, "seconds": state["seconds"]})
            if step % settings.checkpoint_every_steps == 0 and step < total:
                save_checkpoint(accelerator, directory, step, state)
    return _finish(directory, state, settings, accelerator)


def _encode(prompter: Prompter, train: Sequence[Problem], max_tokens: int) -> list[Example]:
    """Encode the annotated problems, without those that are too long to train on."""
    examples = [prompter.encode_example(problem) for problem in train]
    kept = [
        (prompt, response) for prompt, response in examples if len(prompt) + len(response) <= max_tokens
    ]
    if not kept:
        raise UserError(f"sft: no annotated problem has at most sft.max_tokens = {max_tokens} tokens")
    return kept


def _plan(
    lengths: Sequence[int], settings: Sft, seed: int, done: int
) -> Iterator[tuple[int, list[int], int | None]]:
    """Yield (number of the step, its rows, the epoch that it completes if any) beyond `done` steps."""
    step = 0
    for epoch in range(1, settings.epochs + 1):
        order = shuffled(len(lengths), seed, "sft", epoch)
        batches = length_sorted(order, lengths, settings.batch_size)
        for i, rows in enumerate(batches, start=1):
            step += 1
            if step > done:
                yield step, rows, epoch if i == len(batches) else None


def _train_on(
    learner: Learner,
    rows: list[int],
    examples: Sequence[Example],
    lengths: Sequence[int],
    learning_rate: float,
) -> dict[str, float]:
    """Take one optimizer step on the mean loss over all response tokens of `rows`."""
    started = time.perf_counter()
    targets = sum(len(examples[i][1]) for i in rows)
    device = learner.accelerator.device

    def loss_fn(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        batch = collate([examples[i][0] for i in mine], [examples[i][1] for i in mine])
        scores = model(batch.to(device))
        mask = length_mask([len(examples[i][1]) for i in mine]).to(device)
        return (cross_entropy(scores.logprobs, mask) * weights).sum() / targets, {}

    learner.model.train()
    sums = learner.step(rows, lengths, loss_fn)
    learner.model.eval()
    if not math.isfinite(sums["loss"] + sums["grad_norm"]):
        raise UserError(
            f"sft: the loss became {sums['loss']}; lower sft.learning_rate (now {learning_rate})"
        )
    tokens = sum(lengths[i] for i in rows)
    return {**sums, "tokens_per_second": tokens / (time.perf_counter() - started)}


def _validation_is_due(epoch: int, settings: Sft) -> bool:
    return (
        epoch in (settings.warmup_epochs, settings.epochs) or epoch % settings.validate_every_epochs == 0
    )


def _keep(
    config: Config,
    policy: PolicyWithValue,
    prompter: Prompter,
    accelerator: Accelerator,
    state: dict[str, Any],
    epoch: int,
    solved: float,
) -> None:
    """Export the model of this epoch if it is the warm-up or the best so far."""
    names = []
    if epoch == config.sft.warmup_epochs:
        state["warmup_validation_accuracy"] = solved
        names.append("warmup")
    if solved > state["best_validation_accuracy"]:
        state["best_validation_accuracy"], state["best_epoch"] = solved, epoch
        names.append("sft")
    for name in names:
        save_model(policy, config.run_dir / name / "model", prompter, accelerator)


def _finish(
    directory: Path, state: dict[str, Any], settings: Sft, accelerator: Accelerator
) -> dict[str, Any]:
    keys = ("best_epoch", "best_validation_accuracy", "warmup_validation_accuracy", "seconds")
    result = {**{key: state[key] for key in keys}, "warmup_epoch": settings.warmup_epochs}
    if accelerator.is_main_process:
        write_json(directory / "result.json", result)
        remove_checkpoints(directory)
    accelerator.wait_for_everyone()
    return result
