"""Checkpoints from which an interrupted stage goes on.

A checkpoint is written under a temporary name, synced to disk and renamed: it is there as a whole or
not at all. accelerate writes its contents (model, optimizer, random states), so that the same code
serves one process, DDP and sharded training.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from reftune.files import full_disk_is_named, read_json, sync, sync_files, write_json

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

    Raises UserError where the disk is full; the checkpoint before is still there.
    """
    target = directory / "checkpoints" / f"step-{step:08d}"
    temporary = target.with_name(f".{target.name}.partial")
    with full_disk_is_named(target):
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
        for old in _complete(directory)[:-1]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, directory: Path) -> dict[str, Any] | None:
    """Restore the newest complete checkpoint of a stage and return its state, None if there is none."""
    complete = _complete(directory)
    if not complete:
        return None
    accelerator.load_state(str(complete[-1]))
    state: dict[str, Any] = read_json(complete[-1] / STATE_FILE)
    return state


def remove_checkpoints(directory: Path) -> None:
    """Free the disk of a finished stage's checkpoints."""
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _complete(directory: Path) -> list[Path]:
    return sorted((directory / "checkpoints").glob("step-*"))
