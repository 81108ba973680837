"""What helps PPO, measured: each technique of configs/techniques/ppo from the same warm-ups.

    python -m reproduction.techniques [--chains program natural] [--seeds 1 2 3 4 5] [--only group ...]

The same command resumes what was broken off. What every run came to is kept in reproduction/outcomes,
and what is there is not run again (delete its line for that). A table goes into docs/results.md: of
each technique the accuracy on the test questions, the paired differences to the baseline and to the
group's mean without a critic, and how much of the returns its critic explains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from reftune.evaluation.seeds import compare
from reftune.evaluation.statistics import holm
from reftune.problem import UserError
from reftune.reporting.pages import interval, p_value, percent, signed
from reproduction.outcomes import LAST, Outcome, keep, kept
from reproduction.series import ROOT, Cell, put_between, run_all

SERIES, CHAINS = "techniques", ("program", "natural")
BASELINE, NO_CRITIC = "demo", "group"
CONFIGS = ROOT / "configs" / SERIES / "ppo"
BEGIN, END = "<!-- techniques: begin -->\n", "<!-- techniques: end -->\n"
RESAMPLES = 10_000

Right = Mapping[int, npt.NDArray[np.int64]]  # by seed


def main() -> None:
    """Run what is not kept yet, then write the tables of all that is."""
    parser = argparse.ArgumentParser(
        prog="reproduction.techniques", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--chains", nargs="+", choices=CHAINS, default=CHAINS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5])
    parser.add_argument("--only", nargs="+", choices=techniques(), help="default: all")
    options = parser.parse_args()
    names = [BASELINE, *(n for n in options.only or techniques() if n != BASELINE)]
    try:
        for chains in options.chains:
            run_all(cells(chains, names, options.seeds), finish=_keep)
        put_between(ROOT / "docs" / "results.md", BEGIN, END, tables)
    except UserError as error:
        sys.exit(f"reproduction: {error}")


def techniques() -> list[str]:
    """Return the names of all techniques."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def cells(chains: str, names: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Return what is to run in order, one seed after the other; a seed's warm-up comes first."""
    done = kept(SERIES)
    found = []
    for seed in seeds:
        left = [Cell(chains, seed, SERIES, start=chains, over=name) for name in names]
        left = [cell for cell in left if cell.run_dir.name not in done]
        found += [Cell(chains, seed, SERIES), *left] if left else []
    return found


def tables() -> str:
    """Return a table for each kind of chain of which there are outcomes."""
    outcomes = kept(SERIES)
    parts = {chains: _of(chains, outcomes) for chains in CHAINS}
    found = [
        f"**{chains.capitalize()} chains**\n\n{table(part)}" for chains, part in parts.items() if part
    ]
    return "\n\n".join([*found, TOLD])


TOLD = (
    "(Differences are over the seeds and questions that both have, with 95% intervals; p-values are"
    " corrected for the techniques of a table. Explained: the share of the returns' variance that the"
    f" critic explains, in {LAST} steps at PPO's end, over all tokens and in each quarter of a response."
    " Accuracies over different seeds are not comparable; differences are. With one seed: this model,"
    " not this method.)"
)


def table(outcomes: Mapping[str, Mapping[int, Outcome]]) -> str:
    """Return a row for each technique, the baseline first.

    Args:
        outcomes: by technique and seed.
    """
    lines = [
        f"| technique | what it is | seeds | accuracy | less `{BASELINE}`, points | p (Holm) |"
        f" less `{NO_CRITIC}` | explained | by quarter |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    right = {name: _right(of) for name, of in outcomes.items()}
    others = [name for name in right if name != BASELINE and BASELINE in right]
    found = {name: _difference(right[name], right[BASELINE]) for name in others}
    corrected = dict(zip(others, holm([p for _, p in found.values()]), strict=True))
    for name in [*(n for n in (BASELINE,) if n in right), *others]:
        mean = np.mean([answers.mean() for answers in right[name].values()])
        cells = [f"`{name}`", _purpose(name), str(len(right[name])), percent(float(mean))]
        p = p_value(corrected[name]).removeprefix("p = ") if name in found else ""
        cells += [found[name][0] if name in found else "", p]
        apart = name != NO_CRITIC and NO_CRITIC in right
        cells += [_difference(right[name], right[NO_CRITIC])[0] if apart else ""]
        lines.append(f"| {' | '.join([*cells, *_explained(list(outcomes[name].values()))])} |")
    return "\n".join(lines)


def _of(chains: str, outcomes: Mapping[str, Outcome]) -> dict[str, dict[int, Outcome]]:
    """Return a kind of chain's outcomes by technique and seed."""
    found: dict[str, dict[int, Outcome]] = {}
    for run, outcome in sorted(outcomes.items()):
        kind, name, seed = run.split("-")
        if kind == chains:
            found.setdefault(name, {})[int(seed)] = outcome
    return found


def _right(outcomes: Mapping[int, Outcome]) -> Right:
    return {seed: np.array(list(map(int, one.right))) for seed, one in outcomes.items()}


def _difference(one: Right, other: Right) -> tuple[str, float]:
    """Return a paired difference with its interval, as text, and its p-value."""
    both = sorted(one.keys() & other.keys())
    if not both:
        return "", 1.0
    first, second = (np.array([side[seed] for seed in both]) for side in (other, one))
    found, p = compare(first, second, paired=True, resamples=RESAMPLES, seed=0)
    return f"{signed(float(second.mean() - first.mean()))} {interval(found)}", p


def _explained(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    """Return what the critic explains, and in each quarter; nothing where there is none."""
    if not outcomes[0].explained:
        return "", ""
    mean, *quarters = np.mean([one.explained for one in outcomes], axis=0)
    return f"{mean:.2f}", " ".join(f"{quarter:.2f}" for quarter in quarters)


def _purpose(name: str) -> str:
    """Return what a config's first line says of it."""
    return (CONFIGS / f"{name}.toml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _keep(cell: Cell) -> None:
    if cell.over:
        keep(cell)


if __name__ == "__main__":
    main()
