"""What lies where when a policy is sharded: run by `torch.distributed.run`; an error ends it with 1."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from reftune.config import Lora, Model
from reftune.model.loading import make_policy
from reftune.model.lora import plain_weights
from reftune.model.policy import PolicyWithValue
from reftune.model.sharding import gathered_weights, is_part, shard, sharded, whole_copy
from reftune.runs.checkpoints import load_trained, trained_weights
from tiny_models import tiny_model


def main(folder: Path) -> None:
    accelerator = Accelerator()
    for rank in (0, 2):
        look_at(_policy(rank), _policy(rank), accelerator, folder / f"rank{rank}.safetensors")


def look_at(whole: PolicyWithValue, cut: PolicyWithValue, accelerator: Accelerator, path: Path) -> None:
    shard(cut, accelerator.device)
    _lies_in_parts(whole, cut, accelerator.num_processes)
    expected = {name: x.detach().clone() for name, x in plain_weights(whole.policy)}
    given = dict(gathered_weights(cut))
    assert given.keys() == expected.keys()
    for name, x in expected.items():  # an adapter is added in float32, in either
        assert torch.allclose(given[name].float(), x.float(), atol=1e-6), name
    copied = dict(whole_copy(cut, accelerator.device).named_parameters())
    assert all(torch.equal(copied[name], x) for name, x in given.items())
    _comes_back(whole, cut, accelerator, path)


def _policy(rank: int) -> PolicyWithValue:
    torch.manual_seed(0)
    model, lora = tiny_model("llama"), Lora(rank=rank)
    settings = Model(scratch="tiny")
    policy = make_policy(model, settings, critic=True, trainable=True, lora=lora)
    for name, p in policy.named_parameters():
        if "lora_B" in name or name.startswith("value_head"):
            nn.init.normal_(p.data)  # else it would add nothing
    return policy


def _lies_in_parts(whole: PolicyWithValue, cut: PolicyWithValue, processes: int) -> None:
    state = sharded(cut)
    assert state is not None
    named = dict(cut.named_parameters())
    for name, x in whole.named_parameters():
        part = named[name]
        heads = name.startswith("value_head") or "lora_" in name
        assert is_part(part) is not heads, name
        if not heads and len(x) % processes == 0:
            assert part.to_local().numel() * processes == x.numel(), name  # type: ignore[attr-defined]


def _comes_back(
    whole: PolicyWithValue, cut: PolicyWithValue, accelerator: Accelerator, path: Path
) -> None:
    """What a checkpoint holds of parts is what it holds of a whole, and either reads it."""
    main = accelerator.is_main_process
    saved = trained_weights(cut, keep=main)
    if main:
        expected = trained_weights(whole)
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[name], x) for name, x in expected.items())
        once = {x.data_ptr(): name for name, x in saved.items()}  # tied weights are one
        save_file({name: saved[name] for name in once.values()}, path)
    accelerator.wait_for_everyone()
    before = _sums(cut)
    with torch.no_grad():
        for parameter in cut.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    load_trained(cut, path)
    assert _sums(cut) == before


def _sums(model: nn.Module) -> dict[str, float]:
    def local(x: Tensor) -> Tensor:
        return x.to_local() if is_part(x) else x  # type: ignore[no-any-return, attr-defined, unused-ignore]

    return {name: float(local(x.detach()).double().sum()) for name, x in model.named_parameters()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
