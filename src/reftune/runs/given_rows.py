"""Problems that a Python program hands over: kept beside a run, which then reads them like any file."""

import json
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from reftune.config import Config
from reftune.data.problems import load_problems
from reftune.data.sources import Source, load_rows
from reftune.files import PlacedRow, atomic_file
from reftune.launcher import rank
from reftune.problem import UserError
from reftune.runs.run_dir import has_begun


def with_problems(config: Config, *, train: Source | None, test: Source | None) -> Config:
    """Return the settings of a run on these problems, where they are given.

    Rows are checked, and written into the run's directory: the run can be resumed and repeated from
    there. Raises UserError for a row that cannot be used, where the directory holds other rows, and for
    problems to train on where nothing says what to test on.
    """
    if train is not None and test is None and "test" not in config.data.model_fields_set:
        raise UserError("test: is missing; give problems to compare the models on, or set data.test")
    data: dict[str, Any] = {}
    for role, source in (("train", train), ("test", test)):
        if isinstance(source, str | Path):
            data[role] = str(source)
        elif source is not None:
            data[role] = str(_keep(config, role, list(load_rows(source, "", None, role))))
    several: dict[str, Any] = {"train": {"mixture": {}}, "test": {"test_sources": []}}
    for role in list(data):
        data |= several[role]
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def _keep(config: Config, role: str, rows: Sequence[PlacedRow]) -> Path:
    load_problems(
        [row for _, row in rows],
        cot=config.data.cot,
        columns=config.data.columns,
        keep=config.data.keep_columns,
        check_answers=config.reward.grades_answers,
        new_ids=role,
    )
    path = config.run_dir / "given" / f"{role}.jsonl"
    text = "".join(json.dumps(row, default=_in_json) + "\n" for _, row in rows)
    begun = has_begun(config.run_dir)
    if begun and not (path.exists() and path.read_text(encoding="utf-8") == text):
        raise UserError(
            f"{config.run_dir} holds a run on other data than these rows of {role};"
            " choose another name, or delete that directory"
        )
    if not begun and rank() == 0:  # under a launcher one process writes
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


def _in_json(value: object) -> object:
    """Return an integer of numpy as one, for it may be an index; other values are read as their text."""
    return int(value) if isinstance(value, Integral) else str(value)
