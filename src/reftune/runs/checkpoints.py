"""Checkpoints from which an interrupted stage goes on.

A checkpoint is written under a temporary name, synced to disk and renamed: it is there as a whole or
not at all. accelerate writes its contents (model, optimizer, random states), so that the same code
serves one process, DDP and sharded training.
"""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

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
        accelerator.save_state(str(temporary))
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
    try:
        accelerator.load_state(str(newest))
    except Exception as error:  # each library has errors of its own for files that were cut
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{newest}: cannot be loaded ({reason}); {fix}") from error
    return state


def remove_checkpoints(directory: Path) -> None:
    """Free the disk of a finished stage's checkpoints."""
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
