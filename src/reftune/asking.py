"""The commands that ask a model questions: evaluate, sample and chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reftune.chat import chat, show
from reftune.ending import say
from reftune.options import (
    AsJson,
    ColumnNames,
    Keep,
    Most,
    RewardPlace,
    Subset,
    as_overrides,
    print_json,
)
from reftune.problem import Cot

if TYPE_CHECKING:
    from reftune.training.types import GradedSample

ModelOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="change one of the settings saved with the model, e.g. --set prompt.max_new_tokens=200"
        " (repeatable)",
    ),
]
CotOption = Annotated[Cot | None, typer.Option(help="kind of chain; default: as trained by reftune")]
ModelOption = Annotated[
    str, typer.Option("--model", help="model directory, GGUF file or Hugging Face name")
]
Source = Annotated[
    str, typer.Argument(help="directory of a run or of a model, GGUF file or Hugging Face name")
]
OneOfRun = Annotated[
    str | None,
    typer.Option("--model", help="which one of a run, such as sft or reft; default: the last finished"),
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 gives the most likely chain")]
SampleSeed = Annotated[int, typer.Option("--seed", help="another seed gives another sample")]


def evaluate(
    model: ModelOption,
    data: Annotated[str, typer.Option(help='file, Hugging Face data set, or "synthetic"')],
    cot: CotOption = None,
    samples: Annotated[int, typer.Option(help="samples per question for voting and pass@k")] = 0,
    out: Annotated[Path | None, typer.Option(help="write one JSON line per question here")] = None,
    split: Annotated[str | None, typer.Option(help="of a Hugging Face data set; default: test")] = None,
    subset: Subset = None,
    columns: ColumnNames = None,
    most: Most = None,
    reward: RewardPlace = None,
    keep: Keep = None,
    as_json: AsJson = False,
    overrides: ModelOverrides = None,
) -> None:
    """Measure how many questions a model answers, with a 95% interval."""
    from reftune.evaluation.inference import evaluate_on
    from reftune.files import check_writable, write_jsonl

    if out is not None:
        check_writable(out)
    settings = [*as_overrides(columns, most, reward, keep), *(overrides or [])]
    summary, rows = evaluate_on(model, data, cot, samples, split, subset, settings)
    if out is not None:
        write_jsonl(out, rows)
    if as_json:
        print_json(summary | {"questions": len(rows)})
        return
    _print_summary(summary, len(rows) - summary["unjudged"])


def sample(
    model: ModelOption,
    question: Annotated[str, typer.Option(help="the question, as plain text")],
    cot: CotOption = None,
    temperature: Temperature = 0.0,
    seed: SampleSeed = 0,
    as_json: AsJson = False,
    overrides: ModelOverrides = None,
) -> None:
    """Ask one question; print the chain, its status and the answer."""
    from reftune.evaluation.inference import ask, model_config

    [graded] = ask(model_config(model, overrides or [], cot=cot), [question], temperature, seed)
    if as_json:
        print_json(_as_object(graded))
    else:
        show(graded)


def chat_command(
    source: Source,
    model: OneOfRun = None,
    cot: CotOption = None,
    temperature: Temperature = 0.0,
    seed: SampleSeed = 0,
    overrides: ModelOverrides = None,
) -> None:
    """Ask a model one question after the other: each answer is a chain, its status, the answer.

    Questions are typed, or come on standard input, a line each. Ctrl-C stops an answer; Ctrl-D ends.
    """
    chat(source, model, cot=cot, temperature=temperature, seed=seed, overrides=overrides or [])


def _as_object(graded: GradedSample) -> dict[str, Any]:
    verdict = graded.verdict
    return {
        "question": graded.problem.question, "completion": graded.completion,
        "status": verdict.status, "answer": verdict.answer, "tokens": len(graded.sample.tokens),
    }  # fmt: skip


def _print_summary(summary: dict[str, Any], n: int) -> None:
    if unjudged := summary["unjudged"]:
        say(f"{unjudged} of {n + unjudged} questions are left out: the sandbox failed on their answers")
    for aggregation in ("greedy", "vote"):  # one model alone has no reranker
        if aggregation in summary:
            found = summary[aggregation]
            label = aggregation if aggregation == "greedy" else f"vote of {found['k']}"
            _print_share(label, found["accuracy"], found["correct"], n, found["interval"])
    for source, found in summary.get("sources", {}).items():
        _print_share(source, found["accuracy"], found["correct"], found["questions"], found["interval"])
    for k, value in summary.get("pass", {}).items():
        typer.echo(f"pass@{k}: {value:.1%}")
    if found := summary.get("right_answer_wrong_chain"):
        counts = found["wrong"], found["checked"]
        _print_share("right answer, wrong chain", found["share"], *counts, found["interval"])


def _print_share(label: str, share: float, count: int, of: int, interval: Sequence[float]) -> None:
    low, high = interval
    typer.echo(f"{label}: {share:.1%} ({count} of {of}), 95% interval {low:.1%} to {high:.1%}")
