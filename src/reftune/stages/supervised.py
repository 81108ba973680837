"""Learn from given chains, epoch by epoch: what SFT, offline self-training and rerankers share."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

from torch import Tensor, nn

from reftune.config import Epochs, Supervised
from reftune.model.batch import collate, length_mask
from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.stages.stage import Stage
from reftune.stages.steps import Metrics, State
from reftune.stages.warmup_choice import consider
from reftune.training.learner import Learner, linear_schedule, non_finite
from reftune.training.losses import cross_entropy
from reftune.training.microbatches import length_sorted, shuffled
from reftune.training.types import GradedSample

Example = tuple[list[int], list[int]]  # ids of the prompt and of the response
TakeStep = Callable[[list[int]], dict[str, float]]  # rows of a batch -> metrics
EndEpoch = Callable[[int, State], dict[str, float]]  # number of the epoch, state to update -> metrics


def fit(
    stage: Stage,
    policy: PolicyWithValue,
    settings: Supervised,
    examples: Sequence[Example],
    warmup_epochs: int | Literal["auto"] | None = None,
) -> State:
    """Train on examples; the best epoch's model goes into the stage's directory.

    Args:
        policy: the model to train.
        examples: prompts and responses; those beyond `settings.max_tokens` are left out.
        warmup_epochs: also export the model after this epoch, to `warmup/model`; "auto": that after the
            best start among the validated epochs.

    Returns the final state: `best_epoch`, `best_validation_accuracy`, `seconds`, and of the warm-up
    `warmup_validation_accuracy`, or `starts` of all epochs that were considered. Goes on from the newest
    checkpoint if there is one. Raises UserError where no example is short enough, or the loss becomes
    non-finite.
    """
    examples = short_enough(stage, examples, settings.max_tokens)
    learner = stage.learner(policy, settings)
    generator = stage.generator(policy)

    def take_step(rows: list[int]) -> dict[str, float]:
        batch = [examples[i] for i in rows]
        targets = sum(len(response) for _, response in batch)
        sums = train_on(learner, batch, [1 / targets] * len(batch))
        stop_on_non_finite(stage, sums, settings.learning_rate)
        return sums

    def end_epoch(epoch: int, state: State) -> dict[str, float]:
        due = epoch in (warmup_epochs, settings.epochs) or epoch % settings.validate_every_epochs == 0
        if not due:
            return {}
        generator.update_weights(policy)
        solved = stage.validate(generator)
        found: dict[str, float] = {"validation_accuracy": solved}
        if warmup_epochs == "auto":
            found |= consider(stage, policy, generator, state, epoch, solved)
        elif epoch == warmup_epochs:
            state["warmup_validation_accuracy"] = solved
            target = stage.config.run_dir / "warmup" / "model"
            stage.export(policy, target, epoch=epoch, validation_accuracy=solved)
        stage.keep_best(policy, state, "epoch", epoch, solved)
        return found

    lengths = [len(prompt) + len(response) for prompt, response in examples]
    start = {"best_validation_accuracy": -1.0}
    return train_epochs(stage, learner, settings, lengths, take_step, end_epoch, start)


def train_epochs(
    stage: Stage,
    learner: Learner,
    settings: Epochs,
    lengths: Sequence[int],
    take_step: TakeStep,
    end_epoch: EndEpoch,
    start: State,
) -> State:
    """Go over rows of these lengths in shuffled batches, with a linear schedule.

    Returns the state after the last step; `start` is what it holds before the first one.
    """
    per_epoch = math.ceil(len(lengths) / settings.batch_size)
    total = settings.epochs * per_epoch

    @lru_cache(maxsize=1)
    def batches(epoch: int) -> list[list[int]]:
        order = shuffled(len(lengths), stage.config.seed, stage.name, epoch)
        return length_sorted(order, lengths, settings.batch_size)

    def step_of_epoch(step: int, state: State) -> tuple[Metrics, Sequence[GradedSample]]:
        started = time.perf_counter()
        factor = linear_schedule(step - 1, total, settings.lr_warmup_share)
        learner.set_learning_rates(factor, factor)
        rows = batches((step - 1) // per_epoch + 1)[(step - 1) % per_epoch]
        learner.model.train()
        metrics: Metrics = {
            "epoch": step / per_epoch,
            "learning_rate": settings.learning_rate * factor,
            **take_step(rows),
        }
        learner.model.eval()
        seconds = time.perf_counter() - started
        metrics["tokens_per_second"] = sum(lengths[i] for i in rows) / seconds
        return metrics, ()

    def end_step(step: int, state: State) -> Metrics:
        return {} if step % per_epoch else end_epoch(step // per_epoch, state)

    return stage.run_steps(total, settings.checkpoint_every_steps, start, step_of_epoch, end_step)


def train_on(learner: Learner, batch: Sequence[Example], weights: Sequence[float]) -> dict[str, float]:
    """Take one optimizer step on a batch's cross-entropy, every token of row i weighed weights[i]."""
    device = learner.accelerator.device

    def loss_fn(model: nn.Module, mine: list[int], dealt: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        responses = [batch[i][1] for i in mine]
        stats = model(collate([batch[i][0] for i in mine], responses).to(device))
        mask = length_mask([len(response) for response in responses]).to(device)
        factors = dealt * dealt.new_tensor([weights[i] for i in mine])
        return (cross_entropy(stats.logprobs, mask) * factors).sum(), {}

    lengths = [len(prompt) + len(response) for prompt, response in batch]
    return learner.step(range(len(batch)), lengths, loss_fn)


def short_enough(stage: Stage, examples: Sequence[Example], max_tokens: int) -> list[Example]:
    """Leave out examples of more than `max_tokens` tokens, and say how many."""
    kept = [pair for pair in examples if len(pair[0]) + len(pair[1]) <= max_tokens]
    setting = f"{stage.name}.max_tokens = {max_tokens}"
    if not kept:
        raise UserError(f"{setting}: no example is that short; raise it")
    if len(kept) < len(examples) and stage.accelerator.is_main_process:
        left = len(examples) - len(kept)
        print(f"{left} examples exceed {setting} and are left out", file=sys.stderr)
    return kept


def stop_on_non_finite(stage: Stage, sums: dict[str, float], learning_rate: float) -> None:
    """Raise UserError where loss or gradient of a step is not finite."""
    if what := non_finite(sums):
        raise UserError(f"{stage.name}: {what}; lower {stage.name}.learning_rate (now {learning_rate})")
