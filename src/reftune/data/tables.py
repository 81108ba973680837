"""Rows of CSV and Parquet files, each with its place; nothing in a cell is changed, or guessed."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from reftune.files import PlacedRow, reading_from
from reftune.problem import UserError

SEPARATORS = ",;\t"


def csv_rows(path: Path, place: str) -> Iterator[PlacedRow]:
    """Yield the rows below the header of a CSV file; all cells are text.

    The separator is that of comma, semicolon and tab which the header has most of.
    Raises UserError that names the line of a row with more or fewer fields than the header has.
    """
    with reading_from(path, "write it anew"), path.open(encoding="utf-8-sig", newline="") as file:
        separator = _separator(file)
        records = _records(file, separator, place)
        where, names = next(records, (place, []))
        _require_unique(where, [name for name in names if name])
        for where, fields in records:
            if len(fields) != len(names):
                raise UserError(
                    f"{where}: has {len(fields)} fields, but the header {len(names)}; put a text that"
                    f" holds {separator!r} in double quotes"
                )
            # An index without a name stands first; elsewhere such a value was pushed out of its column.
            if any(text and not name for name, text in zip(names[1:], fields[1:], strict=True)):
                raise UserError(
                    f"{where}: has a value in a column that the header does not name; name it"
                )
            yield where, dict(zip(names, fields, strict=True))


def parquet_rows(path: Path, place: str) -> Iterator[PlacedRow]:
    """Yield the rows of a Parquet file. Raises UserError where it is none, or damaged."""
    # Imported here: it takes time, which other files need not wait for.
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with path.open("rb") as file:
            table = ParquetFile(file).read()
        _require_unique(place, table.column_names)
        rows = table.to_pylist()
    except (OSError, ValueError, ArrowException) as error:
        reason = f"{error}".partition("\n")[0].rstrip(".")
        raise UserError(f"{place}: cannot be read as Parquet ({reason}); write it anew") from error
    for number, row in enumerate(rows, start=1):
        yield f"{place}: row {number}", row


def _separator(file: TextIO) -> str:
    header = next((line for line in file if line.strip()), "")
    file.seek(0)
    return max(SEPARATORS, key=header.count)


def _records(file: TextIO, separator: str, place: str) -> Iterator[tuple[str, list[str]]]:
    """Yield what is between the separators, with the line where it begins; blank lines are skipped."""
    reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        where = f"{place}:{reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{where}: not CSV ({error}); close and double the quotes of a text"
            ) from None
        if fields is None:
            return
        if len(fields) > 1 or "".join(fields).strip():
            yield where, [field.strip() for field in fields]


def _require_unique(where: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{where}: has {count} columns named {name!r}; give each its own name")
