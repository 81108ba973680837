"""The commands `reftune reward ...`: try a reward before training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from reftune.options import (
    AsJson,
    ColumnNames,
    Keep,
    Most,
    Split,
    Subset,
    named_columns,
    print_json,
)
from reftune.problem import Cot

reward_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Try a reward before anything is trained on it."
)


@reward_app.command()
def check(
    data: Annotated[str, typer.Option(help="questions with answers: file, directory or data set")],
    function: Annotated[
        str | None, typer.Argument(help="path.py:function; default: the built-in check of answers")
    ] = None,
    cot: Annotated[Cot, typer.Option(help="kind of the completions")] = "natural",
    split: Split = "train",
    subset: Subset = None,
    columns: ColumnNames = None,
    keep: Keep = None,
    most: Most = 100,
    as_json: AsJson = False,
) -> None:
    """Try a reward on completions that are right, and on wrong ones that cheat as models do.

    A reward may refuse notations that it does not expect; what it must not do is to accept what is
    wrong, for PPO finds that.
    """
    from reftune.config import Prompt, Reward
    from reftune.config.data import GYM, GYM_REWARD
    from reftune.data.problems import load_problems
    from reftune.evaluation.reward_check import check_reward, table, verdict
    from reftune.grading.judge import make_judge, make_sandbox
    from reftune.grading.rewards import OwnReward

    verifier = GYM_REWARD if data.startswith(GYM) else None
    problems = load_problems(
        data, cot=cot, split=split, subset=subset, columns=named_columns(columns),
        keep=keep or [], check_answers=function is None,
    )  # fmt: skip
    with make_sandbox(Reward(), text=True) as sandbox:
        reward = function or verifier
        own = None if reward is None else OwnReward([reward])
        judge = make_judge(
            cot, trigger=Prompt().trigger, partial_reward=0.0, sandbox=sandbox, reward=own
        )
        found = check_reward(judge, problems[:most], cot)
    if as_json:
        tried = [asdict(one) | {"interval": one.interval} for one in found]
        print_json({"reward": reward, "questions": len(problems[:most]), "tried": tried})
        return
    typer.echo("\n".join(table(found)))
    name = reward or "the built-in check"
    typer.echo("\n".join(f"{name}: {sentence}" for sentence in verdict(found)))
