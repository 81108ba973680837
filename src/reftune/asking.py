"""The commands that ask a model questions: evaluate, sample and chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from reftune.problem import AnsweredQuestion, Cot, UserError

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

# Of `evaluate` alone.
Asked = tuple[str, str, Path | None]  # what a model is called, where it is, the file for its answers
Evaluated = tuple[dict[str, Any], list[AnsweredQuestion]]  # accuracies and answers
Questions = Annotated[
    str, typer.Option("--data", help='file, Hugging Face or reasoning_gym data set, or "synthetic"')
]
Models = Annotated[
    list[str] | None,
    typer.Argument(help="directories, GGUF files or Hugging Face names; several are compared"),
]
MoreModels = Annotated[
    list[str] | None, typer.Option("--model", help="another way to name a model (repeatable)")
]
Samples = Annotated[int, typer.Option(min=0, help="samples per question for voting and pass@k")]
Shots = Annotated[int, typer.Option(min=0, help="solved examples before each question")]
ShotsFrom = Annotated[
    str | None, typer.Option(help="file or data set with them; default: the train split")
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="text at which an answer is cut before it is judged, \\n a new line (repeatable)"),
]
AnswersOut = Annotated[
    Path | None,
    typer.Option(
        help="write one JSON line per question here, as `compare` reads; several models get a file each"
    ),
]
TestSplit = Annotated[str | None, typer.Option(help="of a Hugging Face data set; default: test")]


def evaluate(
    data: Questions,
    models: Models = None,
    model: MoreModels = None,
    cot: CotOption = None,
    samples: Samples = 0,
    shots: Shots = 0,
    shots_from: ShotsFrom = None,
    stop: Stop = None,
    out: AnswersOut = None,
    split: TestSplit = None,
    subset: Subset = None,
    columns: ColumnNames = None,
    most: Most = None,
    reward: RewardPlace = None,
    keep: Keep = None,
    as_json: AsJson = False,
    overrides: ModelOverrides = None,
) -> None:
    """Measure how many questions a model answers, with a 95% interval; compare several models.

    The models answer the same questions: their differences are paired, and p-values corrected.
    """
    if shots_from is not None and not shots:
        raise UserError("--shots-from: has no effect without --shots; say how many examples")
    asked = _named([*(models or ()), *(model or ())], out)
    from reftune.evaluation.inference import evaluate_on  # seconds, for which a refusal need not wait

    ends = [text.replace("\\n", "\n") for text in stop or ()]
    settings = [*as_overrides(columns, most, reward, keep), *(overrides or [])]

    def answer(model: str) -> Evaluated:
        return evaluate_on(
            model, data, cot, samples, split, subset, settings,
            shots=shots, shots_from=shots_from, stop=ends,
        )  # fmt: skip

    (_tell_as_json if as_json else _tell)(asked, answer)


def _tell_as_json(asked: Sequence[Asked], answer: Callable[[str], Evaluated]) -> None:
    """Answer with each model; print the accuracies of one as an object, of several by their names."""
    told = {}
    for name, model, file in asked:
        summary, rows = _kept(answer(model), file)
        told[name] = summary | {"questions": len(rows)}
    print_json(told if len(asked) > 1 else told[asked[0][0]])


def _tell(asked: Sequence[Asked], answer: Callable[[str], Evaluated]) -> None:
    """Answer with each model, and print what is found as soon as it is; compare several."""
    found = {}
    for name, model, file in asked:
        summary, found[name] = _kept(answer(model), file)
        if len(asked) > 1:
            typer.echo(f"{name}:")
        _print_summary(summary, len(found[name]) - summary["unjudged"])
    if len(asked) > 1:
        _print_comparison(found)


def _kept(evaluated: Evaluated, file: Path | None) -> Evaluated:
    """Write the answers into a file, where one is wanted, and say which."""
    from reftune.files import write_jsonl

    if file is not None:
        write_jsonl(file, evaluated[1])
        say(f"answers: {file}")
    return evaluated


def _named(models: Sequence[str], out: Path | None) -> list[Asked]:
    """Return what each model is called, where it is, and the file for its answers."""
    from reftune.evaluation.pairing import model_names
    from reftune.files import check_writable

    if not models:
        raise UserError("name a model: a directory, GGUF file or Hugging Face name")
    if len({*models}) < len(models):
        raise UserError("a model is given twice; give each once")
    names = model_names(models)
    files = [out and (_file_of(out, name) if len(models) > 1 else out) for name in names]
    for file in filter(None, files):
        check_writable(file)
    return list(zip(names, models, files, strict=True))


def _file_of(out: Path, name: str) -> Path:
    part = name.replace("/", "-").replace(" ", "-")
    return out.with_name(f"{out.stem}-{part}{out.suffix}")


def _print_comparison(rows: dict[str, list[AnsweredQuestion]]) -> None:
    from rich.console import Console

    from reftune.evaluation.pairing import of_rows
    from reftune.reporting.comparison.compare import compare_answers
    from reftune.reporting.comparison.page import terminal_tables

    Console().print(terminal_tables(compare_answers(of_rows(rows))))


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
    for status, count in summary["statuses"].items():
        typer.echo(f"  {status}: {count}")
    if cut_off := summary["statuses"].get("truncated"):
        typer.echo(
            f"  {cut_off / (n + unjudged):.1%} of the answers were cut off at {summary['limit']} tokens;"
            f" --set prompt.max_new_tokens={2 * summary['limit']} gives them more room"
        )
    for k, value in summary.get("pass", {}).items():
        typer.echo(f"pass@{k}: {value:.1%}")
    if found := summary.get("right_answer_wrong_chain"):
        counts = found["wrong"], found["checked"]
        _print_share("right answer, wrong chain", found["share"], *counts, found["interval"])


def _print_share(label: str, share: float, count: int, of: int, interval: Sequence[float]) -> None:
    low, high = interval
    typer.echo(f"{label}: {share:.1%} ({count} of {of}), 95% interval {low:.1%} to {high:.1%}")
