"""Run the paper's comparison at laptop scale, and write what was found: `make reproduce-mini`."""

from __future__ import annotations

import argparse
import sys

from reftune.problem import UserError
from reftune.reporting.comparison.compare import compare_runs
from reftune.reporting.comparison.page import write_comparison
from reproduction.claims import find
from reproduction.plan import CONFIG_NAMES, MAIN, cell, cells
from reproduction.results import write_results
from reproduction.series import ROOT, run_all

DOCS, PAPER = ROOT / "docs", ROOT / "reproduction" / "paper.toml"


def main() -> None:
    """Run what is not finished, then write tables, figures and the state of every claim."""
    parser = argparse.ArgumentParser(prog="reproduction", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ablation-seeds", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--only", nargs="+", metavar="CONFIG", choices=CONFIG_NAMES,
        help=f"do only these runs, of {', '.join(CONFIG_NAMES)}; tables are left as they are",
    )  # fmt: skip
    options = parser.parse_args()
    seeds, ablation_seeds = options.seeds, options.ablation_seeds
    try:
        wanted = options.only or CONFIG_NAMES
        run_all([one for one in cells(seeds, ablation_seeds) if one.config in wanted])
        if options.only:
            return
        runs = [cell(config, seed).run_dir for config in MAIN for seed in seeds]
        page = write_comparison(compare_runs(runs, reported=PAPER), DOCS / "mini")
        write_results(DOCS / "results.md", find(seeds, ablation_seeds), seeds, ablation_seeds)
    except UserError as error:
        sys.exit(f"reproduction: {error}")
    print(f"reproduction: {DOCS / 'results.md'} and {page}")


if __name__ == "__main__":
    main()
