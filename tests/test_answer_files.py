"""Files that others write, by hand in the formats whose versions docs/comparing.md names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reftune.evaluation.answer_files import read_answers
from reftune.problem import UserError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def found(path: Path, *given: str | None) -> list[tuple[str, str, bool | None, str, str]]:
    answers = read_answers(path, *given).answers
    return [(a.id, a.question, a.correct, a.completion, a.gold) for a in answers]


def lm_eval(**values: Any) -> dict[str, Any]:
    """Return a line as lm_eval/evaluator.py and loggers/evaluation_tracker.py write it."""
    return {
        "doc_id": 0,
        "doc": {"question": "2 + 3?", "answer": "2+3=5\n#### 5"},
        "target": "2+3=5\n#### 5",
        "arguments": {"gen_args_0": {"arg_0": "Question: 1?\nAnswer: 1\n\nQuestion: 2 + 3?\nAnswer:"}},
        "resps": [["It is 5. #### 5"]],
        "filtered_resps": ["5"],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "exact_match": 1.0,
    } | values


def test_plain_rows_need_an_id_or_a_question_and_what_is_right(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"id": 7, "correct": True},
        {"question": "2 + 3?", "correct": 0, "completion": "6", "answer": 5},
        {"id": "x", "correct": False, "status": "sandbox_error"},
        {"id": "y", "correct": None},
    )
    assert read_answers(path).kind == "plain"
    assert found(path) == [
        ("7", "", True, "", ""),
        ("", "2 + 3?", False, "6", "5"),
        ("x", "", None, "", ""),  # nobody has judged it
        ("y", "", None, "", ""),
    ]


def test_a_csv_file_says_it_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,correct\n1,True\n2,0\n3,\n")
    assert [one[2] for one in found(path)] == [True, False, None]


def test_lm_eval_samples_give_the_question_of_the_document_and_the_first_filter(tmp_path: Path) -> None:
    rows = [
        lm_eval(filter=name, doc_id=i, doc={"question": f"{i}?"}, exact_match=right)
        for name, both in (("strict-match", (0.0, 1.0)), ("flexible-extract", (1.0, 1.0)))
        for i, right in enumerate(both)
    ]
    path = write(tmp_path / "samples_gsm8k.jsonl", *rows)
    gold = "2+3=5\n#### 5"
    first = ("0", "0?", False, "It is 5. #### 5", gold)
    assert found(path) == [first, ("1", "1?", True, "It is 5. #### 5", gold)]
    assert "--metric exact_match,flexible-extract" in read_answers(path).notes[0]
    assert [one[2] for one in found(path, None, "exact_match,flexible-extract")] == [True, True]


def test_lm_eval_multiple_choice_has_acc_and_no_text(tmp_path: Path) -> None:
    row = lm_eval(doc={"ctx": "a"}, metrics=["acc", "acc_norm"], acc=1.0, acc_norm=0.0)
    row |= {"resps": [[["-1.2", "False"]], [["-0.3", "True"]]], "filter": "none"}
    path = write(tmp_path / "a.jsonl", row)
    assert found(path)[0][2:4] == (True, "")
    assert found(path)[0][1].startswith("Question: 1?")  # no known key in its document: the prompt
    assert found(path, None, "acc_norm")[0][2] is False


def test_trl_completions_are_parquet_with_a_column_for_each_reward(tmp_path: Path) -> None:
    """As `GRPOTrainer.log` of TRL 1.16 writes completions/completions_00010.parquet."""
    said = [{"role": "assistant", "content": "5"}]
    rows = [
        {"step": 10, "prompt": CHAT, "completion": said, "accuracy_reward": 1.0, "advantage": 0.5},
        {"step": 10, "prompt": CHAT, "completion": said, "accuracy_reward": None, "advantage": 0.0},
    ]
    path = tmp_path / "completions_00010.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert found(path) == [("", "2 + 3?", True, "5", ""), ("", "2 + 3?", None, "5", "")]
    two = [row | {"format_reward": 1.0} for row in rows]
    pq.write_table(pa.Table.from_pylist(two), path)
    with pytest.raises(UserError, match=r"row 1: has several rewards \(accuracy_reward, format_reward"):
        read_answers(path)
    assert [one[2] for one in found(path, None, "format_reward")] == [True, True]


def test_verl_rollouts_prefer_acc_to_a_score_of_minus_one(tmp_path: Path) -> None:
    row = {"input": "user\n2 + 3?\nassistant\n", "output": "6", "gts": "5", "score": -1.0, "step": 1}
    path = write(tmp_path / "10.jsonl", row, row | {"score": 1.0})
    assert [one[2] for one in found(path)] == [False, True]
    assert found(path)[0] == ("", row["input"], False, "6", "5")
    path = write(tmp_path / "dapo.jsonl", row | {"acc": True, "pred": "5"})
    assert found(path)[0][2] is True


def test_prime_rl_episodes_have_weighted_rewards_of_each_trace(tmp_path: Path) -> None:
    """As `verifiers.v1.Episode.to_record` gives them, which leaves None out."""

    def trace(score: float | None, **values: Any) -> dict[str, Any]:
        rewards = {"correct": {"score": score, "weight": 1.0}, "form": {"score": 1.0, "weight": 0.2}}
        nodes = [
            {"message": CHAT[1]},
            {"message": {"role": "assistant", "content": "5"}, "sampled": True},
        ]
        given = {"agent": {"name": "agent", "trainable": True}, "nodes": nodes, "ok": True}
        return given | {"rewards": {} if score is None else rewards, "metrics": {"turns": 1.0}} | values

    judge = trace(0.0, agent={"name": "judge", "trainable": False})
    task = {"type": "T", "key": "k1", "data": {"idx": 3, "prompt": CHAT, "answer": "5"}}
    path = write(
        tmp_path / "traces.jsonl",
        {"id": "e1", "task": task, "ok": True, "traces": [trace(1.0), trace(0.0), judge]},
        {"id": "e2", "task": task, "ok": False, "traces": [trace(1.0, ok=False), trace(None)]},
        {"id": "e3", "task": task, "ok": False, "traces": []},
    )
    assert [one[2] for one in found(path)] == [True, False, None, None, None]
    assert found(path)[0] == ("k1", "2 + 3?", True, "5", "5")
    assert [one[2] for one in found(path, None, "correct")][:2] == [True, False]
    assert [one[2] for one in found(path, None, "form")][:2] == [True, True]


def test_verifiers_results_count_no_answer_that_broke_down(tmp_path: Path) -> None:
    row = {"example_id": 3, "prompt": CHAT, "completion": [{"role": "assistant", "content": "5"}]}
    row |= {"answer": "5", "reward": 1.0, "metrics": {"format": 0.0}, "error": None}
    path = write(tmp_path / "results.jsonl", row, row | {"error": {"error": "ModelError"}})
    assert found(path) == [("3", "2 + 3?", True, "5", "5"), ("3", "2 + 3?", None, "5", "5")]
    assert found(path, None, "format")[0][2] is False


@pytest.mark.parametrize(
    ("text", "given", "sentence"),
    [
        ("", (), "a.jsonl: holds no answers"),
        ('{"foo": 1}', (), "a.jsonl:1: has foo, which no known format has"),
        ('{"id": 1, "correct": "perhaps"}', (), "a.jsonl:1: correct is 'perhaps', neither true or"),
        ('{"id": 1, "correct": [1]}', (), r"a.jsonl:1: correct is \[1\], neither"),
        ('{"id": 1, "correct": true}\n{"id": 1}', (), "a.jsonl:2: has no 'correct', but id"),
        ('{"id": 1, "correct": true}\n{"id": 2,', (), "a.jsonl:2: not JSON"),
        ('{"correct": true}', (), "a.jsonl:1: has neither an id nor a question"),
        (
            '{"id": 1, "question": "x", "correct": 1}\n{"id": 1, "question": "y", "correct": 1}',
            (),
            "a.jsonl:2: id 1 is that of another question in .*a.jsonl:1",
        ),
        ('{"id": 1, "correct": true}', ("verl",), "a.jsonl:1: has id, correct, but a file of"),
        ('{"id": 1, "correct": true}', (None, "acc"), "a.jsonl:1: has no 'acc'"),
        ('{"id": 1, "correct": true}', ("hf",), "--format hf: choose lm-eval, prime-rl,"),
        ('{"id": 1, "score": 1}', (None, "right"), "--metric right: .*a.jsonl:1 has no such key"),
        (json.dumps(lm_eval()), (None, "exact_match,none"), "a.jsonl:1: has no filter 'none'"),
        (json.dumps(lm_eval(metrics=["bleu", "ter"])), (), "none of its metrics .bleu, ter. is known"),
        ('{"task": 1, "traces": []}', (), "a.jsonl:1: task is 1, not an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_line(
    text: str, given: tuple[str | None, ...], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_answers(tmp_path / "a.jsonl", *given)


def test_compressed_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b'{"id": 1, "correct": true}'))
    with pytest.raises(UserError, match=r"a.jsonl: is compressed; unpack it"):
        read_answers(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="none: no such file"):
        read_answers(tmp_path / "none")
