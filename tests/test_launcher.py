from __future__ import annotations

import socket

import pytest

from reftune.launcher import check_launcher, free_port, local_processes, rank
from reftune.problem import UserError


@pytest.mark.parametrize(("told", "expected"), [("", (0, 1)), ("3", (3, 3)), ("0", (0, 1))])
def test_a_launcher_tells_numbers(
    monkeypatch: pytest.MonkeyPatch, told: str, expected: tuple[int, int]
) -> None:
    for name in ("RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, told) if told else monkeypatch.delenv(name, raising=False)
    assert (rank(), local_processes()) == expected


@pytest.mark.parametrize("told", ["", "a", "-", "1.5"])
def test_what_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("RANK", told)
    with pytest.raises(UserError, match=r"the environment says RANK = .*; unset it"):
        rank()


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_whatever_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "z")
    with pytest.raises(UserError, match=f"^the environment says {name} = 'z', which is no number"):
        check_launcher()


def test_a_launcher_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its store elsewhere the processes look for each other by themselves."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port := free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    check_launcher()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UserError, match=rf"^the launcher does not answer at 127.0.0.1:{port} .*again$"):
        check_launcher()
    with socket.create_server(("127.0.0.1", port)):
        check_launcher()
