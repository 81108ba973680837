"""The optimizer: AdamW, with masters in float32 where weights are in 16 bits.

An update is often smaller than the last bit of a 16-bit weight, which would stay as it is for ever. So
the optimizer moves a float32 copy of each such weight, its master, and the weight is the rounded master
(Micikevicius et al. 2018, section 3.1). Gradients are added up in float32, too: as soon as backward has
finished one it goes to the master and is freed.
"""

from typing import Any

import torch
from torch import Tensor, nn

from reftune.model.sharding import HEADS, is_part, part_of, sharded, whole_state
from reftune.problem import UserError

Pair = tuple[nn.Parameter, nn.Parameter]  # a weight in 16 bits and its master


def make_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    head_learning_rate: float | None = None,
    kind: str = "adamw",
) -> torch.optim.Optimizer:
    """Return the optimizer of two groups: the language model, and what was put beside it (may be empty).

    Every group remembers its peak rate as `peak`, for `Learner.set_learning_rates`.

    Args:
        model: to train; it must be on its device already, for masters are made beside its weights.
        learning_rate: of the language model.
        weight_decay: as in AdamW, of all weights.
        head_learning_rate: of the other group; default: `learning_rate`.
        kind: "adamw", or "adamw_8bit" whose moments take two bytes per weight instead of eight
            (Dettmers et al. 2022).

    Raises UserError where 8 bits are asked for and bitsandbytes is missing.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    pairs: list[Pair] = []
    groups: list[dict[str, Any]] = []
    for heads, rate in ((False, learning_rate), (True, head_learning_rate or learning_rate)):
        params = [_master(p, pairs) for name, p in trained if name.startswith(HEADS) is heads]
        if params or not heads:
            groups.append({"params": params, "lr": rate, "peak": rate})
    optimizer = _adamw_8bit(groups, weight_decay) if kind == "adamw_8bit" else torch.optim.AdamW(
        groups, weight_decay=weight_decay, fused=True
    )  # fmt: skip
    if pairs:
        _keep_in_step(optimizer, pairs)
    return optimizer


def optimized(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return what an optimizer moves: weights, or their masters."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _master(weight: nn.Parameter, pairs: list[Pair]) -> nn.Parameter:
    """Return what the optimizer moves for a weight: itself, or its master, which `pairs` gets."""
    if weight.dtype.itemsize >= 4:
        return weight
    master = nn.Parameter(weight.detach().float())

    def take_gradient(weight: Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad.add_(weight.grad)
        weight.grad = None

    weight.register_post_accumulate_grad_hook(take_gradient)
    pairs.append((weight, master))
    return master


def _keep_in_step(optimizer: torch.optim.Optimizer, pairs: list[Pair]) -> None:
    """Round masters to weights after each step, and let the optimizer's state hold them."""
    weights, masters = zip(*pairs, strict=True)

    def save(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state["masters"] = [master.data for master in masters]

    def load(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        for master, saved in zip(masters, state["masters"], strict=True):
            master.data.copy_(saved)

    def round_off(*_: object) -> None:
        # Look for the data only now: DDP gives the weights other memory.
        torch._foreach_copy_([weight.data for weight in weights], [master.data for master in masters])

    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)
    optimizer.register_step_post_hook(round_off)


def keep_whole_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Let the state of an optimizer of sharded weights be what it is in one process, masters included.

    Whoever saves it gathers it from all processes, and whoever loads it takes a part.
    """
    state_of = sharded(model)
    assert state_of is not None
    halves = state_of.dtype.itemsize < 4

    def mastered() -> list[nn.Parameter]:
        return [p for p in optimized(optimizer) if halves and is_part(p)]

    def save(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        keep = torch.distributed.get_rank() == 0
        found = {i: whole_state(moments, keep=keep) for i, moments in state["state"].items()}
        state["state"] = found
        if halves:
            masters = {str(i): master for i, master in enumerate(mastered())}
            state["masters"] = list(whole_state(masters, keep=keep).values())

    def load(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parts = dict(enumerate(optimized(optimizer)))
        for master, saved in zip(mastered(), state.get("masters", ()), strict=halves):
            master.data.copy_(part_of(saved, master))
        moments = {
            i: {key: part_of(x, parts[i]) if key != "step" else x for key, x in found.items()}
            for i, found in state["state"].items()
        }
        return {"state": moments, "param_groups": state["param_groups"]}

    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)


def on_gpu(parameter: Tensor) -> bool:
    """Tell whether a tensor lies where bitsandbytes has an optimizer."""
    return parameter.device.type != "cpu"


def _adamw_8bit(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            'model.optimizer = "adamw_8bit" needs bitsandbytes; `pip install "reftune[8bit]"`, or leave'
            " the key out"
        ) from None
    if not on_gpu(groups[0]["params"][0]):
        raise UserError('model.optimizer = "adamw_8bit" needs a GPU; leave the key out on this machine')

    class Heeding(AdamW8bit):  # type: ignore[misc]  # it is untyped
        """The same, but its `load_state_dict` calls the hooks that torch's does."""

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            for hook in self._optimizer_load_state_dict_pre_hooks.values():
                hook(self, state_dict)
            super().load_state_dict(state_dict)

    optimizer: torch.optim.Optimizer = Heeding(groups, weight_decay=weight_decay)
    return optimizer
