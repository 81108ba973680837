"""Rows of a data file, a directory, a Hugging Face data set or a Python program, each with its place."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from glob import has_magic
from pathlib import Path
from typing import Any

from reftune.config.data import GYM
from reftune.data.tables import csv_rows, parquet_rows
from reftune.files import ONE_PER_LINE, PlacedRow, parse_json, read_rows, reading_from, require_object
from reftune.problem import Problem, UserError

JSON, CSV, PARQUET, ARROW = (".json", ".jsonl"), (".csv", ".tsv"), (".parquet",), (".arrow",)
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves, of several splits and of one
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
    if str(source).startswith(GYM):
        from reftune.data.gym import gym_rows  # here: nobody else needs it

        return gym_rows(str(source), split)
    path, source = Path(os.path.expanduser(source)), str(source)
    suffix = path.suffix.lower()
    if not path.exists() and (
        suffix in (*JSON, *CSV, *PARQUET, *ARROW) or not _HUB_NAME.fullmatch(source)
    ):
        raise UserError(f"{source}: no such file")
    if suffix in ARROW or any((path / name).is_file() for name in _SAVED):
        return _saved_rows(path, source, split)
    if path.is_dir() and has_magic(str(path)):  # `datasets` would take it for a pattern
        raise UserError(f"{source}: directories with *, ? or [ in their names cannot be read; rename it")
    if not path.is_file():
        return _dataset_rows(source, str(path) if path.is_dir() else source, subset, split)
    if suffix in JSON:
        return _json_rows(path, source)
    if suffix in CSV:
        return csv_rows(path, source)
    if suffix in PARQUET:
        return parquet_rows(path, source)
    raise UserError(f"{source}: unknown kind of file; use .json, .jsonl, .csv, .tsv, .parquet or .arrow")


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


def _json_rows(path: Path, name: str) -> Iterator[PlacedRow]:
    """Return the items of an array, or one object per line."""
    with reading_from(path, ONE_PER_LINE), path.open(encoding="utf-8-sig") as file:
        start = next((line for line in file if line.strip()), "")
        if not start.lstrip().startswith("["):
            return read_rows(path, exact=True, name=name)
        file.seek(0)
        items = enumerate(parse_json(file.read(), name, exact=True), start=1)
    places = ((f"{name}: item {number}", item) for number, item in items)
    return ((place, require_object(item, place)) for place, item in places)


# Files of a data set that we read ourselves: libraries guess what a cell means.
_OWN_READERS = {"csv": csv_rows, "json": _json_rows}


def _dataset_rows(source: str, path: str, subset: str | None, split: str) -> Iterator[PlacedRow]:
    # Imported here: it takes a second, which JSON files need not wait for.
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(path, name=subset)
        nested = getattr(builder.config, "field", None)  # rows below a key of a JSON file
        read = None if nested else _OWN_READERS.get(type(builder).__module__.rpartition(".")[2])
        files = _downloaded(builder.config.data_files, split) if read else []
        dataset = () if read else _prepared(builder, split)
    except Exception as error:  # of many libraries: network, hub, parsers
        reason = f"{error}".partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"cannot load {source}: {reason}; check name, subset, split and connection"
        ) from error
    for name, file in files:
        yield from read(file, name) if read else ()
    for number, row in enumerate(dataset, start=1):
        yield f"{source}: row {number}", row


def _saved_rows(path: Path, name: str, split: str) -> Iterator[PlacedRow]:
    """Yield the rows that `datasets` wrote with `save_to_disk`, or keeps in a file of its cache.

    The split is asked for where several were saved.
    """
    from datasets import Dataset, DatasetDict, load_from_disk

    try:
        found = Dataset.from_file(str(path)) if path.is_file() else load_from_disk(str(path))
    except Exception as error:  # of pyarrow and of `datasets`
        reason = f"{error}".partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(f"{name}: cannot be read as Arrow ({reason}); save it anew") from error
    if isinstance(found, DatasetDict):
        if split not in found:
            raise UserError(f"{name}: has no split {split!r}; choose {' or '.join(map(repr, found))}")
        found = found[split]
    for number, row in enumerate(found, start=1):
        yield f"{name}: row {number}", row


def _prepared(builder: Any, split: str) -> Iterable[dict[str, Any]]:
    """Return the rows of a split as the library of data sets reads them."""
    builder.download_and_prepare()
    rows: Iterable[dict[str, Any]] = builder.as_dataset(split=split)
    return rows


def _downloaded(files: Mapping[Any, Sequence[str]], split: str) -> Iterator[tuple[str, Path]]:
    """Return the names of a split's files, and where they lie on this machine, unpacked."""
    from datasets import DownloadManager

    if split not in files:
        raise ValueError(f"unknown split {split!r}, it has {', '.join(map(str, files))}")
    names = list(files[split])
    return zip(names, map(Path, DownloadManager().download_and_extract(names)), strict=True)
