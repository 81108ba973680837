"""Give the SFT baseline a fair chance: train it with several learning rates and weight decays.

Trains the first stage of a configuration once per combination (each is an ordinary run, so an
interrupted sweep goes on), and prints a table of validation accuracies for docs/results.md:

    .venv/bin/python benchmarks/sft_sweep.py configs/demo.toml --rates 5e-4 1e-3 2e-3 --decays 0.01 0.1
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from reftune.config import Config
from reftune.config.files import load_config
from reftune.pipeline import run_stages


def main() -> None:
    """Run the sweep and print its table, best first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--rates", nargs="+", default=["5e-4", "1e-3", "2e-3"])
    parser.add_argument("--decays", nargs="+", default=["0.01", "0.1"])
    parser.add_argument("--set", action="append", default=[], help="as in `reftune sft --set`")
    options = parser.parse_args()
    rows = []
    for rate, decay in itertools.product(options.rates, options.decays):
        config = _config(options.config, rate, decay, options.set)
        run_stages(config, ("sft",))
        result = json.loads((config.run_dir / "sft" / "result.json").read_text(encoding="utf-8"))
        rows.append((rate, decay, result))
    print("| learning rate | weight decay | best validation accuracy | at epoch |\n|---|---|---|---|")
    for rate, decay, result in sorted(rows, key=lambda row: -_accuracy(row[2])):
        print(f"| {rate} | {decay} | {_accuracy(result):.1%} | {result['best_epoch']} |")


def _config(path: Path, rate: str, decay: str, overrides: list[str]) -> Config:
    settings = [f"sft.learning_rate={rate}", f"sft.weight_decay={decay}", *overrides]
    return load_config(path, settings, name=f"{path.stem}-sweep-{rate}-{decay}")


def _accuracy(result: dict[str, Any]) -> float:
    return float(result["best_validation_accuracy"])


if __name__ == "__main__":
    main()
