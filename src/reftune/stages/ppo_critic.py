"""PPO's critic from step to step: what it goes by beside the state, when it learns alone, and its units.

What it remembers is part of the stage's checkpoints, as JSON.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reftune.config import Config, Ppo
from reftune.model.batch import collate
from reftune.model.policy import TokenStats
from reftune.model.value_head import ValueHead
from reftune.progress import counting
from reftune.training.learner import Learner
from reftune.training.losses import two_hot_loss, value_loss
from reftune.training.microbatches import minibatches, shuffled
from reftune.training.types import AdvantagesAndReturns, Rollouts
from reftune.training.value_features import with_success
from reftune.training.value_regression import ValueRegression, regressors

Memory = dict[str, Any]

ADDED = 0.01  # explained variance that a step of pretraining must add to the best one before it
PATIENCE = 2  # steps in a row that may fail to
FADING = 0.9  # of the running mean and deviation of returns, per step


class Beside:
    """Values of what the critic goes by beside the state, in one step; they are added to the head's."""

    def __init__(self, rollouts: Rollouts, ppo: Ppo, memory: Memory) -> None:
        self.names: list[str] = list(ppo.value_features)
        self.values: Float[Tensor, "batch time"] | None = None
        if self.names:
            self.known = regressors(self.names, rollouts, memory.get("success_rates", {}))
            self.regression = ValueRegression(self.names, memory.get("value_regression", {}))
            self.values = self.regression.values(self.known)

    def learn(self, rollouts: Rollouts, estimates: AdvantagesAndReturns, memory: Memory) -> None:
        """Learn for the steps to come what followed in this one, less what the head had said."""
        if self.names:
            self.regression.learn(self.known, estimates.monte_carlo - rollouts.values)
            memory["value_regression"] = self.regression.memory()
        if "success_rate" in self.names:
            memory["success_rates"] = with_success(memory.get("success_rates", {}), rollouts)


def learns_alone(step: int, ppo: Ppo, memory: Memory) -> bool:
    """Tell whether the critic is still pretrained in a step, while the policy rests."""
    return step <= ppo.value_pretraining_steps and "pretrained" not in memory


def note_pretraining(step: int, explained: float, ppo: Ppo, memory: Memory) -> None:
    """End the pretraining where explained variance is flat, or the most steps are taken.

    After VC-PPO (Yuan et al. 2025, section 3.1), which looks at the value loss, too.
    """
    found = [*memory.get("pretraining", []), explained]
    memory["pretraining"] = found
    earlier = max(found[:-PATIENCE], default=-float("inf"))
    if max(found[-PATIENCE:]) < earlier + ADDED or step == ppo.value_pretraining_steps:
        memory["pretrained"] = step


def set_units(head: ValueHead | None, returns: Tensor, mask: Tensor, memory: Memory) -> None:
    """Let a normalised head speak in deviations from the running mean of returns."""
    if head is None or head.targets != "normalised" or not mask.any():
        return
    real = returns[mask.bool()]
    now = [float(real.mean()), float(real.std(correction=0))]
    old = memory.get("units", now)
    memory["units"] = [FADING * a + (1 - FADING) * b for a, b in zip(old, now, strict=True)]
    head.renormalise(memory["units"][0], max(memory["units"][1], 1e-3))


def critic_loss(
    head: ValueHead | None,
    stats: TokenStats,
    old_values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    clip_range: float,
) -> Float[Tensor, " batch"]:
    """Return the value loss per sequence, of the kind that the head's targets ask for."""
    if head is not None and head.targets == "two_hot":
        assert stats.value_outputs is not None
        return two_hot_loss(stats.value_outputs, returns, mask, head.support)
    unit = head.deviation if head is not None and head.targets == "normalised" else 1.0
    return value_loss(stats.values / unit, old_values / unit, returns / unit, mask, clip_range)


def value_passes(
    learner: Learner, rollouts: Rollouts, estimates: AdvantagesAndReturns, config: Config, step: int
) -> None:
    """Pass over the batch `value_epochs` more times with the policy at rest: the critic alone learns."""
    ppo = config.ppo
    lengths = [len(a.sample.prompt) + len(a.sample.tokens) for a in rollouts.samples]
    judged = rollouts.mask.any(dim=1).nonzero().squeeze(1).tolist()
    learner.set_learning_rates(0.0, 1.0)
    for epoch in range(ppo.value_epochs):
        order = [judged[i] for i in shuffled(len(judged), config.seed, "value", step, epoch)]
        for rows in minibatches(order, ppo.minibatch_size or max(1, len(order))):
            with counting("critic"):
                learner.step(
                    rows,
                    lengths,
                    _value_loss_fn(rollouts, estimates, rows, ppo),
                    rollouts.groups.tolist(),
                )


def _value_loss_fn(
    rollouts: Rollouts, estimates: AdvantagesAndReturns, rows: Sequence[int], ppo: Ppo
) -> Any:
    def loss_fn(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        samples = [rollouts.samples[i].sample for i in mine]
        batch = collate([s.prompt for s in samples], [s.tokens for s in samples])
        stats = model(batch.to(weights.device), ppo.temperature)
        given = (rollouts.values, estimates.returns, rollouts.mask)
        old, returns, mask = (x[mine, : stats.values.shape[1]].to(weights.device) for x in given)
        mask = mask * weights.unsqueeze(1)
        losses = critic_loss(value_head(model), stats, old, returns, mask, ppo.value_clip_range)
        loss = ppo.value_coef * losses.sum() / len(rows)
        if isinstance(model, DistributedDataParallel):  # waits for a gradient of every weight
            loss = loss + 0.0 * stats.logprobs.sum()
        return loss, {}

    return loss_fn


def value_head(model: nn.Module) -> ValueHead | None:
    """Return the value head of a policy, also where DDP has wrapped it."""
    head = getattr(getattr(model, "module", model), "value_head", None)
    assert head is None or isinstance(head, ValueHead)
    return head
