"""What a critic can know of a token beside the policy's state: pure functions of one batch of rollouts.

A value may be made of anything that does not depend on the token itself or on what follows it: such a
baseline leaves the policy's gradient unbiased, and the more of the return it explains, the less the
gradient scatters. Other samples of the same question are drawn independently, so that what became of
them may be used.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reftune.model.batch import pad
from reftune.training.types import Rollouts

Rates = Mapping[str, float]  # running success rate by the id of a question
DIVISORS = (10.0, 5.0, 5.0)  # of log-probabilities, so that all numbers are about 1


class Feature(NamedTuple):
    """Numbers of each token before it is drawn, (batch, time, len(prior)); and their first weights."""

    compute: Callable[[Rollouts, Rates], Float[Tensor, "batch time numbers"]]
    prior: tuple[float, ...]


def company(
    tokens: Int[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    rewards: Float[Tensor, " batch"],
) -> Float[Tensor, "batch time 3"]:
    """Compare each sample of ONE question with the others, which begin alike up to some token.

    Of each token: the mean reward of all other samples (the leave-one-out baseline, Kool et al. 2019);
    by how much the mean of those that began with the same tokens is above it (where there is none left,
    of the last that did); and their share.
    """
    rows, time = tokens.shape
    same = (tokens.unsqueeze(1) == tokens) & mask.bool().unsqueeze(1) & mask.bool()
    begun = torch.cat((same.new_ones(rows, rows, 1), same[:, :, :-1]), dim=2).long().cumprod(dim=2)
    begun = begun * (1 - torch.eye(rows, dtype=torch.long)).unsqueeze(2)
    count, total = begun.sum(1), (begun * rewards.view(1, rows, 1)).sum(1)
    baseline = (total[:, :1] / max(1, rows - 1)).expand(rows, time)
    last = (count > 0).sum(1, keepdim=True).clamp(min=1) - 1  # of the tokens with company
    mean = (total / count.clamp(min=1)).gather(1, torch.arange(time).expand(rows, time).minimum(last))
    numbers = (baseline, mean - baseline, count / max(1, rows - 1))
    return torch.stack(numbers, dim=2) * mask.unsqueeze(2)


def group(rollouts: Rollouts, _: Rates) -> Float[Tensor, "batch time 3"]:
    """Return what `company` finds among the judged samples of each question."""
    tokens = pad([graded.sample.tokens for graded in rollouts.samples]).long()
    found = rollouts.rewards.new_zeros(*rollouts.mask.shape, 3)
    judged = rollouts.mask.any(dim=1)
    for number in rollouts.groups.unique().tolist():
        rows = ((rollouts.groups == number) & judged).nonzero().squeeze(1)
        found[rows] = company(tokens[rows], rollouts.mask[rows], rollouts.rewards[rows])
    return found


def surprise(rollouts: Rollouts, _: Rates) -> Float[Tensor, "batch time 3"]:
    """Return how improbable the response has been so far: log-probability of all of it, of its least
    probable token and of its last one.

    A token that was drawn against the odds is often a slip.
    """
    before = torch.nn.functional.pad(rollouts.logprobs[:, :-1], (1, 0)) * rollouts.mask
    numbers = torch.stack((before.cumsum(1), before.cummin(1).values, before), dim=2)
    return numbers / torch.tensor(DIVISORS) * rollouts.mask.unsqueeze(2)


def success_rate(rollouts: Rollouts, rates: Rates) -> Float[Tensor, "batch time 2"]:
    """Return the question's running success rate in the steps before, and whether it has one."""
    found = [rates.get(graded.problem.id) for graded in rollouts.samples]
    numbers = torch.tensor([[rate or 0.0, rate is not None] for rate in found], dtype=torch.float)
    return numbers.unsqueeze(1) * rollouts.mask.unsqueeze(2)


FEATURES: dict[str, Feature] = {
    "group": Feature(group, (1.0, 0.0, 0.0)),
    "surprise": Feature(surprise, (0.0, 0.0, 0.0)),
    "success_rate": Feature(success_rate, (0.0, 0.0)),
}
