"""All parts of a machine, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reftune.config import Config
from reftune.planning.checkup import computing, connected, software, surroundings
from reftune.planning.checkup.finding import Finding, fails

Part = Callable[[Config | None], Iterator[Finding]]
PARTS: dict[str, Part] = {
    "torch": computing.torch_found,
    "GPU": computing.gpus,
    "precision": computing.precisions,
    "threads": computing.threads,
    "memory": computing.memory,
    "executor": surroundings.executor,
    "full Python": surroundings.full_python,
    "disk": surroundings.disk,
    "packages": software.extras,
    "sampler": software.sampler,
    "trackers": software.trackers,
    "model": software.model,
    "processes": connected.processes,
}


def check_machine(config: Config | None = None) -> Iterator[Finding]:
    """Yield what each part of this machine is like, as soon as it is known.

    Args:
        config: a run that it is for; what that needs and the machine lacks then fails.
    """
    for name, part in PARTS.items():
        try:
            yield from part(config)
        except Exception as error:  # a broken machine must not end its own examination
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            yield fails(name, f"could not be examined ({reason})", "see the error, and report it")
