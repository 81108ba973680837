"""The questions, answers and training samples of a run that its page shows: varied, and not too many."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from reftune.methods import MAIN
from reftune.problem import GradedRow, LoggedRow, Row
from reftune.reporting.run.run_files import Run

MAX_QUESTIONS = 200  # embedded in the page
MAX_ROLLOUT_STEPS = 30
MAX_CHARACTERS = 4000  # of one text


def questions(run: Run) -> tuple[list[Row], dict[str, int]]:
    """Choose at most MAX_QUESTIONS test questions, every kind of result among them.

    `gained` marks those that ReFT answers and the baseline does not, `lost` those with both swapped.
    Returns the questions in the order of the test set, and the counts over all of it.
    """
    joined: dict[str, Row] = {}
    for model, rows in run.answers.items():
        for row in rows:
            entry = {"id": row["id"], "question": _text(row["question"]), "answer": _text(row["answer"])}
            joined.setdefault(row["id"], entry | {"chains": {}})["chains"][model] = _chain(row)
    pair = (run.lineup.baseline, MAIN)
    for question in joined.values():
        a, b = (question["chains"].get(model, {}).get("correct") for model in pair)
        question["gained"], question["lost"] = (a, b) == (False, True), (a, b) == (True, False)
    everything = list(joined.values())
    counts = {kind: sum(q[kind] for q in everything) for kind in ("gained", "lost")}
    return _varied(everything), counts | {"all": len(everything)}


def rollouts_by_step(rows: Sequence[LoggedRow]) -> list[Row]:
    """Group the logged training samples by step, at most MAX_ROLLOUT_STEPS evenly spread steps."""
    steps: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        shown = {"question": _text(row["question"]), "answer": _text(row["answer"])}
        steps[row["step"]].append(shown | _chain(row) | {"reward": str(row.get("reward", ""))})
    numbers = sorted(steps)
    count = min(len(numbers), MAX_ROLLOUT_STEPS)
    chosen = [numbers[round(i * (len(numbers) - 1) / max(1, count - 1))] for i in range(count)]
    return [{"step": step, "samples": steps[step]} for step in chosen]


def _varied(questions: list[Row]) -> list[Row]:
    """Take from every kind of result in turn: in a plain sample the rare kinds would be missing."""
    kinds: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        kinds[tuple((c["correct"], c["status"]) for c in question["chains"].values())].append(index)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*kinds.values()))
    chosen = itertools.islice((index for index in turns if index is not None), MAX_QUESTIONS)
    return [questions[index] for index in sorted(chosen)]


def _chain(row: GradedRow) -> Row:
    value = row.get("value")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return {
        "text": _text(row["completion"]),
        "status": str(row["status"]),
        "value": "" if value is None else _text(value),
        "correct": bool(row["correct"]),
    }


def _text(value: Any) -> str:
    text = str(value)
    left = len(text) - MAX_CHARACTERS
    return text if left <= 0 else f"{text[:MAX_CHARACTERS]}\n[... {left} more characters]"
