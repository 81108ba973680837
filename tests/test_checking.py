"""What the check of a data set finds, and that GSM8K's solutions pass it, every one of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reftune.config import Columns, Prompt
from reftune.data.checking import check_source, describe, judge_chains
from reftune.data.problems import load_problems
from reftune.grading.judge import make_judge
from reftune.model.scratch import train_tokenizer
from reftune.problem import UserError

HEAD = "def solution():\n"


def lines(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def program(number: int, answer: Any, body: str = "    return 3 + {n}") -> dict[str, Any]:
    return {
        "id": str(number),
        "question": f"3 + {number}?",
        "answer": answer,
        "chain": HEAD + body.format(n=number),
    }


def test_a_sound_file_has_no_faults(tmp_path: Path) -> None:
    rows = [program(1, 4), program(2, "5.0"), {"question": "3 + 3?", "answer": 6}]
    check = check_source(lines(tmp_path / "x.jsonl", *rows))
    assert (check.cot, check.rows, check.chains, check.correct, check.faults) == ("program", 3, 2, 2, [])
    assert check.repeated_questions == 0


def test_every_fault_is_named_with_its_line(tmp_path: Path) -> None:
    rows = [
        program(1, 4),
        program(2, 6),
        program(3, 6, "    return nothing"),
        program(4, "many"),
        program(1, 4),
        {"question": "", "answer": "3"},
        program(5, 8) | {"chain": "def solution(n):\n    return 8"},
        program(6, "c") | {"choices": ["9", "10"]},
        program(7, "b") | {"choices": ["9", "10"]},
    ]
    check = check_source(lines(tmp_path / "x.jsonl", *rows))
    assert check.faults == [
        f"{tmp_path}/x.jsonl:{fault}"
        for fault in (
            "4: problem 4: answer 'many' is not a number, which programs must return;"
            ' use cot = "natural" or choices',
            f"5: id '1' is already that of {tmp_path}/x.jsonl:1; make ids unique",
            "6: 'question' is empty; each problem needs a question and an answer",
            '7: a program chain must start with "def solution():"',
            "8: problem 6: answer 'c' names none of its choices; give a letter from a to b",
            "2: the chain gives 5.0, the answer is 6",
            "3: the chain gives exception, the answer is 6",
        )
    ]
    assert (check.rows, check.chains, check.correct) == (9, 4, 2)


def test_repeated_questions_and_missing_chains_are_no_faults(tmp_path: Path) -> None:
    rows = [{"question": question, "answer": 1} for question in ("One?", "one? ", "Two?")]
    check = check_source(
        lines(tmp_path / "x.jsonl", *rows, {"question": "?", "answer": 1, "chain": "1."})
    )
    assert (check.cot, check.repeated_questions, check.chains, check.correct) == ("natural", 1, 1, 1)
    assert check.faults == []


def test_the_kind_of_chain_can_be_told(tmp_path: Path) -> None:
    source = lines(tmp_path / "x.jsonl", program(1, 4), {"question": "?", "answer": 1, "chain": "1."})
    assert check_source(source).chains == 1
    natural = check_source(source, cot="natural")
    assert (natural.cot, natural.chains) == ("natural", 1)


def test_a_natural_chain_is_read_with_its_answer(tmp_path: Path) -> None:
    rows = [
        {
            "question": "?",
            "answer": "2 apples\nor 3",
            "chain": "So 2.",
        },  # only the first line is the answer
        {"question": "?", "answer": "2", "chain": "Therefore, the answer is: 3, no."},
    ]
    check = check_source(lines(tmp_path / "x.jsonl", *rows))
    assert check.faults == [
        f"{tmp_path}/x.jsonl:1: the chain gives 2 apples, the answer is 2 apples\nor 3"
    ]


def test_lengths_are_those_that_the_limits_bound(tmp_path: Path) -> None:
    """A tokenizer of single bytes makes tokens of characters, and the EOS is one more."""
    source = lines(tmp_path / "x.jsonl", program(1, 4), {"question": "Three and three?", "answer": 6})
    asked = len("Question:\n3 + 1?\nAnswer reasoning:\n") + len(f'{HEAD}    """3 + 1?"""\n')
    prompts = [asked, asked + 2 * (len("Three and three?") - len("3 + 1?"))]
    check = check_source(source)
    assert (check.unit, check.prompt_lengths, check.response_lengths) == ("characters", prompts, [16])
    train_tokenizer(["a"], 257).save_pretrained(tmp_path / "bytes")
    check = check_source(source, tokenizer=str(tmp_path / "bytes"))
    assert (check.unit, check.prompt_lengths, check.response_lengths) == ("tokens", prompts, [17])


def test_the_report_has_the_quantiles(tmp_path: Path) -> None:
    rows = [{"question": "?" * n, "answer": 1, "chain": "." * n} for n in range(1, 101)]
    check = check_source(lines(tmp_path / "x.jsonl", *rows))
    frame = len("Question:\n\nAnswer reasoning:\n")
    answer = len("\nTherefore, the answer is: 1")
    shown = describe(check)
    assert shown[0] == "problems   100 of 100 rows can be read"
    assert shown[1] == "chains     100 (natural), 100 give their answers; 0 problems have none"
    assert [line.split() for line in shown[-2:]] == [
        ["prompt", *(str(n + frame) for n in (1, 51, 96, 100))],
        ["response", *(str(n + answer) for n in (1, 51, 96, 100))],
    ]


def test_what_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    sound = lines(tmp_path / "sound.jsonl", program(1, 4))
    for source, more, match in (
        (str(tmp_path / "none.jsonl"), {}, "no such file"),
        (lines(tmp_path / "empty.jsonl"), {}, "no problems in it"),
        (lines(tmp_path / "other.jsonl", {"q": "?", "a": 1}), {}, "other.jsonl:1: has 'q', 'a', not"),
        (sound, {"tokenizer": str(tmp_path)}, "cannot be loaded: its tokenizer"),
        (sound, {"columns": Columns(question="q")}, "no 'q' among"),
    ):
        with pytest.raises(UserError, match=match):
            check_source(source, **more)


def test_named_columns(tmp_path: Path) -> None:
    source = lines(tmp_path / "x.jsonl", {"q": "3 + 1?", "a": 4, "why": "So 4."})
    check = check_source(source, columns=Columns(question="q", answer="a", chain="why"))
    assert (check.chains, check.correct, check.faults) == (1, 1, [])


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_gsm8k_solution_is_graded_right_and_with_another_answer_wrong(
    shared_data: Path, split: str, count: int
) -> None:
    problems = load_problems(str(shared_data / f"gsm8k/{split}.jsonl"), cot="natural")
    assert len(problems) == count
    assert all(verdict.correct for verdict in judge_chains(problems, "natural"))
    altered = [replace(problem, answer=f"{float(problem.answer) + 1:.15g}") for problem in problems]
    completions = [f"{problem.chain}{Prompt().trigger}{problem.answer}" for problem in altered]
    judge = make_judge("natural", trigger=Prompt().trigger, partial_reward=0.0)
    verdicts = judge(problems, completions, [True] * count)
    assert not any(verdict.correct for verdict in verdicts)
    assert all(verdict.status == "ok" for verdict in verdicts)
