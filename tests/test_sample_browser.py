from __future__ import annotations

import base64
import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from reftune.reporting.run.run_files import read_run
from reftune.reporting.run.sample_browser import (
    MAX_CHARACTERS,
    browser,
    packed,
    questions,
    rollouts_by_step,
    votes,
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "config.toml").write_text('name = "trial"\n', encoding="utf-8")
    return tmp_path


def sample(**values: Any) -> dict[str, Any]:
    row = {
        "id": "1",
        "question": "q",
        "answer": "4",
        "completion": "c",
        "status": "ok",
        "correct": False,
    }
    return row | {"value": 4.0} | values


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_questions_join_the_models_by_id(run_dir: Path) -> None:
    write_rows(
        run_dir / "evaluation/sft.jsonl", [sample(id="a", value=5.0), sample(id="b", correct=True)]
    )
    reft = [sample(id="b", status="timeout", value=None), sample(id="a", correct=True, value=1 / 3)]
    write_rows(run_dir / "evaluation/reft.jsonl", reft)
    run = read_run(run_dir)
    kept = questions(run)
    assert [(q["id"], q["gained"], q["lost"]) for q in kept] == [("a", True, False), ("b", False, True)]
    assert kept[0]["chains"]["sft"] == {"text": "c", "status": "ok", "value": "5", "correct": False}
    assert kept[0]["chains"]["reft"]["value"] == str(1 / 3)
    assert kept[1]["chains"]["reft"]["value"] == ""
    assert browser(run)["counts"] == {"gained": 1, "lost": 1, "all": 2}


def test_all_questions_are_shown_in_the_order_of_the_test_set(run_dir: Path) -> None:
    names = [str(index) for index in range(1500)]
    write_rows(run_dir / "evaluation/reft.jsonl", [sample(id=name) for name in names])
    assert [question["id"] for question in questions(read_run(run_dir))] == names


def test_a_question_has_its_prompt_its_votes_and_what_each_way_to_choose_gives(run_dir: Path) -> None:
    drawn = [drawing("7", 7.0, 0.2), drawing("7.0", 7.0, 0.1), drawing("4", 4.0, 0.9, correct=True)]
    row = sample(prompt="<s>q\n", samples=[*drawn, drawing("?", None, 0.0, status="timeout")])
    write_rows(run_dir / "evaluation/reft.jsonl", [row, sample(id="2", samples=[])])
    first, second = (question["chains"]["reft"] for question in questions(read_run(run_dir)))
    assert first["prompt"] == "<s>q\n"
    told = {"greedy": False, "vote": False, "rerank": True, "weighted vote": True}  # 0.9 > 0.2 + 0.1
    assert first["outcomes"] == told
    assert [(v["value"], v["count"], v["correct"], v["chosen"]) for v in first["votes"]] == [
        ("7", 2, False, True), ("4", 1, True, False), ("", 1, False, False),
    ]  # fmt: skip
    assert not {"prompt", "votes", "outcomes"} & second.keys()


def drawing(text: str, value: Any, rerank: float, **values: Any) -> dict[str, Any]:
    row = {"completion": text, "status": "ok", "value": value, "correct": False, "rerank": rerank}
    return row | values


def test_votes_gather_equal_answers_and_name_what_gave_none() -> None:
    texts = ("half", "0.5 it is", "3", "3", "?", "??")
    values: list[Any] = ["1/2", "0.5", "3", "3", None, None]
    statuses = ["ok_text"] * 4 + ["timeout", "no_result"]
    rows: list[Any] = [
        {"completion": text, "value": value, "status": status, "correct": value != "3"}
        for text, value, status in zip(texts, values, statuses, strict=True)
    ]
    found = [(v["value"], v["status"], v["count"], v["chosen"], v["texts"]) for v in votes(rows)]
    assert found == [
        ("1/2", "ok", 2, True, [("half", 1), ("0.5 it is", 1)]),  # of equals the one seen first
        ("3", "ok", 2, False, [("3", 2)]),
        ("", "timeout", 1, False, [("?", 1)]),
        ("", "no_result", 1, False, [("??", 1)]),
    ]


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_what_is_packed_is_what_comes_out_and_no_character_of_it_is_html(run_dir: Path) -> None:
    row = sample(completion="</script>\ud800 <b>é", samples=[drawing("</script>", 4.0, 0.5)])
    write_rows(run_dir / "evaluation/reft.jsonl", [row])
    shown = browser(read_run(run_dir))
    text, complete = packed(shown)
    assert complete
    assert text.replace("+", "").replace("/", "").rstrip("=").isalnum()
    again = unpacked(text)
    assert again["questions"][0]["chains"]["reft"]["text"] == "</script>\ud800 <b>é"
    assert again == json.loads(json.dumps(shown))
    assert packed(shown) == (text, True)  # the same bytes at any time


def test_what_would_be_too_large_keeps_its_votes_and_loses_their_texts(run_dir: Path) -> None:
    drawn = [drawing(f"text {i}", 4.0, 0.5) for i in range(9)]
    write_rows(run_dir / "evaluation/reft.jsonl", [sample(samples=drawn)])
    shown = browser(read_run(run_dir))
    text, complete = packed(shown, most=len(packed(shown)[0]) - 1)
    assert not complete
    (vote,) = unpacked(text)["questions"][0]["chains"]["reft"]["votes"]
    assert (vote["count"], vote["texts"]) == (9, [])
    assert unpacked(text)["questions"][0]["chains"]["reft"]["text"] == "c"
    assert len(shown["questions"][0]["chains"]["reft"]["votes"][0]["texts"]) == 9  # for others


def test_long_texts_are_cut_and_say_so(run_dir: Path) -> None:
    write_rows(run_dir / "evaluation/reft.jsonl", [sample(completion="x" * (MAX_CHARACTERS + 7))])
    (question,) = questions(read_run(run_dir))
    assert question["chains"]["reft"]["text"] == "x" * MAX_CHARACTERS + "\n[... 7 more characters]"


def test_rollouts_keep_the_first_and_the_last_step() -> None:
    rows = [sample(step=step, reward=0.1) for step in range(1, 101) for _ in range(2)]
    steps = rollouts_by_step(rows)
    assert (len(steps), steps[0]["step"], steps[-1]["step"]) == (30, 1, 100)
    assert all(len(step["samples"]) == 2 for step in steps)
    gaps = [b["step"] - a["step"] for a, b in itertools.pairwise(steps)]
    assert set(gaps) <= {3, 4}  # 99 / 29 = 3.4
    assert steps[0]["samples"][0]["reward"] == "0.1"
    traced = sample(step=4, tokens=["c"], values=[0.5], advantages=[-1.0], logprobs=[-0.1])
    shown = rollouts_by_step([traced])[0]["samples"][0]
    assert [shown.get(key) for key in ("tokens", "values", "advantages")] == [["c"], [0.5], [-1.0]]
    assert "log_ratios" not in shown
    odd = rollouts_by_step([traced | {"values": [math.nan]}])[0]["samples"][0]
    assert (odd["tokens"], "values" in odd) == (["c"], False)  # which no JSON knows
    assert [step["step"] for step in rollouts_by_step([sample(step=4)])] == [4]
    assert rollouts_by_step([]) == []
