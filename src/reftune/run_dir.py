"""The directory of a run: whose it is, what it was made from, and its problems."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reftune.checkpoints import atomic_file, write_json
from reftune.config import Config, dump_config, load_config
from reftune.problems import Splits, write_problems
from reftune.types import UserError


def open_run_dir(config: Config, command: Sequence[str], processes: int) -> None:
    """Create the run directory, or make sure that it belongs to this very configuration.

    Raises UserError if it holds a run of another one; budgets of the machine may differ.
    """
    path = config.run_dir / "config.toml"
    if path.exists():
        _compare_configs(load_config(path), config)
        return
    config.run_dir.mkdir(parents=True, exist_ok=True)
    facts = {
        "versions": {name: version(name) for name in ("reftune", "torch", "transformers", "accelerate")},
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "seed": config.seed,
        "processes": processes,
        "command": " ".join(command or sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(config.run_dir / "run.json", facts)
    with atomic_file(path) as temporary:
        temporary.write_text(dump_config(config), encoding="utf-8")


def write_splits(directory: Path, splits: Splits) -> None:
    """Write the problems of a run and what was dropped on the way to them."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation", "test"):
        write_problems(directory / f"{name}.jsonl", getattr(splits, name))
    sizes = {name: len(getattr(splits, name)) for name in ("train", "validation", "test")}
    write_json(directory / "report.json", {**sizes, **asdict(splits.report)})


def git_commit(package: Path = Path(__file__).parent) -> str | None:
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
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    keys = sorted(
        key
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key) and not key.startswith(("compute.", "output_dir", "name"))
    )
    if keys:
        raise UserError(
            f"{new.run_dir} holds a run of another configuration (different: {', '.join(keys)});"
            " choose another --name, or delete that directory"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
