"""A critic without a network: the values of tokens by least squares on what is known of them.

It needs no learning rate and no pass over the model, and it is fitted exactly. What it knows are sums
over the tokens of the batches before, older ones fading: a few dozen numbers, kept in checkpoints.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reftune.training.types import Rollouts
from reftune.training.value_features import FEATURES, Rates

FADING = 0.7  # of a batch's weight from step to step: the policy that it was drawn from fades, too
CAUTION = 10.0  # tokens' worth of belief in the first weights


def regressors(
    names: list[str], rollouts: Rollouts, rates: Rates
) -> Float[Tensor, "batch time numbers"]:
    """Return the named features of every token and, behind them, a 1."""
    found = [FEATURES[name].compute(rollouts, rates) for name in names]
    return torch.cat([*found, rollouts.mask.unsqueeze(2)], dim=2)


class ValueRegression:
    """Ridge regression of returns on features, towards first weights, over fading batches.

    With sums of x x' and x y over tokens, each batch FADING times the one after, the weights w solve
    (sum x x' + CAUTION) w = sum x y + CAUTION w0 (Hoerl and Kennard 1970, centred at w0). Before any
    batch they are w0: with the feature "group" the leave-one-out baseline.

    Args:
        names: of `FEATURES`.
        memory: what `memory` of an earlier one returned; empty: there was none.
    """

    def __init__(self, names: list[str], memory: dict[str, Any]) -> None:
        prior = [weight for name in names for weight in FEATURES[name].prior]
        self.prior = torch.tensor([*prior, 0.0], dtype=torch.float64)
        size = len(self.prior)
        self.squares = torch.tensor(memory.get("squares") or [[0.0] * size] * size, dtype=torch.float64)
        self.products = torch.tensor(memory.get("products") or [0.0] * size, dtype=torch.float64)

    @property
    def weights(self) -> Tensor:
        """Return the weight of each number."""
        caution = CAUTION * torch.eye(len(self.prior), dtype=torch.float64)
        known = self.products + CAUTION * self.prior
        return torch.as_tensor(torch.linalg.solve(self.squares + caution, known))

    def values(self, features: Float[Tensor, "batch time numbers"]) -> Float[Tensor, "batch time"]:
        """Return the values of tokens; 0 on padding, where all features are 0."""
        values: Tensor = features.double() @ self.weights
        return values.float()

    def learn(
        self, features: Float[Tensor, "batch time numbers"], returns: Float[Tensor, "batch time"]
    ) -> None:
        """Take in a batch: what was known of its tokens, and the returns that followed."""
        known = features.double().flatten(0, 1)
        self.squares = FADING * self.squares + known.T @ known
        self.products = FADING * self.products + known.T @ returns.double().flatten()

    def memory(self) -> dict[str, Any]:
        """Return what a later one goes on from."""
        return {"squares": self.squares.tolist(), "products": self.products.tolist()}
