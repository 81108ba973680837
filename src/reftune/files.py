"""Files and directories that are there as a whole or not at all; JSON, JSONL and TOML.

What is written has a temporary name first, is synced to disk and then renamed. Whatever keeps a file
from being read or written is told in one sentence here, and nowhere else.
"""

import errno
import json
import os
import re
import shutil
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from reftune.problem import Row, UserError

ONE_PER_LINE = "write one object per line"
RUN_AGAIN = "delete it and run its stage again"
ELSEWHERE = "choose another place"
TOO_DEEP = "nested too deeply"
_adapter = lru_cache(TypeAdapter)  # of a type; to make one takes time
PlacedRow = tuple[str, Row]  # where it stands (file and line), and what it holds


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory that takes the place of `target` once the block has succeeded.

    Raises UserError where it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.partial")
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing_to(target):
        temporary.mkdir(parents=True)
        yield temporary
        sync_files(temporary)
        if target.exists():  # a directory cannot be replaced in one step: move the old one aside first
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        sync(target.parent)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `target` once the block has succeeded.

    Raises UserError where it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.partial")
    with writing_to(target):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(target)


def make_directory(path: Path) -> None:
    """Make a directory, with those above it, if it is not there; raise UserError where that fails."""
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing_to(target: Path, fix: str = ELSEWHERE) -> Iterator[None]:
    """Raise UserError, with what to do about it, if the block cannot write `target`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _means_full_disk(error, target):
            raise UserError(
                f"{target}: cannot be written, the disk is full; free some space and start the same"
                " command again, nothing that was written before is lost"
            ) from None
        if not isinstance(error, OSError) and not _is_about_files(error):
            raise
        raise UserError(f"{target}: cannot be written ({error}); {fix}") from error


def check_writable(out: Path, is_directory: bool = False) -> None:
    """Raise UserError where what the user has named cannot be written: before the work, not after it."""
    with writing_to(out, "give another --out"):
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
    """Raise UserError, with what to do about it, if the block cannot read `path` as text."""
    try:
        yield
    except UnicodeDecodeError as error:
        if not fix.startswith("delete"):  # the user wrote it
            fix = "save it as UTF-8"
        place = f"{path}:{_line_that_is_not_utf_8(path)}"
        raise UserError(f"{place}: cannot be read as UTF-8 text ({error.reason}); {fix}") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
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


def read_json(path: Path, fix: str = RUN_AGAIN) -> Any:
    """Read a JSON file that `write_json` wrote; raise UserError, with what to do, where that fails."""
    with reading_from(path, fix):
        text = path.read_text(encoding="utf-8")
    return parse_json(text, path, fix)


def read_object(path: Path, fix: str = RUN_AGAIN, shape: Any = Row) -> Row:
    """Read a JSON object of a shape, see `require_shape`.

    Raises UserError, with what to do about it, for anything else.
    """
    found = require_object(read_json(path, fix), str(path), fix)
    require_shape(found, shape, path, fix)
    return found


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, as a whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(path: Path, shape: Any = Row, fix: str = RUN_AGAIN) -> list[Any]:
    """Read what `write_jsonl` or a stage's log wrote: objects of a shape, see `require_shape`."""
    return [require_shape(row, shape, place, fix) for place, row in read_rows(path, fix)]


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
    except (ValueError, ArithmeticError) as error:  # thousands of digits
        reason = str(error)
    except RecursionError:
        reason = TOO_DEEP
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


def require_shape(value: Any, shape: Any, place: str | Path, fix: str) -> Any:
    """Return a value that has the shape of a type, as it is; any other is a UserError with the key."""
    try:
        _adapter(shape).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise UserError(f"{place}: {key}{': ' if key else ''}{reason}; {fix}") from None
    return value


def read_toml(path: Path, fix: str = "correct the path") -> Row:
    """Read a TOML file; raise UserError, with what to do about it, where that fails."""
    with reading_from(path, fix):
        text = path.read_text(encoding="utf-8-sig")
    return parse_toml(text, str(path))


def parse_toml(text: str, place: str) -> Row:
    """Parse TOML; anything else is a UserError."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # thousands of digits, too
        reason = str(error)
    except RecursionError:
        reason = TOO_DEEP
    raise UserError(f"{place}: not valid TOML: {reason}")


def _means_full_disk(error: Exception, target: Path) -> bool:
    if isinstance(error, OSError) or _is_about_files(error):
        full = (errno.ENOSPC, errno.EDQUOT)
        return getattr(error, "errno", None) in full or any(
            f"(os error {n})" in str(error) for n in full
        )
    if not isinstance(error, RuntimeError):  # torch says that a write failed, or less, and never why
        return False
    there = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists())
    return "file write failed" in str(error) or shutil.disk_usage(there).free < 2**20


def _is_about_files(error: Exception) -> bool:
    """Tell whether an error comes from a library in Rust (its type says nothing), or from a NUL."""
    return bool(re.search(r"\(os error \d+\)|embedded null (byte|character)", str(error)))


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
