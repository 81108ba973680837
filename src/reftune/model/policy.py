"""The policy: a causal language model that reads given responses, with its value head."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from reftune.model.batch import Sequences, gather_nodes, gather_rows
from reftune.model.forward import Head, PackedForward, backbone_of, state_width
from reftune.model.lora import switched_off
from reftune.model.token_logprobs import TokenLogprobs
from reftune.model.value_head import ValueHead

# Logits that are computed at once: 128 MiB of float32. On a GPU more, for each chunk is a dozen kernels
# to be launched.
LOGITS_PER_CHUNK, LOGITS_PER_CHUNK_ON_GPU = 2**25, 2**26


MakeHead = Callable[[int], ValueHead]


class TokenStats(NamedTuple):
    """What the policy says of given responses, (batch, time) each; beyond a row's length they are 0."""

    logprobs: Float[Tensor, "batch time"]
    entropies: Float[Tensor, "batch time"]
    values: Float[Tensor, "batch time"]
    value_outputs: Float[Tensor, "batch time outputs"] | None = None  # what the value head said


class PolicyWithValue(nn.Module):
    """A causal language model, and optionally a critic that reads the state before each token.

    Args:
        policy: any AutoModelForCausalLM.
        critic: "none", "shared" (a head on the policy's last hidden state) or "separate"
            (the head on a backbone of its own, which starts as a copy of the policy's).
        make_head: makes the head for states of so many features, by default the paper's linear one.
        float32_head: whether logits are computed in float32, whatever the rest is computed in.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        critic: str = "none",
        make_head: MakeHead = ValueHead,
        *,
        float32_head: bool = False,
    ) -> None:
        super().__init__()
        self.policy = policy
        # It may change the policy: before that is copied.
        self.packed_forward = PackedForward(policy, float32_head=float32_head)
        self.value_backbone: PreTrainedModel | None = None
        if critic == "separate":
            frozen: dict[int, Any] = {id(p): p for p in policy.parameters() if not p.requires_grad}
            self.value_backbone = copy.deepcopy(
                backbone_of(policy), frozen
            )  # what no one changes is shared
        self.value_head: ValueHead | None = None
        if critic != "none":
            self.value_head = make_head(state_width(policy)).to(policy.device, torch.float32)

    def forward(
        self,
        sequences: Sequences,
        temperature: float = 1.0,
        *,
        entropy_gradient: bool = False,
        values_only: bool = False,
    ) -> TokenStats:
        """Compute log-probability, entropy and value of every response token.

        The value of token t is read at the position that predicts it, before it is emitted.

        Args:
            sequences: prompts and responses.
            temperature: of the distribution whose log-probabilities these are.
            entropy_gradient: whether entropies have a gradient.
            values_only: whether nothing is computed for log-probabilities and entropies, which are 0
                then.
        """
        offsets = torch.arange(sequences.responses.shape[1], device=sequences.responses.device)
        mask = offsets < sequences.response_lengths.unsqueeze(1)
        if values_only:
            nothing = torch.zeros(mask.shape, device=mask.device)
            return TokenStats(nothing, nothing, *self._values(None, sequences, mask))
        states = self.packed_forward(self.packed_forward.body(self.policy), sequences)
        targets = sequences.responses.flatten()[sequences.first_occurrence]
        logprobs, entropies = (
            torch.where(mask, gather_nodes(sequences, x), 0.0)
            for x in self._stats(states, targets, temperature, entropy_gradient)
        )
        return TokenStats(logprobs, entropies, *self._values(states, sequences, mask))

    def _stats(
        self, states: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
    ) -> Tensor:
        head = self.packed_forward.head(self.policy)
        chunk = LOGITS_PER_CHUNK_ON_GPU if states.is_cuda else LOGITS_PER_CHUNK
        rows = max(1, chunk // self.policy.get_output_embeddings().weight.shape[0])
        if len(states) <= rows:
            return _stats_of_chunk(head, states, targets, temperature, entropy_gradient)
        # Logits of one chunk at a time, recomputed in backward: never (distinct, vocab).
        chunks = [
            checkpoint(_stats_of_chunk, head, x, y, temperature, entropy_gradient, use_reentrant=False)
            for x, y in zip(states.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat(chunks, dim=1)

    def _values(
        self, states: Tensor | None, sequences: Sequences, mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return values and what the head said; `states` are those of the policy's body, if known."""
        if self.value_head is None:
            return torch.zeros(mask.shape, device=mask.device), None
        shared = self.value_backbone is None and self.packed_forward.lm_head_is_linear
        if states is None or not shared:
            states = self.packed_forward(self.value_backbone or backbone_of(self.policy), sequences)
        outputs = gather_rows(self.value_head(states), sequences.node_index)
        return torch.where(mask, self.value_head.value(outputs), 0.0), outputs


class WithoutAdapter(PolicyWithValue):
    """What a policy with an adapter started from: the policy itself, read with its adapter switched off.

    For weights that lie on several processes: those are gathered where the policy is run.
    """

    def __init__(self, adapted: PolicyWithValue) -> None:
        nn.Module.__init__(self)
        self.adapted = (adapted,)  # no part of this module
        self.policy, self.packed_forward = adapted.policy, adapted.packed_forward
        self.value_backbone = self.value_head = None

    @property
    def sharded(self) -> object:
        """Return how the policy lies on its processes."""
        return getattr(self.adapted[0], "sharded", None)

    def forward(self, sequences: Sequences, temperature: float = 1.0, **options: bool) -> TokenStats:
        """Compute what the policy would without its adapter; the options are those of the policy."""
        with switched_off(self.policy):
            stats: TokenStats = self.adapted[0](sequences, temperature, **options)
        return stats


def _stats_of_chunk(
    head: Head, states: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
) -> Tensor:
    """Return log-probabilities of the targets and entropies, stacked: (2, rows)."""
    logits = head(states)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1:
        logits = logits / temperature
    stats: tuple[Tensor, Tensor] = TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        logits, targets, entropy_gradient
    )
    return torch.stack(stats)
