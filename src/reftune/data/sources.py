"""Rows of a data file, a directory or a Hugging Face data set, each with the place it stands at."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reftune.problem import UserError

JSON_SUFFIXES = (".json", ".jsonl")
TABLE_BUILDERS = {".csv": "csv", ".parquet": "parquet"}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

Row = tuple[str, dict[str, Any]]  # where it stands (file and line), and its fields


def read_rows(source: str, split: str, subset: str | None) -> Iterator[Row]:
    """Return the rows of `source`; split and subset are those of a directory or hub data set.

    Raises UserError, here or on the way through, for what cannot be read.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if not path.exists() and (
        suffix in (*JSON_SUFFIXES, *TABLE_BUILDERS) or not _HUB_NAME.fullmatch(source)
    ):
        raise UserError(f"{source}: no such file")
    if not path.is_file():
        return _dataset_rows(source, str(path) if path.is_dir() else source, name=subset, split=split)
    if suffix in JSON_SUFFIXES:
        return _json_rows(path)
    if suffix in TABLE_BUILDERS:
        return _dataset_rows(source, TABLE_BUILDERS[suffix], data_files=str(path), split="train")
    raise UserError(f"{source}: unknown kind of file; use .json, .jsonl, .csv or .parquet")


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if text.lstrip().startswith("["):
        located = [(f"{path}: item {n}", row) for n, row in enumerate(_parse(text, path, 1), start=1)]
    else:
        lines = enumerate(text.split("\n"), start=1)  # splitlines() would cut at U+2028
        located = [(f"{path}:{n}", _parse(line, path, n)) for n, line in lines if line.strip()]
    for where, row in located:
        if not isinstance(row, dict):
            raise UserError(f'{where}: not an object; write {{"question": ..., "answer": ...}}')
        yield where, row


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{first_line + error.lineno - 1}"
        reason = f"{error.msg}, column {error.colno}"
        raise UserError(f"{where}: not JSON ({reason}); write one object per line") from error


def _dataset_rows(source: str, builder: str, **options: Any) -> Iterator[Row]:
    # Imported here: it takes a second, which JSON files need not wait for.
    from datasets import load_dataset

    try:
        dataset = load_dataset(builder, **options)
    except Exception as error:  # of many libraries: network, hub, parsers
        reason = f"{error}".partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"cannot load {source}: {reason}; check name, subset, split and connection"
        ) from error
    for number, row in enumerate(dataset, start=1):
        yield f"{source}: row {number}", row
