"""Problems that reasoning_gym generates, 100 families of them, each with a verifier of its own.

A source `reasoning_gym:FAMILY?KEY=VALUE&...` names a family with its settings, those of difficulty and
`size` and `seed`. A problem keeps its place in the source: the verifier makes it once more from there.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from reftune.config.data import GYM, GYM_COLUMN
from reftune.files import PlacedRow
from reftune.problem import UserError

SIZE = 1000
STREAM = 10**8  # more than the size of any: problem i of a family is drawn by its seed + i
SPLITS = ("train", "test")
_INSTALL = "reasoning_gym: is not installed; pip install 'reftune[gym]'"


def gym_rows(source: str, split: str) -> Iterator[PlacedRow]:
    """Yield the problems of a family as rows, the same ones each time.

    Those to train on and those to test on come from different seeds, 2s and 2s + 1 of the source's s.
    Raises UserError for an unknown family, setting or split, and where the package is missing.
    """
    dataset = _dataset(source, split)
    for index in range(len(dataset)):
        entry = dataset[index]
        yield (
            f"{source}: problem {index + 1}",
            {
                "id": f"{source.removeprefix(GYM)}-{split}-{index + 1}",
                "question": entry["question"],
                "answer": str(entry["answer"] or "").strip() or "(whatever the verifier takes)",
                GYM_COLUMN: {"source": source, "split": split, "index": index},
            },
        )


def reward(completion: str, stated_answer: str | None, reasoning_gym: Mapping[str, Any]) -> float:
    """Return what the problem's own verifier gives an answer, from 0 to 1; only 1 counts as correct.

    Args:
        completion: what was written; between `<answer>` tags an answer may have several lines.
        stated_answer: the final answer in it, by the marks of the run's answer style.
        reasoning_gym: the problem's place: its source, split and index.
    """
    from reasoning_gym.utils import extract_answer

    dataset, index = _dataset(reasoning_gym["source"], reasoning_gym["split"]), reasoning_gym["index"]
    answer = extract_answer(completion) or stated_answer
    return float(dataset.score_answer(answer, dataset[index]))


@lru_cache(maxsize=64)
def _dataset(source: str, split: str) -> Any:
    try:
        with warnings.catch_warnings():  # what it imports has faults of its own, which concern nobody
            warnings.simplefilter("ignore")
            from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise UserError(_INSTALL) from error
    if split not in SPLITS:
        raise UserError(f"{source}: has no split {split!r}; choose {' or '.join(SPLITS)}")
    family, _, query = source.removeprefix(GYM).partition("?")
    if family not in DATASETS:
        raise UserError(f"{source}: no such family; choose among {', '.join(sorted(DATASETS))}")
    options = {"size": SIZE, "seed": 0} | {key: _value(text) for key, text in parse_qsl(query, True)}
    known = DATASETS[family][1].__dataclass_fields__
    for key in options:
        if key not in known:
            raise UserError(f"{source}: {family} has no setting {key!r}; it has {', '.join(known)}")
    if not (
        isinstance(options["seed"], int) and isinstance(options["size"], int) and options["size"] > 0
    ):
        raise UserError(f"{source}: size and seed must be whole numbers, and the size 1 or more")
    options["seed"] = (2 * options["seed"] + SPLITS.index(split)) * STREAM
    try:
        return create_dataset(family, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"{source}: {error or type(error).__name__}; correct the setting") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
