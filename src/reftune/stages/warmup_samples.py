"""Draw samples from the model that the methods start from once, for all that learn from them.

Offline self-training takes the right ones, rerankers learn to tell them from the wrong ones.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reftune.files import read_jsonl, read_object
from reftune.model.policy import PolicyWithValue
from reftune.problem import CountedRow, UserError
from reftune.runs.processes import by_main
from reftune.runs.records import Counted
from reftune.runs.run_log import steps_done
from reftune.stages.run import Run
from reftune.stages.stage import Stage
from reftune.training.microbatches import minibatches
from reftune.training.rollouts import accuracy, graded_rows
from reftune.training.types import GradedSample

QUESTIONS_PER_STEP = 64
FILE = "samples.jsonl"


def start(run: Run) -> None:
    """Run the stage with the warm-up or the given model."""
    policy, prompter = run.first_policy()
    run_warmup_samples(run.stage("warmup_samples", prompter), policy)


def run_warmup_samples(stage: Stage, policy: PolicyWithValue) -> dict[str, Any]:
    """Sample every training and validation question; write the different completions of each.

    `samples.jsonl` has a row per question and completion with the verdict and how often it came
    (`count`). Goes on where an interrupted run stopped. Returns what it also writes to `result.json`.
    """
    settings, problems = stage.config.warmup_samples, [*stage.train, *stage.validation]
    steps = list(minibatches(range(len(problems)), QUESTIONS_PER_STEP))
    generator = stage.generator(policy)
    done = by_main(stage.accelerator, lambda: steps_done(stage.directory))
    with stage.log(len(steps), done) as log:
        for step, chunk in enumerate(steps[done:], start=done + 1):
            started = time.perf_counter()
            key = (stage.config.seed, stage.name, step)
            asked = [problems[i] for i in chunk]
            graded = generator.generate(asked, settings.per_question, settings.temperature, key=key)
            log.samples(step, _distinct(graded))
            seconds = time.perf_counter() - started
            log.metrics(step, {"accuracy": accuracy(graded), "seconds": seconds})
    stage.accelerator.wait_for_everyone()  # the main process has written the file
    return stage.finish(_summary(read_warmup_samples(stage.config.run_dir)))


def read_warmup_samples(run_dir: Path) -> dict[str, list[CountedRow]]:
    """Return the rows of `samples.jsonl` by the question's id.

    Raises UserError where they are damaged, or fewer than when the stage was finished.
    """
    path, fix = run_dir / "warmup_samples" / FILE, "delete that directory and start `reftune run` again"
    found: list[CountedRow] = read_jsonl(path, Counted, fix)
    result = path.with_name("result.json")
    written = read_object(result).get("different", len(found)) if result.exists() else len(found)
    if written != len(found):
        raise UserError(f"{path}: has {len(found)} rows of {written}; {fix}")
    rows: dict[str, list[CountedRow]] = {}
    for row in found:
        rows.setdefault(row["id"], []).append(row)
    return rows


def _summary(samples: Mapping[str, Sequence[CountedRow]]) -> dict[str, Any]:
    rows = [row for found in samples.values() for row in found]
    total = sum(row["count"] for row in rows)
    return {
        "questions": len(samples),
        "samples": total,
        "accuracy": sum(row["count"] for row in rows if row["correct"]) / max(1, total),
        "different": len(rows),
        "different_correct": sum(row["correct"] for row in rows),
        "solved_questions": sum(any(row["correct"] for row in found) for found in samples.values()),
    }


def _distinct(graded: Sequence[GradedSample]) -> list[CountedRow]:
    """Return one row per question and different completion, in the order in which they came.

    What our own sandbox failed to judge is left out.
    """
    judged = [a for a in graded if a.verdict.judged]
    counts = Counter((a.problem.id, a.completion) for a in judged)
    first: dict[tuple[str, str], GradedSample] = {}
    for sample in judged:
        first.setdefault((sample.problem.id, sample.completion), sample)
    rows = graded_rows(list(first.values()))
    return [{**row, "count": counts[row["id"], row["completion"]]} for row in rows]
