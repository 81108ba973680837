"""PPO's update: passes over one batch of rollouts in minibatches, each an optimizer step."""

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator

from reftune.config import Config, Ppo
from reftune.files import write_json
from reftune.problem import UserError
from reftune.progress import counting
from reftune.runs.run_dir import complete_checkpoints
from reftune.stages.ppo.loss import counted_and_read, make_loss, make_value_loss
from reftune.training.learner import Learner, LossFn, non_finite
from reftune.training.losses import next_entropy_coef
from reftune.training.microbatches import minibatches, shuffled
from reftune.training.rollouts import graded_rows
from reftune.training.types import AdvantagesAndReturns, Rollouts


def update(
    learner: Learner,
    rollouts: Rollouts,
    estimates: AdvantagesAndReturns,
    config: Config,
    step: int,
    memory: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Pass over the batch `ppo_epochs` times in minibatches; return the mean statistics.

    But `logprob_gap`, the mean difference between the sampler's and the trainer's log-probabilities, is
    that of the first minibatch: its weights are those that sampled.

    Args:
        memory: from step to step; the coefficient of the entropy bonus changes there.
    """
    ppo, memory = config.ppo, {} if memory is None else memory
    history = []
    batches = _minibatches(rollouts, config, ppo.ppo_epochs, "update", step)
    counts, teaches = counted_and_read(rollouts, estimates, ppo)
    entropy_coef = _entropy_coef(ppo, memory)
    with counting("update", len(batches)) as count:
        for rows in batches:
            counted = [i for i in rows if counts[i]]
            read = [i for i in counted if teaches[i]]
            if not read:
                continue
            given = (rollouts, estimates, counted, read, config)
            loss_fn = make_loss(*given, learner.accelerator.device, entropy_coef)
            history.append(_optimize(learner, rollouts, rows, read, loss_fn, config, step))
            count.advance()
    if not history:
        return {}
    means = {key: sum(h[key] for h in history) / len(history) for key in history[0]}
    return means | {"logprob_gap": history[0]["logprob_gap"]} | _adapt(ppo, memory, means["entropy"])


def value_passes(
    learner: Learner, rollouts: Rollouts, estimates: AdvantagesAndReturns, config: Config, step: int
) -> None:
    """Pass over the batch `value_epochs` more times with the policy at rest: the critic alone learns."""
    batches = _minibatches(rollouts, config, config.ppo.value_epochs, "value", step)
    learner.set_learning_rates(0.0, 1.0)
    with counting("critic", len(batches)) as count:
        for rows in batches:
            device = learner.accelerator.device
            loss_fn = make_value_loss(rollouts, estimates, rows, config, device)
            _optimize(learner, rollouts, rows, rows, loss_fn, config, step)
            count.advance()


def _optimize(
    learner: Learner,
    rollouts: Rollouts,
    rows: Sequence[int],
    read: Sequence[int],
    loss_fn: LossFn,
    config: Config,
    step: int,
) -> dict[str, float]:
    """Take one optimizer step on those rows of a minibatch that are read; return its sums.

    Raises UserError where they are not finite, with the minibatch's samples saved.
    """
    lengths = [len(a.sample.prompt) + len(a.sample.tokens) for a in rollouts.samples]
    sums = learner.step(read, lengths, loss_fn, rollouts.groups.tolist())
    if what := non_finite(sums):
        _stop_on_non_finite(config, rollouts, rows, step, what, learner.accelerator)
    return sums


def _minibatches(
    rollouts: Rollouts, config: Config, passes: int, name: str, step: int
) -> list[list[int]]:
    """Return the rows of each optimizer step: of all that were judged, in every pass anew."""
    ppo, groups = config.ppo, rollouts.groups.tolist()
    judged = rollouts.mask.any(dim=1).tolist()
    batches: list[list[int]] = []
    for epoch in range(passes):
        # Questions are shuffled, not samples: those of one question share their prompt in a minibatch.
        place = shuffled(max(groups) + 1, config.seed, name, step, epoch)
        order = sorted((i for i in range(len(groups)) if judged[i]), key=lambda i: place[groups[i]])
        batches += minibatches(order, ppo.minibatch_size or max(1, len(order)))
    return batches


def _entropy_coef(ppo: Ppo, memory: dict[str, Any]) -> float:
    """Return the coefficient of the entropy bonus in this step: with a target, 0 while it is met."""
    if ppo.entropy_target is None:
        return ppo.entropy_coef
    coef: float = memory.setdefault("entropy_coef", ppo.entropy_coef)
    return coef if memory.get("entropy", 0.0) < ppo.entropy_target else 0.0


def _adapt(ppo: Ppo, memory: dict[str, Any], entropy: float) -> dict[str, float]:
    """Change the coefficient for the next step; return what the metrics tell of it."""
    if ppo.entropy_target is None:
        return {}
    told = {"entropy_coef": _entropy_coef(ppo, memory)}
    memory["entropy_coef"] = next_entropy_coef(memory["entropy_coef"], entropy, ppo.entropy_target)
    memory["entropy"] = entropy
    return told


def _stop_on_non_finite(
    config: Config,
    rollouts: Rollouts,
    rows: Sequence[int],
    step: int,
    what: str,
    accelerator: Accelerator,
) -> None:
    path = config.run_dir / "ppo" / f"non_finite_step_{step}.json"
    if accelerator.is_main_process:
        write_json(path, graded_rows([rollouts.samples[i] for i in rows]))
    before = complete_checkpoints(config.run_dir / "ppo")
    kept = f" (the weights of the last checkpoint are in {before[-1]})" if before else ""
    raise UserError(
        f"ppo: {what} at step {step}; its samples are in {path}. Lower ppo.learning_rate or raise"
        f" ppo.kl_coef under a new --name{kept}"
    )
