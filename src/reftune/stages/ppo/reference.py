"""The model that the KL penalty holds the policy near: where it comes from, and when it moves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from reftune.model.loading import reference_of
from reftune.model.policy import PolicyWithValue
from reftune.stages.run import Run
from reftune.training.learner import Learner

FILE = "reference.safetensors"  # in a checkpoint, once the reference has moved


def make_reference(run: Run, policy: PolicyWithValue) -> PolicyWithValue | None:
    """Return the reference; without a KL penalty its memory and its pass over all samples are saved."""
    if not run.config.ppo.kl_coef:
        return None
    if run.config.lora.rank:  # both are the same weights: one with the adapter, one without
        return reference_of(policy).to(run.accelerator.device)
    reference = run.load_policy(run.config.lineup.start)
    return reference.to("cpu") if run.config.compute.offload_reference else reference


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
            if self.moved and self.reference is not None and accelerator.is_main_process:
                save_model(self.reference.policy, str(Path(directory) / FILE))

        def load(_: list[nn.Module], directory: str) -> None:
            if self.reference is not None and (Path(directory) / FILE).exists():
                load_model(self.reference.policy, Path(directory) / FILE)
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
