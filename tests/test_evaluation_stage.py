"""The evaluation: who answers, by which settings, what is kept, and what is not asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from reftune.config import Config, Evaluation
from reftune.files import read_json, read_jsonl, write_jsonl
from reftune.model.wording import resolved
from reftune.problem import Problem, Row, Verdict
from reftune.runs.run_log import RunLog
from reftune.stages import evaluation as module
from reftune.stages.evaluation import answer_with, start
from reftune.stages.reranker import Reranker
from reftune.stages.run import Run
from reftune.training.rollouts import Generator
from tiny_pipeline import (
    DIRECTORIES,
    MARKS,
    TESTED_ON,
    TESTS,
    ids,
    make_config,
    with_model,
    write_models,
)
from tiny_stage import NORM, OneOf, look_oneself

ALL = ("offline_st", "online_st", "reft")
RERANK = {"samples": 2, "rerank": True, "bootstrap": 100}
# sigmoid(3), sigmoid(4), ...: what a head says of which only one bias is not 0
SCORES = {"sft": 0.952574, "offline_st": 0.982014, "online_st": 0.993307, "reft": 0.997527}
RIGHT = {"warmup": 2, "sft": 0, "offline_st": 1, "online_st": 2, "reft": 3}  # of three questions


def answers(right: int) -> list[Row]:
    return [
        {
            "id": p.id, "question": p.question, "answer": p.answer, "completion": "so",
            "status": "ok", "correct": i < right,
        }
        for i, p in enumerate(TESTS)
    ]  # fmt: skip


@dataclass
class Asked:
    """Which models were asked; each has as many right answers as `RIGHT` says."""

    names: list[str] = field(default_factory=list)

    def answer(self, run: Run, name: str) -> list[Row]:
        self.names.append(name)
        return answers(RIGHT[name])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(module, "answer_with", asked.answer)
    return asked


def run_of(config: Config) -> Run:
    return Run(config, Accelerator(cpu=True))


# The stage.


def test_every_model_is_asked_and_its_answers_are_kept(tmp_path: Path, asked: Asked) -> None:
    config = make_config(tmp_path, *ALL)
    start(run_of(config))
    assert asked.names == list(RIGHT)
    for name, right in RIGHT.items():
        assert read_jsonl(config.run_dir / f"evaluation/{name}.jsonl") == answers(right)


def test_the_evaluation_logs_and_compares_what_was_answered(tmp_path: Path, asked: Asked) -> None:
    config = make_config(tmp_path, *ALL)
    start(run_of(config))
    logged = read_jsonl(config.run_dir / "evaluation/metrics.jsonl")
    assert all(row.pop("seconds") >= 0 for row in logged)
    assert logged == [
        {"step": 1, "model": "warmup", "accuracy": pytest.approx(2 / 3)},
        {"step": 2, "model": "sft", "accuracy": 0.0},
        {"step": 3, "model": "offline_st", "accuracy": pytest.approx(1 / 3)},
        {"step": 4, "model": "online_st", "accuracy": pytest.approx(2 / 3)},
        {"step": 5, "model": "reft", "accuracy": 1.0},
    ]
    result = read_json(config.run_dir / "evaluation/result.json")
    assert {name: of["greedy"]["correct"] for name, of in result["models"].items()} == RIGHT
    assert list(result["models"]) == list(RIGHT)
    assert (result["n"], len(result["comparisons"])) == (3, 10)


def test_what_answering_took_a_model_is_known_after_another_start(tmp_path: Path, asked: Asked) -> None:
    config = make_config(tmp_path, "reft")
    start(run_of(config))
    path = config.run_dir / "evaluation/metrics.jsonl"
    seconds = {row["model"]: row["seconds"] for row in read_jsonl(path)}
    (config.run_dir / "evaluation/reft.jsonl").unlink()
    path.write_text(path.read_text() + '{"step": 4, "mod')  # as a process that was killed leaves it
    start(run_of(config))
    again = {row["model"]: row["seconds"] for row in read_jsonl(path)}
    assert [name for name in again if again[name] == seconds[name]] == ["warmup", "sft"]


def test_only_the_models_of_the_runs_methods_are_asked(tmp_path: Path, asked: Asked) -> None:
    start(run_of(make_config(tmp_path, "reft")))
    assert asked.names == ["warmup", "sft", "reft"]


def test_the_evaluation_goes_by_the_runs_settings(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[tuple[Any, ...]] = []
    logs: list[tuple[Any, ...]] = []

    class Log(RunLog):
        def __init__(self, *given: Any, listener: Any) -> None:
            logs.append(given)
            assert listener is run.listener
            super().__init__(*given, listener=listener)

    monkeypatch.setattr(module, "RunLog", Log)
    monkeypatch.setattr(module, "write_result", lambda *given: results.append(given))
    run = run_of(make_config(tmp_path, seed=7, evaluation={"bootstrap": 123}))
    start(run)
    directory = run.config.run_dir / "evaluation"
    assert results == [(directory, {"warmup": answers(2), "sft": answers(0)}, 123, 7, " so ")]
    [(where, accelerator, title, total)] = logs
    assert (where, title, total) == (directory, "evaluation", 2)
    assert accelerator is run.accelerator


def test_models_that_have_answered_are_not_asked_again(tmp_path: Path, asked: Asked) -> None:
    config = make_config(tmp_path)
    write_jsonl(config.run_dir / "evaluation/warmup.jsonl", answers(1))
    start(run_of(config))
    assert asked.names == ["sft"]
    rows = read_jsonl(config.run_dir / "evaluation/metrics.jsonl")
    assert [row["accuracy"] for row in rows] == [pytest.approx(1 / 3), 0.0]
    result = read_json(config.run_dir / "evaluation/result.json")
    assert result["models"]["warmup"]["greedy"]["correct"] == 1


def test_the_given_model_is_asked_first(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RIGHT, "base", 1)
    given = make_config(tmp_path, "reft", model={"name": "some/model"})
    start(run_of(given))
    assert asked.names == ["base", "warmup", "sft", "reft"]
    assert read_jsonl(given.run_dir / "evaluation/base.jsonl") == answers(RIGHT["base"])


def test_when_methods_grow_only_the_new_models_are_asked(tmp_path: Path, asked: Asked) -> None:
    start(run_of(make_config(tmp_path, "reft")))
    config = make_config(tmp_path, "reft", "online_st")
    start(run_of(config))
    assert asked.names == ["warmup", "sft", "reft", "online_st"]
    result = read_json(config.run_dir / "evaluation/result.json")
    assert {name: of["greedy"]["correct"] for name, of in result["models"].items()} == {
        "warmup": 2, "sft": 0, "online_st": 2, "reft": 3,
    }  # fmt: skip
    rows = read_jsonl(config.run_dir / "evaluation/metrics.jsonl")
    assert [row["model"] for row in rows] == ["warmup", "sft", "online_st", "reft"]


class Watching(OneOf):
    """One of two processes, which notes what is there whenever it waits for the other."""

    def __init__(self, index: int, directory: Path) -> None:
        super().__init__(index, 2)
        self.directory = directory
        self.found: list[list[str]] = []

    def wait_for_everyone(self) -> None:
        self.found.append(sorted(path.name for path in self.directory.glob("*")))

    def log(self, *_: Any, **__: Any) -> None:
        pass  # there are no trackers


def test_the_main_process_writes_before_the_others_read(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path)
    monkeypatch.setattr(module, "by_main", look_oneself)
    accelerator = Watching(0, config.run_dir / "evaluation")
    start(Run(config, accelerator))
    assert accelerator.found == [
        [],  # is it there?
        ["warmup.jsonl"],
        ["metrics.jsonl", "warmup.jsonl"],
        ["metrics.jsonl", "sft.jsonl", "warmup.jsonl"],
        ["metrics.jsonl", "result.json", "sft.jsonl", "warmup.jsonl"],
    ]


def test_the_other_processes_read_what_the_first_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path)
    directory = config.run_dir / "evaluation"

    def answer(run: Run, name: str) -> list[Row]:  # meanwhile, the first process writes its own
        write_jsonl(directory / f"{name}.jsonl", answers(1))
        return answers(2)

    monkeypatch.setattr(module, "answer_with", answer)
    monkeypatch.setattr(module, "by_main", look_oneself)
    accelerator = Watching(1, directory)
    start(Run(config, accelerator))
    assert (
        len(accelerator.found) == 5
    )  # whether each model's answers are there, for them, for the result
    assert accelerator.found[-1] == ["sft.jsonl", "warmup.jsonl"]
    assert read_jsonl(directory / "sft.jsonl") == answers(1)


# What one model is asked, and how.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return a run whose models and rerankers are written; a reranker's bias has its model's mark."""
    config = make_config(tmp_path_factory.mktemp("written"), *ALL, evaluation=RERANK)
    write_models(config)
    for name in DIRECTORIES.keys() - {"warmup"}:
        directory = config.run_dir / DIRECTORIES[name] / "model"
        reranker = Reranker(AutoModelForCausalLM.from_pretrained(str(directory)))
        torch.nn.init.constant_(reranker.class_head.bias[1], MARKS[name])
        reranker.save(config.run_dir / "reranker" / name / "model")
    return config


@dataclass
class Work:
    """What answering and ranking were given."""

    answered: list[tuple[Generator, Sequence[Problem], Evaluation, int, int, Path]] = field(
        default_factory=list
    )
    ranked: list[tuple[Any, ...]] = field(default_factory=list)

    def answer(self, *given: Any) -> list[Row]:
        self.answered.append(given)  # type: ignore[arg-type]
        return answers(1)

    def rank(self, reranker: Reranker, *given: Any) -> None:
        self.ranked.append((reranker, *given))
        for row in given[2]:
            row["ranked"] = True


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()
    monkeypatch.setattr(module, "answer_questions", work.answer)
    monkeypatch.setattr(module, "rank", work.rank)
    return work


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_model_answers_the_test_questions_as_it_is(written: Config, work: Work, name: str) -> None:
    run = run_of(written)
    answer_with(run, name)
    [(generator, problems, settings, seed, at_once, pieces)] = work.answered
    assert (at_once, pieces) == (7, written.run_dir / "evaluation/pieces" / name)
    assert ids(problems) == TESTED_ON
    assert settings is written.evaluation
    assert seed == 42
    sampler: Any = generator.sampler
    assert sampler.model.get_parameter(NORM).unique().tolist() == [MARKS[name]]
    assert sampler.max_rows == 7
    assert not sampler.model.training
    assert not any(p.requires_grad for p in sampler.model.parameters())
    assert generator.judge is run.judge
    assert generator.accelerator is run.accelerator
    directory = written.run_dir / DIRECTORIES[name] / "model"
    assert generator.prompter.tokenizer.name_or_path == str(directory)
    assert generator.prompter.settings == resolved(written.prompt, "natural")


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_a_model_answers_in_the_runs_precision(
    written: Config, work: Work, dtype: str, expected: torch.dtype
) -> None:
    answer_with(run_of(with_model(written, dtype=dtype)), "sft")
    sampler: Any = work.answered[0][0].sampler
    assert sampler.model.dtype == expected


@pytest.mark.parametrize("name", ["sft", "offline_st", "online_st", "reft"])
def test_every_other_model_is_ranked_by_its_own_reranker(written: Config, work: Work, name: str) -> None:
    run = run_of(written)
    found = answer_with(run, name)
    [(reranker, prompter, problems, rows, accelerator, budget)] = work.ranked
    assert reranker.class_head.bias.tolist() == [0.0, MARKS[name]]
    assert reranker.backbone.norm.weight.unique().tolist() == [MARKS[name]]
    assert not reranker.training
    assert prompter is work.answered[0][0].prompter
    assert ids(problems) == TESTED_ON
    assert rows is found
    assert accelerator is run.accelerator
    assert budget == 99
    assert found == [{**row, "ranked": True} for row in answers(1)]


def test_the_warm_up_has_no_reranker(written: Config, work: Work) -> None:
    assert answer_with(run_of(written), "warmup") == answers(1)
    assert work.ranked == []


def test_without_rerankers_nothing_is_ranked(written: Config, work: Work) -> None:
    config = written.model_copy(update={"evaluation": Evaluation(samples=2)})
    assert answer_with(run_of(config), "sft") == answers(1)
    assert work.ranked == []


def greedy_answer(model: Any, tokenizer: Any, problem: Problem) -> str:
    """Decode four tokens with transformers alone."""
    inputs = tokenizer(f"Question:\n{problem.question}\nAnswer reasoning:\n", return_tensors="pt")
    ids = inputs.input_ids
    found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4)
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


def judge(problems: Sequence[Problem], texts: Sequence[str], *_: object) -> list[Verdict]:
    return [Verdict("ok", float(len(text)), False, 0.0) for text in texts]


def test_models_really_answer(written: Config) -> None:
    """From directories to files with nothing left out; what is greedy is what transformers finds."""
    run = run_of(written)
    run.judge = judge
    start(run)
    greedy = {}
    for name, where in DIRECTORIES.items():
        directory = str(written.run_dir / where / "model")
        model = AutoModelForCausalLM.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        greedy[name] = [greedy_answer(model, tokenizer, problem) for problem in TESTS]
        rows = read_jsonl(written.run_dir / f"evaluation/{name}.jsonl")
        assert [row["id"] for row in rows] == TESTED_ON
        assert [row["completion"] for row in rows] == greedy[name]
        assert [len(row["samples"]) for row in rows] == [2, 2, 2]
        [score] = {sample.get("rerank", -1.0) for row in rows for sample in row["samples"]}
        assert score == pytest.approx(
            SCORES.get(name, -1.0), abs=1e-6
        )  # the heads only have their biases
    assert len({tuple(found) for found in greedy.values()}) == 5  # they do differ
    result = read_json(written.run_dir / "evaluation/result.json")
    assert "rerank" in result["models"]["reft"]
