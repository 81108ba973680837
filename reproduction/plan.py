"""Which runs the paper's comparison is made of."""

from __future__ import annotations

from collections.abc import Sequence

from reproduction.series import ROOT, Cell

CONFIGS = ROOT / "configs" / "mini"

MAIN = ("program", "natural")  # with all methods, each named after its kind of chain
ABLATIONS = ("no_partial_reward", "no_kl", "separate_value_model")  # from the main run's warm-up
WARMUPS = ("warmup_4", "warmup_8")  # each with a warm-up of its own
CHOICES = ("choices",)  # multiple choice: another test set
CONFIG_NAMES = (*MAIN, *ABLATIONS, *CHOICES, *WARMUPS)


def cell(config: str, seed: int) -> Cell:
    """Return the run of a config of configs/mini."""
    return Cell(config, seed, start="program" if config in ABLATIONS else None)


def cells(seeds: Sequence[int], ablation_seeds: Sequence[int]) -> list[Cell]:
    """Return all runs in order: what the claims need most comes first."""
    main = [cell(config, seed) for seed in seeds for config in MAIN]
    others = [cell(c, seed) for seed in ablation_seeds for c in (*ABLATIONS, *CHOICES, *WARMUPS)]
    return main + others
