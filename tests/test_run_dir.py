"""Whose a run directory is, and which commit a run claims to be made from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from reftune.config import Config, Model
from reftune.runs.run_dir import git_commit, goes_on, has_begun, known_version


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


@pytest.mark.parametrize(
    "saved",
    [
        "sft/result.json", "warmup/model/config.json", "ppo/checkpoints/step-00000001/state.json",
        "warmup_samples/samples.jsonl", "evaluation/sft.jsonl", "reranker/sft/checkpoints/step-1/x",
        "reranker/sft/model/config.json",
    ],
)  # fmt: skip
def test_a_run_has_begun_once_a_stage_has_saved_something(tmp_path: Path, saved: str) -> None:
    for name in (
        "config.toml",
        "run.json",
        "data/train.jsonl",
        "given/train.jsonl",
        "sft/metrics.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert not has_begun(tmp_path), name
    (tmp_path / saved).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / saved).touch()
    assert has_begun(tmp_path)


def test_an_interrupted_run_is_told_where_it_goes_on(tmp_path: Path) -> None:
    config = Config(output_dir=str(tmp_path), name="run", model=Model(scratch="tiny"))
    config = config.model_copy(update={"methods": ["offline_st", "reft"]})
    for done, words in (
        ("run.json", "the same command begins sft anew, which has no checkpoint yet"),
        ("sft/checkpoints/.step-00000007.partial/x", "the same command begins sft anew"),
        (
            "sft/checkpoints/step-00000400/x",
            "goes on with sft behind step 400, saved in {sft}/step-00000400",
        ),
        (
            "sft/checkpoints/step-00001000/x",
            "goes on with sft behind step 1000, saved in {sft}/step-00001000",
        ),
        ("sft/result.json", "begins warmup_samples anew"),
        ("warmup_samples/metrics.jsonl", "goes on with warmup_samples where it was"),
        ("warmup_samples/result.json", "begins offline_st anew"),
        ("offline_st/result.json", "begins ppo anew"),
        ("ppo/metrics.jsonl", "begins ppo anew"),
        ("ppo/result.json", "begins evaluation anew"),
        ("evaluation/pieces/warmup/greedy-00000000.jsonl", "goes on with evaluation where it was"),
        ("evaluation/warmup.jsonl", "goes on with evaluation where it was"),
        ("evaluation/result.json", "all stages are finished, and the same command writes the report"),
    ):
        (config.run_dir / done).parent.mkdir(parents=True, exist_ok=True)
        (config.run_dir / done).touch()
        place = config.run_dir / "sft/checkpoints"
        assert words.format(sft=place) in goes_on(config), done


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert known_version("reftune-of-another-planet") == "not installed"
    assert known_version("torch")[0].isdigit()
