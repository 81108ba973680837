"""What `import reftune` offers, as a program uses it: data from anywhere, plain objects back."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import reftune
import tiny_run
import written_runs
from reftune.config import Model, Prompt
from reftune.data.sources import Source
from reftune.files import read_jsonl, write_jsonl
from reftune.model.prompts import Prompter
from reftune.model.scratch import new_model

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
ROWS = [{"id": f"{n}", "question": f"{n} + 1?", "answer": n + 1} for n in range(6)]
SEVEN = "def solution():\n    return 7"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a model that has learned nothing, and writes natural chains."""
    directory = tmp_path_factory.mktemp("face") / "model"
    made, tokenizer = new_model(
        Model(scratch="tiny", vocab_size=280, scratch_overrides=SHAPE), ["a b"], 1
    )
    made.save_pretrained(directory)
    Prompter(tokenizer, Prompt(max_new_tokens=8), "natural").save(directory)
    return directory


# grade


def test_grade_gives_a_verdict_per_completion() -> None:
    completions = ["So it is 7. Therefore, the answer is: 7", "#### 8", "Who knows?"]
    assert reftune.grade(completions, ["7", 7, 7.0], cot="natural") == [
        reftune.Verdict("ok", 7.0, True, 1.0),
        reftune.Verdict("ok", 8.0, False, 0.1),
        reftune.Verdict("no_result", None, False, 0.0),
    ]
    [other] = reftune.grade(["#### 8"], [7], cot="natural", partial_reward=0.5)
    assert other.reward == 0.5


def test_grade_reads_by_the_style_that_it_is_told() -> None:
    many = "It is \\boxed{72}.\nThe answer is 71.\n#### 70"
    found = {
        style: reftune.grade([many], [72], cot="natural", answer_style=style)[0].answer
        for style in (None, "trigger", "boxed", "hashes", "answer_is")
    }
    assert found == {None: 70, "trigger": 70, "boxed": 72, "hashes": 70, "answer_is": 71}
    fenced = f"Here it is:\n```python\n{SEVEN}\n```"
    for style, status in (("fenced", "ok"), ("function", "syntax_error"), (None, "ok")):
        [verdict] = reftune.grade([fenced], [7], cot="program", answer_style=style)
        assert verdict.status == status
    with pytest.raises(reftune.UserError, match='"boxed" is no answer style of program chains'):
        reftune.grade([fenced], [7], cot="program", answer_style="boxed")
    with pytest.raises(reftune.UserError, match='trigger: has no effect in the answer style "boxed"'):
        reftune.grade([many], [7], cot="natural", answer_style="boxed", trigger="So:")


def test_grade_runs_programs_and_knows_letters() -> None:
    fenced = f"Here it is:\n```python\n{SEVEN}\n```"
    verdicts = reftune.grade([SEVEN, fenced], [7, "b"], cot="program", choices=[None, [6, "7"]])
    assert [(v.status, v.answer, v.correct) for v in verdicts] == [
        ("ok", 7.0, True), ("ok_text", "b", True),
    ]  # fmt: skip


# Well within the usual limits of 2 seconds and 256 megabytes.
SLOW = "def solution():\n    n = 0\n    for i in range(300000):\n        n += i\n    return 7"
LARGE = "def solution():\n    return len('x' * 10**8) - 10**8 + 7"


def test_a_program_has_the_time_and_the_memory_that_it_is_given() -> None:
    def statuses(**limits: float) -> list[str]:
        verdicts = reftune.grade([SLOW, LARGE], [7, 7], cot="program", **limits)
        executions = reftune.run_program([SLOW, LARGE], **limits)
        assert [v.status for v in verdicts] == [e.status for e in executions]
        return [v.status for v in verdicts]

    assert statuses(seconds=20.0) == ["ok", "ok"]
    assert statuses(seconds=20.0, memory_mb=32) == ["ok", "memory"]
    assert statuses(seconds=0.002)[0] == "timeout"


def test_grade_takes_a_function_as_reward_and_shows_it_the_question() -> None:
    def reward(question: str, completion: str, answer: str) -> float:
        return len(question) / len(completion) if answer == "any" else 0.0

    verdicts = reftune.grade(
        ["abcd", "ab"], ["any", "any"], cot="natural", reward=reward, questions=["??", "???"]
    )
    assert [(v.reward, v.correct) for v in verdicts] == [(0.5, False), (1.5, True)]
    assert isinstance(reward, reftune.RewardFunction)


def test_grade_with_a_trigger_of_ones_own() -> None:
    [verdict] = reftune.grade(["Ergo 7"], [7], cot="natural", trigger="Ergo")
    assert verdict.correct


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answers": [1]}, "answer: 1 for 2 completions; give one for each"),
        ({"choices": [["1", "2"]]}, "choices: 1 for 2 completions; give one for each"),
        ({"answers": [1, ""]}, "completion 2: problem 2: answer '' is empty; give the final answer"),
        ({"cot": "program", "trigger": "So"}, "trigger: has no effect on programs"),
        (
            {"cot": "program", "answers": [1, "no"]},
            "completion 2: problem 2: answer 'no' is not a number",
        ),
        ({"seconds": 0}, "seconds = 0, memory_mb = 256: give up to 3600 seconds"),
        ({"memory_mb": 15}, "memory_mb = 15: give up to 3600 seconds and 16 to"),
        ({"reward": "nowhere.py:f"}, "reward nowhere.py:f: no such file nowhere.py"),
        (
            {"reward": lambda question, completion, answer: 1 / 0},
            "failed (ZeroDivisionError",
        ),
    ],
)
def test_what_cannot_be_graded_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(reftune.UserError) as caught:
        reftune.grade(**{"completions": ["", ""], "answers": [1, 2], "cot": "natural", **arguments})
    assert message in str(caught.value)


# In a process of its own, where tests do not check the types of arguments.
WRONG_TYPES = """
import reftune
for arguments in (
    {"answers": [1, [2]]}, {"answers": [1, None]}, {"completions": ["", None]},
    {"choices": [None, "ab"]}, {"reward": lambda question, completion, answer: "good"},
    {"cot": "music"},
):
    try:
        reftune.grade(**{"completions": ["", ""], "answers": [1, 2], "cot": "natural", **arguments})
    except reftune.UserError as error:
        print(error)
"""


def test_what_is_no_text_is_named() -> None:
    found = subprocess.run(
        [sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True, check=True, timeout=60
    )
    starts = [line.partition(";")[0] for line in found.stdout.splitlines()]
    assert starts == [
        "completion 2: 'answer' is a list",
        "completion 2: answer must be a text or a number",
        "completion 2: completion must be a text",
        "completion 2: cannot read the choices",
        "reward <lambda> failed (returned 'good'",
        "cot: choose natural or program, not music",
    ]


# run_program


def test_a_program_runs_alone() -> None:
    assert reftune.run_program(SEVEN) == reftune.Execution("ok", 7.0)
    assert reftune.run_program("def solution():\n    return 'seven'").value == "seven"
    assert reftune.run_program("print(1").status == "syntax_error"


def test_programs_run_together_whatever_they_do() -> None:
    programs = [SEVEN, "def solution():\n    open('/etc/passwd')", "def solution():\n    1 / 0", SEVEN]
    found = reftune.run_program(programs)
    assert [execution.value for execution in found] == [7.0, None, None, 7.0]
    assert found[2].status == "exception"
    assert reftune.run_program([]) == []
    with pytest.raises(reftune.UserError, match=r"seconds = -1\.0"):
        reftune.run_program(SEVEN, seconds=-1.0)


# evaluate and sample


def test_rows_a_data_set_and_a_file_are_the_same_data(model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", ROWS)
    first = reftune.evaluate(model, tmp_path / "x.jsonl", samples=2)
    assert [row["question"] for row in first.rows] == [row["question"] for row in ROWS]
    assert first.accuracy == sum(row["correct"] for row in first.rows) / 6
    assert first.summary["pass"].keys() == {"1", "2"}
    assert reftune.evaluate(model, iter(ROWS), samples=2) == first
    assert reftune.evaluate(model, Dataset.from_list(ROWS), samples=2) == first


def test_evaluate_heeds_kind_of_chain_columns_and_settings(model: Path) -> None:
    rows = [{"q": "1 + 1?", "a": 2, "n": 5}, {"q": "1 + 2?", "a": 3, "n": 6}]
    columns = ["data.columns.question=q", "data.columns.answer=a", "data.columns.id=n"]
    natural = reftune.evaluate(model, rows, overrides=[*columns, "data.max_test=1"])
    assert [row["id"] for row in natural.rows] in (["5"], ["6"])
    program = reftune.evaluate(model, rows, cot="program", overrides=columns)
    assert all(row["completion"].startswith("def solution():\n") for row in program.rows)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([ROWS[0], {"question": "?"}], "row 2 of data: has 'question', not 'question' and 'answer'"),
        ([ROWS[0], ROWS[0]], "row 2 of data: id '0' is already that of row 1 of data; make ids unique"),
        ([{"question": "?", "answer": "many"}], "row 1 of data: problem data-1: answer 'many' is not"),
        ([{"question": "?", "answer": ""}], "row 1 of data: 'answer' is empty"),
        ([], "data: no problems in it"),
        ({"question": "?", "answer": 1}, "data: has the keys 'question', 'answer'; give a list of rows"),
        ("nowhere.jsonl", "nowhere.jsonl: no such file"),
    ],
)
def test_wrong_data_are_named(model: Path, data: Source, message: str) -> None:
    cot = "program" if "many" in message else None
    with pytest.raises(reftune.UserError) as caught:
        reftune.evaluate(model, data, cot=cot)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overrides": ["ppo.kl_coef=1"]}, "--set ppo.kl_coef=1: has no effect when a model is asked"),
        ({"overrides": ["evaluation.temperature=0.5"]}, "evaluation.temperature has no effect"),
        ({"overrides": ["prompt.max_new_token=5"]}, "did you mean max_new_tokens?"),
        ({"split": "dev"}, "data.test_split has no effect"),
        ({"samples": -1}, "evaluation.samples: input should be greater than or equal to 0"),
        ({"model": "./none"}, "./none: say with --cot, in Python with cot=, whether it writes"),
        ({"model": "./none", "cot": "natural"}, "./none: cannot be loaded: its tokenizer"),
    ],
)
def test_a_model_is_not_asked_with_what_does_not_fit(
    model: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(reftune.UserError) as caught:
        reftune.evaluate(**{"model": model, "data": ROWS, **arguments})
    assert message in str(caught.value)


def test_splits_of_a_data_set_are_no_rows(model: Path) -> None:
    splits = DatasetDict(train=Dataset.from_list(ROWS))
    with pytest.raises(reftune.UserError, match="data: has the keys 'train'; give a list of rows"):
        reftune.evaluate(model, splits)


def test_sample_answers_each_question(model: Path) -> None:
    [alone] = reftune.sample(model, "1 + 1?")
    first, second = reftune.sample(model, ["1 + 1?", "1 + 1?"], temperature=2.0)
    assert [one.problem.question for one in (alone, first, second)] == ["1 + 1?"] * 3
    assert first.completion != second.completion  # one seed, but each has randomness of its own
    [again] = reftune.sample(model, "1 + 1?", temperature=2.0, seed=1)
    assert again.completion != first.completion
    [program] = reftune.sample(model, "1 + 1?", cot="program", overrides=["prompt.max_new_tokens=3"])
    assert program.completion.startswith("def solution():")
    assert len(program.sample.tokens) == 3
    assert program.verdict.status == "truncated"
    assert reftune.sample(model, []) == []
    with pytest.raises(reftune.UserError, match=r"temperature: 0, or from 0.01 to 100, not -1\.0"):
        reftune.sample(model, "1 + 1?", temperature=-1.0)


# run, compare


def settings(folder: Path, name: str) -> Any:
    """Return the settings of a run that trains for one epoch, less than anybody learns in."""
    changes = ["methods=[]", "sft.epochs=1", "sft.warmup_epochs=1", "evaluation.samples=0"]
    changes += ["data.validation_size=5", "data.max_train=20", "data.max_test=9"]
    return reftune.load_config(tiny_run.write_config(folder), changes, name=name)


def test_a_run_on_rows_is_the_run_on_the_file_and_goes_on_without_them(tmp_path: Path) -> None:
    filed = reftune.run(settings(tmp_path, "filed"))
    train, test = (read_jsonl(tmp_path / f"{role}.jsonl") for role in ("train", "test"))
    config = settings(tmp_path, "given")
    given = reftune.run(config, train=Dataset.from_list(train), test=iter(test))
    assert (given.ran, given.questions) == (["sft", "evaluation"], 9)
    assert given.models == filed.models
    assert given.comparisons[0].keys() >= {"a", "b", "difference", "interval", "mcnemar_p"}
    answers = [read_jsonl(run.directory / "evaluation/sft.jsonl") for run in (filed, given)]
    assert answers[0] == answers[1]
    assert given.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    again = reftune.run(config, train=train, test=test)
    assert (again.ran, again.models) == ([], given.models)
    record = reftune.load_config(given.directory / "config.toml")
    assert read_jsonl(Path(record.data.train)) == train
    with pytest.raises(reftune.UserError, match="holds a run on other data than these rows of train"):
        reftune.run(config, train=train[1:], test=test)
    with pytest.raises(reftune.UserError, match="holds a run on other data than these rows of test"):
        reftune.run(settings(tmp_path, "filed"), test=test)
    assert not (filed.directory / "given").exists()


def test_who_trains_on_rows_says_what_to_test_on() -> None:
    config = reftune.load_config({"model.scratch": "tiny"})
    with pytest.raises(reftune.UserError, match="test: is missing; give problems to compare"):
        reftune.run(config, train=ROWS)


@pytest.mark.parametrize(("role", "count"), [("train", 2), ("test", 1)])
def test_wrong_rows_of_a_run_are_named_before_it_begins(tmp_path: Path, role: str, count: int) -> None:
    rows: Sequence[Mapping[str, Any]] = [*ROWS[: count - 1], {"question": "How?", "answer": "so"}]
    config = settings(tmp_path, "wrong")
    message = f"row {count} of {role}: problem {role}-{count}: answer 'so' is not a number"
    with pytest.raises(reftune.UserError, match=message):
        reftune.run(config, **{role: rows})
    assert not config.run_dir.exists()


def test_values_beyond_json_do_not_stop_a_run(tmp_path: Path) -> None:
    from reftune.runs.given_rows import with_problems

    rows = [{"question": "?", "answer": np.int64(1), "seen": {3}, "when": Path("x")}]
    config = with_problems(settings(tmp_path, "odd"), train=rows, test="other.jsonl")
    assert config.data.test == "other.jsonl"
    [kept] = [json.loads(line) for line in Path(config.data.train).read_text().splitlines()]
    assert kept == {"question": "?", "answer": 1, "seen": "{3}", "when": "x"}


def test_compare_gives_plain_objects(tmp_path: Path) -> None:
    right = {"sft": [0, 1, 1, 0], "reft": [1, 1, 1, 0]}
    runs = [
        written_runs.write_run(tmp_path / name, right, seed=seed) for seed, name in ((1, "a"), (2, "b"))
    ]
    found = reftune.compare([str(run) for run in runs])
    [difference] = [d for d in found.differences if d.method == "reft"]
    assert (difference.difference, difference.seeds, difference.questions) == (0.25, 2, 4)
    with pytest.raises(reftune.UserError, match="a run is given twice"):
        reftune.compare([runs[0], runs[0]])
    with pytest.raises(reftune.UserError, match="sources: is empty"):
        reftune.compare([])
    with pytest.raises(reftune.UserError, match="has 0 samples per question"):
        reftune.compare(runs, samples=3)


def test_compare_takes_files_of_answers_too(tmp_path: Path) -> None:
    """The second model is right on one question more."""
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, right in zip(paths, ((1, 0, 0), (1, 1, 0)), strict=True):
        write_jsonl(path, [{"id": str(i), "correct": bool(x)} for i, x in enumerate(right)])
    found = reftune.compare([paths[0], f"new={paths[1]}"])
    [difference] = found.differences
    assert (difference.difference, difference.questions) == (pytest.approx(1 / 3), 3)
    with pytest.raises(reftune.UserError, match="samples: has no effect where files are compared"):
        reftune.compare(paths, samples=2)


def test_evaluate_shows_examples_and_cuts_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def note(*arguments: Any, **named: Any) -> tuple[dict[str, Any], list[Any]]:
        told.update(named)
        return {"greedy": {"accuracy": 0.0}}, []

    monkeypatch.setattr("reftune.evaluation.inference.evaluate_on", note)
    reftune.evaluate("m", [], shots=2, shots_from="more.jsonl", stop="Q:")
    assert told == {"shots": 2, "shots_from": "more.jsonl", "stop": ["Q:"]}


# The face itself


def test_everything_on_offer_is_there_and_says_what_it_does() -> None:
    for name in reftune.__all__:
        thing = getattr(reftune, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            assert "Raises:\n    UserError: " in str(inspect.getdoc(thing)), name
            parameters = inspect.signature(thing).parameters
            assert all(f"\n    {p}: " in str(inspect.getdoc(thing)) for p in parameters), name
    assert (Path(reftune.__file__).parent / "py.typed").exists()


def test_a_configuration_is_read_with_changes_and_a_name(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('[model]\nscratch = "tiny"\n', encoding="utf-8")
    config = reftune.load_config(tmp_path / "my.toml", ["ppo.kl_coef=0.5"], name="other")
    assert (config.ppo.kl_coef, config.name) == (0.5, "other")
    with pytest.raises(reftune.UserError, match="did you mean kl_coef"):
        reftune.load_config(tmp_path / "my.toml", ["ppo.kl_coeff=0.5"])
