"""The last stage: answer the test questions with each model, and compare the models."""

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from reftune.evaluation.evaluate import answer_questions, write_result
from reftune.files import RUN_AGAIN, read_jsonl, read_rows, write_jsonl
from reftune.problem import AnsweredQuestion, Problem, UserError, is_judged
from reftune.runs.processes import by_main
from reftune.runs.records import Answered
from reftune.runs.run_log import RunLog
from reftune.runs.tracking import track_accuracies
from reftune.stages.reranker import load_reranker, rank
from reftune.stages.run import Run
from reftune.training.rollouts import make_generator
from reftune.training.token_budget import token_budget

PIECES = "pieces"  # directory of what the model at work has answered so far


def start(run: Run) -> None:
    """Run the stage; models whose answers are there are not asked again."""
    config, directory = run.config, run.config.run_dir / "evaluation"
    models = config.lineup.models
    answers: dict[str, list[AnsweredQuestion]] = {}
    shares: dict[str, float] = {}
    seconds, total = _seconds(directory), len(models)
    with RunLog(directory, run.accelerator, "evaluation", total, listener=run.listener) as log:
        for done, name in enumerate(models, start=1):
            path = directory / f"{name}.jsonl"
            if not by_main(run.accelerator, path.exists):
                started = time.perf_counter()
                found = answer_with(run, name)
                seconds[name] = time.perf_counter() - started
                if run.accelerator.is_main_process:
                    write_jsonl(path, found)
                    shutil.rmtree(directory / PIECES, ignore_errors=True)
            answers[name] = by_main(run.accelerator, partial(read_answers, path, run.splits.test))
            judged = [row["correct"] for row in answers[name] if is_judged(row["status"])]
            shares[name] = sum(judged) / max(1, len(judged))
            taken = {"seconds": seconds[name]} if name in seconds else {}
            log.metrics(done, {"model": name, "accuracy": shares[name], **taken})
    if run.accelerator.is_main_process:
        trigger = config.prompt.trigger
        write_result(directory, answers, config.evaluation.bootstrap, config.seed, trigger)
        track_accuracies(run.accelerator, shares)
    run.accelerator.wait_for_everyone()


def read_answers(path: Path, test: Sequence[Problem]) -> list[AnsweredQuestion]:
    """Read a model's answers; raise UserError where they are not those to the test questions."""
    rows: list[AnsweredQuestion] = read_jsonl(path, Answered)
    asked, answered = [problem.id for problem in test], [row["id"] for row in rows]
    if asked != answered:
        told = f"{path}: has {len(rows)} answers, but not one for each of the {len(test)} test questions"
        raise UserError(f"{told}; {RUN_AGAIN}")
    return rows


def _seconds(directory: Path) -> dict[str, float]:
    """Return what answering took each model that an earlier start has asked."""
    path = directory / "metrics.jsonl"
    rows = read_rows(path, bad=[]) if path.exists() else ()  # whose last line may be cut off
    return {row["model"]: row["seconds"] for _, row in rows if {"model", "seconds"} <= row.keys()}


def answer_with(run: Run, name: str) -> list[AnsweredQuestion]:
    """Answer the test questions with one of the run's models; rank the samples if it has a reranker."""
    config, test = run.config, run.splits.test
    policy, prompter = run.load_policy(name), run.prompter(name)
    rows = config.compute.rows
    generator = make_generator(policy, prompter, run.judge, run.accelerator, config.compute)
    pieces = config.run_dir / "evaluation" / PIECES / name
    answered = answer_questions(generator, test, config.evaluation, config.seed, rows, pieces)
    del policy, generator  # the reranker needs their room
    if config.evaluation.rerank and name in config.lineup.reranked:
        budget = token_budget(config.compute.tokens_per_microbatch)
        rank(load_reranker(run, name), prompter, test, answered, run.accelerator, budget)
    return answered
