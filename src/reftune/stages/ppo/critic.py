"""PPO's critic from step to step: what it goes by beside the state, when it learns alone, and its units.

What it remembers is part of the stage's checkpoints, as JSON.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from reftune.config import Ppo
from reftune.model.policy import TokenStats
from reftune.model.value_head import ValueHead
from reftune.training.losses import two_hot_loss, value_loss
from reftune.training.types import AdvantagesAndReturns, Rollouts
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
            rates = {number: rate for number, (rate, _) in memory.get("rates", {}).items()}
            self.known = regressors(self.names, rollouts, rates)
            self.regression = ValueRegression(self.names, memory.get("value_regression", {}))
            self.values = self.regression.values(self.known)

    def learn(self, rollouts: Rollouts, estimates: AdvantagesAndReturns, memory: Memory) -> None:
        """Learn for the steps to come what followed in this one, less what the head had said."""
        if self.names:
            self.regression.learn(self.known, estimates.monte_carlo - rollouts.values)
            memory["value_regression"] = self.regression.memory()


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
) -> Float[Tensor, "batch time"]:
    """Return the value loss per token, of the kind that the head's targets ask for."""
    if head is not None and head.targets == "two_hot":
        assert stats.value_outputs is not None
        return two_hot_loss(stats.value_outputs, returns, mask, head.support)
    unit = head.deviation if head is not None and head.targets == "normalised" else 1.0
    return value_loss(stats.values / unit, old_values / unit, returns / unit, mask, clip_range)


def value_head(model: nn.Module) -> ValueHead | None:
    """Return the value head of a policy, also where DDP has wrapped it."""
    head = getattr(getattr(model, "module", model), "value_head", None)
    assert head is None or isinstance(head, ValueHead)
    return head
