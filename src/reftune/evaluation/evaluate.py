"""Answer questions with a model, and compare models on the same questions."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, cast

from reftune.config import Evaluation, Prompt
from reftune.data.synthetic.chain_checks import chain_is_right
from reftune.evaluation.aggregation import curves, judged_by_all, right_answers, within_question_auc
from reftune.evaluation.statistics import bootstrap_difference, mcnemar, wilson_interval
from reftune.files import read_jsonl, write_json, write_jsonl
from reftune.grading.extraction import reasoning
from reftune.model.wording import PROGRAM_HEAD
from reftune.problem import AnsweredQuestion, GradedRow, Problem, SampledAnswer
from reftune.progress import counting
from reftune.runs.processes import by_main
from reftune.runs.records import Answered
from reftune.training.rollouts import Generator, graded_rows

Answers = Sequence[AnsweredQuestion]


def answer_questions(
    generator: Generator,
    problems: Sequence[Problem],
    settings: Evaluation,
    seed: int,
    at_once: int,
    pieces: Path | None = None,
) -> list[AnsweredQuestion]:
    """Answer every question once greedily and `settings.samples` times at the temperature.

    Args:
        at_once: responses of a piece of the work.
        pieces: directory that keeps each finished piece; what it has is not asked again.

    Returns one row per question: the prompt, the greedy completion with its verdict and, under
    `samples`, the verdicts of the sampled ones.
    """
    greedy = _ask(generator, problems, 1, 0.0, (seed, "greedy"), at_once, pieces)
    rows = [cast(AnsweredQuestion, row) for row in greedy]
    for row, problem in zip(rows, problems, strict=True):
        row["prompt"] = generator.prompter.prompt_text(problem)
    if k := settings.samples:
        given = (problems, k, settings.temperature, (seed, "test"))
        drawn = _ask(generator, *given, at_once, pieces)
        for i, row in enumerate(rows):
            row["samples"] = [_sampled(sample) for sample in drawn[i * k : (i + 1) * k]]
    return rows


def _ask(
    generator: Generator,
    problems: Sequence[Problem],
    samples: int,
    temperature: float,
    key: tuple[int, str],
    at_once: int,
    pieces: Path | None,
) -> list[GradedRow]:
    """Draw samples of every question piece by piece, each in a file of its own; see `generate`."""
    rows: list[GradedRow] = []
    size = max(1, at_once // samples)
    with counting(key[1], len(problems)) as count:
        while (first := len(rows) // samples) < len(problems):
            count.done, count.note = first, _so_far(rows)
            path = None if pieces is None else pieces / f"{key[1]}-{first:08d}.jsonl"
            if path is not None and (before := by_main(generator.accelerator, partial(_read, path))):
                rows += before
                continue
            piece = problems[first : first + size]
            rows += graded_rows(generator.generate(piece, samples, temperature, key=key, first=first))
            if path is not None and generator.accelerator.is_main_process:
                write_jsonl(path, rows[first * samples :])
    return rows


def _read(piece: Path) -> list[GradedRow]:
    return read_jsonl(piece, Answered) if piece.exists() else []


def _so_far(rows: Sequence[GradedRow]) -> str:
    """Say how good the answers are of which there are some already."""
    if not rows:
        return ""
    cut_off = sum(row["status"] == "truncated" for row in rows) / len(rows)
    told = f"right {sum(bool(row['correct']) for row in rows) / len(rows):.1%}"
    return f"{told}, cut off {cut_off:.1%}" if cut_off else told


def _sampled(row: GradedRow) -> SampledAnswer:
    """Return what is kept of one of several samples: the question stands above them."""
    return {
        "completion": row["completion"], "status": row["status"],
        "value": row["value"], "correct": row["correct"],
    }  # fmt: skip


def summarise(rows: Answers, trigger: str | None = None) -> dict[str, Any]:
    """Return the accuracy of every aggregation for which there are samples, with intervals.

    `greedy` is always there; `vote`, `rerank` and `weighted vote` come with their `k` and, under
    `curves`, their accuracies with fewer samples.
    `rerank` also has `within_question_auc`, and `pass` has pass@k.
    With questions of several sources `sources` has the greedy accuracy on each one's.
    Where chains can be checked, `right_answer_wrong_chain` is there, too: see `wrong_chain_share`.
    """
    k = len(rows[0].get("samples", ()))
    summary: dict[str, Any] = {
        name: ({} if name == "greedy" else {"k": k}) | _accuracy(right)
        for name, right in right_answers(rows).items()
    }
    if "rerank" in summary:
        summary["rerank"]["within_question_auc"] = within_question_auc(rows)
    if k:
        found = {s: {str(j): x for j, x in points.items()} for s, points in curves(rows, k).items()}
        summary |= {"pass": found.pop("pass"), "curves": found}
    if sources := dict.fromkeys(row["source"] for row in rows if "source" in row):
        summary["sources"] = {source: _of_source(rows, source) for source in sources}
    if wrong_chains := wrong_chain_share(rows, trigger):
        summary["right_answer_wrong_chain"] = wrong_chains
    return summary


def wrong_chain_share(rows: Answers, trigger: str | None = None) -> dict[str, Any] | None:
    """Return the share of wrong chains among the right greedy answers, with its Wilson interval.

    A wrong chain that ends in the right answer is what the ReFT paper calls reward hacking. Only
    natural-language chains of built-in questions can be checked. Right answers with any other chain are
    counted as `unchecked`; the result is None if no chain can be checked.

    Args:
        rows: as `answer_questions` returns them.
        trigger: the words before the answer; default: the paper's.
    """
    trigger = Prompt().trigger if trigger is None else trigger
    right = [row for row in rows if row["correct"] and "completion" in row]
    verdicts = [
        chain_is_right(row["question"], reasoning(row["completion"], trigger))
        for row in right
        if PROGRAM_HEAD not in row["completion"]
    ]
    wrong, checked = verdicts.count(False), len(verdicts) - verdicts.count(None)
    if not checked:
        return None
    return {
        "wrong": wrong,
        "checked": checked,
        "unchecked": len(verdicts) - checked,
        "share": wrong / checked,
        "interval": list(wilson_interval(wrong, checked)),
    }


def compare(a: Answers, b: Answers, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Compare two models question by question: difference, bootstrap interval, McNemar's p."""
    of_a, of_b = right_answers(a), right_answers(b)
    return [
        {
            "aggregation": name,
            "difference": (sum(of_b[name]) - sum(right)) / len(right),
            "interval": list(bootstrap_difference(right, of_b[name], resamples=resamples, seed=seed)),
            "mcnemar_p": mcnemar(right, of_b[name]),
        }
        for name, right in of_a.items()
        if name in of_b
    ]


def write_result(
    directory: Path,
    answers: Mapping[str, Answers],
    resamples: int,
    seed: int,
    trigger: str | None = None,
) -> None:
    """Write `result.json`: every model's accuracies, and each model compared with all before it.

    Questions that the sandbox failed to judge with any of the models are counted, as `unjudged`, but
    not used.
    """
    asked = len(next(iter(answers.values())))
    answers = judged_by_all(answers)
    comparisons = [
        {"a": a, "b": b, **comparison}
        for a, b in combinations(answers, 2)
        for comparison in compare(answers[a], answers[b], resamples, seed)
    ]
    n = len(next(iter(answers.values())))
    result = {
        "n": n,
        "unjudged": asked - n,
        "models": {name: summarise(rows, trigger) for name, rows in answers.items()},
        "comparisons": comparisons,
    }
    write_json(directory / "result.json", result)


def _of_source(rows: Answers, source: str) -> dict[str, Any]:
    right = [row["correct"] for row in rows if row.get("source") == source]
    return {"questions": len(right), **_accuracy(right)}


def _accuracy(right: Sequence[bool]) -> dict[str, Any]:
    correct = sum(right)
    interval = list(wilson_interval(correct, len(right)))
    return {"correct": correct, "accuracy": correct / len(right), "interval": interval}
