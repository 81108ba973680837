"""PPO's loss of one minibatch: the sum of its terms, exact however the minibatch is cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reftune.config import Config, Ppo
from reftune.model.batch import Sequences, collate
from reftune.model.policy import TokenStats
from reftune.model.value_head import ValueHead
from reftune.stages.ppo.critic import critic_loss, value_head
from reftune.training.advantages import ADVANTAGES, told_apart
from reftune.training.losses import (
    AGGREGATIONS,
    POLICY_LOSSES,
    Divisors,
    Tokens,
    aggregate,
    cross_entropy,
    kl_loss,
    ratio_statistics,
)
from reftune.training.types import AdvantagesAndReturns, Rollouts


class Before(NamedTuple):
    """What is known of a micro-batch before the update, (batch, time) each."""

    mask: Tensor
    logprobs: Tensor
    sampler_logprobs: Tensor
    ref_logprobs: Tensor | None
    values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True)
class PpoLoss:
    """The loss for `Learner.step`: called with parts of a minibatch, it returns theirs of the whole."""

    rollouts: Rollouts
    estimates: AdvantagesAndReturns
    ppo: Ppo
    device: torch.device
    entropy_coef: float
    divisors: Divisors  # of all rows of the batch, and of the minibatch
    tokens: float  # that are read
    right: Tensor  # (batch,), 1 where the answer is right
    right_tokens: float

    def __call__(
        self, model: nn.Module, mine: list[int], weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of some rows, and sums of losses and statistics (see `LossFn`)."""
        batch = _collated(self.rollouts, mine).to(self.device)
        options = {"entropy_gradient": True} if self.entropy_coef else {}
        stats = model(batch, self.ppo.temperature, **options)
        before = self._before(mine, weights, stats.logprobs.shape[1])
        losses, flags = self._losses(stats, before, mine, value_head(model))
        total = torch.zeros((), device=self.device)
        for name, coef in self._coefficients().items():
            total = total + coef * losses[name]
        statistics = self._statistics(stats, before, flags)
        return total, losses | {name: told / self.tokens for name, told in statistics.items()}

    def _before(self, mine: list[int], weights: Tensor, time: int) -> Before:
        rollouts, estimates = self.rollouts, self.estimates
        pick = partial(_pick, rows=mine, time=time, device=self.device)
        reference = rollouts.ref_logprobs if kl_in_loss(self.ppo) else None
        return Before(
            pick(rollouts.mask) * weights.unsqueeze(1),
            pick(rollouts.logprobs),
            pick(rollouts.sampler_logprobs),
            None if reference is None else pick(reference),
            pick(rollouts.values),
            pick(estimates.advantages),
            pick(estimates.returns),
        )

    def _losses(
        self, stats: TokenStats, before: Before, mine: list[int], head: ValueHead | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return all terms by name, before their coefficients, and the policy loss's flags."""
        ppo, mask = self.ppo, before.mask
        divisors = _part_of(self.divisors, mine, self.device)
        tokens = Tokens(
            stats.logprobs, before.logprobs, before.sampler_logprobs, before.advantages, mask
        )
        policy, flags = POLICY_LOSSES[ppo.policy_loss](tokens, ppo)
        value = critic_loss(head, stats, before.values, before.returns, mask, ppo.value_clip_range)
        terms = {"policy_loss": policy, "value_loss": value}
        if before.ref_logprobs is not None:
            terms["kl_loss"] = kl_loss(stats.logprobs, before.ref_logprobs, mask, ppo.kl_penalty)
        if self.entropy_coef:
            terms["entropy_bonus"] = stats.entropies
        losses = {name: aggregate(term, mask, divisors) for name, term in terms.items()}
        if ppo.positive_coef:
            right = self.right[mine].to(self.device)
            surprise = cross_entropy(stats.logprobs, mask * right.unsqueeze(1)).sum()
            losses["positive_loss"] = surprise / max(1.0, self.right_tokens)
        return losses, flags

    def _coefficients(self) -> dict[str, float]:
        """Return what each term is weighed by."""
        ppo = self.ppo
        value_coef = ppo.value_coef if ADVANTAGES[ppo.advantage].critic else 0.0
        weights = {"policy_loss": 1.0, "value_loss": value_coef}
        if kl_in_loss(ppo):
            weights["kl_loss"] = ppo.kl_coef
        if self.entropy_coef:
            weights["entropy_bonus"] = -self.entropy_coef
        if ppo.positive_coef:
            weights["positive_loss"] = ppo.positive_coef
        return weights

    def _statistics(
        self, stats: TokenStats, before: Before, flags: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return sums over tokens."""
        mask = before.mask
        gap = (stats.logprobs.detach() - before.sampler_logprobs).abs()
        return {
            **ratio_statistics(stats.logprobs, before.logprobs, mask),
            **{name: (flag * mask).sum() for name, flag in flags.items()},
            "entropy": (stats.entropies * mask).sum(),
            "logprob_gap": (gap * mask).sum(),
        }


@dataclass(frozen=True)
class ValueLoss:
    """The critic's loss alone, for `Learner.step`: what the policy says is not even computed."""

    rollouts: Rollouts
    estimates: AdvantagesAndReturns
    ppo: Ppo
    device: torch.device
    divisors: Divisors

    def __call__(
        self, model: nn.Module, mine: list[int], weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of some rows, and what it was before its coefficient (see `LossFn`)."""
        waits = isinstance(model, DistributedDataParallel)  # for a gradient of every weight
        batch = _collated(self.rollouts, mine).to(self.device)
        stats = model(batch, self.ppo.temperature, values_only=not waits)
        pick = partial(_pick, rows=mine, time=stats.values.shape[1], device=self.device)
        mask = pick(self.rollouts.mask) * weights.unsqueeze(1)
        given = pick(self.rollouts.values), pick(self.estimates.returns), mask
        losses = critic_loss(value_head(model), stats, *given, self.ppo.value_clip_range)
        loss = aggregate(losses, mask, _part_of(self.divisors, mine, self.device))
        rest = 0.0 * stats.logprobs.sum() if waits else 0.0
        return self.ppo.value_coef * loss + rest, {"value_loss": loss}


def make_loss(
    rollouts: Rollouts,
    estimates: AdvantagesAndReturns,
    counted: Sequence[int],
    read: Sequence[int],
    config: Config,
    device: torch.device,
    entropy_coef: float = 0.0,
) -> PpoLoss:
    """Return the loss of one minibatch.

    Args:
        counted: the rows that its means are taken over.
        read: those of them that have a gradient.
        entropy_coef: of this step.
    """
    lengths, chosen = rollouts.mask.sum(dim=1), _chosen(rollouts, counted)
    right = torch.tensor([float(a.verdict.correct) for a in rollouts.samples])
    return PpoLoss(
        rollouts,
        estimates,
        config.ppo,
        device,
        entropy_coef,
        _divisors(lengths, chosen, config),
        tokens=float(rollouts.mask[list(read)].sum()),
        right=right,
        right_tokens=float((lengths * right)[chosen].sum()),
    )


def make_value_loss(
    rollouts: Rollouts,
    estimates: AdvantagesAndReturns,
    rows: Sequence[int],
    config: Config,
    device: torch.device,
) -> ValueLoss:
    """Return the critic's loss of one minibatch, of whose rows all count."""
    divisors = _divisors(rollouts.mask.sum(dim=1), _chosen(rollouts, rows), config)
    return ValueLoss(rollouts, estimates, config.ppo, device, divisors)


def _collated(rollouts: Rollouts, rows: Sequence[int]) -> Sequences:
    samples = [rollouts.samples[i].sample for i in rows]
    return collate([s.prompt for s in samples], [s.tokens for s in samples])


def _chosen(rollouts: Rollouts, rows: Sequence[int]) -> Tensor:
    chosen = torch.zeros(len(rollouts.mask), dtype=torch.bool)
    chosen[list(rows)] = True
    return chosen


def _divisors(lengths: Tensor, chosen: Tensor, config: Config) -> Divisors:
    """Return what the losses of the chosen rows are divided by."""
    aggregation = AGGREGATIONS[config.ppo.loss_aggregation]
    return aggregation(lengths, chosen, config.prompt.max_new_tokens)


def _part_of(divisors: Divisors, rows: list[int], device: torch.device) -> Divisors:
    return Divisors(divisors.rows[rows].to(device), divisors.total)


def _pick(tensor: Tensor, rows: list[int], time: int, device: torch.device) -> Tensor:
    """Return some rows of a (batch, time) tensor, as wide as the longest of them."""
    return tensor[rows, :time].to(device)


def kl_in_loss(ppo: Ppo) -> bool:
    """Tell whether the loss has a KL term."""
    return bool(ppo.kl_coef) and ppo.kl_penalty != "reward"


def counted_and_read(
    rollouts: Rollouts, estimates: AdvantagesAndReturns, ppo: Ppo
) -> tuple[list[bool], list[bool]]:
    """Tell of each sample whether it counts in the means, and whether it has a gradient.

    Without a critic those have none whose advantages are all 0: the samples of a question that were all
    right, or all wrong, unless a KL penalty tells them apart. They count nevertheless, unless
    `ppo.live_denominator` leaves out questions whose samples were all rewarded alike (trl#6367), and
    have one by terms of the loss that do not go by advantages.
    """
    everyone = [True] * len(estimates.advantages)
    if ADVANTAGES[ppo.advantage].critic:
        return everyone, everyone
    taught = estimates.advantages.any(dim=1)
    counted = everyone
    if ppo.live_denominator:
        counted = told_apart(rollouts.rewards, rollouts.mask, rollouts.groups).tolist()
    others = kl_in_loss(ppo) or ppo.entropy_coef or ppo.entropy_target or ppo.positive_coef
    return counted, everyone if others else taught.tolist()
