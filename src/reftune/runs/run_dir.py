"""The directory of a run: whose it is, what it was made from, and its problems."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reftune.config import Config
from reftune.config.files import changed_settings, dump_config, load_config
from reftune.files import atomic_directory, atomic_file, make_directory, write_json
from reftune.methods import METHODS, directory_of
from reftune.problem import UserError, shown

# What a stage has saved: from then on a directory belongs to its configuration and its problems.
SAVED = ("*/result.json", "*/model", "*/checkpoints/step-*", "*/samples.jsonl", "evaluation/*.jsonl")

GATE = "sft.warmup_gate"  # of whether the methods start, and not of what they start from
RESUMED_BY_ROWS = ("warmup_samples", "evaluation")  # stages without checkpoints


def has_begun(run_dir: Path) -> bool:
    """Tell whether anything was saved in a run; a start that failed before leaves nothing to lose."""
    places = [pattern for one in SAVED for pattern in (one, f"reranker/{one}")]
    return any(any(run_dir.glob(pattern)) for pattern in places)


def complete_checkpoints(stage: Path) -> list[Path]:
    """Return the complete checkpoints in a stage's directory, the newest one last."""
    return sorted((stage / "checkpoints").glob("step-[0-9]*"))


def choose_model(source: str, model: str | None = None) -> tuple[str | None, str]:
    """Return the name and the directory of a run's model.

    Args:
        source: directory of a run; a model's directory, file or name stands for itself, and has no name.
        model: which one of the run; default: the last one of METHODS that is finished.

    Raises UserError where there is none.
    """
    run = Path(os.path.expanduser(source))
    if not (run / "config.toml").is_file():
        if model is not None:
            raise UserError(
                f"--model {model}: {source} is no run, but a model itself; leave --model out"
            )
        return None, source
    places = {name: run / directory_of(name) / "model" for name in METHODS}
    ready = [name for name, place in places.items() if (place / "config.json").exists()]
    done = [x for x in ready if x == "warmup" or (run / METHODS[x].stage / "result.json").exists()]
    if model is None and not done:
        raise UserError(f"{source}: no model of this run is finished; `reftune run` goes on with it")
    chosen = done[-1] if model is None else model
    if chosen not in ready:
        raise UserError(f"--model {model}: {source} has none of this name; it has {', '.join(ready)}")
    return chosen, str(places[chosen])


def model_of_run(directory: str | Path) -> tuple[Path, str] | None:
    """Return the run that a model's directory lies in, and the model's name there; None: in no run."""
    path = Path(os.path.expanduser(directory)).absolute()
    for name in METHODS:
        run = path.parent.parent
        if path == run / directory_of(name) / "model" and (run / "config.toml").is_file():
            return run, name
    return None


def goes_on(config: Config) -> str:
    """Say where an interrupted run goes on when it is started again."""
    for stage in config.lineup.stages:
        directory = config.run_dir / stage
        if (directory / "result.json").exists():
            continue
        if found := complete_checkpoints(directory):
            step = found[-1].name.removeprefix("step-").lstrip("0")
            return f"the same command goes on with {stage} behind step {step}, saved in {found[-1]}"
        if stage in RESUMED_BY_ROWS and any(directory.rglob("*.jsonl")):
            return f"the same command goes on with {stage} where it was"
        return f"the same command begins {stage} anew, which has no checkpoint yet"
    return "all stages are finished, and the same command writes the report"


def open_run_dir(config: Config, command: Sequence[str], processes: int, device: str) -> None:
    """Create the run directory, or make sure that it belongs to this very configuration.

    Raises UserError if it holds a run of another one; budgets of the machine, `methods`
    with the settings of those that are new, `evaluation.base` and `sft.warmup_gate` may differ.
    """
    path = config.run_dir / "config.toml"
    if path.exists() and has_begun(config.run_dir):
        old = load_config(path)
        _compare_configs(old, config)
        if (old.lineup, old.sft) != (config.lineup, config.sft):
            _write_config(path, config)
        return
    make_directory(config.run_dir)
    facts = {
        "versions": {
            name: known_version(name) for name in ("reftune", "torch", "transformers", "accelerate")
        },
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "seed": config.seed,
        "processes": processes,
        "device": device,
        "command": " ".join(command or sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(config.run_dir / "run.json", facts)
    _write_config(path, config)


def take_over(config: Config, stage: str) -> None:
    """Take a finished stage of the run `start_from` instead of running it here once more.

    Warm-up samples that the other run has not drawn will be drawn here. Raises UserError if that run
    has no finished SFT stage, or one with other settings than this run's would have.
    """
    if config.start_from is None or (config.run_dir / stage / "result.json").exists():
        return
    source = Path(config.start_from)
    if not (source / "config.toml").exists() or not (source / "sft" / "result.json").exists():
        raise UserError(f"start_from = {source}: no run directory with a finished SFT stage")
    changes = sorted(changed_settings(load_config(source / "config.toml"), config))
    if keys := [key for key in changes if _matters_to_start(key, stage)]:
        raise UserError(f"start_from = {source}: that run differs in {', '.join(keys)}; make them equal")
    if (source / stage / "result.json").exists():
        warmup = ["warmup"] if stage == "sft" and config.sft.warmup_epochs else []
        for name in (*warmup, stage):
            with atomic_directory(config.run_dir / name) as directory:
                shutil.copytree(source / name, directory, copy_function=_link, dirs_exist_ok=True)


def known_version(name: str) -> str:
    """Return a package's version; whoever runs from a source folder has installed none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def git_commit(package: Path = Path(__file__).parents[1]) -> str | None:
    """Return the commit of reftune's own checkout, None where it is installed in some other way.

    A virtual environment inside another project's repository must not pass that one's commit off.
    """
    try:
        found = subprocess.run(
            ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    root, commit = found.stdout.splitlines()
    own = Path(root) / "src/reftune/__init__.py"
    return commit if own.exists() and own.samefile(package / "__init__.py") else None


def _compare_configs(old: Config, new: Config) -> None:
    free = ("compute.", "output_dir", "name", "methods", "evaluation.base", GATE, *_added(old, new))
    if keys := [key for key in sorted(changed_settings(old, new)) if not key.startswith(free)]:
        own = old.reward.function if "reward.function" in keys else None
        again = "" if own is None else f"give it the reward {shown(own)} again, "
        raise UserError(
            f"{new.run_dir} holds a run of another configuration (different: {', '.join(keys)});"
            f" {again}choose another --name, or delete that directory"
        )


def _added(old: Config, new: Config) -> list[str]:
    """Return the sections of stages that only the second asks for, and that have never begun."""
    stages = [stage for stage in new.lineup.stages if stage not in old.lineup.stages]
    return [f"{stage}." for stage in stages if not (new.run_dir / stage).exists()]


def _matters_to_start(key: str, stage: str) -> bool:
    """Tell whether a setting changes what the SFT stage, or the warm-up samples, would be."""
    if stage == "warmup_samples" and key.startswith("warmup_samples."):
        return True
    sections = ("seed", "data.", "prompt.", "model.", "lora.", "sft.")
    critics = "model.value_"  # of which SFT has none
    return key == "reward.function" or (
        key.startswith(sections) and not key.startswith(critics) and key != GATE
    )


def _link(source: str, target: str) -> None:
    """Link a file, or copy it to another file system: models are large, and never written in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_config(path: Path, config: Config) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(dump_config(config), encoding="utf-8")
