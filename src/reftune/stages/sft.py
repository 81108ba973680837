"""The first stage: supervised fine-tuning. One run gives two models: the warm-up, and the SFT baseline.

As in the paper, the warm-up is an early epoch of the very run whose best epoch is the baseline.
"""

import sys
from collections import Counter
from typing import Any

from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.stages.run import Run
from reftune.stages.stage import RESULT_KEYS, Stage
from reftune.stages.supervised import fit


def start(run: Run) -> None:
    """Run the stage from the base model. Raises UserError where no problem has a right chain."""
    if not run.annotated:
        raise UserError(
            f"{run.config.data.train}: no problem has a {run.config.data.cot} chain; SFT needs annotated"
            " chains: `reftune data prepare` derives programs from some data sets"
        )
    _check_chains(run)
    policy, prompter = run.base_policy()
    run_sft(run.stage("sft", prompter, run.annotated), policy)


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


def _check_chains(run: Run) -> None:
    """Refuse programs of which none gives its answer; count those that do not."""
    config, problems = run.config, run.annotated
    if config.data.cot == "natural" or config.reward.function is not None:
        return
    verdicts = run.judge(problems, [p.chain or "" for p in problems], [True] * len(problems))
    wrong = [i for i, verdict in enumerate(verdicts) if not verdict.correct]
    if not wrong:
        return
    first, status = problems[wrong[0]].id, Counter(verdicts[i].status for i in wrong).most_common(1)
    told = f"{len(wrong)} of {len(problems)} annotated programs do not give their answer"
    told = f"{config.data.train}: {told} (first: {first}; most often: {status[0][0]})"
    if len(wrong) == len(problems):
        raise UserError(f"{told}; `reftune data check` lists them")
    if run.accelerator.is_main_process:
        print(told, file=sys.stderr)
