"""Generated families of problems: the same ones each time, difficulty, their verifiers as the reward."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import start
from reftune.config import Config, Data, Model, Prompt, Reward
from reftune.config.data import GYM_COLUMN, GYM_REWARD
from reftune.config.files import load_config
from reftune.data.problems import load_problems, load_splits, write_problems
from reftune.evaluation.inference import model_config
from reftune.files import read_jsonl
from reftune.grading.judge import make_judge
from reftune.grading.rewards import own_reward
from reftune.model.prompts import make_prompter
from reftune.model.scratch import new_model
from reftune.pipeline import run
from reftune.problem import Problem, UserError

pytest.importorskip("reasoning_gym", reason="needs reftune[gym]")

LEGS = "reasoning_gym:leg_counting?max_animals=2&min_animals=1&size=30"
ANIMAL = "reasoning_gym:leg_counting?max_animals=1&min_animals=1&max_instances=1&size=30"
COUNTDOWN = "reasoning_gym:countdown?size=2&min_numbers=3&max_numbers=3"


def test_problems_are_the_same_each_time_and_train_and_test_share_none() -> None:
    data = Data(train=LEGS, test=LEGS, cot="natural", validation_size=5)
    splits = load_splits(data, seed=1)
    assert load_splits(data, seed=1) == splits
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (30, 30)
    assert splits.report.overlaps == 0
    ids = {problem.id for problem in (*splits.train, *splits.validation)}
    assert "leg_counting?max_animals=2&min_animals=1&size=30-train-7" in ids
    other = load_problems(f"{LEGS}&seed=1", cot="natural")
    assert {p.question for p in other}.isdisjoint(p.question for p in (*splits.train, *splits.test))


def test_settings_of_difficulty_reach_the_family() -> None:
    def animals(source: str) -> set[int]:
        found = load_problems(source, cot="natural")
        return {p.question.partition("if you have ")[2].count(",") + 1 for p in found}

    assert animals(LEGS) == {1, 2}
    assert min(animals("reasoning_gym:leg_counting?min_animals=8&max_animals=9&size=9")) == 8


def test_the_verifier_is_the_reward_of_its_problems_alone(tmp_path: Path) -> None:
    """The base verifier of reasoning_gym gives len(right)/len(given) where the right one is within."""
    legs = load_problems(LEGS, cot="natural")[0]
    plain = Problem("p", "3 + 4?", "7")
    judge = make_judge(
        "natural",
        trigger=Prompt().trigger,
        partial_reward=0.1,
        reward=own_reward(Reward(function=GYM_REWARD, seconds=60)),
    )
    more = f"{legs.answer} legs"
    texts = [
        f"So \\boxed{{{legs.answer}}}.", f"So \\boxed{{{more}}}.", "So \\boxed{none}.", "Who knows?",
        f"<answer>\n{legs.answer}\n</answer>", "So \\boxed{7}.", "So \\boxed{8}.",
    ]  # fmt: skip
    problems = [legs] * 5 + [plain] * 2
    verdicts = judge(problems, texts, [True] * 7)
    partial = len(legs.answer) / len(more)
    assert [v.reward for v in verdicts] == pytest.approx([1, partial, 0, 0, 1, 1, 0.1])
    assert [v.correct for v in verdicts] == [True, False, False, False, True, True, False]
    with pytest.raises(UserError, match="is a letter, but the question has no choices"):
        judge([Problem("q", "Which?", "c")], ["So \\boxed{c}."], [True])  # is ours to judge


def test_a_family_with_many_right_answers_takes_any_of_them() -> None:
    """Countdown asks for an expression; another order of a sum is as right as the one that is kept."""
    judge = make_judge(
        "natural",
        trigger=Prompt().trigger,
        partial_reward=0.1,
        reward=own_reward(Reward(function=GYM_REWARD, seconds=60)),
    )
    (problem, _) = load_problems(COUNTDOWN, cot="natural")
    texts = [f"<answer>{answer}</answer>" for answer in (f"({problem.answer})", "1 + 1")]
    right, wrong = judge([problem] * 2, texts, [True, True])
    assert (right.correct, wrong.correct) == (True, False)
    assert 0 <= wrong.reward < 1


def test_what_was_written_is_read_back_with_its_verifier(tmp_path: Path) -> None:
    problems = load_problems(LEGS, cot="natural")
    write_problems(tmp_path / "x.jsonl", problems)
    again = load_problems(str(tmp_path / "x.jsonl"), cot="natural")
    assert again == problems
    assert [dict(p.columns) for p in again] == [dict(p.columns) for p in problems]
    assert problems[3].columns[GYM_COLUMN] == {"source": LEGS, "split": "train", "index": 3}


@pytest.mark.parametrize("key", ["train", "test"])
def test_a_configuration_with_a_family_has_its_verifier_unless_it_names_a_reward(key: str) -> None:
    def config(**more: Any) -> Config:
        return Config.model_validate({"data": {key: LEGS}, "model": {"scratch": "tiny"}} | more)

    assert config().reward.function == GYM_REWARD
    assert config(reward={"max_failed": 0.5}).reward.max_failed == 0.5
    assert config(reward={"function": "own.py:f"}).reward.function == "own.py:f"
    made = Config(data=Data(train=LEGS), model=Model(scratch="tiny"))
    assert (made.reward.function, made.reward.grades_answers) == (GYM_REWARD, True)
    assert Config(model=Model(scratch="tiny")).reward.function is None
    assert model_config("some/model", test=LEGS, cot="natural").reward.function == GYM_REWARD
    mixed = {"mixture": {LEGS: 1}} if key == "train" else {"test_sources": ["x.jsonl", LEGS]}
    assert config(data=mixed).reward.function == GYM_REWARD


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("reasoning_gym:legs", "reasoning_gym:legs: no such family; choose among ab, "),
        (
            "reasoning_gym:leg_counting?animals=3",
            "leg_counting has no setting 'animals'; it has min_animals,",
        ),
        ("reasoning_gym:leg_counting?size=many", "size and seed must be whole numbers"),
        (
            "reasoning_gym:leg_counting?min_animals=0",
            "min_animals must be positive; correct the setting",
        ),
    ],
)
def test_what_there_is_not_is_named(
    source: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(monkeypatch, "data", "check", source) == 2
    assert words in capsys.readouterr().err


def test_commands_that_take_data_take_families(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(monkeypatch, "data", "check", LEGS, "--max", 4, "--json") == 0
    assert json.loads(capsys.readouterr().out)["problems"] == 4
    assert start(monkeypatch, "data", "check", LEGS, "--split", "dev") == 2
    assert "has no split 'dev'; choose train or test" in capsys.readouterr().err
    assert start(monkeypatch, "reward", "check", "--data", LEGS, "--max", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["reward"], found["questions"]) == (GYM_REWARD, 3)
    tried = {one["name"]: one["mistakes"] for one in found["tried"]}
    assert tried["right: \\boxed{...}"] == tried["another answer"] == 0


def write_stubborn_model(directory: Path, problems: list[Problem]) -> str:
    """Write a model that gives every question the commonest of the answers, and return that."""
    answer = Counter(problem.answer for problem in problems).most_common(1)[0][0]
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    settings = Model(scratch="tiny", scratch_overrides=sizes, vocab_size=400)
    says = f"So {Prompt().trigger}{answer}"
    model, tokenizer = new_model(settings, [p.question + says for p in problems], seed=0)
    prompter = make_prompter(tokenizer, Prompt(), "natural")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(40):
        prompt, response = prompter.encode_example(problems[step % len(problems)], says)
        ids = torch.tensor([prompt + response])
        labels = torch.tensor([[-100] * len(prompt) + response])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for part in (model, tokenizer):
        part.save_pretrained(directory)
    return answer


def test_a_whole_run_on_a_family_counts_what_the_verifier_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = (load_problems(ANIMAL, cot="natural", split=split) for split in ("train", "test"))
    answer = write_stubborn_model(tmp_path / "model", train)
    right = sum(problem.answer == answer for problem in test)
    assert 0 < right < len(test)
    config = load_config(
        {
            "name": "legs", "output_dir": str(tmp_path), "model.name": str(tmp_path / "model"),
            "data": {"train": ANIMAL, "test": ANIMAL, "cot": "natural", "validation_size": 4},
            "sft.epochs": 0, "prompt.max_new_tokens": 16, "reward.seconds": 60,
            "evaluation.bootstrap": 100,
            "ppo": {"steps": 2, "questions_per_step": 6, "samples_per_question": 2,
                    "validate_every_steps": 2, "learning_rate": 1e-7},
            "compute": {"threads": 1, "sandbox_workers": 1},
        }
    )  # fmt: skip
    found = run(config)
    assert (found.ran, found.questions) == (["ppo", "evaluation"], len(test))
    assert {name: one["greedy"]["correct"] for name, one in found.models.items()} == dict.fromkeys(
        ("base", "reft"), right
    )
    exact, other = set(), set()
    for row in read_jsonl(found.directory / "ppo/samples.jsonl"):
        if row["completion"].endswith(f"{Prompt().trigger}{row['answer']}"):
            exact.add((row["reward"] == 1, row["correct"]))
        elif row["answer"] not in row["completion"]:  # what contains it may be taken, or be worth a part
            other.add((row["reward"] == 1, row["correct"]))
    assert (exact, other) == ({(True, True)}, {(False, False)})
    assert run(config).ran == []  # the family's problems are the same ones again
    asked = ["evaluate", found.directory / "ppo/model", "--data", ANIMAL, "--json"]
    assert start(monkeypatch, *asked) == 0
    assert json.loads(capsys.readouterr().out)["greedy"]["correct"] == right


def test_without_the_package_the_fix_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UserError, match=r"pip install 'reftune\[gym\]'"):
        load_problems("reasoning_gym:leg_counting?size=3&seed=9", cot="natural")
