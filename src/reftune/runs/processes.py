"""What the processes of a run have to see alike: one looks, and tells the others."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

Found = TypeVar("Found")


def by_main(accelerator: Accelerator, look: Callable[[], Found]) -> Found:
    """Return what the main process finds, on every process; all must call.

    What files say must be decided once: another machine may see a new file a moment later, and whoever
    then takes another way than the rest waits for them for ever.

    Args:
        look: called on the main process alone; what it returns can be pickled.
    """
    if accelerator.num_processes == 1:
        return look()
    found = [look() if accelerator.is_main_process else None]
    broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]  # what the main process has put there
