"""A plainly padded PPO update, as one would write it first: what reftune's is measured against.

The batch is padded to its longest row, the prompt is read again for every sample, and logits are made at
every position. The losses are reftune's own functions, so that only the reading differs; entropies and
other statistics are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reftune.config import Ppo
from reftune.training.losses import Divisors, aggregate, clip, value_loss


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of prompt and response, padded to one width; column t of the targets predicts token t + 1."""

    ids: Tensor  # (rows, width)
    attention: Tensor  # (rows, width)
    mask: Tensor  # (rows, width - 1), 1 where a token of the response is predicted


@dataclass(frozen=True)
class PaddedTargets:
    """What the update aims at, (rows, width - 1) each."""

    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class PaddedPolicy(nn.Module):
    """A language model with a linear value head on its last hidden states."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.value_head = nn.Linear(model.config.hidden_size, 1, device=model.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, ids: Tensor, attention: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each token but the first, and the value before it."""
        output = self.model(
            input_ids=ids, attention_mask=attention, output_hidden_states=True, use_cache=False
        )
        logprobs = torch.log_softmax(output.logits[:, :-1].float() / temperature, dim=-1)
        chosen = logprobs.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        values = self.value_head(output.hidden_states[-1][:, :-1].float()).squeeze(-1)
        return chosen, values


def pad_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: str
) -> PaddedBatch:
    """Put prompt and response of each row side by side and pad all rows on the right to the longest."""
    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    attention, mask = torch.zeros_like(ids), torch.zeros(len(prompts), width - 1)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        row = [*prompt, *response]
        ids[i, : len(row)], attention[i, : len(row)] = torch.tensor(row), 1
        mask[i, len(prompt) - 1 : len(row) - 1] = 1.0
    return PaddedBatch(ids.to(device), attention.to(device), mask.to(device))


def padded_update(
    policy: PaddedPolicy,
    optimizer: torch.optim.Optimizer,
    batch: PaddedBatch,
    targets: PaddedTargets,
    ppo: Ppo,
    rows_at_once: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> None:
    """Take one optimizer step per pass over the batch, in micro-batches of random rows."""
    for _ in range(ppo.ppo_epochs):
        optimizer.zero_grad()
        for rows in torch.randperm(len(batch.ids)).split(rows_at_once):
            with autocast():
                loss = _loss(policy, batch, targets, rows, ppo)
            loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), ppo.max_grad_norm)
        optimizer.step()


def _loss(
    policy: PaddedPolicy, batch: PaddedBatch, targets: PaddedTargets, rows: Tensor, ppo: Ppo
) -> Tensor:
    logprobs, values = policy(batch.ids[rows], batch.attention[rows], ppo.temperature)
    mask = batch.mask[rows]
    return_error = value_loss(
        values, targets.values[rows], targets.returns[rows], mask, ppo.value_clip_range
    )
    surprise, _ = clip(logprobs, targets.logprobs[rows], targets.advantages[rows], mask, ppo.clip_range)
    divisors = Divisors(mask.sum(dim=1).clamp(min=1), float(len(batch.ids)))
    return aggregate(surprise + ppo.value_coef * return_error, mask, divisors)
