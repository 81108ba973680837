from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from reftune.evaluation.pairing import ACCURACY, Paired, model_names, names_of, pair, read_pooled
from reftune.problem import UserError
from reftune.reporting.comparison.compare import Difference, compare_answers
from reftune.reporting.comparison.page import terminal_tables, write_comparison
from reftune.reporting.comparison.tables import headline, notes
from written_runs import write_run


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def asked(*rights: int, **values: Any) -> list[dict[str, Any]]:
    return [{"id": i, "correct": bool(right)} | values for i, right in enumerate(rights)]


def paired(*arguments: str) -> Paired:
    return pair(read_pooled(arguments))


def right(found: Paired) -> dict[str, list[list[float]]]:
    return {one.label: one.right[ACCURACY].tolist() for one in found.contenders}


def test_questions_that_not_all_were_asked_or_judged_are_left_out_and_counted(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", *asked(1, 0, 1, 0))
    b = write(tmp_path / "b.jsonl", {"id": "9", "correct": 1}, {"id": 3, "correct": None}, *asked(0, 1))
    found = paired(a, b)
    assert right(found) == {"a": [[1, 0]], "b": [[0, 1]]}
    assert (found.by, found.left_out, found.unjudged) == ("id", 2, 1)  # 2 and 9; 3
    told = " ".join(notes(compare_answers(found)))
    assert "Left out: 2 questions" in told
    assert "Left out: 1 question," in told


def test_several_answers_to_a_question_count_as_their_mean(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", *asked(1, 0), *asked(0, 0))
    b = write(tmp_path / "b.jsonl", *asked(1, 1), *asked(1, 0), *asked(1, 0), *asked(0, 0))
    found = paired(a, b)
    assert right(found) == {"a": [[0.5, 0]], "b": [[0.75, 0.25]]}
    comparison = compare_answers(found)
    assert [cell.accuracy for cell in comparison.cells] == [0.25, 0.5]
    (one,) = comparison.differences
    # The differences are 1/4 and 1/4: of the four ways to sign them two have so large a sum.
    assert (one.difference, one.p) == (0.25, 0.5)
    assert "a: 2 answers to a question, which count as their mean" in " ".join(notes(comparison))


def test_files_of_one_label_are_seeds(tmp_path: Path) -> None:
    files = {n: write(tmp_path / f"{n}.jsonl", *asked(*rights)) for n, rights in (
        ("a", (1, 0, 0, 0)), ("b1", (1, 1, 0, 0)), ("b2", (1, 1, 1, 0)))}  # fmt: skip
    found = paired(files["a"], f"new={files['b1']}", f"new = {files['b2']}".replace(" = ", "="))
    assert right(found) == {"a": [[1, 0, 0, 0]], "new": [[1, 1, 0, 0], [1, 1, 1, 0]]}
    cell = compare_answers(found).cells[1]
    assert (cell.accuracy, cell.lowest, cell.highest, cell.seeds) == (0.625, 0.5, 0.75, 2)


def test_only_a_label_pools(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, *asked(1, 0)) for name in ("a.jsonl", "b.jsonl"))
    (tmp_path / "a.csv").write_text("id,correct\n0,1\n1,1\n")
    assert list(read_pooled([a, str(tmp_path / "a.csv")])) == [a, str(tmp_path / "a.csv")]
    assert list(read_pooled([f"b={a}", b])) == ["b", b]


def test_without_ids_that_fit_the_text_pairs(tmp_path: Path) -> None:
    ours = [{"id": f"test-{i}", "question": f"What is {i}?", "correct": i > 1} for i in range(4)]
    theirs = [{"question": f" what  is {i}?", "correct": i > 2} for i in reversed(range(4))]
    found = paired(write(tmp_path / "a.jsonl", *ours), write(tmp_path / "b.jsonl", *theirs))
    assert found.by == "text"
    assert right(found) == {"a": [[0, 0, 1, 1]], "b": [[0, 0, 0, 1]]}


def test_an_id_is_the_same_question_only_if_the_texts_agree(tmp_path: Path) -> None:
    """Numbers from 0 are the ids of every data set."""
    shots = "Question: 1 + 1?\nAnswer: 2\n\nQuestion: "
    a = write(tmp_path / "a.jsonl", *asked(1, 0, question="What is 7 - 3?"))
    prompt = write(tmp_path / "prompt.jsonl", *asked(0, 1, question=f"{shots}What is 7 - 3?"))
    other = write(tmp_path / "other.jsonl", *asked(1, 0, question="How old is Ann?"))
    assert right(paired(a, prompt)) == {"a": [[1, 0]], "prompt": [[0, 1]]}
    with pytest.raises(UserError, match=r"a.jsonl and .*other.jsonl have no question in common.*Ann"):
        paired(a, other)


def test_a_run_stands_beside_a_file_of_the_same_questions(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", {"sft": [0, 0, 1], "reft": [1, 1, 1]})
    texts = [
        {"doc_id": i, "doc": {"question": f"How many? {i}"}, "exact_match": i % 2} for i in range(3)
    ]
    rows = [row | {"filtered_resps": ["x"], "filter": "none"} for row in texts]
    found = paired(str(run), write(tmp_path / "lm.jsonl", *rows))
    assert found.by == "text"
    assert right(found) == {"demo SFT": [[0, 0, 1]], "demo ReFT": [[1, 1, 1]], "lm": [[0, 1, 0]]}


def test_files_are_named_by_what_tells_them_apart() -> None:
    paths = ["out/base/samples_gsm8k_1.jsonl", "out/tuned/samples_gsm8k_2.jsonl"]
    assert names_of([Path(p) for p in paths]) == ["base/samples_gsm8k_1", "tuned/samples_gsm8k_2"]
    assert names_of([Path("runs/a/sft/model"), Path("runs/a/ppo/model")]) == ["sft", "ppo"]
    assert names_of([Path("a.jsonl")]) == ["a"]


def test_a_model_of_a_run_is_named_by_the_run_and_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x", "y"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.toml").touch()
    assert model_names(["runs/x/ppo/model", "runs/x/warmup/model/"]) == ["x ReFT", "x Warm-up"]
    assert model_names(["runs/x/sft/model", "runs/y/sft/model"]) == ["x SFT", "y SFT"]
    assert model_names(["runs/x/ppo/model", "Org/Smol"]) == ["runs/x ReFT", "Org/Smol"]
    assert model_names(["other/ppo/model", "runs/x/ppo/elsewhere"]) == [
        "other/ppo/model",
        "runs/x/ppo/elsewhere",
    ]  # no run, no model of one
    assert model_names(["runs/x/ppo/model"]) == ["x ReFT"]


def test_a_file_given_twice_or_a_strange_directory_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", *asked(1))
    with pytest.raises(UserError, match="given twice"):
        read_pooled([a, f"x={a}"])
    with pytest.raises(UserError, match="is a directory, and of no evaluated run"):
        read_pooled([a, str(tmp_path)])
    assert list(read_pooled([write(tmp_path / "k=v.jsonl", *asked(1))])) == ["k=v"]


def test_every_two_files_are_compared_and_corrected_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [write(tmp_path / f"{n}.jsonl", *asked(*(rng.random(80) < s))) for n, s in
             (("a", 0.3), ("b", 0.5), ("c", 0.7))]  # fmt: skip
    found = compare_answers(paired(*files))
    pairs = [(one.base_method, one.method) for one in found.differences]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    least = min(found.differences, key=lambda one: one.p)
    assert least.p_holm == pytest.approx(3 * least.p)
    assert headline(found) == "3 models on the same questions."


def test_others_labels_stay_as_they_are_on_every_part_of_the_page(tmp_path: Path) -> None:
    """`base` and `sft` are names of our models, which are shown as Base and SFT."""
    a = write(tmp_path / "a.jsonl", *asked(1, 0, 0, 1))
    b = write(tmp_path / "b.jsonl", *asked(1, 1, 1, 0))
    found = compare_answers(paired(f"base={a}", f"sft={b}"))
    page = write_comparison(found, tmp_path / "out")
    console = Console(width=100, record=True, file=StringIO())
    console.print(terminal_tables(found))
    for text in (page.read_text(), page.with_suffix(".md").read_text(), console.export_text()):
        assert "sft against base" in text
        assert not re.search(r"\b(Base|SFT)\b", text)
    assert "sft answers 2 that base does not" in page.read_text()
    assert headline(found).startswith("sft answers 75.0% of 4 questions (one seed), base 50.0%")


def test_the_page_lets_flipped_questions_be_read(tmp_path: Path) -> None:
    def rows(*rights: int, said: str) -> list[dict[str, Any]]:
        return [
            row
            | {"question": f"<b>What is {i}?</b>", "completion": f"{said} {i}", "answer": f"gold {i}"}
            for i, row in enumerate(asked(*rights))
        ]

    a = write(tmp_path / "a.jsonl", *rows(1, 0, 0, 1, said="old"))
    b = write(tmp_path / "b.jsonl", *rows(1, 1, 1, 0, said="new"))
    found = compare_answers(paired(a, b))
    page = write_comparison(found, tmp_path / "out")
    text = page.read_text()
    assert "b answers 2 that a does not, and 1 the other way round" in text
    assert text.count("<article>") == 3
    for words in (
        "&lt;b&gt;What is 1?&lt;/b&gt;",
        "gold 1",
        "old 1",
        "new 1",
        "old 3",
        str(tmp_path / "b"),
    ):
        assert words in text
    assert "old 0" not in text  # both answer it
    lines = (tmp_path / "out/comparison_flips.jsonl").read_text().splitlines()
    assert [json.loads(line)["question"][11:12] for line in lines] == ["1", "2", "3"]
    assert "comparison_flips.jsonl" in page.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("interval", "p", "p_holm", "seeds", "words"),
    [
        ((0.01, 0.2), 0.06, 0.06, 1, "differ on 7 questions only"),
        ((-0.2, -0.01), 0.03, 0.09, 1, "for this difference alone (p = 0.03)"),
        ((0.01, 0.2), 0.03, 0.09, 3, "for this difference alone (p = 0.03)"),
        ((0.0, 0.2), 0.01, 0.02, 1, "a close call"),
        ((0.01, 0.2), 0.01, 0.02, 1, ""),
        ((-0.01, 0.2), 0.3, 0.6, 1, ""),
        ((-0.01, 0.2), 0.04, 0.08, 1, ""),  # in the end both say unclear
    ],
)
def test_an_interval_and_a_p_value_that_disagree_are_explained(
    interval: tuple[float, float], p: float, p_holm: float, seeds: int, words: str
) -> None:
    one = Difference(
        "", "b", "", "a", "accuracy", 1, 100, seeds, seeds, 0.1, interval, p, p_holm, differing=7
    )
    assert words in one.explained
    assert bool(one.explained) == bool(words)


def test_the_explanation_stands_on_the_page_below_its_row(tmp_path: Path) -> None:
    """Five questions of which only the second model answers: 2 / 2^5 = 6%, yet no resample holds 0."""
    a = write(tmp_path / "a.jsonl", *asked(*[0] * 5, *[1] * 5))
    b = write(tmp_path / "b.jsonl", *asked(*[1] * 10))
    page = write_comparison(compare_answers(paired(a, b)), tmp_path / "out")
    row = page.read_text().partition("b against a</th>")[2].partition("</tbody>")[0]
    assert "The interval leaves 0 out, but the exact test does not reach 5%: the two differ on 5" in row
