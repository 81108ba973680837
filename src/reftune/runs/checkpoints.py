"""Checkpoints from which an interrupted stage goes on.

A checkpoint is written under a temporary name, synced to disk and renamed: it is there as a whole or
not at all. accelerate writes its contents (what is trained of the model, optimizer, random states), so
that the same code serves one process and DDP. Frozen weights are those that the stage starts from. A
list of checksums tells one that was damaged later; then the one before it serves.
"""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from safetensors.torch import load_file
from torch import Tensor, nn

from reftune.files import read_object, sync, sync_files, write_json, writing_to
from reftune.launcher import tell_once
from reftune.model.sharding import is_part, part_of, sharded, whole_state
from reftune.problem import UserError
from reftune.runs.processes import by_main
from reftune.runs.run_dir import complete_checkpoints

STATE_FILE = "state.json"
SUMS_FILE = "checksums.json"  # of all other files, by their place in the checkpoint

# accelerate warns at every checkpoint that tied weights are stored once; that is what we want.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


def save_checkpoint(
    accelerator: Accelerator, directory: Path, step: int, state: dict[str, Any], keep: int = 2
) -> None:
    """Write checkpoint number `step`, and remove all but it and the newest ones before it.

    Args:
        accelerator: holds the prepared model and optimizer; every process must call.
        directory: the stage's directory.
        step: optimizer or rollout steps done.
        state: what the stage needs besides, as JSON.
        keep: how many stay, this one included.

    Raises UserError where it cannot be written; those before are still there.
    """
    target = directory / "checkpoints" / f"step-{step:08d}"
    temporary = target.with_name(f".{target.name}.partial")
    with writing_to(target):
        if accelerator.is_main_process:
            for left in target.parent.glob(".*.partial"):  # by starts that were killed
                shutil.rmtree(left)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        hook = accelerator.register_save_state_pre_hook(_keep_trained)
        accelerator.save_state(str(temporary))
        hook.remove()
        if accelerator.is_main_process:
            write_json(temporary / STATE_FILE, {**state, "step": step})
        sums = _checksums(accelerator, temporary, by_main(accelerator, lambda: _files_of(temporary)))
        if accelerator.is_main_process:
            write_json(temporary / SUMS_FILE, sums)
            sync_files(temporary)
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)  # one of this number that was passed over
        temporary.rename(target)
        sync(target.parent)
        _remove_others(directory, target, keep)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, directory: Path) -> dict[str, Any] | None:
    """Restore the newest undamaged checkpoint of a stage and return its state, None if there is none.

    What is damaged is passed over with a word, and stays until the next checkpoint is complete. Raises
    UserError where all are.
    """
    found = by_main(accelerator, lambda: complete_checkpoints(directory))
    fault = ""
    for checkpoint in reversed(found):
        if not (fault := _fault(accelerator, checkpoint)):
            return _load(accelerator, checkpoint)
        tell_once(f"{checkpoint}: is passed over, {fault}; an older one serves if there is one")
    if found:
        place = found[0].parent
        raise UserError(f"{place}: none is whole ({fault}); delete {place}, and the stage begins anew")
    return None


def _load(accelerator: Accelerator, checkpoint: Path) -> dict[str, Any]:
    fix = f"delete {checkpoint}, and the stage goes on from the one before, or begins anew"
    hook = accelerator.register_load_state_pre_hook(_load_models)
    try:
        accelerator.load_state(str(checkpoint), map_location="cpu")  # a part of it goes to a device
    except Exception as error:  # each library has errors of its own for what is not of this model
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{checkpoint}: cannot be loaded ({reason}); {fix}") from error
    finally:
        hook.remove()
    return read_object(checkpoint / STATE_FILE, fix)


def trained_weights(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """Return a model's parameters that get gradients, and its buffers, by name.

    Of a sharded model they are gathered, and all processes have to ask for them; `keep` says which one
    gets them.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    frozen = {name for name, p in named.items() if not p.requires_grad}
    found = {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}
    if (state := sharded(model)) is None:
        return found
    whole = whole_state({name: named.get(name, tensor) for name, tensor in found.items()}, keep=keep)
    cast = {id(x): x.to(state.dtype) for name, x in whole.items() if is_part(named.get(name, x))}
    return {name: cast.get(id(x), x) for name, x in whole.items()}  # tied ones stay one


def load_trained(model: nn.Module, path: Path) -> None:
    """Read into a model a file of what `trained_weights` returned of its like.

    Raises RuntimeError where some are missing or of another shape, and the libraries' errors where it
    is damaged.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    own: dict[str, Tensor] = {**model.state_dict(), **named}
    weights = {name: part_of(x, own.get(name, x)) for name, x in load_file(path).items()}
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    given = {id(own[name]) for name in weights.keys() & own.keys()}  # tied ones are there once
    wanted = [name for name, x in own.items() if name not in named or x.requires_grad]
    lacking = [name for name in wanted if id(own[name]) not in given]
    if lacking or unexpected:
        raise RuntimeError(f"{path.name} lacks {lacking[:3]}, and has the unknown {unexpected[:3]}")


def remove_checkpoints(directory: Path) -> None:
    """Free the disk of a finished stage's checkpoints."""
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _files_of(checkpoint: Path) -> list[str]:
    paths = (path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if str(path) != SUMS_FILE)


def _checksums(accelerator: Accelerator, checkpoint: Path, files: Sequence[str]) -> dict[str, str]:
    """Return the checksums of these files; each process reads a share of them, and all must call."""
    mine = files[accelerator.process_index :: accelerator.num_processes]
    read = [(name, _checksum(checkpoint / name)) for name in mine]
    return dict(sorted(gather_object(read) if accelerator.num_processes > 1 else read))


def _checksum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _fault(accelerator: Accelerator, checkpoint: Path) -> str:
    """Say what of a checkpoint is not as it was written, nothing if all is; all processes must call."""

    def written() -> dict[str, Any] | str:
        try:
            return read_object(checkpoint / SUMS_FILE, "")
        except UserError as error:
            return str(error).removeprefix(f"{checkpoint}/").removesuffix("; ")

    sums = by_main(accelerator, written)
    if isinstance(sums, str):
        return sums
    found = _checksums(accelerator, checkpoint, list(sums))
    changed = [name for name in sums if found[name] != sums[name]]
    return f"{changed[0]} is not what was written there" if changed else ""


def _remove_others(directory: Path, newest: Path, keep: int) -> None:
    """Remove checkpoints that newer ones have made needless, and damaged ones behind the newest."""
    found = complete_checkpoints(directory)
    place = found.index(newest) + 1
    for other in (*found[: max(0, place - keep)], *found[place:]):
        shutil.rmtree(other, ignore_errors=True)


def _keep_trained(models: list[nn.Module], weights: list[dict[str, Tensor]], directory: str) -> None:
    """Let accelerate write only what is trained, by names that any number of processes has."""
    for model, state in zip(models, weights, strict=False):
        state.clear()
        state |= trained_weights(getattr(model, "module", model), keep=PartialState().is_main_process)


def _load_models(models: list[nn.Module], directory: str) -> None:
    """Load the models in accelerate's place, which knows only whole ones."""
    for i, model in enumerate(models):
        name = f"model_{i}.safetensors" if i else "model.safetensors"
        load_trained(getattr(model, "module", model), Path(directory) / name)
    models.clear()
