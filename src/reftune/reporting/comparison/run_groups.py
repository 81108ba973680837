"""Which runs are seeds of one cell, and what tells the groups of them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reftune.config_files import flat_settings
from reftune.problem import UserError
from reftune.reporting.comparison.finished_runs import FinishedRun

# Runs that differ in nothing else are seeds of one cell: these settings say who a run is, how far it
# went, and on what machine.
IDENTITY = ("name", "seed", "output_dir", "start_from", "methods")
EXTENT = ("evaluation.samples", "evaluation.rerank", "evaluation.bootstrap")
CHAINS = {"natural": "N-CoT", "program": "P-CoT"}
LONGEST_LABEL = 40  # characters; beyond, a group is called by its run


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed only.

    `label` tells the group from the others (empty if there is one); `changes` are the settings in which
    it differs from the first group.
    """

    label: str
    runs: list[FinishedRun]
    changes: dict[str, Any]


def group_runs(runs: Sequence[FinishedRun]) -> list[RunGroup]:
    """Put runs of the same settings together, by seed; the groups are in the order given.

    Raises UserError if two of them have the same seed, too.
    """
    cells: dict[str, list[FinishedRun]] = {}
    for run in runs:
        cell = cells.setdefault(repr(_settings(run)), [])
        twin = next((other for other in cell if other.config.seed == run.config.seed), None)
        if twin is not None:
            raise UserError(
                f"{twin.directory} and {run.directory} have the same settings and the same seed;"
                " leave one of them out"
            )
        cell.append(run)
    groups = [sorted(cell, key=lambda run: run.config.seed) for cell in cells.values()]
    labels = _labels([group[0] for group in groups])
    return [
        RunGroup(label, group, _changes(groups[0][0], group[0]))
        for label, group in zip(labels, groups, strict=True)
    ]


def _settings(run: FinishedRun) -> dict[str, Any]:
    """Return the settings in which groups may differ."""
    free = IDENTITY + EXTENT
    flat = flat_settings(run.config).items()
    return {key: value for key, value in flat if key not in free and not key.startswith("compute.")}


def _changes(base: FinishedRun, other: FinishedRun) -> dict[str, Any]:
    before, after = _settings(base), _settings(other)
    keys = dict.fromkeys([*after, *before])
    return {key: after.get(key) for key in keys if before.get(key) != after.get(key)}


def _labels(firsts: Sequence[FinishedRun]) -> list[str]:
    """Name each group, given one run of each, by what tells it from the others."""
    if len(firsts) == 1:
        return [""]
    leaves = Counter(key.rpartition(".")[2] for key in flat_settings(firsts[0].config))
    several = len({run.config.data.cot for run in firsts}) > 1
    bases: dict[
        str, FinishedRun
    ] = {}  # the other settings change with the kind of chain: compare within it
    labels = []
    for run in firsts:
        base = bases.setdefault(run.config.data.cot, run)
        parts = [CHAINS[run.config.data.cot]] if several else []
        parts += [_change(key, value, leaves) for key, value in _changes(base, run).items()]
        label = ", ".join(parts) or _base_label(firsts, leaves)
        labels.append(label if len(label) <= LONGEST_LABEL else run.directory.name)
    paths = [str(run.directory) for run in firsts]
    return [
        path if labels.count(label) > 1 else label for label, path in zip(labels, paths, strict=True)
    ]


def _base_label(firsts: Sequence[FinishedRun], leaves: Mapping[str, int]) -> str:
    """Name the first group: by its value if all others differ from it in one setting, else "main"."""
    changed = {key for run in firsts for key in _changes(firsts[0], run)}
    if len(changed) > 1:
        return "main"
    return ", ".join(_change(key, _settings(firsts[0]).get(key), leaves) for key in changed)


def _change(key: str, value: Any, leaves: Mapping[str, int]) -> str:
    """Return "kl_coef = 0", with the section in front where several sections have such a key."""
    leaf = key.rpartition(".")[2]
    shown = f"{value:g}" if isinstance(value, float) else "unset" if value is None else str(value)
    return f"{leaf if leaves[leaf] <= 1 else key} = {shown}"
