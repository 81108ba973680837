"""A reward that a Python program hands over: where it runs, and by what the run knows it."""

from __future__ import annotations

import os
import string
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reftune import pipeline
from reftune.config import Config, Model, Reward
from reftune.config.files import load_config
from reftune.grading.given_rewards import place_of, with_reward
from reftune.grading.reward_calls import RewardSample
from reftune.grading.reward_lines import ProcessLine, ThreadLine
from reftune.grading.rewards import OwnReward, own_reward
from reftune.problem import UserError
from tiny_pipeline import make_config

CONFIG = Config(model=Model(scratch="tiny"))
SAMPLE: RewardSample = {
    "question": "?", "completion": "abc", "answer": "7", "tokens": 3, "truncated": False, "columns": {}
}  # fmt: skip


def other(question: str, completion: str, answer: str) -> float:
    return 2.0


class Judge:
    """What can be called, and is found by no name."""

    def __call__(self, question: str, completion: str, answer: str) -> float:
        return 1.0


def test_a_function_of_a_module_is_known_by_its_place() -> None:
    config, functions = with_reward(CONFIG, other)
    assert functions == ["test_given_rewards:other"]
    assert config.reward.function == "test_given_rewards:other"


def test_a_module_is_imported_elsewhere_from_wherever_this_process_found_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script's own folder is no place that another process looks in by itself."""
    text = "import os\ndef f(q, c, a): return os.getpid()"
    (tmp_path / "mine_beside.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import mine_beside  # type: ignore[import-not-found]

    _, functions = with_reward(CONFIG, mine_beside.f)
    assert functions == ["mine_beside:f"]
    own = OwnReward(functions)
    assert isinstance(own._lines[0], ProcessLine)
    assert own([SAMPLE], ["p"])[0].value not in (0.0, os.getpid())
    del sys.modules["mine_beside"]


def test_what_no_name_finds_stays_here() -> None:
    def local(question: str, completion: str, answer: str) -> float:
        return float(os.getpid())

    for function, name in (
        (local, "local"), (lambda q, c, a: 1.0, "<lambda>"), (Judge(), "Judge"),
        (partial(other, answer="x"), "partial"), (Judge().__call__, "__call__"), (len, "len"),
    ):  # fmt: skip
        assert place_of(function) is None, name
        config, functions = with_reward(CONFIG, function)
        assert (config.reward.function, functions) == (f"<given>:{name}", [function])
    config, functions = with_reward(CONFIG, local)
    own = own_reward(config.reward, functions)
    assert own is not None
    assert isinstance(own._lines[0], ThreadLine)
    assert own([SAMPLE], ["p"])[0].value == os.getpid()


def test_one_of_a_script_or_notebook_is_not_looked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """To import a script anew would start its training once more."""
    monkeypatch.setattr(other, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "other", other, raising=False)
    assert place_of(other) is None
    assert place_of(string.capwords) == "string:capwords"


def test_another_function_under_the_same_name_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    decorated = other
    monkeypatch.setattr(sys.modules[__name__], "other", lambda q, c, a: 3.0)
    assert place_of(decorated) is None


def test_several_have_weights() -> None:
    short = "my.py:short"
    config, functions = with_reward(CONFIG, [(other, 0.5), short])
    assert config.reward.function == ["test_given_rewards:other", short] == functions
    assert config.reward.weights == [0.5, 1.0]
    assert with_reward(CONFIG, (other, 2.0))[0].reward.weights == [2.0]
    weighted = CONFIG.model_copy(update={"reward": Reward(weights=[3.0, 4.0], seconds=5)})
    found = with_reward(weighted, [other, short])[0].reward
    assert (found.weights, found.seconds) == ([3.0, 4.0], 5)


def test_none_leaves_all_as_it_is() -> None:
    own = CONFIG.model_copy(update={"reward": Reward(function="my.py:f", max_failed=0.5)})
    for config in (CONFIG, own):
        assert with_reward(config, None) == (config, [])


def test_settings_that_only_a_reward_goes_by_are_refused_without_one() -> None:
    idle = CONFIG.model_copy(update={"reward": Reward(max_failed=0.5)})
    with pytest.raises(UserError, match=r"config: reward.max_failed has no effect: .*, or give reward="):
        with_reward(idle, None)
    columns = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"keep_columns": ["x"]})})
    with pytest.raises(UserError, match=r"config: data\.keep_columns has no effect"):
        with_reward(columns, None)
    assert with_reward(columns, other)[0].data.keep_columns == ["x"]


def test_who_only_has_the_record_is_told_to_give_the_function() -> None:
    message = "reward.function = '<given>:local' was given by a Python program"
    with pytest.raises(UserError, match=message):
        own_reward(Reward(function=["my.py:f", "<given>:local"]))
    with pytest.raises(UserError, match=message):
        own_reward(Reward(function="<given>:local"))


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ([3], "reward: 3 is no function; give one, its place as module:function, or a list"),
        ([(other, "much")], "reward: 'much' is no weight; give "),
        ((other, float("nan")), "reward: nan is no weight"),
    ],
)
def test_what_is_no_reward_is_named(reward: Any, message: str) -> None:
    undecorated = getattr(with_reward, "__wrapped__", with_reward)
    with pytest.raises(UserError) as caught:
        undecorated(CONFIG, reward)
    assert str(caught.value).startswith(message)


def test_a_run_goes_on_with_a_reward_of_the_same_name_alone(tmp_path: Path) -> None:
    sft = {"epochs": 1, "warmup_epochs": 1, "batch_size": 2}
    ppo = {"steps": 1, "questions_per_step": 2, "samples_per_question": 2}
    config = make_config(tmp_path, "reft", sft=sft, ppo=ppo)

    def all_right(question: str, completion: str, answer: str, *, truncated: bool) -> float:
        return 1.0

    given, functions = with_reward(config, all_right)
    pipeline.run_stages(given, ("sft",), rewards=functions)
    again = r"\(different: reward\.function\); give it the reward '<given>:all_right' again, choose"
    with pytest.raises(UserError, match=again):
        pipeline.run(config)
    with pytest.raises(UserError, match=again):
        pipeline.run(config, reward=lambda question, completion, answer: 1.0)
    with pytest.raises(UserError, match="was given by a Python program"):
        pipeline.run(load_config(config.run_dir / "config.toml"))
    found = pipeline.run(config, reward=all_right)
    assert found.ran == ["ppo", "evaluation"]
    assert {name: one["greedy"]["accuracy"] for name, one in found.models.items()} == {
        "warmup": 1.0, "sft": 1.0, "reft": 1.0
    }  # fmt: skip
    assert found.metrics("ppo")[0]["reward"] == 1.0
    with pytest.raises(UserError, match="has no stage pppo; choose evaluation or ppo or sft"):
        found.metrics("pppo")
