"""What is installed beside the core, and what a run needs of it."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from reftune.config import Config
from reftune.config.data import GYM
from reftune.planning.checkup.finding import Finding, fails, note, ok
from reftune.problem import UserError
from reftune.sampling.vllm.client import ask_server

# package: (extra, what it serves)
EXTRAS = {
    "peft": ("lora", "LoRA"),
    "gguf": ("gguf", "models in GGUF files"),
    "bitsandbytes": ("8bit", "an optimizer in 8 bits on GPUs"),
    "reasoning_gym": ("gym", "generated problems with verifiers"),
    "vllm": ("vllm", "vLLM as the sampler"),
}
HUB, HUB_SECONDS = "https://huggingface.co", 5.0
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def extras(config: Config | None) -> Iterator[Finding]:
    """Tell which optional packages are there, and which the run lacks."""
    lacking = [name for name in EXTRAS if find_spec(name) is None]
    there = [f"{name} {_version(name)}" for name in EXTRAS if name not in lacking]
    yield ok("packages", f"beside the core: {', '.join(there) or 'none'}")
    needed = needs(config) if config is not None else {}
    for name in needed.keys() & lacking:
        told = f"{name} is not installed, and {needed[name]} needs it"
        yield fails("packages", told, f"pip install 'reftune[{EXTRAS[name][0]}]'")
    if lacking and config is None:
        told = ", ".join(f"{name} ({EXTRAS[name][1]})" for name in lacking)
        fix = f"where you want them: pip install 'reftune[{','.join(EXTRAS[n][0] for n in lacking)}]'"
        yield note("packages", f"not there: {told}", fix)


def needs(config: Config) -> dict[str, str]:
    """Return which optional packages a run needs, and which key says so."""
    model, data, found = config.model, config.data, {}
    if config.lora.rank:
        found["peft"] = f"lora.rank = {config.lora.rank}"
    if model.optimizer == "adamw_8bit":
        found["bitsandbytes"] = f'model.optimizer = "{model.optimizer}"'
    if str(model.name or "").endswith(".gguf"):
        found["gguf"] = f"model.name = {model.name}"
    if any(str(source).startswith(GYM) for source in (*data.trained_on, *data.tested_on)):
        found["reasoning_gym"] = "[data]"
    if config.compute.sampler == "vllm" and config.compute.vllm_server is None:
        found["vllm"] = 'compute.sampler = "vllm"'
    return found


def sampler(config: Config | None) -> Iterator[Finding]:
    """Tell what draws a run's samples, and whether that server answers, where it names one."""
    if config is None or (address := config.compute.vllm_server) is None:
        which = "builtin" if config is None else config.compute.sampler
        yield ok("sampler", f'in this process: compute.sampler = "{which}"')
        return
    try:
        ask_server(address)
    except UserError as error:
        yield fails("sampler", str(error), "start `reftune serve` there, or correct compute.vllm_server")
    else:
        yield ok("sampler", f"the server at {address} answers")


def trackers(config: Config | None) -> Iterator[Finding]:
    """Tell which trackers a run can report to."""
    installed = sorted(str(one.value) for one in get_available_trackers())
    usable = [name for name in installed if name in LoggerType.list()]
    missing = [] if config is None else [n for n in config.compute.trackers if n not in usable]
    for name in missing:
        fix = f"pip install {name}, or leave it out of compute.trackers"
        yield fails("trackers", f"{name} is not installed, and compute.trackers names it", fix)
    if not missing:
        yield ok("trackers", ", ".join(usable) or "none; a run writes its metrics to files anyway")


def model(config: Config | None) -> Iterator[Finding]:
    """Tell whether models can be had by name, or the run's own lies on the disk."""
    name = config.model.name if config is not None else None
    if name is not None and Path(name).exists():
        yield ok("model", f"{name} is on the disk")
        return
    if config is not None and name is None:
        return
    wanted = f"{name} is no file or directory here" if name is not None else ""
    if offline := next((key for key in OFFLINE if os.environ.get(key)), ""):
        told, fix = f"{offline} is set: no downloads", "give model.name as a directory or GGUF file"
    elif reason := unreachable(HUB):
        told, fix = f"{HUB} cannot be reached ({reason})", "give model.name as a directory or GGUF file"
    else:
        yield ok("model", f"{HUB} can be reached" + (f": {name} is looked for there" if name else ""))
        return
    told = f"{wanted}, and {told}" if wanted else told
    yield fails("model", told, fix) if wanted else note("model", told, fix)


def unreachable(address: str) -> str:
    """Return why nothing answers at an address, nothing where something does."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS)
    except urllib.error.HTTPError:
        return ""  # it answers
    except OSError as error:
        return str(getattr(error, "reason", error))
    return ""


def _version(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "of unknown version"
