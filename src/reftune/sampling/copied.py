"""The built-in engine on a copy of the policy, whose own weights lie on several processes."""

from collections.abc import Iterable

from torch import Tensor

from reftune.model.sharding import take_over_weights
from reftune.sampling.engine import BuiltinSampler


class CopySampler(BuiltinSampler):
    """Sample from a whole copy, which follows the policy through `update_weights`."""

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the policy's weights (see `Sampler.update_weights`)."""
        take_over_weights(self.model, weights)
