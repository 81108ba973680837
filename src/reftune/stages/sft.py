"""Stage 1: supervised fine-tuning. One run gives two models: the warm-up, and the SFT baseline.

As in the paper, the warm-up is an early epoch of the very run whose best epoch is the baseline.
"""

from __future__ import annotations

from typing import Any

from reftune.model.policy import PolicyWithValue
from reftune.stages.stage import RESULT_KEYS, Stage
from reftune.stages.supervised import fit


def run_sft(stage: Stage, policy: PolicyWithValue) -> dict[str, Any]:
    """Train on the annotated chains; write `warmup/model` and `sft/model` into the run directory.

    Returns what it also writes to `sft/result.json`.
    """
    settings = stage.config.sft
    examples = [stage.prompter.encode_example(problem) for problem in stage.train]
    state = fit(stage, policy, settings, examples, settings.warmup_epochs)
    keys = ("best_epoch", *RESULT_KEYS, "warmup_validation_accuracy")
    result = {key: state[key] for key in keys} | {"warmup_epoch": settings.warmup_epochs}
    return stage.finish(result)
