"""Log-probabilities of chosen tokens and entropies; backward keeps one tensor of the logits' size."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TokenLogprobs(torch.autograd.Function):
    """Choose from log-softmax and compute its entropy; torch's own operations would keep several copies.

    The gradient with respect to the logits z is that of the chosen log-probability times (one-hot minus
    probabilities). That of the entropies, dH/dz = -p * (log p + H), is computed where it is asked for.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of the tokens and entropies, (rows,) each.

        Args:
            ctx: torch's.
            logits: (rows, vocabulary).
            tokens: (rows,), their ids.
            entropy_gradient: whether the entropies have a gradient.
        """
        logprobs = torch.log_softmax(logits, dim=-1)
        entropies = logprobs.exp().mul_(logprobs).sum(-1).neg_()
        if entropy_gradient:
            ctx.save_for_backward(logprobs, tokens, entropies)
        else:
            ctx.save_for_backward(logprobs, tokens)
            ctx.mark_non_differentiable(entropies)
        return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_entropies: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits."""
        logprobs, tokens, *entropies = ctx.saved_tensors
        scaled = gradient.unsqueeze(-1)
        factor = -scaled
        if entropies:
            surprise = logprobs + entropies[0].unsqueeze(-1)
            factor = surprise.mul_(-of_entropies.unsqueeze(-1)).sub_(scaled)
        of_logits = logprobs.exp().mul_(factor).scatter_add_(-1, tokens.unsqueeze(-1), scaled)
        return of_logits, None, None
