"""Rows of a data file, a directory or a Hugging Face data set, each with the place it stands at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reftune.files import ONE_PER_LINE, PlacedRow, parse_json, read_rows, reading_from, require_object
from reftune.problem import UserError

JSON_SUFFIXES = (".json", ".jsonl")
TABLE_BUILDERS = {".csv": "csv", ".parquet": "parquet"}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_rows(source: str, split: str, subset: str | None) -> Iterator[PlacedRow]:
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
