"""The package as others get it: a wheel in a fresh environment, at work outside of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import tiny_run

ROOT = Path(__file__).parents[1]
SOURCES = ("src", "pyproject.toml", "README.md", "LICENSE")

pytest.importorskip("setuptools", minversion="77")


def call(*command: str | Path, **options: str | Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    found = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, **options
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the commands of an environment that has the wheel; other packages are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder)
    [wheel] = folder.glob("reftune-*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", folder / "fresh")
    commands = folder / "fresh" / "bin"
    call(*pip, "--python", commands / "python", "install", "-q", "--no-deps", "--no-index", wheel)
    [packages] = (folder / "fresh" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (commands / "monty").symlink_to(Path(sysconfig.get_path("scripts"), "monty"))  # pydantic-monty's
    return commands


def test_the_wheel_is_what_is_imported(fresh: Path, tmp_path: Path) -> None:
    place = call(fresh / "python", "-c", "import reftune; print(reftune.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(fresh.parent)


def test_a_whole_run_with_its_pages(fresh: Path, tmp_path: Path) -> None:
    config = tiny_run.write_config(tmp_path)
    short = [
        x for key in ("sft.epochs", "sft.warmup_epochs", "ppo.steps") for x in ("--set", f"{key}=2")
    ]
    told = call(fresh / "reftune", "run", config, *short, cwd=tmp_path)
    assert "ReFT" in told
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page


def test_programs_run_and_are_rewritten(fresh: Path, tmp_path: Path) -> None:
    program = "from fractions import Fraction\ndef solution():\n    return float(Fraction(1, 4) * 28)"
    code = f"import reftune; print(reftune.run_program({program!r}).value)"
    assert call(fresh / "python", "-c", code, cwd=tmp_path) == "7.0\n"
