"""Read the file in which wandb keeps a run that was not uploaded: protobuf in LevelDB's log format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_HEADER, BLOCK, CHUNK_HEADER = 7, 32_768, 7  # bytes
FULL, LAST = 1, 4  # kinds of a chunk: a whole record, the last part of one


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records of a `run-*.wandb` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = path.read_bytes(), FILE_HEADER, b""
    while place + CHUNK_HEADER <= len(content):
        if BLOCK - place % BLOCK < CHUNK_HEADER:  # too little for a header: filled with zeros
            place += BLOCK - place % BLOCK
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]
        place += CHUNK_HEADER
        record += content[place : place + length]
        place += length
        if kind in (FULL, LAST):
            yield Record.FromString(record)
            record = b""
