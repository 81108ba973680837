"""What was found out about one part of a machine, and how the terminal shows it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "fails"]
MARK_WIDTH, PART_WIDTH = 7, 12


@dataclass(frozen=True, slots=True)
class Finding:
    """One part of a machine: whether it works, and what to do where it does not.

    Args:
        part: what was looked at, such as "disk".
        state: "fails" where a run would; "note" where one would go on, with less.
        what: what is there, in a sentence.
        fix: what to do about it.
    """

    part: str
    state: State
    what: str
    fix: str = ""


def ok(part: str, what: str) -> Finding:
    """Return that a part works."""
    return Finding(part, "ok", what)


def note(part: str, what: str, fix: str = "") -> Finding:
    """Return that a run would go on with less than there could be."""
    return Finding(part, "note", what, fix)


def fails(part: str, what: str, fix: str) -> Finding:
    """Return that a run would fail."""
    return Finding(part, "fails", what, fix)


def shown(finding: Finding, width: int) -> str:
    """Return a finding as lines of at most `width` columns."""
    head = f"{finding.state:<{MARK_WIDTH}}{finding.part:<{PART_WIDTH}}"
    told = [finding.what, f"-> {finding.fix}"] if finding.fix else [finding.what]
    margin = " " * len(head)
    lines = [
        line for text in told
        for line in textwrap.wrap(
            text, max(width, len(head) + 20), initial_indent=margin, subsequent_indent=margin,
            break_long_words=False, break_on_hyphens=False,
        )
    ]  # fmt: skip
    return "\n".join([head + lines[0].lstrip(), *lines[1:]])
