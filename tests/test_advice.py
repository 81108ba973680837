"""What a user is told of answers that are not just answers, by every command that reads them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from command_line import start
from reftune.config import Columns
from reftune.data.problems import load_problems
from reftune.problem import Problem

BOX = r"We add: $3 + 4 = \boxed{7}$."


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def asked(answers: list[str], **more: Any) -> list[dict[str, Any]]:
    return [{"question": f"{n}: 3 + 4?", "answer": answer, **more} for n, answer in enumerate(answers)]


MARKED = asked([r"\boxed{7}", "#### 7", "<answer>7</answer>", "7", "7 apples", "$7", "7%"])
SENTENCES = [
    "x.jsonl: 3 of 7 answers are taken out of a box or another mark (the first, x.jsonl:1: '7' from"
    r" '\\boxed{7}')",
    "x.jsonl: 3 of 7 answers have a unit or words beside a number; the number is graded, with the unit"
    " or without (the first, x.jsonl:5: '7 apples')",
]


def test_marks_and_units_are_told_by_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("x.jsonl", *MARKED)
    assert start(monkeypatch, "data", "check", "x.jsonl") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("answers ")]
    assert told == [f"answers    {sentence.removeprefix('x.jsonl: ')}" for sentence in SENTENCES]
    assert start(monkeypatch, "data", "check", "x.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["advice"] == SENTENCES
    assert [p.answer for p in load_problems("x.jsonl", cot="natural")[:4]] == ["7"] * 4


def test_marks_and_units_are_told_by_init_and_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("x.jsonl", *MARKED)
    given = ["--model", "some/model", "--train", "x.jsonl", "--test", "test.jsonl"]
    from reftune.launcher import tell_once

    own = ["data.train=x.jsonl", "data.test=test.jsonl", "data.validation_size=2"]
    sets = [part for setting in own for part in ("--set", setting)]
    tiny_run.write_config(Path())
    write("test.jsonl", {"question": "1 + 1?", "answer": "2"})
    for command in (["init", "my.toml", *given], ["run", "tiny.toml", *sets]):
        tell_once.cache_clear()
        start(monkeypatch, *command)
        told = capsys.readouterr().err.splitlines()
        assert [f"reftune: {sentence}" for sentence in SENTENCES] == [x for x in told if "answers" in x]


def test_a_box_in_a_box_is_what_nobody_learns() -> None:
    """SFT writes the answer in its own style, behind what the chain says before it."""
    write("x.jsonl", {"question": "?", "answer": r"\boxed{7}", "chain": f"So it is. {BOX}"})
    assert load_problems("x.jsonl", cot="natural") == [
        Problem("x-1", "?", "7", "So it is. We add: $3 + 4 = 7$.")
    ]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"problem": "3 + 4?", "solution": BOX}, None),  # MATH
        ({"problem": "3 + 4?", "solution": BOX, "answer": "7", "unique_id": "a/7"}, None),  # MATH-500
        ({"question": "3 + 4?", "solution": BOX}, None),
        ({"question": "3 + 4?", "answer": BOX}, None),
        ({"q": "3 + 4?", "how": BOX}, Columns(question="q", chain="how")),
        ({"q": "3 + 4?", "how": BOX}, Columns(question="q", answer="how")),
    ],
)
def test_answers_are_taken_from_worked_solutions(row: dict[str, str], columns: Columns | None) -> None:
    write("x.jsonl", row)
    [problem] = load_problems("x.jsonl", cot="natural", columns=columns)
    assert problem == Problem(row.get("unique_id", "x-1"), "3 + 4?", "7", "We add: $3 + 4 = 7$.")


def test_solutions_alone_are_told_from_outside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"problem": f"{n} + 1?", "solution": f"So \\boxed{{{n + 1}}}."} for n in range(30)]
    write("math.jsonl", *rows[:20])
    write("test.jsonl", *rows[20:])
    given = ["--model", "some/model", "--train", "math.jsonl", "--test", "test.jsonl"]
    assert start(monkeypatch, "init", "my.toml", *given) == 0
    told = capsys.readouterr().err.splitlines()
    first = r"(the first, math.jsonl:1: '1' from 'So \\boxed{1}.')"
    assert f"reftune: math.jsonl: 20 of 20 answers are taken from worked solutions {first}" in told
    assert "reftune: my.toml: written for 20 problems, 20 with a natural chain" in told
    write("none.jsonl", {"problem": "3 + 4?", "solution": "It is seven, clearly."})
    assert start(monkeypatch, "data", "check", "none.jsonl") == 2
    assert (
        "fault      none.jsonl:1: no 'answer', and no final answer in 'solution', such as \\boxed{72},"
        " #### 72 or The answer is 72; name the column with the answers in data.columns.answer,"
        " or with --column answer=NAME\n"
    ) in capsys.readouterr().out


def test_several_boxes_are_left_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("x.jsonl", *asked([r"\boxed{1}, \boxed{2}"]))
    assert start(monkeypatch, "data", "check", "x.jsonl") == 0
    assert "1 of 1 answers have several boxes, and are graded as a text; give the final" in (
        capsys.readouterr().out
    )


def test_plain_answers_need_no_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["7", "1/2", r"\frac{1}{2}", "$72$", "1e6", "seven", "x + 1", "1,000", "Paris"]
    write("x.jsonl", *asked(plain), {"question": "4?", "answer": "7 km", "choices": ["7 km", "8 km"]})
    assert start(monkeypatch, "data", "check", "x.jsonl") == 0
    assert "answers " not in capsys.readouterr().out.replace("their answers", "")


@pytest.mark.parametrize("copied", [False, True])
def test_a_run_whose_test_questions_are_all_trained_on_is_refused(
    copied: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run.write_config(Path())
    test = "copy.jsonl" if copied else "train.jsonl"
    Path(test).write_bytes(Path("train.jsonl").read_bytes())
    assert start(monkeypatch, "run", config, "--set", f"data.test={test}") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"reftune: error: data.train = train.jsonl: every question is among those of data.test = {test},"
        " and what is tested on must not be trained on; name another split or file, or divide this one"
        " with `reftune data split`"
    )


def test_a_validation_that_does_not_fit_is_told_with_the_size_that_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run.write_config(Path())
    write("few.jsonl", *asked(["7"] * 60, chain="def solution():\n    return 7"))
    given = ["run", config, "--set", "data.train=few.jsonl", "--set"]
    assert start(monkeypatch, *given, "data.validation_size=200") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "reftune: error: data.validation_size = 200 leaves nothing to train on: few.jsonl has 60"
        " different questions that are not in the test set; set data.validation_size = 6"
    )
    too_short = ["--set", "prompt.max_prompt_tokens=2"]  # which ends the run behind the data
    assert start(monkeypatch, *given, "data.validation_size=40", *too_short) == 2
    assert (
        "reftune: data.validation_size = 40 holds back more than half of the 60 questions of few.jsonl;"
        " 6 would do\n"
    ) in capsys.readouterr().err


# One data set, divided


def test_one_file_is_divided_into_two_that_share_no_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("my.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerows([["ask", "result"], *([f"Q{n // 2}?", f"{n // 2}.50"] for n in range(40))])
    columns = ["--column", "question=ask", "--column", "answer=result"]
    assert start(monkeypatch, "data", "split", "my.csv", *columns) == 0
    assert capsys.readouterr().out == (
        "train    32 rows in my_train.jsonl\ntest     8 rows in my_test.jsonl\n"
    )
    parts = [
        [json.loads(line) for line in Path(f"my_{role}.jsonl").read_text("utf-8").splitlines()]
        for role in ("train", "test")
    ]
    questions = [{row["ask"] for row in part} for part in parts]
    assert questions[0].isdisjoint(questions[1])
    assert sorted(row["result"] for part in parts for row in part) == sorted(
        f"{n // 2}.50" for n in range(40)
    )
    assert start(monkeypatch, "data", "split", "my.csv", *columns) == 2
    assert "my_train.jsonl: is there already" in capsys.readouterr().err
    more = ["--out", "new", "--test", 3, "--json"]
    assert start(monkeypatch, "data", "split", "my.csv", *columns, *more) == 0
    assert json.loads(capsys.readouterr().out) == {
        "train": "new/my_train.jsonl", "test": "new/my_test.jsonl", "train_rows": 34, "test_rows": 6
    }  # fmt: skip
    assert start(monkeypatch, "data", "split", "my.csv", *columns, "--out", "x", "--test", 20) == 2
    assert "my.csv: has 20 different questions; test on fewer than that" in capsys.readouterr().err


# What `datasets` saves


def test_what_save_to_disk_has_written_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import Dataset, DatasetDict

    one, two = (Dataset.from_list(asked(["7"] * count)) for count in (3, 2))
    one.save_to_disk("saved")
    DatasetDict(train=one, test=two).save_to_disk("splits")
    capsys.readouterr()
    [arrow] = Path("saved").glob("*.arrow")
    cases = {
        ("saved",): 3, (str(arrow),): 3, ("splits",): 3, ("splits", "--split", "test"): 2,
        ("splits", "--max", "1"): 1,
    }  # fmt: skip
    for arguments, count in cases.items():
        assert start(monkeypatch, "data", "check", *arguments) == 0
        assert f"problems   {count} of {count} rows" in capsys.readouterr().out, arguments
    assert start(monkeypatch, "data", "check", "splits", "--split", "dev") == 2
    assert "splits: has no split 'dev'; choose 'train' or 'test'" in capsys.readouterr().err
    Path("broken.arrow").write_bytes(b"no arrow")
    assert start(monkeypatch, "data", "check", "broken.arrow") == 2
    assert "broken.arrow: cannot be read as Arrow (" in capsys.readouterr().err
