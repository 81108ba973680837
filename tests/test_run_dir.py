"""Whose a run directory is, and which commit a run claims to be made from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from reftune.runs.run_dir import git_commit


def checkout(root: Path) -> str:
    """Make a repository with a copy of the package's first file in src/reftune; return its commit."""
    (root / "src/reftune").mkdir(parents=True)
    (root / "src/reftune/__init__.py").write_text("")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm first"):
        subprocess.run(["git", "-C", str(root), *command.split()], check=True)
    found = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, check=True
    )
    return found.stdout.decode().strip()


def test_only_the_own_checkouts_commit_is_told(tmp_path: Path) -> None:
    commit = checkout(tmp_path / "project")
    own = tmp_path / "project/src/reftune"
    installed = tmp_path / "project/.venv/lib/site-packages/reftune"
    shutil.copytree(own, installed)
    assert git_commit(own) == commit
    assert git_commit(installed) is None
    assert git_commit(tmp_path) is None  # in no repository
