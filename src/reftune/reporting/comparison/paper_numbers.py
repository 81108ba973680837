"""What the ReFT paper reports (Luong et al., ACL 2024), to stand beside runs of the same setting.

Only models, data sets, kinds of chains and settings of the paper have numbers here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reftune.config import Config, Data

SAMPLES = 100  # behind the paper's votes and reranking

# Data sets by what occurs in the name of their test file or hub data set, letters and digits only;
# of several the first.
DATA_SETS = {
    "gsm8k": "gsm8k",
    "svamp": "svamp",
    "mathqanumeric": "mathqa_numeric",
    "mathqa": "mathqa_mcq",
}

# Models by the last part of their name.
MODELS = {
    "galactica-6.7b": "Galactica-6.7B",
    "codellama-7b-hf": "CodeLLAMA-7B",
    "galactica-125m": "Galactica-125M",
    "codegen-350m-mono": "Codegen-350M",
}

# Greedy accuracy in percent: data set and kind of chain of each column, a row per model.
LARGE_COLUMNS = (
    ("gsm8k", "natural"), ("gsm8k", "program"), ("svamp", "natural"), ("svamp", "program"),
    ("mathqa_mcq", "natural"), ("mathqa_mcq", "program"),
)  # fmt: skip
LARGE = {
    ("Galactica-6.7B", "sft"): (42.68, 58.83, 54.50, 70.09, 58.07, 64.61),
    ("Galactica-6.7B", "offline_st"): (42.60, 60.72, 57.90, 72.30, 60.75, 67.04),
    ("Galactica-6.7B", "online_st"): (47.84, 62.93, 59.40, 74.59, 59.38, 61.24),
    ("Galactica-6.7B", "reft"): (48.14, 68.91, 61.40, 74.09, 58.13, 70.47),
    ("CodeLLAMA-7B", "sft"): (43.59, 63.68, 58.09, 75.40, 56.01, 64.79),
    ("CodeLLAMA-7B", "offline_st"): (45.10, 68.00, 60.20, 77.69, 59.81, 68.53),
    ("CodeLLAMA-7B", "online_st"): (44.66, 67.85, 58.60, 77.40, 56.95, 68.85),
    ("CodeLLAMA-7B", "reft"): (53.30, 75.28, 64.50, 79.19, 60.13, 71.83),
}
SECOND_HAND = ("offline_st", "online_st")  # rows of LARGE that we have only read in other papers

NUMERIC_COLUMNS = (("mathqa_numeric", "natural"),)
NUMERIC = {
    ("Galactica-6.7B", "sft"): (40.08,),
    ("Galactica-6.7B", "offline_st"): (44.23,),
    ("Galactica-6.7B", "online_st"): (43.78,),
    ("Galactica-6.7B", "reft"): (45.23,),
    ("CodeLLAMA-7B", "sft"): (37.32,),
    ("CodeLLAMA-7B", "offline_st"): (41.24,),
    ("CodeLLAMA-7B", "online_st"): (38.06,),
    ("CodeLLAMA-7B", "reft"): (42.24,),
}

SMALL_COLUMNS = (("gsm8k", "program"), ("svamp", "program"), ("mathqa_mcq", "program"))
SMALL = {
    ("Galactica-125M", "sft"): (23.7, 35.6, 58.4),
    ("Galactica-125M", "reft"): (29.8, 39.4, 60.5),
    ("Codegen-350M", "sft"): (20.4, 34.4, 56.4),
    ("Codegen-350M", "reft"): (28.4, 39.3, 59.1),
}

TABLES = ((LARGE_COLUMNS, LARGE), (NUMERIC_COLUMNS, NUMERIC), (SMALL_COLUMNS, SMALL))

# With SAMPLES samples, on GSM8K with programs: majority vote, reranking.
SAMPLED = {
    ("Galactica-6.7B", "sft"): {"vote": 62.9, "rerank": 73.4},
    ("Galactica-6.7B", "reft"): {"vote": 71.9, "rerank": 76.4},
    ("CodeLLAMA-7B", "sft"): {"vote": 68.0, "rerank": 77.0},
    ("CodeLLAMA-7B", "reft"): {"vote": 78.0, "rerank": 81.2},
}

# ReFT with one thing changed, greedy.
ABLATED = ("CodeLLAMA-7B", "gsm8k", "program")
ABLATIONS = {"partial_reward": 74.40, "value_model": 75.15}


@dataclass(frozen=True)
class Reported:
    """A number of the paper, as a share; `second_hand` if it was read in somebody else's table."""

    accuracy: float
    second_hand: bool = False

    def __str__(self) -> str:
        """Return it with the paper's digits, after a tilde if it is second-hand: ~67.85%."""
        return f"{'~' if self.second_hand else ''}{100 * self.accuracy:g}%"


def reported(config: Config, model: str, aggregation: str, samples: int) -> Reported | None:
    """Return what the paper reports for a model of a run of this configuration, None if nothing.

    Args:
        model: "sft", "offline_st", ...
        aggregation: "greedy", "vote", ...
        samples: per question, behind the aggregation.
    """
    name = MODELS.get((config.model.name or "").rstrip("/").rpartition("/")[2].lower(), "")
    setting = (_data_set(config.data), config.data.cot)
    changed = _changed(config) if model == "reft" else []
    if changed:
        known = len(changed) == 1 and aggregation == "greedy" and (name, *setting) == ABLATED
        return _share(ABLATIONS.get(changed[0])) if known else None
    if aggregation != "greedy":
        known = samples == SAMPLES and setting == ("gsm8k", "program")
        return _share(SAMPLED.get((name, model), {}).get(aggregation)) if known else None
    for columns, rows in TABLES:
        if setting in columns and (name, model) in rows:
            second_hand = rows is LARGE and model in SECOND_HAND
            return _share(rows[name, model][columns.index(setting)], second_hand)
    return None


def _data_set(data: Data) -> str:
    """Tell by its name which of the paper's data sets a run was tested on, uncut."""
    if data.max_train is not None or data.max_test is not None:
        return ""
    letters = re.sub(r"[^a-z0-9]", "", data.test.rpartition("/")[2].lower())
    return next((name for part, name in DATA_SETS.items() if part in letters), "")


def _changed(config: Config) -> list[str]:
    """Return in which of the points that the paper ablates, or never varies, this run differs."""
    ppo = config.ppo
    changed = {
        "partial_reward": config.reward.partial_reward == 0,
        "value_model": config.model.value_model != "shared",
        "kl_coef": ppo.kl_coef == 0,  # collapses
        "advantage": ppo.advantage != "gae",
        "reward": config.reward.function is not None,
    }
    return [name for name, differs in changed.items() if differs]


def _share(percent: float | None, second_hand: bool = False) -> Reported | None:
    return None if percent is None else Reported(round(percent / 100, 6), second_hand)
