"""Rows of a data file, a directory, a Hugging Face data set or a Python program, each with its place."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reftune.files import ONE_PER_LINE, PlacedRow, parse_json, read_rows, reading_from, require_object
from reftune.problem import Problem, UserError

JSON_SUFFIXES = (".json", ".jsonl")
TABLE_BUILDERS = {".csv": "csv", ".parquet": "parquet"}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

# A file, a directory, a data set's name on the hub; or rows: mappings, problems, a `datasets.Dataset`.
Source = str | Path | Iterable[Any]


def load_rows(source: Source, split: str, subset: str | None, name: str = "data") -> Iterator[PlacedRow]:
    """Return the rows of `source`.

    Args:
        source: where they are, or the rows themselves.
        split, subset: those of a directory or hub data set.
        name: of rows that come from nowhere, for errors.

    Raises UserError, here or on the way through, for what cannot be read.
    """
    if not isinstance(source, str | Path):
        return _given_rows(source, name)
    path, source = Path(source).expanduser(), str(source)
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


def _given_rows(rows: Iterable[Any], name: str) -> Iterator[PlacedRow]:
    if isinstance(rows, Mapping):
        keys = ", ".join(map(repr, rows))
        raise UserError(f"{name}: has the keys {keys}; give a list of rows, or one split of a data set")
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of {name}"
        fields = asdict(row) if isinstance(row, Problem) else row
        if not isinstance(fields, Mapping):
            raise UserError(f'{where}: not a mapping; give {{"question": ..., "answer": ...}}')
        yield where, dict(fields)


def _json_rows(path: Path) -> Iterator[PlacedRow]:
    """Return the items of an array, or one object per line."""
    with reading_from(path, ONE_PER_LINE), path.open(encoding="utf-8-sig") as file:
        start = next((line for line in file if line.strip()), "")
        if not start.lstrip().startswith("["):
            return read_rows(path)
        file.seek(0)
        items = enumerate(parse_json(file.read(), path), start=1)
    places = ((f"{path}: item {number}", item) for number, item in items)
    return ((place, require_object(item, place)) for place, item in places)


def _dataset_rows(source: str, builder: str, **options: Any) -> Iterator[PlacedRow]:
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
