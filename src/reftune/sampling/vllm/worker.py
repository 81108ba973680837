"""What vLLM's workers, perhaps processes of their own, learn from us: to take weights out of files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


class WeightsFromFiles:
    """Methods for a worker of vLLM; it is named to the engine as `worker_extension_cls`."""

    reload_weights: Any  # the worker's own

    def reload_files(self, directory: str) -> None:
        """Take over all weights in the safetensors files of a directory."""
        self.reload_weights(weights_iterator=_tensors(Path(directory)))


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no dictionary
                yield name, file.get_tensor(name)
