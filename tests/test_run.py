"""What the stages of a run share: problems, the judge, its models; and how a stage exports one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from reftune.config import Compute, Config, Data, Model, Reward
from reftune.data.problems import Splits, write_problems
from reftune.files import read_json, read_jsonl, write_json
from reftune.methods import OPTIONAL
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.model.scratch import new_model, train_tokenizer
from reftune.model.wording import resolved
from reftune.problem import Problem, UserError
from reftune.stages import run as module
from reftune.stages.run import Run
from reftune.stages.stage import Stage
from tiny_pipeline import (
    DIRECTORIES,
    MARKS,
    PROBLEMS,
    TESTED_ON,
    TRAINED_ON,
    VALIDATED_ON,
    Device,
    ids,
    judge_nothing,
    make_config,
    weights_of,
    with_model,
    write_models,
)
from tiny_stage import NORM, PROMPTER, OneOf, make_policy, make_stage, mark, mark_of


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return a run whose models are written."""
    config = make_config(tmp_path_factory.mktemp("written"), *OPTIONAL)
    write_models(config)
    return config


def run_of(config: Config) -> Run:
    return Run(config, Accelerator(cpu=True))


# Problems.


def test_problems_are_split_and_written_once(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run = run_of(config)
    found = run.splits
    assert [ids(found.train), ids(found.validation), ids(found.test)] == [
        TRAINED_ON, VALIDATED_ON, TESTED_ON,
    ]  # fmt: skip
    for name, expected in (("train", TRAINED_ON), ("validation", VALIDATED_ON), ("test", TESTED_ON)):
        rows = read_jsonl(config.run_dir / f"data/{name}.jsonl")
        assert [row["id"] for row in rows] == expected
    assert read_json(config.run_dir / "data/report.json")["without_chain"] == 1
    (tmp_path / "train.jsonl").unlink()
    assert run.splits is found


def test_the_seed_chooses_what_validates(tmp_path: Path) -> None:
    assert ids(run_of(make_config(tmp_path, seed=7)).splits.validation) == ["q2", "q4"]


def change_test_problem(config: Config) -> None:
    path = Path(config.data.test)
    path.write_text(path.read_text(encoding="utf-8").replace('"1"', '"17"'), encoding="utf-8")


def test_problems_that_have_changed_since_the_run_began_are_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert len(run_of(config).splits.test) == 3
    change_test_problem(config)
    assert run_of(config).splits.test[1].answer == "17"  # nothing had been learnt from the others
    write_json(config.run_dir / "sft/result.json", {})
    assert run_of(config).splits.test[1].answer == "17"  # these are the run's own
    rows = Path(config.data.test).read_text(encoding="utf-8").splitlines()
    Path(config.data.test).write_text("\n".join([rows[0], rows[2]]), encoding="utf-8")
    with pytest.raises(UserError) as error:
        assert run_of(config).splits
    assert str(error.value) == (
        "the test problems are not those with which the run began, which are in"
        f" {config.run_dir}/data/test.jsonl (lines that differ: 2, first 2); restore your data, or"
        " choose another --name"
    )
    assert len(read_jsonl(config.run_dir / "data/test.jsonl")) == 3


def test_a_run_learns_from_what_the_run_it_starts_from_has_learnt_from(tmp_path: Path) -> None:
    first = make_config(tmp_path, name="first")
    assert run_of(first).splits
    second = make_config(tmp_path, name="second", start_from=str(first.run_dir))
    change_test_problem(second)
    assert run_of(second).splits.test[1].answer == "17"  # the first run's training knows no test problem
    path = Path(second.data.train)
    path.write_text(
        path.read_text(encoding="utf-8").replace("Apples: 4.", "Pears: 4."), encoding="utf-8"
    )
    with pytest.raises(
        UserError, match=r"train problems are not those .* in .*first/data/train.jsonl \("
    ):
        assert run_of(second).splits


def test_only_the_main_process_writes_the_problems(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert ids(Run(config, OneOf(1, 2)).splits.train) == TRAINED_ON
    assert not config.run_dir.exists()


def test_a_runs_problems_are_those_of_all_splits_and_those_with_a_chain_are_annotated(
    tmp_path: Path,
) -> None:
    run = run_of(make_config(tmp_path))
    assert ids(run.problems) == [*TRAINED_ON, *VALIDATED_ON, *TESTED_ON]
    assert ids(run.annotated) == ["q0", "q4", "q5"]


# The judge.


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
    run = run_of(own_config(tmp_path, train, Reward()))
    [verdict] = run.judge(train[:1], ["def solution():\n    return 'b'\n"], [True])
    assert (verdict.status, verdict.correct) == ("ok_text", True)


def test_an_own_reward_may_have_truths_of_its_own(tmp_path: Path) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text("def score(question, completion, answer):\n    return answer in completion\n")
    train = [Problem(f"{n}", f"Poem {n}?", "rhyme") for n in range(2)]
    config = own_config(tmp_path, train, Reward(function=f"{reward}:score"))
    run = run_of(config)
    assert len(run.problems) == 3
    [verdict] = run.judge(train[:1], ["def solution():\n    return 1  # rhyme\n"], [True])
    assert verdict.correct
    with pytest.raises(UserError, match="not a number"):
        _ = run_of(config.model_copy(update={"reward": Reward()})).splits


def test_one_judge_is_started_for_all_problems_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[Config, list[str], object]] = []
    rewards: list[object] = []

    def judge_of(config: Config, problems: list[Problem], reward: object) -> Any:
        started.append((config, ids(problems), reward))
        return judge_nothing

    def own_reward(section: Reward, given: Sequence[object]) -> None:
        rewards.append(section)

    monkeypatch.setattr(module, "judge_of", judge_of)
    monkeypatch.setattr(module, "own_reward", own_reward)
    run = run_of(make_config(tmp_path))
    assert run.reward is None
    assert run.judge is run.judge is judge_nothing
    assert rewards == [run.config.reward], "what may load a model of its own is started once"
    [(config, judged, reward)] = started
    assert reward is run.reward
    asked = resolved(run.config.prompt, run.config.data.cot)
    assert config == run.config.model_copy(update={"prompt": asked})
    assert judged == [*TRAINED_ON, *VALIDATED_ON, *TESTED_ON]


# Stages.


def test_a_stage_has_the_parts_of_its_run(written: Config) -> None:
    run, prompter = run_of(written), PROMPTER
    stage = run.stage("online_st", prompter)
    assert (stage.name, stage.directory) == ("online_st", written.run_dir / "online_st")
    assert stage.config is written
    assert stage.prompter is prompter
    assert stage.judge is run.judge
    assert stage.accelerator is run.accelerator
    assert [ids(stage.train), ids(stage.validation)] == [TRAINED_ON, VALIDATED_ON]


def test_a_stage_may_train_on_fewer_problems(written: Config) -> None:
    run = run_of(written)
    stage = run.stage("sft", PROMPTER, run.annotated)
    assert [ids(stage.train), ids(stage.validation)] == [["q0", "q4", "q5"], VALIDATED_ON]
    assert run.stage("sft", PROMPTER, []).train == []


@pytest.mark.parametrize(
    ("finished", "needed", "missing"),
    [
        (["sft", "ppo"], ["sft", "ppo"], None),
        ([], [], None),
        (["sft"], ["sft", "ppo", "online_st"], "ppo"),  # the first one is named
        (["ppo"], ["sft", "ppo"], "sft"),
    ],
)
def test_a_run_says_which_stage_must_be_finished_first(
    tmp_path: Path, finished: list[str], needed: list[str], missing: str | None
) -> None:
    run = run_of(make_config(tmp_path))
    (run.config.run_dir / "online_st").mkdir(parents=True)  # begun, but not finished
    for stage in finished:
        (run.config.run_dir / stage).mkdir()
        (run.config.run_dir / stage / "result.json").write_text("{}")
    if missing is None:
        run.require(needed)
        return
    with pytest.raises(UserError) as error:
        run.require(needed)
    assert str(error.value) == (
        f"{run.config.run_dir}: stage {missing} must be finished first; `reftune run` runs all in order"
    )


# The models that a run has written.


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_model_is_read_from_its_own_directory(written: Config, name: str) -> None:
    run, directory = run_of(written), written.run_dir / DIRECTORIES[name] / "model"
    assert run.directory(name) == directory
    prompter = run.prompter(name)
    assert prompter.tokenizer.name_or_path == str(directory)
    assert (prompter.settings, prompter.cot) == (resolved(written.prompt, "natural"), "natural")
    expected = load_file(directory / "model.safetensors")
    for trainable in (False, True):
        found = weights_of(run.load_policy(name, trainable=trainable))
        assert found[NORM].unique().tolist() == [MARKS[name]]
        assert found.keys() >= expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_prompter_goes_by_the_runs_kind_of_chain(written: Config) -> None:
    data = written.data.model_copy(update={"cot": "program"})
    assert run_of(written.model_copy(update={"data": data})).prompter("sft").cot == "program"


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_a_model_that_is_only_read_has_the_runs_precision_and_no_gradients(
    written: Config, dtype: str, expected: torch.dtype
) -> None:
    policy = run_of(with_model(written, dtype=dtype)).load_policy("sft")
    assert {p.dtype for p in policy.parameters()} == {expected}
    assert not any(p.requires_grad for p in policy.parameters())
    assert not policy.policy.training
    assert policy.value_head is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_is_trained_has_gradients_and_the_runs_precision(
    written: Config, dtype: str
) -> None:
    policy = run_of(with_model(written, dtype=dtype)).load_policy("sft", trainable=True)
    assert {p.dtype for p in policy.parameters()} == {getattr(torch, dtype)}
    assert all(p.requires_grad for p in policy.parameters())
    assert policy.value_head is None


def test_float16_is_trained_in_float32(written: Config) -> None:
    policy = run_of(with_model(written, dtype="float16")).load_policy("sft", trainable=True)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("critic", "value_model", "head", "backbone"),
    [
        (False, "shared", False, False), (False, "separate", False, False),
        (True, "shared", True, False), (True, "separate", True, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("trainable", [False, True])
def test_a_model_gets_a_critic_of_the_runs_kind_where_one_is_asked_for(
    written: Config, critic: bool, value_model: str, head: bool, backbone: bool, trainable: bool
) -> None:
    run = run_of(with_model(written, value_model=value_model))
    policy = run.load_policy("warmup", critic=critic, trainable=trainable)
    assert (policy.value_head is not None, policy.value_backbone is not None) == (head, backbone)
    weights = [p for name, p in policy.named_parameters() if not name.startswith("value_head.")]
    assert {p.requires_grad for p in weights} == {trainable}
    assert policy.value_head is None or policy.value_head.weight.requires_grad


def test_only_what_is_not_prepared_for_training_is_put_on_the_device(
    written: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, moved = Run(written, Device()), list[Any]()

    def to(self: LlamaForCausalLM, device: torch.device) -> LlamaForCausalLM:
        moved.append(device)
        return self

    monkeypatch.setattr(LlamaForCausalLM, "to", to)
    run.load_policy("sft", trainable=True)
    assert moved == []
    run.load_policy("sft")
    assert moved == [torch.device("meta")]


def test_every_model_is_an_object_of_its_own(written: Config) -> None:
    run = run_of(written)
    first, second = run.load_policy("warmup"), run.load_policy("warmup")
    mark(first, 99.0)
    assert second.policy.get_parameter(NORM)[0].item() == MARKS["warmup"]


# The model that a run starts from.


def annotated_texts() -> list[str]:
    """Return, by hand, what is read of the problems that are trained on and have a chain."""
    texts = []
    for problem in (PROBLEMS[0], PROBLEMS[4], PROBLEMS[5]):
        question = f"Question:\n{problem.question}\nAnswer reasoning:\n"
        texts += [question, "", f"{problem.chain} so {problem.answer}"]
    return texts


@pytest.mark.parametrize("seed", [42, 43])
def test_a_new_model_is_made_of_the_seed_and_the_annotated_problems(tmp_path: Path, seed: int) -> None:
    run = run_of(make_config(tmp_path, seed=seed, data=make_config(tmp_path).data.model_dump()))
    run.splits = run_of(make_config(tmp_path)).splits  # whatever the seed
    policy, prompter = run.base_policy()
    expected, _ = new_model(run.config.model, annotated_texts(), seed)
    found = weights_of(policy)
    assert found.keys() == dict(expected.named_parameters()).keys()
    assert all(torch.equal(found[key], p) for key, p in expected.named_parameters())
    vocabulary = train_tokenizer(annotated_texts(), 300).get_vocab()
    assert prompter.tokenizer.get_vocab() == vocabulary
    assert vocabulary != train_tokenizer(["How many are it?"], 300).get_vocab()
    assert (prompter.settings, prompter.cot) == (resolved(run.config.prompt, "natural"), "natural")
    assert all(p.requires_grad for p in policy.parameters())
    assert policy.value_head is None


def test_a_run_starts_from_the_model_that_is_named(written: Config) -> None:
    directory = written.run_dir / "sft/model"
    run = run_of(written.model_copy(update={"model": Model(name=str(directory))}))
    policy, prompter = run.base_policy()
    assert weights_of(policy)[NORM].unique().tolist() == [MARKS["sft"]]
    assert prompter.tokenizer.name_or_path == str(directory)
    assert all(p.requires_grad for p in policy.parameters())


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_prompt_that_is_too_long_is_refused_wherever_it_stands(tmp_path: Path, split: str) -> None:
    run = run_of(make_config(tmp_path, prompt={"max_prompt_tokens": 90}))
    run.base_policy()  # all is well
    long = Problem("long", "How many are many? " * 60, "1")
    found = run.splits
    places = {"train": found.train, "validation": found.validation, "test": found.test}
    places[split] = [*places[split], long]
    run.splits = Splits(**places, report=found.report)
    with pytest.raises(UserError, match="problem long: its prompt has"):
        run.base_policy()


def test_a_prompt_that_leaves_the_model_no_positions_is_refused(tmp_path: Path) -> None:
    run = run_of(make_config(tmp_path, prompt={"max_new_tokens": 2040}))
    with pytest.raises(UserError, match="exceed the model's 2048 positions"):
        run.base_policy()


def test_a_chain_that_is_longer_than_the_model_has_positions_is_refused(tmp_path: Path) -> None:
    run = run_of(make_config(tmp_path))
    found = run.splits
    long = Problem("long", "How many?", "1", chain="1 + 0 is 1. " * 500)
    run.splits = Splits([*found.train, long], found.validation, found.test, found.report)
    with pytest.raises(
        UserError, match=r"problem long: its prompt and chain of \d+ tokens exceed the mo"
    ):
        run.base_policy()


# What a stage exports.


class Watching(OneOf):
    """One of two processes; it notes whether a model is whole whenever it waits for the other."""

    def __init__(self, index: int, whole: Callable[[], bool]) -> None:
        super().__init__(index, 2)
        self.whole = whole
        self.found: list[bool] = []

    def wait_for_everyone(self) -> None:
        self.found.append(self.whole())


@pytest.mark.parametrize("critic", ["none", "shared", "separate"])
def test_a_model_is_exported_with_all_that_is_needed_to_ask_it(tmp_path: Path, critic: str) -> None:
    stage, policy = make_stage(tmp_path), make_policy(critic=critic)
    target = tmp_path / "run/warmup/model"
    stage.export(policy, target)
    loaded, told = AutoModelForCausalLM.from_pretrained(str(target), output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]  # such as a critic's
    found = dict(loaded.named_parameters())
    assert found.keys() == dict(policy.policy.named_parameters()).keys()
    assert all(torch.equal(found[key], p) for key, p in policy.policy.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(str(target))
    assert tokenizer.get_vocab() == PROMPTER.tokenizer.get_vocab()
    assert tokenizer.eos_token == "<eos>"
    saved = json.loads((target / "reftune_prompt.json").read_text())
    assert saved["cot"] == "natural"
    given = {key: saved["prompt"][key] for key in ("template", "trigger", "max_new_tokens")}
    assert given == {"template": "{question}", "trigger": ":", "max_new_tokens": 2}
    assert [path.name for path in target.parent.iterdir()] == ["model"]  # nothing half done is left


def test_a_stage_exports_with_its_own_prompter(tmp_path: Path) -> None:
    own = Prompter(train_tokenizer(["other words"], 280), PROMPTER.settings, "program")
    stage = make_stage(tmp_path)
    stage = Stage(stage.name, stage.config, own, stage.judge, [], [], stage.accelerator)
    stage.export(make_policy(), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    assert tokenizer.get_vocab() == own.tokenizer.get_vocab()
    assert read_json(tmp_path / "model/reftune_prompt.json")["cot"] == "program"


@pytest.mark.parametrize("index", [0, 1])
def test_the_main_process_exports_and_all_wait_for_it(tmp_path: Path, index: int) -> None:
    target = tmp_path / "model"
    accelerator = Watching(index, (target / "reftune_prompt.json").exists)
    make_stage(tmp_path, accelerator=accelerator).export(make_policy(), target)
    assert accelerator.found == [index == 0]  # each waits once, the main process when all is there
    assert target.exists() == (index == 0)


class Broken(Prompter):
    """Breaks off in the midst of an export."""

    def save(self, directory: Path, trained: object = None, dtype: str = "float32") -> None:
        assert (directory / "model.safetensors").exists()
        raise KeyboardInterrupt


def stages(folder: Path) -> Sequence[Stage]:
    """Return a stage, and the same one that breaks off when it exports."""
    stage = make_stage(folder)
    broken = Broken(PROMPTER.tokenizer, PROMPTER.settings, PROMPTER.cot)
    return stage, Stage(
        stage.name, stage.config, broken, stage.judge, stage.train, stage.validation, stage.accelerator
    )


def test_an_export_takes_the_place_of_the_one_before_as_a_whole(tmp_path: Path) -> None:
    whole, broken = stages(tmp_path)
    target, policy = tmp_path / "model", make_policy()
    mark(policy, 1.5)
    with pytest.raises(KeyboardInterrupt):
        broken.export(policy, target)
    assert not target.exists()
    whole.export(policy, target)
    (target / "stale").touch()
    mark(policy, 2.5)
    with pytest.raises(KeyboardInterrupt):
        broken.export(policy, target)
    assert mark_of(target) == 1.5
    whole.export(policy, target)
    assert mark_of(target) == 2.5
    assert not (target / "stale").exists()


def test_the_policy_stays_what_it_was(tmp_path: Path) -> None:
    policy: PolicyWithValue = make_policy()
    before = weights_of(policy)
    make_stage(tmp_path).export(policy, tmp_path / "model")
    assert all(torch.equal(p, before[key]) for key, p in policy.policy.named_parameters())
    assert all(p.requires_grad for p in policy.parameters())
