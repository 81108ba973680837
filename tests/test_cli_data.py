"""The commands `reftune data ...` as a user meets them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

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


# The same options everywhere

READ = {"--column", "--max", "--json"}
HUB = {"--split", "--subset"}
OWN = {"--reward", "--keep"}
OPTIONS = {
    "data check": READ | HUB | OWN,
    "data split": READ | HUB,
    "data prepare": READ | {"--split"},  # the subset is the data set's own
    "init": READ | OWN | {"--subset"},
    "evaluate": READ | HUB | OWN,
    "grade": READ | {"--reward"},
    "reward check": READ | HUB | {"--keep"},  # the reward itself is what it is asked about
    "sample": {"--json"},
}


def test_commands_that_take_data_have_the_same_options() -> None:
    known = READ | HUB | OWN
    for command, wanted in OPTIONS.items():
        found = typer.main.get_command(cli.app)
        for name in command.split():
            found = found.commands[name]  # type: ignore[attr-defined]
        names = {name for option in found.params for name in option.opts}
        assert names & known == wanted, command


def test_each_prints_one_object(
    source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*arguments: str) -> dict[str, object]:
        assert reftune(monkeypatch, *arguments, "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert isinstance(shown, dict)
        return shown

    prepared = found("data", "prepare", "gsm8k", "--cot", "program", "--source", source)
    assert (prepared["read"], prepared["written"]) == (2, 1)
    one = found("data", "prepare", "gsm8k", "--cot", "natural", "--source", source, "--max", "1")
    assert (one["read"], one["written"], one["dropped"]) == (1, 1, {})
    assert found("data", "check", source, "--max", "1") == {
        "source": source, "rows": 1, "problems": 1, "cot": "natural", "chains": 1, "correct_chains": 1,
        "repeated_questions": 0, "unit": "characters", "faults": [],
        "advice": [
            "train.jsonl: 1 of 1 answers are taken from worked solutions (the first, train.jsonl:1: '12'"
            " from '3*4=<<3*4=12>>12 pens\\n#### 12')"
        ],
        "lengths": {
            name: dict.fromkeys(("min", "median", "95%", "max"), length)
            for name, length in (("prompt", 70), ("response", 40))
        },
    }  # fmt: skip
    Path("said.jsonl").write_text('{"n": 1, "said": "The answer is 12.", "gold": "12"}\n' * 3, "utf-8")
    names = [x for pair in ("id=n", "completion=said", "answer=gold") for x in ("--column", pair)]
    graded = found("grade", "said.jsonl", "--cot", "natural", *names, "--max", "2")
    assert graded == {
        "judged": 2, "correct": 2, "accuracy": 1.0, "statuses": {"ok": 2}, "out": "said.graded.jsonl"
    }  # fmt: skip


def test_grade_names_a_column_that_is_not_there(
    source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for column, words in (("completion=said", "no 'said' among"), ("text=said", "write KEY=NAME with")):
        assert reftune(monkeypatch, "grade", source, "--cot", "natural", "--column", column) == 2
        assert words in capsys.readouterr().err


def test_check_takes_an_own_reward_for_answers_that_we_cannot_grade(
    source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"question": "A word", "answer": "x" * 300, "chain": "A word.", "rhyme": "ord"}
    Path("own.jsonl").write_text(json.dumps(row), "utf-8")
    Path("own.py").write_text("def f(completion, rhyme): return rhyme in completion", "utf-8")
    assert reftune(monkeypatch, "data", "check", "own.jsonl") == 2
    assert "is longer than 200 characters" in capsys.readouterr().out
    own = ["--reward", "own.py:f", "--keep", "rhyme"]
    assert reftune(monkeypatch, "data", "check", "own.jsonl", *own) == 0
    assert "1 (natural), 1 give their answers" in capsys.readouterr().out
    Path("own.py").write_text("def f(completion, rhyme): return rhyme not in completion", "utf-8")
    assert reftune(monkeypatch, "data", "check", "own.jsonl", *own) == 2


def commands_below(group: Any, *names: str) -> Iterator[tuple[list[str], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_below(command, *names, name)
        else:
            yield [*names, name], command


@pytest.mark.parametrize(
    ("names", "command"),
    [*commands_below(typer.main.get_command(cli.app))],
    ids=lambda given: "-".join(given) if isinstance(given, list) else "",
)
def test_help_fills_the_lines_of_the_terminal(
    names: list[str], command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert reftune(monkeypatch, *names, "--help") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    for paragraph in command.help.split("\n\n"):
        for line in textwrap.wrap(paragraph, 78, break_on_hyphens=False):
            assert line in lines
