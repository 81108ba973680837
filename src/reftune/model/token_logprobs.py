"""Log-probabilities of chosen tokens and entropies; backward keeps one tensor of the logits' size."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TokenLogprobs(torch.autograd.Function):
    """Choose from log-softmax and compute its entropy; torch's own operations would keep several copies.

    The gradient with respect to the logits is that of the chosen log-probability times (one-hot minus
    probabilities). The entropies have none.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of the tokens and entropies, (rows,) each.

        Args:
            ctx: torch's.
            logits: (rows, vocabulary).
            tokens: (rows,), their ids.
        """
        logprobs = torch.log_softmax(logits, dim=-1)
        entropies = logprobs.exp().mul_(logprobs).sum(-1).neg_()
        ctx.save_for_backward(logprobs, tokens)
        ctx.mark_non_differentiable(entropies)
        return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the logits."""
        logprobs, tokens = ctx.saved_tensors
        scaled = gradient.unsqueeze(-1)
        return logprobs.exp().mul_(-scaled).scatter_add_(-1, tokens.unsqueeze(-1), scaled), None
