"""Divide one data set into two: questions to train on, and others to test on."""

import json
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

from reftune.config import Columns
from reftune.data.formats import read_fields, require_columns
from reftune.data.problems import question_key
from reftune.data.sources import load_rows
from reftune.files import atomic_file
from reftune.problem import UserError

MOST_TEST, TEST_SHARE = 1000, 0.2


@dataclass(frozen=True, slots=True)
class Divided:
    """The two new files, and how many rows each has."""

    train: Path
    test: Path
    train_rows: int
    test_rows: int


def divide(
    source: str,
    *,
    test_size: int | None = None,
    seed: int = 0,
    split: str = "train",
    subset: str | None = None,
    columns: Columns | None = None,
    most: int | None = None,
    out: Path | None = None,
) -> Divided:
    """Write the rows of a data set, as they are, into two JSONL files that share no question.

    Args:
        source: a file, a directory or a data set's name.
        test_size: different questions to test on; default: a fifth, at most 1,000.
        seed: which questions these are; their order in the file plays no part.
        split, subset, columns: as for `problems.load_problems`.
        most: take only so many rows, the first.
        out: directory of the files, NAME_train.jsonl and NAME_test.jsonl; default: where the file is.

    Raises UserError where a row cannot be read, a new file is there already, or too few are left.
    """
    rows = list(islice(load_rows(source, split, subset), most))
    require_columns(source, rows, columns)
    keys = [question_key(read_fields(where, row, columns).question) for where, row in rows]
    ranking = sorted(set(keys), key=lambda key: sha256(f"{seed}:{key}".encode()).hexdigest())
    size = test_size or max(1, min(MOST_TEST, round(TEST_SHARE * len(ranking))))
    if size >= len(ranking):
        raise UserError(f"{source}: has {len(ranking)} different questions; test on fewer than that")
    path, chosen = Path(source).expanduser(), set(ranking[:size])
    folder = out or (path.parent if path.exists() else Path())
    targets = [folder / f"{path.stem}_{role}.jsonl" for role in ("train", "test")]
    for target in targets:
        if target.exists():
            raise UserError(f"{target}: is there already; remove it, or give another --out")
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for _, row in rows]
    parts = [
        [line for line, key in zip(lines, keys, strict=True) if (key in chosen) is for_test]
        for for_test in (False, True)
    ]
    for target, part in zip(targets, parts, strict=True):
        with atomic_file(target) as partial:
            partial.write_text("".join(part), encoding="utf-8")
    return Divided(targets[0], targets[1], len(parts[0]), len(parts[1]))
