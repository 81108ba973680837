"""reftune's command line, started within the test's own process."""

from __future__ import annotations

import pytest

from reftune import cli


def start(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `reftune` with these arguments; return its exit code."""
    monkeypatch.setattr("sys.argv", ["reftune", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code
