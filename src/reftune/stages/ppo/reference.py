"""The model that the KL penalty holds the policy near: where it comes from, and when it moves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reftune.model.loading import reference_of
from reftune.model.policy import PolicyWithValue, WithoutAdapter
from reftune.model.sharding import part_of, shard, whole_state
from reftune.runs.setup import sharding
from reftune.stages.run import Run
from reftune.training.learner import Learner

FILE = "reference.safetensors"  # in a checkpoint, once the reference has moved


def make_reference(run: Run, policy: PolicyWithValue) -> PolicyWithValue | None:
    """Return the reference; without a KL penalty its memory and its pass over all samples are saved."""
    if not run.config.ppo.kl_coef:
        return None
    rests, device = run.config.compute.offload_reference, run.accelerator.device
    cut = sharding(run.config, run.accelerator) != "none"
    if run.config.lora.rank:  # both are the same weights: one with the adapter, one without
        return WithoutAdapter(policy) if cut else reference_of(policy).to(device)
    reference = run.load_policy(run.config.lineup.start, placed=not cut)
    if cut:
        moves = bool(run.config.ppo.reference_reset_steps)  # from parts on the device
        shard(reference, device, rests_on_cpu=rests and device.type != "cpu" and not moves)
        return reference
    return reference.to("cpu") if rests else reference


class ReferenceReset:
    """Makes the policy the reference, with a new optimizer, after every so many steps.

    So the policy goes on learning where the penalty would hold it to its start (ProRL, Liu et al. 2025,
    arXiv:2505.24864). The critic keeps its weights, and the learning rate its schedule.

    Args:
        every: steps; 0: never.
        reference, policy, learner: as PPO works with them.
    """

    def __init__(
        self, every: int, reference: PolicyWithValue | None, policy: PolicyWithValue, learner: Learner
    ) -> None:
        self.every, self.reference = every, reference
        self.policy, self.learner = policy, learner
        self.moved = False

    def before(self, step: int) -> dict[str, int]:
        """Reset what is due before a step (from 1); return behind which step the reference stands.

        A step that was broken off may come again: the policy has not moved, and nor does the reference.
        """
        if not self.every or self.reference is None:
            return {}
        if step > 1 and (step - 1) % self.every == 0:
            self.reference.policy.load_state_dict(self.policy.policy.state_dict())
            self.learner.forget()
            self.moved = True
        return {"reference_step": (step - 1) // self.every * self.every}

    @contextmanager
    def kept(self, accelerator: Accelerator) -> Iterator[None]:
        """Let checkpoints hold the reference for a while, once it is not the start any more."""

        def save(_: list[nn.Module], __: list[dict[str, Tensor]], directory: str) -> None:
            if not self.moved or self.reference is None:
                return
            main = accelerator.is_main_process
            named = dict(self.reference.policy.named_parameters())  # tied ones once
            weights = whole_state(named, keep=main)
            if main:
                save_file({key: x.contiguous() for key, x in weights.items()}, Path(directory) / FILE)

        def load(_: list[nn.Module], directory: str) -> None:
            if self.reference is not None and (Path(directory) / FILE).exists():
                with torch.no_grad():
                    _load(self.reference.policy, load_file(Path(directory) / FILE))
                self.moved = True

        hooks = (
            accelerator.register_save_state_pre_hook(save),
            accelerator.register_load_state_pre_hook(load),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Read weights into a model; raise KeyError where one is missing."""
    for name, parameter in model.named_parameters():
        parameter.copy_(part_of(weights[name], parameter))
