"""Set-up of the test suite: no network, one thread, types and tensor shapes checked at run time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for mypy

# All of this before any test imports reftune: the hub's libraries read their switches once, and the hook
# only reaches modules that are yet to be imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
install_import_hook("reftune", "conftest.check_types")

# They take minutes together: begun last, they would keep one of several workers busy alone.
LONGEST = ["test_resume.py", "test_cli.py", "test_distributed.py", "test_synthetic.py"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Let no test work with the threads of a run that one before it has made in this process."""
    torch.set_num_threads(1)  # the models here are so small that a second thread only waits


@pytest.fixture
def kept_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gradients of a step stay until the next one, for tests that look at them."""
    from reftune.training.learner import Learner  # not before the hook above is there

    drop, step = Learner.drop_gradients, Learner.step

    def stepping(self: Learner, *arguments: Any) -> dict[str, float]:
        drop(self)
        return step(self, *arguments)

    monkeypatch.setattr(Learner, "step", stepping)
    monkeypatch.setattr(Learner, "drop_gradients", lambda self: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; xdist deals files out in order (`--no-loadscope-reorder`)."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data sets beside the checkout; skip the test where there is none."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}")
    return folder


@pytest.fixture
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` converts out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
