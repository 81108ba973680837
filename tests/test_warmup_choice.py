"""Which epoch of SFT the other methods start from, and when there is nothing to start from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from reftune.files import read_json, read_jsonl, write_json
from reftune.model.prompts import trained_at
from reftune.problem import UserError, Verdict
from reftune.sampling.sampler import Sample
from reftune.stages.run import Run
from reftune.stages.sft import run_sft
from reftune.stages.stage import Stage
from reftune.stages.warmup_choice import measures, require_start, worth
from reftune.training.rollouts import Generator
from reftune.training.types import GradedSample
from tiny_pipeline import Device, make_config
from tiny_stage import VALIDATION, ScriptedJudge, make_policy, make_stage, mark_of

NOT_JUDGED = Verdict("sandbox_error", None, False, 0.0)


def graded(*questions: str) -> list[GradedSample]:
    """Return the samples of questions: + is right, - wrong, ? not judged."""
    verdicts = {"+": Verdict("ok", 1.0, True, 1.0), "-": Verdict("ok", 2.0, False, 0.0), "?": NOT_JUDGED}
    return [
        GradedSample(VALIDATION[i], Sample([1], [2], [0.0], True), "", verdicts[sign])
        for i, question in enumerate(questions)
        for sign in question
    ]


def test_pass_at_1_counts_samples_and_pass_at_k_questions_that_one_of_them_solves() -> None:
    found = measures(graded("++++", "+---", "----", "--+-"), 4)
    assert found == {"pass_at_1": 6 / 16, "pass_at_k": 3 / 4, "mixed": 2 / 4}


def test_what_could_not_be_judged_counts_nowhere() -> None:
    found = measures(graded("+?", "-?", "??", "-+"), 2)
    assert found == {"pass_at_1": 1.5 / 3, "pass_at_k": 2 / 3, "mixed": 1 / 3}
    assert measures(graded("??"), 2) == {"pass_at_1": 0.0, "pass_at_k": 0.0, "mixed": 0.0}


def test_a_start_is_worth_what_it_does_and_what_it_can_find() -> None:
    assert worth({"pass_at_1": 0.25, "pass_at_k": 0.75}) == 0.5
    assert worth({}) < worth({"pass_at_1": 0.0, "pass_at_k": 0.0})  # anything is better than nothing


def auto_stage(folder: Path, *right: int, epochs: int = 3, **sft: Any) -> Stage:
    """Return an SFT stage of four validation questions with four samples each.

    Of each epoch the judge is told how many greedy answers are right, and how many samples: of 6, four
    are the first question's, two the second's.
    """
    settings = {
        "epochs": epochs, "batch_size": 2, "learning_rate": 3e-3, "warmup_epochs": "auto", "warmup_k": 4,
        "checkpoint_every_steps": 1,
    }  # fmt: skip
    return make_stage(folder, "sft", ScriptedJudge(*right), sft=settings | sft)


def test_the_epoch_with_the_best_samples_is_the_warm_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = auto_stage(tmp_path, 3, 1, 2, 6, 4, 5)  # the last one has the best greedy answers
    result = run_sft(stage, make_policy())
    first = {
        "epoch": 1,
        "validation_accuracy": 0.75,
        "pass_at_1": 1 / 16,
        "pass_at_k": 0.25,
        "mixed": 0.25,
    }
    second = {
        "epoch": 2,
        "validation_accuracy": 0.5,
        "pass_at_1": 6 / 16,
        "pass_at_k": 0.5,
        "mixed": 0.25,
    }
    third = {
        "epoch": 3,
        "validation_accuracy": 1.0,
        "pass_at_1": 5 / 16,
        "pass_at_k": 0.5,
        "mixed": 0.25,
    }
    assert result["starts"] == [first, second, third]
    chosen = {key: value for key, value in result.items() if key.startswith("warmup_")}
    assert chosen == {"warmup_k": 4} | {f"warmup_{key}": value for key, value in second.items()}
    assert trained_at(tmp_path / "run/warmup/model") == {"stage": "sft", **second}
    assert result["best_epoch"] == 3
    told = "sft: the methods start from epoch 2: pass@1 37.5%, pass@4 50.0% on validation\n"
    assert capsys.readouterr().err.endswith(told)
    rows = read_jsonl(tmp_path / "run/sft/metrics.jsonl")
    assert [row["pass_at_k"] for row in rows if "pass_at_k" in row] == [0.25, 0.5, 0.5]
    assert read_json(tmp_path / "run/sft/result.json") == result


def test_of_equal_epochs_the_first_is_the_warm_up(tmp_path: Path) -> None:
    result = run_sft(auto_stage(tmp_path, 0, 5, 0, 5, 4, 5), make_policy())
    assert result["warmup_epoch"] == 1
    result = run_sft(auto_stage(tmp_path / "none", 0, 0, 0, 0, 0, 0), make_policy())
    assert result["warmup_epoch"] == 1  # there is a model even where nothing was ever right


def test_only_epochs_that_are_validated_are_sampled(tmp_path: Path) -> None:
    judge = (0, 3, 0, 2)
    stage = auto_stage(tmp_path, *judge, epochs=3, validate_every_epochs=2)
    result = run_sft(stage, make_policy())
    assert [row["epoch"] for row in result["starts"]] == [2, 3]
    assert stage.judge.asked == [  # type: ignore[attr-defined]
        sorted(problem.id for problem in VALIDATION for _ in range(times)) for times in (1, 4, 1, 4)
    ]


def test_all_epochs_are_sampled_alike_at_temperature_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float, Any]] = []

    def generate(self: Generator, problems: Any, samples: int, temperature: float, *, key: Any) -> Any:
        asked.append((samples, temperature, tuple(key)))
        return original(self, problems, samples, temperature, key=key)

    original = Generator.generate
    monkeypatch.setattr(Generator, "generate", generate)
    run_sft(auto_stage(tmp_path, 0, 3, 0, 2, epochs=2), make_policy())
    greedy, sampled = (1, 0.0, (42, "validation")), (4, 1.0, (42, "warmup"))
    assert asked == [greedy, sampled, greedy, sampled]


SCRIPT = [(1, 4), (1, 9), (1, 6), (1, 8)]  # by epoch: the second is the best start


@pytest.mark.parametrize("survived", [2, 3, 4, 5, 6])
def test_a_run_that_breaks_off_chooses_what_one_that_does_not_would_have(
    tmp_path: Path, survived: int
) -> None:
    numbers = [number for pair in SCRIPT for number in pair]
    whole = run_sft(auto_stage(tmp_path / "whole", *numbers, epochs=4), make_policy())
    assert whole["warmup_epoch"] == 2
    broken = auto_stage(tmp_path / "broken", *numbers[:survived], epochs=4)
    with pytest.raises(IndexError):  # the script ends in an epoch's greedy answers, or in its samples
        run_sft(broken, make_policy())
    rest = auto_stage(tmp_path / "broken", *numbers[survived // 2 * 2 :], epochs=4)
    resumed = run_sft(rest, make_policy())
    assert resumed | {"seconds": 0} == whole | {"seconds": 0}
    models = [tmp_path / name / "run/warmup/model" for name in ("whole", "broken")]
    assert mark_of(models[0]) == mark_of(models[1])


def test_a_model_that_was_exported_before_a_kill_is_not_forgotten(tmp_path: Path) -> None:
    # Where steps do not repeat bit for bit, the second epoch may come out worse when it comes again.
    with pytest.raises(IndexError):
        run_sft(auto_stage(tmp_path, 1, 4, 1, 9, checkpoint_every_steps=3), make_policy())
    before, newest = sorted((tmp_path / "run/sft/checkpoints").glob("step-*"))
    assert [read_json(one / "state.json")["step"] for one in (before, newest)] == [3, 6]
    shutil.rmtree(newest)  # as if the kill had come before it was written
    model = mark_of(tmp_path / "run/warmup/model")
    result = run_sft(auto_stage(tmp_path, 1, 5, 1, 6), make_policy())
    assert mark_of(tmp_path / "run/warmup/model") == model
    assert (result["warmup_epoch"], result["warmup_pass_at_1"]) == (2, 9 / 16)
    assert [row["pass_at_1"] for row in result["starts"]] == [4 / 16, 9 / 16, 6 / 16]


def finished(folder: Path, *passes: float, **sft: Any) -> Run:
    """Return a run whose SFT found these pass@k."""
    config = make_config(folder, "reft", sft={"warmup_epochs": "auto", **sft})
    row = {"validation_accuracy": 0.0, "pass_at_1": 0.0, "mixed": 0.0}
    starts = [row | {"epoch": i, "pass_at_k": x} for i, x in enumerate(passes, start=1)]
    best = {"best_epoch": 1, "best_validation_accuracy": 0.0}
    write_json(config.run_dir / "sft/result.json", best | {"starts": starts})
    return Run(config, Device())


def test_no_method_starts_where_there_is_nothing_to_reinforce(tmp_path: Path) -> None:
    run = finished(tmp_path, 0.01, 0.0425, 0.02)
    with pytest.raises(UserError) as error:
        run.first_policy(critic=True)
    assert str(error.value) == (
        f"{run.config.run_dir}: nothing to reinforce: after no epoch of SFT do 16 samples per question"
        " solve more than 4.2% of the validation questions (pass@16), and sft.warmup_gate asks for 5.0%;"
        " train SFT for more epochs or on more chains, ask easier questions, or take a larger model;"
        " sft.warmup_gate = 0 tries it all the same"
    )


def test_one_epoch_that_reaches_the_gate_is_enough(tmp_path: Path) -> None:
    require_start(finished(tmp_path, 0.01, 0.05, 0.02).config)
    require_start(finished(tmp_path, 0.0, warmup_gate=0.0).config)
    with pytest.raises(UserError):
        require_start(finished(tmp_path, 0.05, warmup_gate=0.06).config)


def test_an_epoch_that_the_user_chose_passes_any_gate(tmp_path: Path) -> None:
    require_start(make_config(tmp_path, "reft", sft={"warmup_epochs": 2}))
