"""The commands `reftune data ...` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reftune import cli

ROW = {
    "question": "Ann has 3 boxes of 4 pens. How many pens?",
    "answer": "3*4=<<3*4=12>>12 pens\n#### 12",
}
WORDS = {"question": "How many dwarfs?", "answer": "There are seven.\n#### 7"}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a small file in GSM8K's format, in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in (ROW, WORDS)))
    return "train.jsonl"


def reftune(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command and return its exit code."""
    monkeypatch.setattr("sys.argv", ["reftune", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_prepare_writes_a_file_that_check_accepts(
    source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reftune(monkeypatch, "data", "prepare", "gsm8k", "--cot", "program", "--source", source) == 0
    assert capsys.readouterr().out == (
        "read     2 rows of train.jsonl\n"
        "written  1 (50.00%) to gsm8k_program_train.jsonl\n"
        "dropped  1: no equation of the solution gives the answer (first: gsm8k-train-2)\n"
    )
    assert reftune(monkeypatch, "data", "check", "gsm8k_program_train.jsonl") == 0
    shown = capsys.readouterr().out
    assert "chains     1 (program), 1 give their answers; 0 problems have none\n" in shown


def test_check_shows_its_report_and_the_first_faults_before_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"question": f"{n}?", "answer": "1", "chain": "def solution():\n    return 2"} for n in range(9)
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert reftune(monkeypatch, "data", "check", str(path)) == 2
    shown = capsys.readouterr()
    assert "chains     9 (program), 0 give their answers" in shown.out
    assert shown.out.count("fault      ") == 5
    assert f"fault      {path}:1: the chain gives 2.0, the answer is 1\n" in shown.out
    assert shown.err == f"reftune: error: {path}: 9 of 9 rows are at fault; mend or drop them\n"


def test_columns_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"q": "?", "a": 1}\n')
    columns = ["--column", "question=q", "--column", "answer=a"]
    assert reftune(monkeypatch, "data", "check", str(path), *columns) == 0
    assert reftune(monkeypatch, "data", "check", str(path)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["prepare", "gsm", "--cot", "program"],
            "gsm: unknown data set; choose gsm8k, svamp, mathqa_mcq,",
        ),
        (["prepare", "gsm8k", "--cot", "program"], "cannot load openai/gsm8k: "),
        (["prepare", "gsm8k", "--cot", "program", "--source", "no.jsonl"], "no.jsonl: no such file"),
        (["prepare", "svamp", "--cot", "natural", "--source", "train.jsonl"], "train.jsonl:1: has "),
        (
            ["prepare", "gsm8k", "--cot", "natural", "--source", "train.jsonl", "--out", "train.jsonl"],
            "train.jsonl: is the source",
        ),
        (
            [
                "prepare",
                "gsm8k",
                "--cot",
                "natural",
                "--source",
                "train.jsonl",
                "--out",
                "train.jsonl/x",
            ],
            "train.jsonl/x: cannot be written",
        ),
        (["check", "no.jsonl"], "no.jsonl: no such file"),
        (["check", "train.jsonl", "--tokenizer", "./none"], "./none: cannot be loaded: its tokenizer"),
        (
            ["check", "train.jsonl", "--column", "question"],
            "--column question=: write KEY=NAME with one of",
        ),
        (["check", "train.jsonl", "--column", "q=question"], "--column q=question: write KEY=NAME"),
        (["check", "train.jsonl", "--column", "question=q"], "no 'q' among 'question', 'answer'"),
    ],
)
@pytest.mark.usefixtures("source")
def test_bad_input_is_named_in_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reftune(monkeypatch, "data", *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = [line for line in shown.err.splitlines() if line.startswith("reftune: error: ")]
    assert words in line
    assert "Traceback" not in shown.err
    assert sorted(path.name for path in Path().iterdir()) == ["train.jsonl"]


@pytest.mark.parametrize(
    "command", [["data", "prepare", "gsm8k"], ["data", "check", "no.jsonl"], ["grade", "no.jsonl"]]
)
def test_another_kind_of_chain_is_refused_with_the_two_that_there_are(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reftune(monkeypatch, *command, "--cot", "music") == 2
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("--cot", "'music'", "'natural'", "'program'"))
