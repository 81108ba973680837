"""The formats of judged answers: which keys their rows have, and what reads such rows.

docs/comparing.md says in which version of which project each format was read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reftune.files import PlacedRow
from reftune.problem import Row, UserError, is_judged, shortened, shown

QUESTION_KEYS = ("question", "problem", "query", "prompt", "input", "text")  # of an lm-eval document
# Metrics of lm-eval that say whether an answer is right, the usual one first.
LM_EVAL_METRICS = ("exact_match", "acc", "math_verify", "em", "acc_norm", "pass@1")


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """One answer to a question; texts are empty where a file has none.

    `correct` is None where nobody could judge it.
    """

    place: str
    id: str
    question: str
    correct: bool | None
    completion: str = ""
    gold: str = ""


Reader = Callable[[Sequence[PlacedRow], str | None, list[str]], Iterator[JudgedAnswer]]


def _plain(rows: Sequence[PlacedRow], metric: str | None, notes: list[str]) -> Iterator[JudgedAnswer]:
    """Read `{"id", "correct"}`, which `reftune evaluate --out` and `reftune grade` write, too."""
    key = metric or "correct"
    for place, row in rows:
        right = _right(place, key, _value(place, row, key))
        if not is_judged(row.get("status", "ok")):
            right = None
        texts = (_text(row.get(name)) for name in ("question", "completion", "answer"))
        question, completion, gold = texts
        yield JudgedAnswer(place, _text(row.get("id")), question, right, completion, gold)


def _lm_eval(rows: Sequence[PlacedRow], metric: str | None, notes: list[str]) -> Iterator[JudgedAnswer]:
    name, _, wanted = (metric or "").partition(",")
    filters = list(dict.fromkeys(_text(row.get("filter")) for _, row in rows))
    chosen = wanted or filters[0]
    if chosen not in filters:
        raise UserError(f"{rows[0][0]}: has no filter {chosen!r}, but {', '.join(filters)}")
    name = name or _lm_eval_metric(*rows[0])
    if len(filters) > 1 and not wanted:
        notes.append(
            f"of its filters ({', '.join(filters)}) the first is used; --metric {name},{filters[1]}"
            " takes another"
        )
    for place, row in rows:
        if _text(row.get("filter")) == chosen:
            right = _right(place, name, _value(place, row, name))
            drawn = row.get("resps")
            completion = _first_text(drawn) if isinstance(drawn, list) and len(drawn) == 1 else ""
            question, gold = _document(row), _text(row.get("target"))
            yield JudgedAnswer(place, _text(row.get("doc_id")), question, right, completion, gold)


def _lm_eval_metric(place: str, row: Row) -> str:
    metrics = list(row.get("metrics") or ())  # older versions do not list them
    found = [name for name in LM_EVAL_METRICS if name in (metrics or row)]
    if not found and len(metrics) != 1:
        raise UserError(
            f"{place}: none of its metrics ({', '.join(map(str, metrics)) or 'unknown'}) is known to say"
            " what is right; name one with --metric"
        )
    return (found or metrics)[0]


def _document(row: Row) -> str:
    """Return a document's question, or else the prompt, which may hold other examples before it."""
    document = row.get("doc")
    found = {str(k).lower(): v for k, v in document.items()} if isinstance(document, Mapping) else {}
    question = next((found[k] for k in QUESTION_KEYS if isinstance(found.get(k), str)), None)
    return question or _first_text(row.get("arguments"))


def _verl(rows: Sequence[PlacedRow], metric: str | None, notes: list[str]) -> Iterator[JudgedAnswer]:
    key = metric or ("acc" if "acc" in rows[0][1] else "score")
    for place, row in rows:
        right = _right(place, key, _value(place, row, key))
        question, completion = _text(_value(place, row, "input")), _text(row.get("output"))
        yield JudgedAnswer(place, "", question, right, completion, _text(row.get("gts")))


def _trl(rows: Sequence[PlacedRow], metric: str | None, notes: list[str]) -> Iterator[JudgedAnswer]:
    key = metric or _trl_reward(rows)
    for place, row in rows:
        right = _right(place, key, _value(place, row, key))
        question = _last_message(_value(place, row, "prompt"), "user")
        yield JudgedAnswer(place, "", question, right, _last_message(row.get("completion"), "assistant"))


def _trl_reward(rows: Sequence[PlacedRow]) -> str:
    """Return the one column that may be a reward: TRL names them after its functions."""
    given = ("step", "prompt", "completion", "advantage", "id")
    numbers = [
        key
        for key in rows[0][1]
        if key not in given and all(isinstance(row.get(key), int | float | None) for _, row in rows)
    ]
    found = [key for key in numbers if any(row.get(key) is not None for _, row in rows)]
    if len(found) != 1:
        seen = f"several rewards ({shortened(', '.join(found))})" if found else "no reward"
        raise UserError(
            f"{rows[0][0]}: has {seen}; name with --metric the column that says what is right"
        )
    return found[0]


def _verifiers(
    rows: Sequence[PlacedRow], metric: str | None, notes: list[str]
) -> Iterator[JudgedAnswer]:
    """Read rollouts of verifiers, which prime-rl wrote, too, before it wrote episodes."""
    for place, row in rows:
        parts = {"reward": row.get("reward")} | row | dict(row.get("metrics") or {})
        key = metric or "reward"
        right = None if row.get("error") else _right(place, key, _value(place, parts, key))
        question = _last_message(row.get("prompt"), "user")
        completion = _last_message(row.get("completion"), "assistant")
        own_id = _text(_value(place, row, "example_id"))
        yield JudgedAnswer(place, own_id, question, right, completion, _text(row.get("answer")))


def _episodes(rows: Sequence[PlacedRow], metric: str | None, notes: list[str]) -> Iterator[JudgedAnswer]:
    """Read episodes, one a line: a task with the traces of the agents that worked on it."""
    for place, row in rows:
        task = _mapping(place, "task", _value(place, row, "task"))
        data = _mapping(place, "task.data", task.get("data") or {})
        own_id = next((x for x in (task.get("key"), data.get("idx")) if x is not None), None)
        about = place, _text(own_id), _last_message(data.get("prompt"), "user")
        traces = [_mapping(place, "traces", trace) for trace in row["traces"] or ()]
        learners = [t for t in traces if (t.get("agent") or {}).get("trainable", True)]
        for trace in learners:
            right = _trace_is_right(place, trace, metric)
            yield JudgedAnswer(*about, right, _last_reply(trace), _text(data.get("answer")))
        if not learners:  # it broke down before anybody answered
            yield JudgedAnswer(*about, None)


def _trace_is_right(place: str, trace: Mapping[str, Any], metric: str | None) -> bool | None:
    rewards = {name: one for name, one in (trace.get("rewards") or {}).items() if one is not None}
    if trace.get("ok") is False or not rewards:
        return None
    scores = {name: one["score"] for name, one in rewards.items()} | dict(trace.get("metrics") or {})
    if metric is not None:
        return _right(place, metric, _value(place, scores, metric))
    total = sum(float(one["score"]) * float(one.get("weight", 1.0)) for one in rewards.values())
    return _right(place, "rewards", total)


def _last_reply(trace: Mapping[str, Any]) -> str:
    said = [node["message"] for node in trace.get("nodes") or () if node.get("sampled")]
    return _text(said[-1].get("content")) if said else ""


# By name: the keys that a row has, and what reads such rows. The first that fits is taken.
FORMATS: dict[str, tuple[frozenset[str], Reader]] = {
    "lm-eval": (frozenset({"doc_id", "doc", "filtered_resps"}), _lm_eval),
    "prime-rl": (frozenset({"task", "traces"}), _episodes),
    "verifiers": (frozenset({"example_id", "reward"}), _verifiers),
    "verl": (frozenset({"input", "output", "score"}), _verl),
    "trl": (frozenset({"prompt", "completion", "advantage"}), _trl),
    "plain": (frozenset({"correct"}), _plain),
}


def _value(place: str, row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise UserError(f"{place}: has no {key!r}, but {shortened(', '.join(map(str, row)))}")
    return row[key]


def _mapping(place: str, key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{place}: {key} is {shown(value)}, not an object")
    return value


_WORDS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def _right(place: str, key: str, value: Any) -> bool | None:
    """Tell whether a value says that an answer is right; None where it says nothing."""
    if isinstance(value, str):  # a cell of a CSV file
        value = _WORDS.get(value.strip().lower(), value) if value.strip() else None
    if value is None or isinstance(value, bool):
        return value
    try:
        number = math.nan if isinstance(value, str | list | dict | tuple) else float(value)
    except (TypeError, ValueError, ArithmeticError):
        number = math.nan
    if math.isnan(number) and not (isinstance(value, float)):
        raise UserError(
            f"{place}: {key} is {shown(value)}, neither true or false nor a number; choose another key"
            " with --metric"
        )
    return None if math.isnan(number) else number >= 1


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _last_message(value: Any, role: str) -> str:
    """Return a text as it is, and of a chat what was last said by somebody."""
    if not isinstance(value, list):
        return _text(value)
    said = [one for one in value if isinstance(one, Mapping) and one.get("role") == role]
    return _first_text(said[-1].get("content")) if said else ""


def _first_text(value: Any) -> str:
    """Return the first text within lists and objects."""
    if isinstance(value, str):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):  # a part of a message
        return str(value["text"])
    return next((text for text in map(_first_text, parts) if text), "")
