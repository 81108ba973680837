from __future__ import annotations

import json
from pathlib import Path

import pytest

from reftune.problem import UserError
from reftune.reporting.comparison.finished_runs import read_finished_runs
from written_runs import add_reranker, write_run

RIGHT = {"warmup": [0, 0, 1], "sft": [1, 0, 1], "reft": [1, 1, 1]}
# per question four samples; votes: right, a tie whose first is wrong, wrong
SAMPLES = [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_a_run_is_read_aggregation_by_aggregation(tmp_path: Path) -> None:
    samples = dict.fromkeys(RIGHT, SAMPLES)
    directory = write_run(tmp_path / "run", RIGHT, samples=samples)
    add_reranker(directory, "reft")
    (run,), k, _ = read_finished_runs([directory])
    assert k == 4
    assert list(run.answers) == ["warmup", "sft", "reft"]
    assert run.answers["sft"].right == {"greedy": [True, False, True], "vote": [True, False, False]}
    assert run.answers["reft"].right["rerank"] == [True, True, True]
    # pairs of samples: 1 1 | 1 0, 0 1 | 1 0, 0 0 | 0 1; of equal votes the first seen wins
    assert run.answers["sft"].curves["vote"] == {
        1: pytest.approx((3 / 4 + 2 / 4 + 1 / 4) / 3),
        2: pytest.approx((2 / 2 + 1 / 2 + 0) / 3),
        4: pytest.approx(1 / 3),
    }
    assert run.answers["sft"].curves["pass"] == {
        1: pytest.approx(0.5),
        2: pytest.approx((1 + 5 / 6 + 1 / 2) / 3),
        4: pytest.approx(1),
    }


def test_fewer_samples_are_the_first_ones(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", RIGHT, samples=dict.fromkeys(RIGHT, SAMPLES))
    (run,), k, _ = read_finished_runs([directory], k=1)
    assert k == 1
    assert run.answers["sft"].right["vote"] == [True, False, False]
    assert run.answers["sft"].curves["vote"] == {1: pytest.approx(1 / 3)}
    assert run.answers["sft"].curves["pass"] == {1: pytest.approx(1 / 3)}


def test_runs_with_different_numbers_of_samples_use_the_smallest(tmp_path: Path) -> None:
    more = write_run(tmp_path / "more", RIGHT, samples=dict.fromkeys(RIGHT, SAMPLES))
    fewer = [drawn[:2] for drawn in SAMPLES]
    less = write_run(tmp_path / "less", RIGHT, samples=dict.fromkeys(RIGHT, fewer), seed=2)
    runs, k, _ = read_finished_runs([more, less])
    assert k == 2
    assert runs[0].answers["sft"].right["vote"] == [True, False, False]
    none = write_run(tmp_path / "none", RIGHT, seed=3)
    runs, k, _ = read_finished_runs([more, none])
    assert k == 0
    assert list(runs[0].answers["sft"].right) == ["greedy"]
    assert runs[0].answers["sft"].curves == {}


def test_the_evaluations_curves_are_taken_where_they_are_of_as_many_samples(tmp_path: Path) -> None:
    curves = {model: {"vote": {"1": 0.25, "4": 0.75}} for model in RIGHT}
    samples = dict.fromkeys(RIGHT, SAMPLES)
    directory = write_run(tmp_path / "run", RIGHT, samples=samples, curves=curves)
    (run,), _, _ = read_finished_runs([directory])
    assert run.answers["sft"].curves["vote"] == {1: 0.25, 4: 0.75}
    (run,), _, _ = read_finished_runs([directory], k=2)
    assert run.answers["sft"].curves["vote"].keys() == {1, 2}


def test_the_order_of_the_rows_is_the_first_runs(tmp_path: Path) -> None:
    one, two = (write_run(tmp_path / f"run-{seed}", RIGHT, seed=seed) for seed in (1, 2))
    path = two / "evaluation/warmup.jsonl"
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
    runs, _, _ = read_finished_runs([one, two])
    assert runs[1].answers["warmup"].right["greedy"] == [False, False, True]


def test_a_fingerprint_tells_models_apart_by_what_they_wrote(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", RIGHT)
    (run,), _, _ = read_finished_runs([one])
    prints = {answers.fingerprint for answers in run.answers.values()}
    assert len(prints) == 3
    (again,), _, _ = read_finished_runs([one])
    assert {answers.fingerprint for answers in again.answers.values()} == prints


@pytest.mark.parametrize(
    ("test", "fix"),
    [
        ("data/svamp.json", "compare runs of one data.test"),
        ("synthetic", "the same data.synthetic.seed"),
    ],
)
def test_runs_of_different_questions_are_refused(tmp_path: Path, test: str, fix: str) -> None:
    data = {"test": test}
    one = write_run(tmp_path / "one", RIGHT, data=data)
    two = write_run(tmp_path / "two", RIGHT, data=data, seed=2, question="How much?")
    with pytest.raises(
        UserError, match=r"one and .*two were tested on different questions \(q0, .*"
    ) as e:
        read_finished_runs([one, two])
    assert fix in str(e.value)
    three = write_run(tmp_path / "three", {"sft": [1, 0]}, data=data, seed=3)
    with pytest.raises(UserError, match=r"different questions \(q2, for example\)"):
        read_finished_runs([one, three])


def test_a_question_on_which_the_sandbox_failed_once_is_left_out_of_all_runs(tmp_path: Path) -> None:
    one, two = (write_run(tmp_path / f"{seed}", RIGHT, seed=seed) for seed in (1, 2))
    path = two / "evaluation/reft.jsonl"
    first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(first.replace('"ok"', '"sandbox_error"', 1) + "".join(rest), encoding="utf-8")
    runs, _, unjudged = read_finished_runs([one, two])
    assert unjudged == 1
    for run in runs:
        assert {model: found.right["greedy"] for model, found in run.answers.items()} == {
            model: list(map(bool, right[1:])) for model, right in RIGHT.items()
        }


def test_another_answer_makes_another_question(tmp_path: Path) -> None:
    one, two = (write_run(tmp_path / f"run-{seed}", RIGHT, seed=seed) for seed in (1, 2))
    for path in (two / "evaluation").glob("*.jsonl"):
        path.write_text(path.read_text().replace('"answer": "7"', '"answer": "C"'))
    with pytest.raises(UserError, match="different questions"):
        read_finished_runs([one, two])


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", RIGHT, samples=dict.fromkeys(RIGHT, SAMPLES))
    greedy = write_run(tmp_path / "greedy", RIGHT, seed=2)
    unfinished = write_run(tmp_path / "unfinished", RIGHT, seed=3)
    (unfinished / "evaluation/result.json").unlink()
    cases = [
        ([run, tmp_path / "nowhere"], None, r"nowhere: no run directory; give those that"),
        ([run, unfinished], None, r"unfinished: not evaluated yet; finish the run with `reftune run`"),
        ([run, run], None, "given twice"),
        ([run, tmp_path / "greedy/../run"], None, "given twice"),
        ([run], 5, r"--k 5: .*run has 4 samples per question; choose --k from 1 to 4"),
        ([run], 0, r"--k 0: .*choose --k from 1 to 4"),
        ([run, greedy], 2, r"--k 2: .*greedy has 0 samples per question; leave --k out"),
    ]
    for directories, k, message in cases:
        with pytest.raises(UserError, match=message):
            read_finished_runs(directories, k)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "result.json",
            '{"models": 3}',
            r"result\.json: models: input should be a valid dict.*; delete it and run the stage",
        ),
        (
            "result.json",
            "[]",
            r"result\.json: not an object; delete it and run the stage again",
        ),
        ("sft.jsonl", '{"id"', r"sft\.jsonl:1: not JSON .*; delete it with result\.json beside it"),
        (
            "sft.jsonl",
            '{"id": "q0"}',
            r"sft\.jsonl:1: question: field required; delete it with result\.json",
        ),
        ("sft.jsonl", "[]", r"sft\.jsonl:1: not an object; delete it with result\.json"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    run = write_run(tmp_path / "run", RIGHT, samples=dict.fromkeys(RIGHT, SAMPLES))
    (run / "evaluation" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_finished_runs([run])


def test_a_model_without_its_file_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", RIGHT)
    (run / "evaluation/reft.jsonl").unlink()
    with pytest.raises(UserError, match=r"reft\.jsonl: cannot be read"):
        read_finished_runs([run])


def test_samples_lost_from_a_file_are_noticed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", RIGHT, samples=dict.fromkeys(RIGHT, SAMPLES))
    path = run / "evaluation/reft.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["samples"].pop()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="question q1 has 3 samples"):
        read_finished_runs([run])
