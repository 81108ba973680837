"""Checkpoints from which an interrupted stage goes on.

A checkpoint is written under a temporary name, synced to disk and renamed: it is there as a whole or
not at all. accelerate writes its contents (what is trained of the model, optimizer, random states), so
that the same code serves one process and DDP. Frozen weights are those that the stage starts from.
"""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from reftune.files import read_object, sync, sync_files, write_json, writing_to
from reftune.problem import UserError
from reftune.runs.run_dir import complete_checkpoints

STATE_FILE = "state.json"

# accelerate warns at every checkpoint that tied weights are stored once; that is what we want.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


def save_checkpoint(accelerator: Accelerator, directory: Path, step: int, state: dict[str, Any]) -> None:
    """Write checkpoint number `step` and remove the ones before it.

    Args:
        accelerator: holds the prepared model and optimizer; every process must call.
        directory: the stage's directory.
        step: optimizer or rollout steps done.
        state: what the stage needs besides, as JSON.

    Raises UserError where it cannot be written; the checkpoint before is still there.
    """
    target = directory / "checkpoints" / f"step-{step:08d}"
    temporary = target.with_name(f".{target.name}.partial")
    with writing_to(target):
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        hook = accelerator.register_save_state_pre_hook(_keep_trained)
        accelerator.save_state(str(temporary))
        hook.remove()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_json(temporary / STATE_FILE, {**state, "step": step})
            sync_files(temporary)
    if accelerator.is_main_process:
        temporary.rename(target)
        sync(target.parent)
        for old in complete_checkpoints(directory)[:-1]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_checkpoint(
    accelerator: Accelerator, directory: Path, start: Iterable[str] = ()
) -> dict[str, Any] | None:
    """Restore the newest complete checkpoint of a stage and return its state, None if there is none.

    Raises UserError where it is damaged, or its state lacks a number of those that `start` names.
    """
    complete = complete_checkpoints(directory)
    if not complete:
        return None
    newest, fix = complete[-1], f"delete {complete[-1]}, and the stage begins anew"
    state = read_object(newest / STATE_FILE, fix)
    for key in ("step", *start):
        if not isinstance(state.get(key), int | float):
            raise UserError(f"{newest / STATE_FILE}: {key} is no number; {fix}")
    hook = accelerator.register_load_state_pre_hook(_load_models)
    try:
        accelerator.load_state(str(newest))
    except Exception as error:  # each library has errors of its own for files that were cut
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{newest}: cannot be loaded ({reason}); {fix}") from error
    finally:
        hook.remove()
    return state


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters that get gradients, and its buffers, by name."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_trained(model: nn.Module, path: Path) -> None:
    """Read into a model a file of what `trained_weights` returned of its like.

    Raises RuntimeError where some are missing or of another shape, and the libraries' errors where it
    is damaged.
    """
    weights = load_file(path)
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    own = model.state_dict()
    given = {own[name].data_ptr() for name in weights.keys() & own.keys()}  # tied ones are there once
    lacking = [name for name, x in trained_weights(model).items() if x.data_ptr() not in given]
    if lacking or unexpected:
        raise RuntimeError(f"{path.name} lacks {lacking[:3]}, and has the unknown {unexpected[:3]}")


def remove_checkpoints(directory: Path) -> None:
    """Free the disk of a finished stage's checkpoints."""
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _keep_trained(models: list[nn.Module], weights: list[dict[str, Tensor]], directory: str) -> None:
    """Let accelerate write only what is trained, by names that any number of processes has."""
    for model, state in zip(models, weights, strict=False):
        state.clear()
        state |= trained_weights(getattr(model, "module", model))


def _load_models(models: list[nn.Module], directory: str) -> None:
    """Load the models in accelerate's place, which knows only whole ones."""
    for i, model in enumerate(models):
        name = f"model_{i}.safetensors" if i else "model.safetensors"
        load_trained(getattr(model, "module", model), Path(directory) / name)
    models.clear()
