"""The reader of JSONL: what is a line, what is skipped, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from reftune.files import check_writable, read_jsonl, read_rows
from reftune.problem import UserError

DEEP = b'{"a": ' + b"[" * 10**5
LONG = b'{"a": ' + b"1" * 5000 + b"}"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_only_a_newline_ends_a_line_and_blank_ones_are_counted_but_skipped(tmp_path: Path) -> None:
    text = '\ufeff{"a": "x\u2028\x85y"}\n\n  \r\n{"a":\r2}\r\n{"a": 3}'
    path = write(tmp_path / "x.jsonl", text.encode())
    rows = [(f"{path}:1", {"a": "x\u2028\x85y"}), (f"{path}:4", {"a": 2}), (f"{path}:5", {"a": 3})]
    assert list(read_rows(path)) == rows


def test_what_was_read_before_a_bad_line_is_given_out(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "x.jsonl", b'{"a": 1}\n{"a"'), "mend it")
    assert next(rows)[1] == {"a": 1}
    with pytest.raises(UserError, match=r"x\.jsonl:2: not JSON \(.*, column 5\); mend it$"):
        next(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n[1]", r"x\.jsonl:2: not an object; write one object per line$"),
        (b"{}\nnull", r"x\.jsonl:2: not an object"),
        (DEEP, r"x\.jsonl:1: not JSON \(nested too deeply\); write"),
        (LONG, r"x\.jsonl:1: not JSON \(.*digits.*\); write"),
        (b'{}\n{"a": "\xff"}', r"x\.jsonl:2: cannot be read as UTF-8 text \(.*\); save it as UTF-8$"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", content)
    with pytest.raises(UserError, match=message):
        list(read_rows(path))


def test_with_patience_bad_lines_are_told_and_the_others_read(tmp_path: Path) -> None:
    good = b'{"a": 1}'
    lines = [good, DEEP, b"[1]", LONG, b'{"a": "\xff"', good, b'{"a']
    path, bad = write(tmp_path / "x.jsonl", b"\n".join(lines)), list[str]()
    assert [place for place, _ in read_rows(path, bad=bad)] == [f"{path}:1", f"{path}:6"]
    assert [text.partition(": ")[0] for text in bad] == [f"{path}:{n}" for n in (2, 3, 4, 5, 7)]


def test_what_we_wrote_ourselves_is_to_be_written_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="delete it and run its stage again"):
        read_jsonl(write(tmp_path / "x.jsonl", b"{"))
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        read_jsonl(tmp_path / "none.jsonl")


@pytest.mark.parametrize("is_directory", [False, True])
def test_what_cannot_be_written_is_known_before_the_work(tmp_path: Path, is_directory: bool) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    places = {
        "file": "it is a file" if is_directory else None,
        "folder": None if is_directory else "it is a directory",
        "file/below": "ot a directory",
        "new/deep/out": None,
    }
    for name, reason in places.items():
        before = sorted(tmp_path.rglob("*.jsonl"))
        if reason is None:
            check_writable(tmp_path / name, is_directory)
        else:
            with pytest.raises(UserError, match=f"{name}: cannot be written .*{reason}"):
                check_writable(tmp_path / name, is_directory)
        assert sorted(tmp_path.rglob("*.jsonl")) == before
    assert not (tmp_path / "new/deep/out").is_file(), "trying leaves nothing"
