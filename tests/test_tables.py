"""Rows of tables: every cell as it was written, and what is out of its column refused by its line."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from reftune.data.problems import load_problems
from reftune.data.sources import load_rows
from reftune.problem import Problem, UserError


def table(path: Path, content: str, encoding: str = "utf-8") -> str:
    path.write_bytes(content.encode(encoding))
    return str(path)


def read(source: str, split: str = "train") -> list[dict[str, Any]]:
    return [row for _, row in load_rows(source, split, None)]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("q,a\nx,None\nNA,null\nnan,N/A\n", [("x", "None"), ("NA", "null"), ("nan", "N/A")]),
        ("q,a\n01,007\n1.50,1e3\n", [("01", "007"), ("1.50", "1e3")]),
        ("q,a\nx,9007199254740993\n,True\n", [("x", "9007199254740993"), ("", "True")]),
        ("q,a\nx,2020-01-02\n", [("x", "2020-01-02")]),  # no date
        ("\ufeffq,a\r\nx,1\r\n\r\n  \r\ny,2", [("x", "1"), ("y", "2")]),  # Excel's mark, blank lines
        ("\n\nq,a\nx,1\n", [("x", "1")]),
        ('q,a\n"Who, me?",1\n"a ""b""\nc",2\n', [("Who, me?", "1"), ('a "b"\nc', "2")]),
        ('q, a\n5" pipe, "1,000"\n', [('5" pipe', "1,000")]),
        ("q;a\nx, y;1,5\n", [("x, y", "1,5")]),  # Excel where a comma begins the decimals
        ("q\ta\nx, y\t1\n", [("x, y", "1")]),
        ("q,a\n\u2028x\u0085,½\n", [("x", "½")]),
    ],
)
def test_cells_are_read_as_they_stand(tmp_path: Path, content: str, rows: list[tuple[str, str]]) -> None:
    found = read(table(tmp_path / "t.csv", content))
    assert found == [{"q": q, "a": a} for q, a in rows]


def test_an_index_without_a_name_may_stand_first(tmp_path: Path) -> None:
    source = table(tmp_path / "pandas.csv", ",question,answer\n0,x,1\n")
    assert load_problems(source, cot="natural") == [Problem("pandas-1", "x", "1")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("q,a\nx,1\nHow many, if 3?,7\n", "t.csv:3: has 3 fields, but the header 2; put a text"),
        ("q,a,chain\nx,1,one\ny,2\n", "t.csv:3: has 2 fields, but the header 3; put"),
        ('q,a\n"two\nlines",1\nz\n', "t.csv:4: has 1 fields, but the header 2; put"),
        ("q,a,\nx,1,\nHow many, if 3?,7\n", "t.csv:3: has a value in a column that the header does not"),
        ("q,a,q\nx,1,y\n", "t.csv:1: has 2 columns named 'q'; give each its own name"),
        (
            'q,a\nx,1\n"open,2\n',
            "t.csv:3: not CSV (unexpected end of data); close and double the quotes",
        ),
        ('q,a\n"x" y,2\n', "t.csv:2: not CSV (',' expected after '\"'); close and double the quotes"),
        (f'q,a\n"{"x" * 2**18}\n', "t.csv:2: not CSV (field larger than field limit"),
    ],
)
def test_a_row_that_is_out_of_its_columns_is_named_by_its_line(
    tmp_path: Path, content: str, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(table(tmp_path / "t.csv", content))
    assert f"{tmp_path}/{said}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "encoding", "said"),
    [
        ("question,answer\nx,1\nCafé?,2\n", "latin-1", "t.csv:3: cannot be read as UTF-8 text"),
        ("question,answer\nx,1\n", "utf-16", "t.csv:1: cannot be read as UTF-8 text"),
        ("question,answer\n", "utf-8", "t.csv: no problems in it; each needs a question and an answer"),
        ("", "utf-8", "t.csv: no problems in it"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, content: str, encoding: str, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_problems(table(tmp_path / "t.csv", content, encoding), cot="natural")
    assert f"{tmp_path}/{said}" in str(caught.value)
    assert str(caught.value).endswith("; save it as UTF-8") == (encoding != "utf-8")


@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_a_name_is_no_pattern(tmp_path: Path, suffix: str) -> None:
    from datasets import Dataset

    def write(name: str, question: str) -> str:
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "parquet":
            Dataset.from_dict({"question": [question], "answer": ["1"]}).to_parquet(path)
            return str(path)
        line = json.dumps({"question": question, "answer": "1"})
        return table(path, line if suffix == "jsonl" else f"question,answer\n{question},1\n")

    write("star2", "neighbour")
    write("ba", "neighbour")
    for name in ("star*", "b[ab]", "st?r", "what {a,b} ~"):
        [problem] = load_problems(write(name, f"own of {name[:4]}"), cot="natural")
        assert problem.question == f"own of {name[:4]}"


def test_a_directory_that_would_be_a_pattern_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a[b]").mkdir()
    with pytest.raises(UserError, match=r"a\[b\]: directories with .* cannot be read; rename it"):
        read(str(tmp_path / "a[b]"))


def test_parquet_keeps_its_numbers(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    large = 2**53 + 1
    columns = {
        "question": pa.array(["a", "b"]),
        "answer": pa.array([Decimal("3.50"), Decimal(large)], pa.decimal128(20, 2)),
        "id": pa.array([large, large + 2], pa.int64()),
    }
    write_table(pa.table(columns), tmp_path / "x=1.parquet")
    problems = load_problems(str(tmp_path / "x=1.parquet"), cot="natural")
    assert problems == [
        Problem("9007199254740993", "a", "3.50"), Problem("9007199254740995", "b", "9007199254740993")
    ]  # fmt: skip


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    (tmp_path / "text.parquet").write_text("question,answer\n")
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["answer", "answer"])
    write_table(twice, tmp_path / "twice.parquet")
    write_table(pa.table({"question": ["a"], "answer": [date(2020, 1, 2)]}), tmp_path / "day.parquet")
    for name, said in (
        ("text.parquet", "cannot be read as Parquet (Parquet magic bytes not found"),
        ("twice.parquet", "has 2 columns named 'answer'"),
        ("day.parquet", "row 1: 'answer' is a date; it must be a text or a number"),
    ):
        with pytest.raises(UserError) as caught:
            load_problems(str(tmp_path / name), cot="natural")
        assert str(caught.value).startswith(f"{tmp_path}/{name}: {said}")


@pytest.mark.usefixtures("_own_cache")
def test_the_tables_of_a_directory_are_read_alike(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a").mkdir()
    table(tmp_path / "a/train.csv", "question,answer\nx,None\ny,01\n")
    table(tmp_path / "a/test.csv", "question,answer\nz,9007199254740993\n")
    (tmp_path / "b").mkdir()
    lines = b'{"question": "x", "answer": 9007199254740993.0}\n{"question": "y", "answer": "2020-01-02"}'
    (tmp_path / "b/train.jsonl.gz").write_bytes(gzip.compress(lines))

    def answers(name: str, split: str) -> list[str]:
        problems = load_problems(str(tmp_path / name), cot="natural", split=split)
        return [problem.answer for problem in problems]

    assert answers("a", "train") == ["None", "01"]
    assert answers("a", "test") == ["9007199254740993"]
    assert answers("b", "train") == ["9007199254740993", "2020-01-02"]
    table(tmp_path / "a/test.csv", "question,answer\nx,1,2\n")
    with pytest.raises(UserError, match=r"a/test\.csv:2: has 3 fields, but the header 2"):
        answers("a", "test")
