"""Files and directories that are there as a whole or not at all; JSON and JSONL.

What is written has a temporary name first, is synced to disk and then renamed.
"""

import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from reftune.problem import Row, UserError

ONE_PER_LINE = "write one object per line"
PlacedRow = tuple[str, Row]  # where it stands (file and line), and what it holds


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory that takes the place of `target` once the block has succeeded.

    Raises UserError where the disk is full.
    """
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    with full_disk_is_named(target):
        temporary.mkdir(parents=True)
        yield temporary
        sync_files(temporary)
    if target.exists():  # a directory cannot be replaced in one step: move the old one aside first
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(target.with_name(f".{target.name}.old"), ignore_errors=True)
    sync(target.parent)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `target` once the block has succeeded."""
    temporary = target.with_name(f".{target.name}.partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    sync(temporary)
    temporary.replace(target)


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Raise UserError if the block cannot write `out`, which the user has named."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); give another --out") from error


def check_writable(out: Path, is_directory: bool = False) -> None:
    """Raise UserError where what the user has named cannot be written: before the work, not after it."""
    with writing_to(out):
        if out.exists() and out.is_dir() != is_directory:
            raise OSError("it is a file" if is_directory else "it is a directory")
        folder = out if is_directory else out.parent
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a directory")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def reading_from(path: Path, fix: str) -> Iterator[None]:
    """Raise UserError if the block cannot read `path` as text."""
    try:
        yield
    except UnicodeDecodeError as error:
        if fix.startswith("write"):  # the user wrote it
            fix = "save it as UTF-8"
        place = f"{path}:{_line_that_is_not_utf_8(path)}"
        raise UserError(f"{place}: cannot be read as UTF-8 text ({error.reason}); {fix}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); {fix}") from error


def _line_that_is_not_utf_8(path: Path) -> int:
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        content = content[: error.start]
    return content.count(b"\n") + 1


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, as a whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_object(path: Path, fix: str) -> Row:
    """Read a JSON object; raise UserError, with what to do about it, for anything else."""
    with reading_from(path, fix):
        text = path.read_text(encoding="utf-8")
    return require_object(parse_json(text, path, fix), str(path), fix)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, as a whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(path: Path) -> list[Any]:
    """Read what `write_jsonl` or a stage's log wrote."""
    return [row for _, row in read_rows(path, "delete it and run its stage again")]


def read_rows(
    path: Path,
    fix: str = ONE_PER_LINE,
    bad: list[str] | None = None,
    *,
    exact: bool = False,
    name: str | None = None,
) -> Iterator[PlacedRow]:
    """Yield the objects of a JSONL file, each with its place; blank lines are skipped.

    Args:
        path: a file in UTF-8.
        fix: what the user is told to do about a file or a line that cannot be read.
        bad: takes what is said of such lines; without it the first one raises UserError.
        exact: as for `parse_json`.
        name: what the file is called in places; default: its path.
    """
    errors = "strict" if bad is None else "replace"
    # Only \n ends a line: texts may hold U+2028, at which splitlines() would cut.
    with reading_from(path, fix), path.open(encoding="utf-8-sig", newline="\n", errors=errors) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{name or path}:{number}"
            try:
                value = parse_json(line.rstrip("\n"), name or path, fix, number, exact=exact)
                row = require_object(value, place, fix)
            except UserError as error:
                if bad is None:
                    raise
                bad.append(str(error))
            else:
                yield place, row


def parse_json(
    text: str, path: Path | str, fix: str = ONE_PER_LINE, line: int = 1, *, exact: bool = False
) -> Any:
    """Parse JSON that begins in line `line` of a file; anything else is a UserError.

    With `exact` numbers keep their digits (as `Decimal`), and a key that comes twice is refused.
    """
    exactly: dict[str, Any] = {"parse_float": Decimal, "object_pairs_hook": _object} if exact else {}
    try:
        return json.loads(text, **exactly)
    except json.JSONDecodeError as error:
        line, reason = line + error.lineno - 1, f"{error.msg}, column {error.colno}"
    except (ValueError, ArithmeticError, RecursionError) as error:  # thousands of digits, or brackets
        reason = str(error)
    raise UserError(f"{path}:{line}: not JSON ({reason}); {fix}")


def _object(pairs: list[tuple[str, Any]]) -> Row:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name!r} comes {count} times in one object")
    return dict(pairs)


def require_object(value: Any, place: str, fix: str = ONE_PER_LINE) -> Row:
    """Return a value that is a JSON object; any other is a UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{place}: not an object; {fix}")
    return value


@contextmanager
def full_disk_is_named(target: Path) -> Iterator[None]:
    """Turn the ways in which libraries report a full disk into one sentence."""
    try:
        yield
    except Exception as error:
        if not _means_full_disk(error, target.parent):
            raise
        raise UserError(
            f"{target}: cannot be written, the disk is full; free some space and start the same command"
            " again, nothing that was written before is lost"
        ) from None


def _means_full_disk(error: Exception, directory: Path) -> bool:
    if isinstance(error, RuntimeError):  # torch says that a write failed, or less, and never why
        return "file write failed" in str(error) or shutil.disk_usage(directory).free < 2**20
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    named = type(error).__name__ == "SafetensorError"  # by its name: to import it takes time
    return named and ("No space left" in str(error) or "quota" in str(error))


def sync_files(directory: Path) -> None:
    """Force every file below a directory to the disk, with the rights that the umask gives new files.

    Libraries write through temporary files that nobody else may read.
    """
    rights = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file():
            with suppress(OSError):  # not every file system has them
                path.chmod(rights)
            sync(path)


def sync(path: Path) -> None:
    """Force a file, or a directory's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
