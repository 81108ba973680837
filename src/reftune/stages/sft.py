"""The first stage: supervised fine-tuning. One run gives two models: the warm-up, and the SFT baseline.

As in the paper, the warm-up is an early epoch of the very run whose best epoch is the baseline. With
`sft.warmup_epochs = 0` there is none, and with `sft.epochs = 0` no such stage.
"""

import sys
from collections import Counter
from typing import Any

from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.stages.run import Run
from reftune.stages.stage import RESULT_KEYS, Stage
from reftune.stages.supervised import fit
from reftune.stages.warmup_choice import chosen


def start(run: Run) -> None:
    """Run the stage from the base model. Raises UserError where no problem has a right chain."""
    if not run.annotated:
        ways = "SFT needs annotated chains: `reftune data prepare` derives programs from some data sets"
        if run.config.model.name is not None:
            ways += "; without SFT, sft.epochs = 0, the methods start from the given model"
        raise UserError(
            f"{run.config.data.training_data}: no problem has a {run.config.data.cot} chain; {ways}"
        )
    _check_chains(run)
    _tell_shares(run)
    policy, prompter = run.base_policy()
    run_sft(run.stage("sft", prompter, run.annotated), policy)


def run_sft(stage: Stage, policy: PolicyWithValue) -> dict[str, Any]:
    """Train on the annotated chains; write `sft/model`, and `warmup/model` if there is a warm-up.

    Returns what it also writes to `sft/result.json`.
    """
    settings = stage.config.sft
    examples = [stage.prompter.encode_example(problem) for problem in stage.train]
    state = fit(stage, policy, settings, examples, settings.warmup_epochs)
    result = {key: state[key] for key in ("best_epoch", *RESULT_KEYS)}
    if settings.warmup_epochs == "auto":
        result |= chosen(stage.config, state)
        _tell_start(stage, result)
    elif settings.warmup_epochs:
        key = "warmup_validation_accuracy"
        result |= {key: state[key], "warmup_epoch": settings.warmup_epochs}
    return stage.finish(result)


def _tell_start(stage: Stage, result: dict[str, Any]) -> None:
    """Say which epoch was chosen, and by what."""
    if stage.accelerator.is_main_process:
        found = f"pass@1 {result['warmup_pass_at_1']:.1%}, pass@{result['warmup_k']}"
        found += f" {result['warmup_pass_at_k']:.1%} on validation"
        print(f"sft: the methods start from epoch {result['warmup_epoch']}: {found}", file=sys.stderr)


def _tell_shares(run: Run) -> None:
    """Say how many questions SFT learns from where some have no chain."""
    chains, questions = len(run.annotated), len(run.splits.train)
    if chains < questions and run.accelerator.is_main_process:
        told = (
            f"{run.config.data.training_data}: {chains} of {questions} training questions have a chain"
        )
        print(f"{told}; SFT learns from these, and the other methods ask all", file=sys.stderr)


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
    told = f"{run.config.data.training_data}: {told} (first: {first}; most often: {status[0][0]})"
    if len(wrong) == len(problems):
        raise UserError(f"{told}; `reftune data check` lists them")
    if run.accelerator.is_main_process:
        print(told, file=sys.stderr)
