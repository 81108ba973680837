"""Chats, and prompts with completions, as problems."""

from pathlib import Path
from typing import Any

import pytest

from reftune.data.problems import load_problems
from reftune.files import write_jsonl
from reftune.problem import Cot, Problem, UserError

ASKED = "Ann has 3 coins and finds 4. How many?"
SAID = "She has 3 + 4 = 7.\nThe answer is \\boxed{7}."
USER, ASSISTANT = {"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}
NATURAL = Problem("data-1", ASKED, "7", "She has 3 + 4 = 7.")
PROGRAM = "def solution():\n    return 3 + 4\n"


def read(row: dict[str, Any], cot: Cot = "natural") -> Problem:
    [problem] = load_problems([row], cot=cot)
    return problem


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT]},
        {"messages": [USER, {"role": "assistant", "content": f"{SAID}\n"}], "source": "x"},
        {"prompt": ASKED, "completion": SAID},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": [USER], "completion": SAID},
        {"prompt": ASKED, "completion": "She has 3 + 4 = 7.\n#### 7"},
        {"prompt": ASKED, "completion": "She has 3 + 4 = 7. The answer is 7."},
        {"messages": [USER, ASSISTANT], "answer": 7},
    ],
)
def test_a_chat_is_a_question_with_its_chain_and_answer(row: dict[str, Any]) -> None:
    assert read(row) == NATURAL


def test_a_column_with_the_answer_comes_first_and_options_and_ids_count() -> None:
    row = {"messages": [USER, {"role": "assistant", "content": "So seven."}], "answer": "7", "id": "x"}
    assert read(row) == Problem("x", ASKED, "7", "So seven.")
    problem = read({"prompt": ASKED, "completion": SAID, "choices": ["6", "7"]})
    assert (problem.answer, problem.choices) == ("b", ("6", "7"))
    assert read({"prompt": [USER], "answer": "7"}) == Problem("data-1", ASKED, "7")


def test_a_fenced_program_is_the_chain_of_a_program() -> None:
    text = f"Here it is:\n```python\n{PROGRAM}```\nThe answer is 7."
    row = {"messages": [USER, {"role": "assistant", "content": text}]}
    assert read(row, "program") == Problem("data-1", ASKED, "7", PROGRAM.strip())
    assert read(row, "natural").chain is None
    assert read({"messages": [USER, ASSISTANT]}, "program").chain is None


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]},
         "has the turns user, assistant, user, assistant; give one question"),
        ({"messages": [ASSISTANT]}, "has the turns assistant; give one question of the user"),
        ({"messages": []}, "has the turns none; give one question"),
        ({"messages": "hello"}, "'messages' must be a list of messages such as"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "must be a list of messages"),
        ({"prompt": 7, "completion": SAID}, "'prompt' must be a list of messages"),
        ({"prompt": ASKED, "completion": "Who knows?"}, "no final answer .* add a column 'answer'"),
        ({"messages": [USER]}, "no final answer .* add a column 'answer'"),
    ],
)  # fmt: skip
def test_other_chats_are_refused_with_their_place(
    tmp_path: Path, row: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "chats.jsonl"
    write_jsonl(path, [{"messages": [USER, ASSISTANT]}, row])
    with pytest.raises(UserError, match=rf"chats\.jsonl:2: .*{sentence}"):
        load_problems(path, cot="natural")


def test_system_messages_are_left_out_and_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = {"role": "system", "content": "Be brief."}
    path = tmp_path / "chats.jsonl"
    write_jsonl(path, [{"messages": [system, USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}])
    for _ in range(2):
        assert [p.chain for p in load_problems(path, cot="natural")] == [NATURAL.chain] * 2
    assert capsys.readouterr().err == (
        f"reftune: {path}: 1 rows have system messages, which are left out; prompt.system is what every"
        f" question is asked with (the first, {path}:1: 'Be brief.')\n"
    )


def test_a_row_of_another_format_may_have_messages_beside_it() -> None:
    row = {"question": ASKED, "answer": "7", "chain": "3 + 4 = 7.", "messages": "many", "prompt": None}
    assert read(row) == Problem("data-1", ASKED, "7", "3 + 4 = 7.")
