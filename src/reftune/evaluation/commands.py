"""The commands `reftune reward ...` and `reftune power`: what to know before training and testing."""

from __future__ import annotations

from collections.abc import Sequence
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
from reftune.problem import Cot, UserError

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


def power(
    difference: Annotated[
        float | None, typer.Option(help="in points: how many questions show that one is so much better?")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="which difference do so many questions show?")
    ] = None,
    accuracy: Annotated[
        float | None, typer.Option(min=0, max=100, help="percent that the weaker model answers")
    ] = None,
    disagreement: Annotated[
        float | None,
        typer.Option(
            min=0, max=100, help="percent of the questions that exactly one of both answers;"
            " default: several, up to that of answers that have nothing to do with each other"
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--from", help="two files of answers, as `compare` reads, that tell both"),
    ] = None,
    power: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="chance to see a difference that is there")
    ] = 0.8,
) -> None:  # fmt: skip
    """Tell beforehand how many test questions a comparison of two models needs.

    A difference counts as seen where McNemar's exact test on the same questions reaches 5%.
    """
    from reftune.evaluation.power import difference_for, make_pair, questions_for

    if difference is None and questions is None:
        raise UserError("give --difference in points, or --questions, or both")
    share, differing = _assumed(accuracy, disagreement, given or [])
    if difference is not None:
        for assumed in _disagreements(share, difference / 100, differing):
            pair = make_pair(share, difference / 100, assumed)
            typer.echo(
                f"{questions_for(pair, power):,} questions show {share:.1%} against"
                f" {share + difference / 100:.1%} with a chance of {power:.0%}, if exactly one is right"
                f" on {pair.disagreement:.1%} of them{'' if assumed else ', as if independent'}"
            )
    if questions is not None:
        least = difference_for(questions, share, power, differing)
        shown = "no difference" if least is None else f"{100 * least:.1f} points or more"
        typer.echo(
            f"{questions:,} questions show {shown} above {share:.1%} with a chance of {power:.0%}"
        )
    typer.echo(
        "That is for one pair of trained models. Of two methods no number of questions tells what other"
        " seeds would give: train several, and reftune compare counts both."
    )


def _disagreements(accuracy: float, difference: float, known: float | None) -> list[float | None]:
    """Return what to assume where nobody knows how often two models disagree: several shares."""
    from reftune.evaluation.power import independent

    if known is not None:
        return [known]
    most = independent(accuracy, difference)
    return [share for share in (0.05, 0.1, 0.2, 0.3) if difference < share < most] + [None]


def _assumed(
    accuracy: float | None, disagreement: float | None, given: Sequence[str]
) -> tuple[float, float | None]:
    """Return accuracy and disagreement as shares: what is said, or what two files of answers show."""
    if not given:
        if accuracy is None:
            raise UserError("give --accuracy in percent, or two files of answers with --from")
        return accuracy / 100, None if disagreement is None else disagreement / 100
    from reftune.evaluation.pairing import ACCURACY, pair, read_pooled

    found = pair(read_pooled(given)).contenders
    if len(found) != 2:
        raise UserError(f"--from: {len(found)} models; give two files, such as RUN/evaluation/sft.jsonl")
    a, b = (one.right[ACCURACY].mean(axis=0) for one in found)
    weaker, differing = min(a.mean(), b.mean()), abs(a - b).mean()
    typer.echo(
        f"{found[0].label} and {found[1].label}: {a.mean():.1%} and {b.mean():.1%} of {len(a)}"
        f" questions, exactly one is right on {differing:.1%}"
    )
    return (
        float(weaker) if accuracy is None else accuracy / 100,
        float(differing) if disagreement is None else disagreement / 100,
    )
