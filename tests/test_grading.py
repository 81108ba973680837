"""Grading files of completions, as written by any system."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from reftune.config import Reward
from reftune.grading.grade_file import GradeSummary, extract_program, grade_file
from reftune.grading.sandbox import Sandbox
from reftune.problem import Execution, Status, UserError

SHORT = Reward(sandbox_seconds=0.5)
RIGHT = {"id": 1, "completion": "So #### 1,000", "answer": "1000"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_natural_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "outputs.jsonl",
        [
            RIGHT,
            {"id": "two", "completion": "The answer is 5.", "answer": 6, "model": "m"},
            {
                "id": "3",
                "completion": "Therefore, the answer is: (B)",
                "answer": "b",
                "choices": [38, "27"],
            },
            {"id": "4", "completion": "I do not know.", "answer": 0.5},
        ],
    )
    summary = grade_file(path, "natural")
    assert read(tmp_path / "outputs.graded.jsonl") == [
        {
            "id": id_,
            "status": status,
            "value": value,
            "correct": reward == 1,
            "reward": reward,
            "reason": reason,
        }
        for id_, status, value, reward, reason in (
            ("1", "ok", 1000.0, 1.0, "equal as numbers"),
            ("two", "ok", 5.0, 0.1, "another number"),
            ("3", "ok_text", "b", 1.0, "the right option"),
            ("4", "no_result", None, 0.0, "no answer found"),
        )
    ]
    assert (summary.judged, summary.correct, summary.accuracy) == (4, 2, 0.5)
    assert list(summary.statuses.items()) == [("ok", 2), ("ok_text", 1), ("no_result", 1)]
    assert summary.out == tmp_path / "outputs.graded.jsonl"


def test_program_file(tmp_path: Path) -> None:
    bare = "def solution():\n    return 6 * 7\n"
    path = write(
        tmp_path / "outputs.jsonl",
        [
            {"id": "bare", "completion": bare, "answer": "42"},
            {
                "id": "fenced",
                "completion": f"Let us compute.\n```python\n{bare}```\nDone.",
                "answer": "42",
            },
            {"id": "wrong", "completion": f"```\n{bare}```", "answer": "43"},
            {"id": "letter", "completion": bare, "answer": "b", "choices": ["41", "42"]},
            {
                "id": "text",
                "completion": "def solution():\n    return 'No'",
                "answer": "a",
                "choices": ["no", "yes"],
            },
            {"id": "prose", "completion": "It is 42, I think.", "answer": "42"},
            {"id": "hang", "completion": "def solution():\n    while True: pass", "answer": "42"},
        ],
    )
    out = tmp_path / "new" / "verdicts.jsonl"
    summary = grade_file(path, "program", out, limits=SHORT)
    rows = {row["id"]: (row["status"], row["value"], row["reward"]) for row in read(out)}
    assert rows["bare"] == rows["fenced"] == ("ok", 42.0, 1.0)
    assert rows["wrong"] == ("ok", 42.0, 0.1)
    assert rows["letter"] == ("ok_text", "b", 1.0)
    assert rows["text"] == ("ok_text", "a", 1.0)
    reasons = {row["id"]: row["reason"] for row in read(out)}
    assert reasons["wrong"] == "returned 42.0, expected 43"
    assert reasons["bare"] == "equal as numbers"
    assert reasons["letter"] == "the right option"
    assert "SyntaxError" in reasons["prose"]
    assert rows["prose"] == ("syntax_error", None, 0.0)
    assert rows["hang"] == ("timeout", None, 0.0)
    assert (summary.judged, summary.correct) == (7, 4)
    assert [path.name for path in out.parent.iterdir()] == ["verdicts.jsonl"]  # no partial file is left


def test_faults_of_our_own_are_not_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Execution("sandbox_error", None, "no sandbox worker could be started: no processes left")
    monkeypatch.setattr(Sandbox, "run", lambda _, programs: [fault] * len(programs))
    own = tmp_path / "own.py"
    own.write_text("def reward(question, completion, answer):\n    return 1\n", encoding="utf-8")
    path = write(tmp_path / "in.jsonl", [RIGHT])
    for reward in (None, f"{own}:reward"):
        summary = grade_file(path, "program", reward=reward, limits=SHORT)
        row = read(summary.out)[0]
        assert "no sandbox worker could be started" in row.pop("reason")
        assert row == {
            "id": "1",
            "status": "sandbox_error",
            "value": None,
            "correct": False,
            "reward": 0.0,
        }
        assert (summary.judged, summary.accuracy, summary.statuses) == (0, 0.0, {"sandbox_error": 1})


def test_accuracy_is_the_share_of_the_judged() -> None:
    statuses: dict[Status, int] = {"ok": 3, "sandbox_error": 1}
    summary = GradeSummary(judged=3, correct=2, statuses=statuses, out=Path("out"))
    assert summary.accuracy == pytest.approx(2 / 3)


def test_extract_program() -> None:
    first, second = "def solution():\n    return 1\n", "def solution():\n    return 2\n"
    assert extract_program(first) == first
    assert extract_program(f"```py\n{first}```") == first
    assert extract_program(f"```python\n{first}```\nBetter:\n```python\n{second}```") == second
    assert extract_program(f"```python\n{first}```\n```\nprint(solution())\n```") == first
    assert (
        extract_program(f"Sure!\n```python\nimport math\n{second}") == f"import math\n{second}"
    )  # cut off
    assert extract_program("```text\nno program\n```") == "```text\nno program\n```"
    other = "def solutions():\n    return 3\n"
    assert extract_program(f"```python\n{first}```\n```python\n{other}```") == first
    assert extract_program(f"```python\n{first}```\n```\nno def solution()\n```") == first
    quoted = 'def solution():\n    """\n    ```\n    x\n    ```\n    """\n    return 1\n'
    assert extract_program(f"```python\n{quoted}```\nDone") == quoted
    assert extract_program(f"{quoted}```\nDone") == quoted
    assert extract_program(f"~~~python\n{quoted}~~~") == quoted
    inner = f"class A:\n\tdef  {second[4:]}"
    assert extract_program(f"```python\n{inner}```") == inner


def test_no_completion_takes_long_to_search_for_its_program() -> None:
    begun = time.process_time()
    for text in ("```\n" * 25_000, '"' * 100_000, '"""' * 33_000 + "x", "~~~ " * 25_000, "\n" * 100_000):
        extract_program(text)
        extract_program(f"```python\n{text}")
    assert time.process_time() - begun < 2.0


def test_a_natural_chain_is_read_beyond_its_code(tmp_path: Path) -> None:
    text = "```python\ndef solution():\n    return 1\n```\nThe answer is 5."
    path = write(tmp_path / "in.jsonl", [{"id": 1, "completion": text, "answer": "5"}])
    assert read(grade_file(path, "natural").out)[0]["value"] == 5.0


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(RIGHT).encode())
    assert grade_file(path, "natural").correct == 1


def test_programs_are_not_asked_for_a_text(tmp_path: Path) -> None:
    row = {"id": 1, "completion": "def solution():\n    return 1", "answer": "Tuesday"}
    path = write(tmp_path / "in.jsonl", [row])
    with pytest.raises(UserError, match=r"in\.jsonl:1: .* not a number, which programs must return"):
        grade_file(path, "program", limits=SHORT)


def test_own_reward_sees_the_question_or_an_empty_one(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "def length(question, completion, answer):\n    return len(question) / 8\n", encoding="utf-8"
    )
    path = write(tmp_path / "in.jsonl", [{**RIGHT, "question": "Why?"}, RIGHT])
    summary = grade_file(path, "natural", reward=f"{own}:length")
    assert [row["reward"] for row in read(summary.out)] == [0.5, 0.0]


def test_own_reward_and_trigger(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "def long(question, completion, answer):\n    return len(completion) > 9\n", encoding="utf-8"
    )
    rows = [
        {"id": "a", "completion": "Answer => 7", "answer": "free text"},
        {"id": "b", "completion": "=> 8", "answer": "9"},
    ]
    path = write(tmp_path / "in.jsonl", rows)
    summary = grade_file(path, "natural", reward=f"{own}:long", trigger="=> ")
    assert [(row["value"], row["reward"]) for row in read(summary.out)] == [("7", 1.0), (8.0, 0.0)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": 1,', "not JSON"),
        ("[1]", "not an object"),
        ('{"completion": "x", "answer": "1"}', "id must be"),
        ('{"id": 1, "answer": "1"}', "completion must be"),
        ('{"id": 1, "completion": null, "answer": "1"}', "completion must be"),
        ('{"id": 1, "completion": "x"}', "answer must be"),
        ('{"id": 1, "completion": "x", "answer": true}', "'answer' is true without quotes"),
        ('{"id": 1, "completion": "x", "answer": ""}', "problem 1: answer '' is empty"),
        ('{"id": 1, "completion": "x", "answer": NaN}', "problem 1: answer '' is empty"),
        ('{"id": 1, "completion": "x", "answer": "b", "choices": "a or b"}', "cannot read the choices"),
        (
            '{"id": 1, "completion": "x", "answer": "b", "choices": [[1], 2]}',
            "'choices' is a list; it must be a text",
        ),
        ('{"id": 1, "completion": "x", "answer": "1", "question": []}', "'question' is a list"),
        (
            '{"id": 1, "completion": "x", "answer": "f", "choices": ["1", "2"]}',
            "names none of its choices",
        ),
        ("[" * 10**5, "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(RIGHT)}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"bad\.jsonl:3: .*{re.escape(words)}"):
        grade_file(path, "natural")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.jsonl"]


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        grade_file(tmp_path / "none.jsonl", "natural")
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with pytest.raises(
        UserError, match=r"latin\.jsonl:1: cannot be read as UTF-8 text .*; save it as UTF-8"
    ):
        grade_file(tmp_path / "latin.jsonl", "natural")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"empty\.jsonl: nothing to grade"):
        grade_file(tmp_path / "empty.jsonl", "natural")
    path = write(tmp_path / "good.jsonl", [RIGHT])
    with pytest.raises(UserError, match="is the file to grade"):
        grade_file(path, "natural", path)
    with pytest.raises(UserError, match="cannot be written"):
        grade_file(path, "natural", path / "below_a_file.jsonl")


def test_lone_surrogates_do_not_break_the_output(tmp_path: Path) -> None:
    row = {"id": "1", "completion": "The answer is \ud800", "answer": "Tuesday"}
    summary = grade_file(write(tmp_path / "in.jsonl", [row]), "natural")
    assert read(summary.out)[0]["value"] == "\ud800"


def test_gsm8k_solutions_are_all_right(tmp_path: Path, shared_data: Path) -> None:
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    rows = [
        {"id": number, "completion": solution, "answer": solution.rpartition("#### ")[2]}
        for number, solution in enumerate(solutions)
    ]
    summary = grade_file(write(tmp_path / "gold.jsonl", rows), "natural")
    assert (summary.judged, summary.correct) == (1319, 1319)
