"""PPO's update: passes over one batch of rollouts in minibatches, each an optimizer step."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reftune.config import Config, Ppo
from reftune.files import write_json
from reftune.model.batch import collate
from reftune.problem import UserError
from reftune.progress import counting
from reftune.runs.run_dir import complete_checkpoints
from reftune.training.advantages import ADVANTAGES
from reftune.training.learner import Learner, LossFn, non_finite
from reftune.training.losses import policy_loss, ratio_statistics, value_loss
from reftune.training.microbatches import minibatches, shuffled
from reftune.training.rollouts import graded_rows
from reftune.training.types import AdvantagesAndReturns, Rollouts

ROUNDING = 1e-3  # of a mean over a question's samples; what tells them apart is larger


def update(
    learner: Learner, rollouts: Rollouts, estimates: AdvantagesAndReturns, config: Config, step: int
) -> dict[str, float]:
    """Pass over the batch `ppo_epochs` times in minibatches; return the mean statistics.

    But `logprob_gap`, the mean difference between the sampler's and the trainer's log-probabilities, is
    that of the first minibatch: its weights are those that sampled.
    """
    ppo = config.ppo
    lengths = [len(a.sample.prompt) + len(a.sample.tokens) for a in rollouts.samples]
    groups, judged = rollouts.groups.tolist(), rollouts.mask.any(dim=1).tolist()
    history, batches = [], []
    for epoch in range(ppo.ppo_epochs):
        # Questions are shuffled, not samples: those of one question share their prompt in a minibatch.
        place = shuffled(max(groups) + 1, config.seed, "update", step, epoch)
        order = sorted((i for i in range(len(groups)) if judged[i]), key=lambda i: place[groups[i]])
        batches += list(minibatches(order, ppo.minibatch_size or max(1, len(order))))
    taught, device = _taught(estimates, ppo), learner.accelerator.device
    with counting("update", len(batches)) as count:
        for rows in batches:
            teaching = [i for i in rows if taught[i]]
            if not teaching:
                continue
            loss_fn = _make_loss(rollouts, estimates, teaching, len(rows), ppo, device)
            sums = learner.step(teaching, lengths, loss_fn, groups)
            if what := non_finite(sums):
                _stop_on_non_finite(config, rollouts, rows, step, what, learner.accelerator)
            history.append(sums)
            count.advance()
    if not history:
        return {}
    means = {key: sum(h[key] for h in history) / len(history) for key in history[0]}
    return means | {"logprob_gap": history[0]["logprob_gap"]}


def _taught(estimates: AdvantagesAndReturns, ppo: Ppo) -> list[bool]:
    """Tell which samples have a gradient: without a critic those have none whose advantages are all 0.

    Such are the samples of a question that were all right, or all wrong, unless a KL penalty tells them
    apart. They count in what the loss is divided by.
    """
    if ADVANTAGES[ppo.advantage].critic:
        return [True] * len(estimates.advantages)
    return (estimates.advantages.abs() > ROUNDING).any(dim=1).tolist()


def _make_loss(
    rollouts: Rollouts,
    estimates: AdvantagesAndReturns,
    rows: Sequence[int],
    divisor: int,
    ppo: Ppo,
    device: torch.device,
) -> LossFn:
    """Return the loss of some of `rows`, out of a minibatch of `divisor`, for `Learner.step`."""
    tokens = float(rollouts.mask[list(rows)].sum())
    value_coef = ppo.value_coef if ADVANTAGES[ppo.advantage].critic else 0.0

    def loss_fn(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        samples = [rollouts.samples[i].sample for i in mine]
        batch = collate([s.prompt for s in samples], [s.tokens for s in samples])
        stats = model(batch.to(device), ppo.temperature)
        time = stats.logprobs.shape[1]

        def pick(tensor: Tensor) -> Tensor:
            return tensor[mine, :time].to(device)

        mask, old_logprobs = pick(rollouts.mask) * weights.unsqueeze(1), pick(rollouts.logprobs)
        policy = (
            policy_loss(
                stats.logprobs, old_logprobs, pick(estimates.advantages), mask, ppo.clip_range
            ).sum()
            / divisor
        )
        value = (
            value_loss(
                stats.values, pick(rollouts.values), pick(estimates.returns), mask, ppo.value_clip_range
            ).sum()
            / divisor
        )
        statistics = ratio_statistics(stats.logprobs, old_logprobs, mask, ppo.clip_range)
        statistics["entropy"] = (stats.entropies * mask).sum()
        gap = stats.logprobs.detach() - pick(rollouts.sampler_logprobs)
        statistics["logprob_gap"] = (gap.abs() * mask).sum()
        statistics = {name: total / tokens for name, total in statistics.items()}
        return policy + value_coef * value, {"policy_loss": policy, "value_loss": value, **statistics}

    return loss_fn


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
