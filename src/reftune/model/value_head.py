"""The value head: what a critic makes of the states of a backbone."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Targets = Literal["plain", "normalised", "two_hot"]
BINS = 51  # of "two_hot": returns of 0 to 1 are then told apart by a fiftieth


class ValueHead(nn.Linear):
    """A linear function of a state, or a small network, that says 0 until it is trained.

    Args:
        width: features of a state.
        hidden: features of a hidden layer before it (GELU); 0: none, as in the paper.
        targets: what the head says is the value ("plain"); how many standard deviations of all returns
            it is above their mean ("normalised": PopArt, van Hasselt et al. 2016); or the logits of
            values in equal steps, whose mean is the value ("two_hot": Imani and White 2018).
        span: least and greatest value of "two_hot".
    """

    mean: Tensor
    deviation: Tensor
    support: Tensor

    def __init__(
        self,
        width: int,
        hidden: int = 0,
        targets: Targets = "plain",
        span: tuple[float, float] = (0.0, 1.0),
        device: torch.device | None = None,
    ) -> None:
        super().__init__(hidden or width, BINS if targets == "two_hot" else 1, device=device)
        self.targets = targets
        self.hidden: nn.Linear | None = None
        if hidden:
            self.hidden = nn.Linear(width, hidden, device=device)
            draws = torch.randn(hidden, width, generator=torch.Generator().manual_seed(0))
            self.hidden.weight.data.copy_(draws / width**0.5)
            nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.weight)  # an untrained critic says 0, not noise
        nn.init.zeros_(self.bias)
        if targets == "normalised":
            self.register_buffer("mean", torch.zeros((), device=device))
            self.register_buffer("deviation", torch.ones((), device=device))
        if targets == "two_hot":
            support = torch.linspace(*span, BINS, device=device)
            self.register_buffer("support", support, persistent=False)
            self.bias.data.copy_(10.0 * (support.abs() == support.abs().min()))

    def forward(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... outputs"]:
        """Return what the head says of states, in float32; `value` makes values of it."""
        with torch.autocast(states.device.type, enabled=False):
            states = states.to(self.weight.dtype)
            if self.hidden is not None:
                states = nn.functional.gelu(self.hidden(states))
            return super().forward(states)

    def value(self, outputs: Float[Tensor, "... outputs"]) -> Float[Tensor, "..."]:
        """Return the values that outputs stand for."""
        if self.targets == "two_hot":
            return outputs.softmax(-1) @ self.support
        values = outputs.squeeze(-1)
        return values * self.deviation + self.mean if self.targets == "normalised" else values

    @torch.no_grad()
    def renormalise(self, mean: float, deviation: float) -> None:
        """Let a normalised head speak in other units, of the same values."""
        before, shift = float(self.deviation), float(self.mean) - mean  # a number goes with a part, too
        self.mean.fill_(mean)
        self.deviation.fill_(deviation)
        self.weight.mul_(before / deviation)
        self.bias.mul_(before).add_(shift).div_(deviation)
