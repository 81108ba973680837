"""The questions, answers and training samples of a run, as the script of its page reads them."""

import base64
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from reftune.evaluation.aggregation import right_answers
from reftune.evaluation.statistics import majority_vote
from reftune.grading.answers import same_answer
from reftune.methods import MAIN, label_of, methods_by_stage
from reftune.problem import Answer, AnsweredQuestion, GradedRow, LoggedRow, Row, SampledAnswer
from reftune.reporting.run.run_files import Run

MAX_ROLLOUT_STEPS = 30
MAX_CHARACTERS = 4000  # of one text
MAX_PACKED = 4_000_000  # bytes that the page has for all this
TRACES = ("tokens", "logprobs", "log_ratios", "values", "advantages")  # of each token


def browser(run: Run) -> Row:
    """Return all test questions with what every model made of them, and samples of the training.

    `gained` marks questions that ReFT answers and the baseline does not, `lost` those with both swapped.
    """
    everything = questions(run)
    online = {stage: rows for stage, rows in reversed(run.samples.items()) if rows}
    return {
        "models": [{"key": key, "label": label_of(key)} for key in run.answers],
        "pair": [label_of(key) for key in (run.lineup.baseline, MAIN)],
        "baseline": run.lineup.baseline,
        "counts": {kind: sum(q[kind] for q in everything) for kind in ("gained", "lost")}
        | {"all": len(everything)},
        "questions": everything,
        "rollouts": [
            {"stage": methods_by_stage()[stage].label, "steps": rollouts_by_step(rows)}
            | {"all": len({row["step"] for row in rows})}
            for stage, rows in online.items()
        ],
        "program": run.config.get("data", {}).get("cot") != "natural",
    }


def packed(browser: Mapping[str, Any], most: int = MAX_PACKED) -> tuple[str, bool]:
    """Return it as gzipped JSON in base64, of which no character means anything in HTML.

    Also returns whether all is there: what would be longer than `most` loses the texts of the samples,
    which the votes were counted from.
    """
    text = _packed(browser)
    if len(text) <= most:
        return text, True
    shortened = [
        question | {"chains": {model: _without_texts(c) for model, c in question["chains"].items()}}
        for question in browser["questions"]
    ]
    return _packed({**browser, "questions": shortened}), False


def questions(run: Run) -> list[Row]:
    """Return all test questions with the models' chains and votes, in the order of the test set."""
    joined: dict[str, Row] = {}
    for model, rows in run.answers.items():
        for row in rows:
            entry = {"id": row["id"], "question": _text(row["question"]), "answer": _text(row["answer"])}
            chains = joined.setdefault(row["id"], entry | {"chains": {}})["chains"]
            chains[model] = _chain(row) | _asked(row) | _aggregated(row)
    pair = (run.lineup.baseline, MAIN)
    for question in joined.values():
        a, b = (question["chains"].get(model, {}).get("correct") for model in pair)
        question["gained"], question["lost"] = (a, b) == (False, True), (a, b) == (True, False)
    return list(joined.values())


def votes(samples: Sequence[SampledAnswer]) -> list[Row]:
    """Gather samples by what they answer, the most frequent first; those without an answer by status.

    The answer that the majority vote chooses is `chosen`. `texts` has each different text and how often
    it came.
    """
    groups: dict[tuple[Answer | None, str], list[SampledAnswer]] = defaultdict(list)
    for sample in samples:
        value = sample["value"]
        key: tuple[Answer | None, str] = (value, "ok" if value is not None else sample["status"])
        if key not in groups:
            key = next((known for known in groups if _same(value, known[0])), key)
        groups[key].append(sample)
    winner = majority_vote([sample["value"] for sample in samples])
    found = [
        {
            "value": _value(value),
            "status": status,
            "count": len(mine),
            "correct": bool(mine[0]["correct"]),
            "chosen": value is not None and value == winner,
            "texts": _counted([_text(sample.get("completion", "")) for sample in mine]),
        }
        for (value, status), mine in groups.items()
    ]
    return sorted(found, key=lambda group: (not group["chosen"], not group["value"], -group["count"]))


def rollouts_by_step(rows: Sequence[LoggedRow]) -> list[Row]:
    """Group the logged training samples by step, at most MAX_ROLLOUT_STEPS evenly spread steps.

    Within a step samples of one question follow each other, as they were drawn.
    """
    steps: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        shown = {"question": _text(row["question"]), "answer": _text(row["answer"])}
        numbers = {name: found for name in TRACES if _finite(found := row.get(name))}
        steps[row["step"]].append(shown | _chain(row) | {"reward": str(row.get("reward", ""))} | numbers)
    numbers_of_steps = sorted(steps)
    count = min(len(numbers_of_steps), MAX_ROLLOUT_STEPS)
    places = [round(i * (len(numbers_of_steps) - 1) / max(1, count - 1)) for i in range(count)]
    return [{"step": numbers_of_steps[i], "samples": steps[numbers_of_steps[i]]} for i in places]


def _finite(found: Any) -> bool:
    """Tell whether there is a list of texts or of numbers that JSON knows."""
    return bool(found) and all(isinstance(one, str) or math.isfinite(one) for one in found)


def _same(value: Answer | None, other: Answer | None) -> bool:
    return value is not None and other is not None and same_answer(value, other)


def _aggregated(row: AnsweredQuestion) -> Row:
    """Return the votes, and whether each way to choose among the samples is right, if there are any."""
    if not row.get("samples"):
        return {}
    right = {name: found[0] for name, found in right_answers([row]).items()}
    return {"votes": votes(row["samples"]), "outcomes": right}


def _asked(row: AnsweredQuestion) -> Row:
    return {"prompt": _text(row["prompt"])} if "prompt" in row else {}


def _chain(row: GradedRow) -> Row:
    return {
        "text": _text(row["completion"]),
        "status": str(row["status"]),
        "value": _value(row.get("value")),
        "correct": bool(row["correct"]),
    }


def _value(value: Answer | None) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else _text(value)


def _counted(texts: Sequence[str]) -> list[tuple[str, int]]:
    return [(text, texts.count(text)) for text in dict.fromkeys(texts)]


def _text(value: Any) -> str:
    text = str(value)
    left = len(text) - MAX_CHARACTERS
    return text if left <= 0 else f"{text[:MAX_CHARACTERS]}\n[... {left} more characters]"


def _without_texts(chain: Row) -> Row:
    if "votes" not in chain:
        return chain
    return chain | {"votes": [vote | {"texts": []} for vote in chain["votes"]]}


def _packed(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
