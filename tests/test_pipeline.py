"""What settings a model is asked with, and what the stages of a run share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import Accelerator

from reftune.config import Compute, Config, Data, Model, Prompt, Reward
from reftune.data.problems import write_problems
from reftune.evaluation.inference import ask, model_config
from reftune.problem import Problem, UserError
from reftune.stages.run import Run


@pytest.fixture
def trained(tmp_path: Path) -> str:
    """Return a model directory as far as its settings go: natural chains with prompts of their own."""
    prompt = {"template": "Q {question} A ", "trigger": " so ", "max_new_tokens": 7}
    (tmp_path / "reftune_prompt.json").write_text(json.dumps({"cot": "natural", "prompt": prompt}))
    return str(tmp_path)


def test_a_model_is_asked_as_it_was_trained(trained: str) -> None:
    config = model_config(trained, test="t.jsonl")
    assert config.prompt == Prompt(template="Q {question} A ", trigger=" so ", max_new_tokens=7)
    assert (config.model.name, config.data.cot, config.data.test) == (trained, "natural", "t.jsonl")


def test_what_the_caller_says_wins_over_what_the_model_says(trained: str) -> None:
    changes = ["prompt.max_new_tokens=9", "prompt.repeat_question=false", "data.max_test=3"]
    config = model_config(trained, changes, cot="program")
    expected = {"template": "Q {question} A ", "trigger": " so ", "max_new_tokens": 9}
    assert config.prompt == Prompt(**expected, repeat_question=False)
    assert (config.data.cot, config.data.max_test) == ("program", 3)
    assert model_config(trained, ["data.cot=program"]).data.cot == "program"


def test_a_model_from_elsewhere_gets_the_papers_prompts_and_must_be_told_its_chains() -> None:
    config = model_config("some/hub-model", ["prompt.max_new_tokens=9"], cot="natural")
    assert config.prompt == Prompt(max_new_tokens=9)
    with pytest.raises(UserError, match="some/hub-model: say with --cot"):
        model_config("some/hub-model", test="t.jsonl")


def test_a_model_without_weights_cannot_be_asked() -> None:
    config = Config(model=Model(scratch="tiny"), data=Data(cot="natural"))
    with pytest.raises(UserError, match=r"model\.scratch = tiny has no weights"):
        ask(config, ["How many?"], 0.0, 0)


def own_config(folder: Path, train: list[Problem], reward: Reward) -> Config:
    """Return the settings of a run on `train`, whose test question asks for a number."""
    write_problems(folder / "train.jsonl", train)
    write_problems(folder / "test.jsonl", [Problem("t", "1 + 1?", "2")])
    data = Data(train=str(folder / "train.jsonl"), test=str(folder / "test.jsonl"), validation_size=1)
    limits = Compute(sandbox_workers=1, threads=1)
    return Config(
        output_dir=str(folder), data=data, model=Model(scratch="tiny"), reward=reward, compute=limits
    )


def test_multiple_choice_is_judged_though_only_training_has_it(tmp_path: Path) -> None:
    train = [Problem(f"{n}", f"Which of {n}?", "b", choices=("3", "4")) for n in range(2)]
    run = Run(own_config(tmp_path, train, Reward()), Accelerator(cpu=True))
    [verdict] = run.judge(train[:1], ["def solution():\n    return 'b'\n"], [True])
    assert (verdict.status, verdict.correct) == ("ok_text", True)


def test_an_own_reward_may_have_truths_of_its_own(tmp_path: Path) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text("def score(question, completion, answer):\n    return answer in completion\n")
    train = [Problem(f"{n}", f"Poem {n}?", "rhyme") for n in range(2)]
    config = own_config(tmp_path, train, Reward(function=f"{reward}:score"))
    run = Run(config, Accelerator(cpu=True))
    assert len(run.problems) == 3
    [verdict] = run.judge(train[:1], ["def solution():\n    return 1  # rhyme\n"], [True])
    assert verdict.correct
    with pytest.raises(UserError, match="not a number"):
        _ = Run(config.model_copy(update={"reward": Reward()}), Accelerator(cpu=True)).splits
