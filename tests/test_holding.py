"""A second start of a run is refused as long as the first is alive, here or on another machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reftune.launcher import tell_once
from reftune.problem import UserError
from reftune.runs import holding
from reftune.runs.holding import HOLDER, only_start

# The second argument is the machine that it is on; the system's lock does not reach from there to here.
HOLD = """
import sys, time
from pathlib import Path
from reftune.runs import holding
if len(sys.argv) > 2:
    holding.BOOT, holding.BEAT = Path(sys.argv[2]), 0.2
    def acquire(lock): raise NotImplementedError
    holding.FileLock.acquire = acquire
with holding.only_start(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
REFUSED = "works on this run; wait for its end, or choose another --name"


@contextmanager
def held(run_dir: Path, *machine: str) -> Iterator[subprocess.Popen[bytes]]:
    """Let another process hold a run for a while."""
    command = [sys.executable, "-c", HOLD, str(run_dir), *machine]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        try:
            yield other
        finally:
            other.kill()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a file that names another machine; looks at it do not take long."""
    monkeypatch.setattr(holding, "WATCHED", 2.0)
    tell_once.cache_clear()
    (tmp_path / "boot_id").write_text("another machine\n")
    return str(tmp_path / "boot_id")


def test_a_second_start_of_a_run_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with held(tmp_path) as other:
        with pytest.raises(UserError) as error, only_start(tmp_path):
            pass
        who = f"process {other.pid} on {holding.socket.gethostname()}"
        assert str(error.value) == f"{tmp_path}: another process ({who}) {REFUSED}"
    assert (tmp_path / HOLDER).exists(), "it was killed, as the system does when memory runs out"
    with only_start(tmp_path):
        pass
    assert not (tmp_path / HOLDER).exists()
    with only_start(tmp_path):  # and the first one here has let go
        pass


def test_a_start_on_another_machine_is_refused_while_it_gives_signs(
    tmp_path: Path, elsewhere: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with held(run, elsewhere) as other:
        with pytest.raises(UserError) as error, only_start(run):
            pass
        who = f"process {other.pid} on {holding.socket.gethostname()}"
        assert str(error.value) == f"{run}: another process ({who}) {REFUSED}"
    capfd.readouterr()
    tell_once.cache_clear()
    with only_start(run):  # it was killed
        assert capfd.readouterr().err.splitlines() == [
            f"reftune: {run}: {who} worked on it; looking for 2 s whether it still does",
            f"reftune: {run}: it gives no sign of life; going on in its place",
        ]


def test_a_start_on_another_machine_that_has_ended_costs_no_time(
    tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as there:
        there.setattr(holding, "BOOT", Path(elsewhere))
        with only_start(tmp_path):
            pass
    with only_start(tmp_path):
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"machine": 1}'])
def test_a_holder_that_cannot_be_read_holds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / HOLDER).write_text(text)
    with only_start(tmp_path):
        assert holding._read(tmp_path)


def test_a_run_that_was_removed_meanwhile_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "BEAT", 0.01)
    run = tmp_path / "run"
    with only_start(run):
        first = holding._read(run)
        while holding._read(run) == first:
            pass
        for path in run.iterdir():
            path.unlink()
        run.rmdir()
        holding.threading.Event().wait(0.1)
        assert not run.exists()
