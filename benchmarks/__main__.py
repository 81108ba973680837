"""Run every benchmark and print one Markdown document: `make bench` or `python -m benchmarks`."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import programs, rl_step, rollouts, roofline, update
from benchmarks.contest import parse_options
from benchmarks.programs import workers

PARTS = (rollouts, update, rl_step, programs, roofline)
PACKAGES = ("torch", "transformers", "trl", "pebble", "reftune")


def main() -> None:
    """Print the machine, then each benchmark with its command; a failure does not stop the others."""
    arguments = sys.argv[1:]
    options = parse_options(__doc__ or "", arguments)
    print(f"# Benchmarks of {datetime.date.today()}\n\n{machine(options.device, workers(options))}\n")
    failed = []
    for part in PARTS:
        name = part.__name__.rpartition(".")[2]
        title = (part.__doc__ or "").partition("\n")[0]
        command = shlex.join(["python", "-m", f"benchmarks.{name}", *arguments])
        print(f"## {title}\n\n    {command}\n", flush=True)
        try:
            part.main(arguments)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            print("This benchmark failed.\n", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def machine(device: str, threads: int) -> str:
    """Return what the figures depend on, as a list."""
    lines = [f"- CPU: {_cpu()}, {threads} threads", f"- Python {platform.python_version()}"]
    if device == "cuda":
        import torch

        lines.append(f"- GPU: {torch.cuda.get_device_name()}")
    return "\n".join([*lines, *(f"- {name} {_version(name)}" for name in PACKAGES)])


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"


if __name__ == "__main__":
    main()
