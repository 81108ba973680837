"""What each stage is started with: its model, its prompts, its problems, and what is refused first.

The models are real ones, small, that can be told apart; what a stage then does is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import tiny_pipeline
from reftune.config import Config, Lora
from reftune.config.ppo import Kind
from reftune.data.problems import write_problems
from reftune.methods import OPTIONAL
from reftune.model.policy import PolicyWithValue
from reftune.model.scratch import new_model, train_tokenizer
from reftune.model.wording import resolved
from reftune.problem import Problem, Status, UserError, Verdict
from reftune.stages import reranker, self_training, sft, warmup_samples
from reftune.stages.ppo import step as ppo
from reftune.stages.reranker import Reranker
from reftune.stages.run import Run
from reftune.stages.stage import Stage
from reftune.training.advantages import ADVANTAGES, Estimator
from tiny_pipeline import (
    DIRECTORIES,
    MARKS,
    PROBLEMS,
    TRAINED_ON,
    VALIDATED_ON,
    Device,
    ids,
    make_config,
    weights_of,
    with_model,
    write_models,
)
from tiny_stage import NORM, OneOf, mark

# by the question, as they lie in the written run
SAMPLES = {"q4": [tiny_pipeline.SAMPLES[0], tiny_pipeline.SAMPLES[2]], "q1": [tiny_pipeline.SAMPLES[1]]}
WORK = {
    "sft": (sft, "run_sft"), "warmup_samples": (warmup_samples, "run_warmup_samples"),
    "offline_st": (self_training, "run_offline_st"), "online_st": (self_training, "run_online_st"),
    "ppo": (ppo, "run_ppo"), "reranker": (reranker, "run_reranker"),
}  # fmt: skip
STARTS = {
    "sft": sft.start, "warmup_samples": warmup_samples.start,
    "offline_st": self_training.start_offline, "online_st": self_training.start_online,
    "ppo": ppo.start,
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return a run whose models and warm-up samples are written."""
    config = make_config(tmp_path_factory.mktemp("written"), *OPTIONAL)
    write_models(config)
    return config


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Put stand-ins in the places of the stages' work; return what they are given."""
    calls: list[tuple[Any, ...]] = []
    for module, function in WORK.values():
        monkeypatch.setattr(module, function, lambda *given: calls.append(given))
    return calls


def run_of(config: Config) -> Run:
    return Run(config, Accelerator(cpu=True))


def norm_of(policy: PolicyWithValue) -> float:
    return policy.policy.get_parameter(NORM)[0].item()


def equals_file(policy: PolicyWithValue, directory: Path) -> bool:
    """Tell whether a policy has the very weights that lie in a model directory."""
    found, saved = weights_of(policy), load_file(directory / "model.safetensors")
    return found.keys() == saved.keys() and all(torch.equal(found[key], saved[key]) for key in saved)


def has_gradients(module: torch.nn.Module) -> set[bool]:
    return {p.requires_grad for p in module.parameters()}


@pytest.mark.parametrize("name", STARTS)
def test_every_stage_works_with_the_parts_of_its_run(
    written: Config, given: list[tuple[Any, ...]], name: str
) -> None:
    run = run_of(written)
    STARTS[name](run)
    [(stage, *_)] = given
    assert isinstance(stage, Stage)
    assert stage.name == name
    assert stage.config is written
    assert stage.judge is run.judge
    assert stage.accelerator is run.accelerator
    assert (stage.prompter.settings, stage.prompter.cot) == (
        resolved(written.prompt, "natural"),
        "natural",
    )
    assert ids(stage.validation) == VALIDATED_ON
    # Only SFT has no use for a problem without a chain.
    assert ids(stage.train) == [i for i in TRAINED_ON if name != "sft" or i != "q3"]


# From the base model: SFT and offline self-training.


def test_sft_and_offline_self_training_start_from_the_same_new_model(
    written: Config, given: list[tuple[Any, ...]]
) -> None:
    texts = []
    for problem in (PROBLEMS[0], PROBLEMS[4], PROBLEMS[5]):
        question = f"Question:\n{problem.question}\nAnswer reasoning:\n"
        texts += [question, "", f"{problem.chain} so {problem.answer}"]
    expected = dict(new_model(written.model, texts, 42)[0].named_parameters())
    for start in (sft.start, self_training.start_offline):
        torch.manual_seed(5)
        start(run_of(written))
        stage, policy = given.pop()[:2]
        found = weights_of(policy)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert stage.prompter.tokenizer.get_vocab() == train_tokenizer(texts, 300).get_vocab()
        assert has_gradients(policy) == {True}
        assert policy.value_head is None


def test_sft_and_offline_self_training_start_from_the_model_that_is_named(
    written: Config, given: list[tuple[Any, ...]]
) -> None:
    directory = written.run_dir / "online_st/model"
    config = with_model(written, name=str(directory), scratch=None)
    for start in (sft.start, self_training.start_offline):
        start(run_of(config))
        stage, policy = given.pop()[:2]
        assert equals_file(policy, directory)
        assert stage.prompter.tokenizer.name_or_path == str(directory)
        assert has_gradients(policy) == {True}


def test_offline_self_training_is_given_the_warm_ups_samples(
    written: Config, given: list[tuple[Any, ...]]
) -> None:
    self_training.start_offline(run_of(written))
    [(_, _, samples)] = given
    assert samples == SAMPLES


# From the warm-up: samples, online self-training, PPO.


@pytest.mark.parametrize("name", ["warmup_samples", "online_st", "ppo"])
def test_what_starts_from_the_warm_up_starts_from_no_other_model(
    written: Config, given: list[tuple[Any, ...]], name: str
) -> None:
    STARTS[name](run_of(written))
    [(stage, policy, *_)] = given
    assert norm_of(policy) == MARKS["warmup"]
    assert equals_file(policy, written.run_dir / "warmup/model")
    assert stage.prompter.tokenizer.name_or_path == str(written.run_dir / "warmup/model")


@pytest.mark.parametrize("rank", [0, 4])
def test_without_a_penalty_there_is_no_reference(
    written: Config, given: list[tuple[Any, ...]], rank: int
) -> None:
    if rank:
        pytest.importorskip("peft")
    settings = written.ppo.model_copy(update={"kl_coef": 0.0})
    lora = written.lora.model_copy(update={"rank": rank})
    ppo.start(run_of(written.model_copy(update={"ppo": settings, "lora": lora})))
    [(_, _, reference)] = given
    assert reference is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "trained"), [("warmup_samples", False), ("online_st", True), ("ppo", True)]
)
def test_what_learns_has_gradients_and_what_is_read_has_not_and_both_the_runs_precision(
    written: Config, given: list[tuple[Any, ...]], name: str, trained: bool, dtype: str
) -> None:
    STARTS[name](run_of(with_model(written, dtype=dtype)))
    policy = given[0][1]
    assert has_gradients(policy) == {trained}
    assert {p.dtype for p in policy.policy.parameters()} == {getattr(torch, dtype)}
    assert (policy.value_head is not None) == (name == "ppo")


def test_ppos_reference_is_the_warm_up_frozen_and_apart_from_the_policy(
    written: Config, given: list[tuple[Any, ...]]
) -> None:
    ppo.start(run_of(written))
    [(_, policy, reference)] = given
    assert reference is not policy
    assert reference.policy is not policy.policy
    shared = {p.data_ptr() for p in policy.parameters()} & {p.data_ptr() for p in reference.parameters()}
    assert not shared
    mark(policy, 99.0)  # as training would
    assert equals_file(reference, written.run_dir / "warmup/model")
    assert has_gradients(reference) == {False}
    assert not reference.policy.training
    assert reference.value_head is None
    assert reference.value_backbone is None


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_ppos_reference_has_the_precision_of_what_is_only_read(
    written: Config, given: list[tuple[Any, ...]], dtype: str, expected: torch.dtype
) -> None:
    ppo.start(run_of(with_model(written, dtype=dtype)))
    [(_, _, reference)] = given
    assert {p.dtype for p in reference.parameters()} == {expected}


@pytest.mark.parametrize(
    ("advantage", "value_model", "head", "backbone"),
    [
        ("gae", "shared", True, False), ("gae", "separate", True, True),
        ("group", "shared", False, False), ("group", "separate", False, False),
        ("needy", "separate", True, True), ("modest", "separate", False, False),
    ],
)  # fmt: skip
def test_only_an_advantage_that_asks_for_a_critic_gets_one(
    written: Config, given: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch,
    advantage: str, value_model: str, head: bool, backbone: bool,
) -> None:  # fmt: skip
    for name, critic in (("needy", True), ("modest", False)):  # estimators of somebody's own
        monkeypatch.setitem(ADVANTAGES, name, Estimator(Kind(critic=critic), lambda r, b, ppo: (r, r)))
    settings = written.ppo.model_copy(update={"advantage": advantage})
    config = with_model(written, value_model=value_model).model_copy(update={"ppo": settings})
    ppo.start(run_of(config))
    [(_, policy, reference)] = given
    assert (policy.value_head is not None, policy.value_backbone is not None) == (head, backbone)
    assert has_gradients(policy) == {True}
    assert reference.value_head is None


# With LoRA.


def with_lora(config: Config) -> Config:
    return config.model_copy(update={"lora": Lora(rank=2)})


def test_every_training_stage_gets_a_new_adapter_and_trains_it_alone(
    written: Config, given: list[tuple[Any, ...]]
) -> None:
    for start in STARTS.values():
        start(run_of(with_lora(written)))
    models = [model for _, model, *_ in given if isinstance(model, PolicyWithValue | Reranker)]
    readers = [model for model in models if has_gradients(model) == {False}]
    assert len(readers) == 1, "who draws the warm-up's samples reads a model without an adapter"
    assert not any("lora_" in name for name, _ in readers[0].named_parameters())
    assert len(models) == len(STARTS)
    for model in set(models) - set(readers):
        for name, parameter in model.named_parameters():
            trained = "lora_" in name or name.startswith(("value_head.", "class_head."))
            assert parameter.requires_grad == trained, name


def test_the_reference_is_the_warm_up_without_a_copy(
    written: Config, given: list[tuple[Any, ...]]
) -> None:
    ppo.start(run_of(with_lora(written)))
    [(_, policy, reference)] = given
    assert equals_file(reference, written.run_dir / "warmup/model")
    assert reference.value_head is None
    assert {p.data_ptr() for p in reference.parameters()} < {p.data_ptr() for p in policy.parameters()}


# From the given model, where there is no warm-up.


def without_warmup(written: Config, epochs: int, **model: Any) -> Config:
    """Return a run whose methods start from what another run calls its online_st."""
    directory = written.run_dir / "online_st/model"
    config = with_model(written, name=str(directory), scratch=None, **model)
    values = config.model_dump(exclude={"sft"}) | {"sft": {"epochs": epochs, "warmup_epochs": 0}}
    return Config.model_validate(values)


@pytest.mark.parametrize("epochs", [0, 3])
@pytest.mark.parametrize("name", ["warmup_samples", "online_st", "ppo", "offline_st"])
def test_without_a_warm_up_the_methods_start_from_the_given_model(
    written: Config, given: list[tuple[Any, ...]], name: str, epochs: int
) -> None:
    config = without_warmup(written, epochs, dtype="bfloat16")
    STARTS[name](run_of(config))
    [(stage, policy, *rest)] = given
    trained = name != "warmup_samples"
    for model in [policy, *(rest if name == "ppo" else [])]:
        assert norm_of(model) == MARKS["online_st"]
    assert {p.dtype for p in policy.policy.parameters()} == {torch.bfloat16}
    assert has_gradients(policy) == {trained}
    assert ids(stage.train) == TRAINED_ON
    assert stage.prompter.tokenizer.name_or_path == str(config.model.name)


def test_the_given_model_as_ppos_start_has_a_critic_and_as_its_reference_is_frozen(
    written: Config, given: list[tuple[Any, ...]]
) -> None:
    ppo.start(run_of(without_warmup(written, 0, value_model="separate", dtype="bfloat16")))
    [(_, policy, reference)] = given
    assert policy.value_backbone is not None
    assert has_gradients(policy) == {True}
    assert reference.policy is not policy.policy
    assert reference.value_head is None
    assert has_gradients(reference) == {False}
    assert {p.dtype for p in reference.parameters()} == {torch.bfloat16}


def test_a_prompt_that_the_given_model_cannot_read_is_refused_before_ppo(
    written: Config, given: list[tuple[Any, ...]]
) -> None:
    prompt = written.prompt.model_copy(update={"max_prompt_tokens": 3})
    config = without_warmup(written, 0).model_copy(update={"prompt": prompt})
    with pytest.raises(UserError, match=r"the limit is 3; raise prompt\.max_prompt_tokens"):
        ppo.start(run_of(config))
    assert given == []


def test_only_who_reads_chains_minds_that_one_is_too_long(
    written: Config, given: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    def start(*methods: str) -> None:
        config = without_warmup(make_config(tmp_path, *methods), 0)
        config = with_model(config, name=str(written.run_dir / "online_st/model"))
        long = [Problem("long", "How?", "1", "Apples " * 3000), *PROBLEMS]
        write_problems(tmp_path / "train.jsonl", long)
        STARTS["online_st" if "online_st" in methods else "ppo"](run_of(config))

    start("reft")
    assert len(given) == 1
    with pytest.raises(UserError, match="problem long: its prompt and chain of"):
        start("online_st", "reft")


# From any model: rerankers.


@pytest.mark.parametrize("name", ["sft", "offline_st", "online_st", "reft"])
def test_a_reranker_starts_from_its_own_model_and_the_warm_ups_samples(
    written: Config, given: list[tuple[Any, ...]], name: str
) -> None:
    run, directory = run_of(with_model(written, dtype="bfloat16")), written.run_dir / DIRECTORIES[name]
    reranker.start(run, name)
    [(stage, found, samples)] = given
    assert stage.name == f"reranker/{name}"
    assert stage.directory == written.run_dir / "reranker" / name
    assert stage.judge is run.judge
    assert stage.accelerator is run.accelerator
    assert [ids(stage.train), ids(stage.validation)] == [TRAINED_ON, VALIDATED_ON]
    assert stage.prompter.tokenizer.name_or_path == str(directory / "model")
    assert (stage.prompter.settings, stage.prompter.cot) == (
        resolved(written.prompt, "natural"),
        "natural",
    )
    assert isinstance(found, Reranker)
    saved = load_file(directory / "model/model.safetensors")
    backbone = {f"model.{key}": value for key, value in found.backbone.state_dict().items()}
    assert backbone.keys() == saved.keys()  # the head of the language model is its embedding
    assert all(torch.equal(backbone[key], saved[key].bfloat16()) for key in saved)
    assert has_gradients(found) == {True}
    assert samples == SAMPLES


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return a run with rerankers whose marks are their models', plus a half for having learnt."""
    config = make_config(tmp_path_factory.mktemp("ranked"), *OPTIONAL)
    write_models(config)
    for name in ("sft", "reft"):
        model, _ = new_model(config.model, ["How many are it?"], seed=1)
        torch.nn.init.constant_(model.get_parameter(NORM), MARKS[name] + 0.5)
        found = Reranker(model)
        torch.nn.init.constant_(found.class_head.bias, MARKS[name])
        found.save(config.run_dir / "reranker" / name / "model")
    return config


@pytest.mark.parametrize("name", ["sft", "reft"])
def test_a_finished_reranker_is_the_one_that_was_trained_on_this_model(
    ranked: Config, name: str
) -> None:
    found = reranker.load_reranker(run_of(ranked), name)
    assert found.backbone.get_parameter("norm.weight").unique().tolist() == [MARKS[name] + 0.5]
    assert found.class_head.bias.tolist() == [MARKS[name]] * 2
    assert not any(part.training for part in found.modules())


def test_a_finished_reranker_is_put_on_the_device(ranked: Config) -> None:
    found = reranker.load_reranker(Run(ranked, Device()), "sft")
    assert {p.device.type for p in found.parameters()} == {"meta"}


# What SFT refuses before it loads a model.


def test_sft_without_a_chain_is_refused(tmp_path: Path, given: list[tuple[Any, ...]]) -> None:
    for cot in ("natural", "program"):
        config = make_config(tmp_path)
        bare = [Problem(p.id, p.question, p.answer) for p in PROBLEMS]
        write_problems(tmp_path / "train.jsonl", bare)
        data = config.data.model_copy(update={"cot": cot})
        with pytest.raises(UserError) as error:
            sft.start(run_of(config.model_copy(update={"data": data})))
        assert str(error.value) == (
            f"{tmp_path}/train.jsonl: no problem has a {cot} chain; SFT needs annotated chains:"
            " `reftune data prepare` derives programs from some data sets"
        )
        named = with_model(config, name="some/model", scratch=None)  # it is not looked for
        with pytest.raises(UserError) as error:
            sft.start(run_of(named.model_copy(update={"data": data})))
        assert str(error.value).endswith(
            "some data sets; without SFT, sft.epochs = 0, the methods start from the given model"
        )
    assert given == []


SHARES = (
    "train.jsonl: 3 of 4 training questions have a chain; SFT learns from these, and the other methods"
    " ask all\n"
)


class Programs:
    """A judge of annotated programs, whose statuses are told; it remembers what it was asked."""

    def __init__(self, *statuses: Status) -> None:
        self.statuses = statuses
        self.asked: list[tuple[list[str], list[str], list[bool]]] = []

    def __call__(
        self, problems: Sequence[Problem], texts: Sequence[str], finished: Sequence[bool]
    ) -> list[Verdict]:
        self.asked.append((ids(problems), list(texts), list(finished)))
        return [Verdict(status, None, status == "ok", 0.0) for status in self.statuses]


def start_on_chains(
    folder: Path, judge: Programs | None, process: int = 0, cot: str = "program", wrong_by: int = 0,
    **changes: Any,
) -> None:  # fmt: skip
    """Start SFT on a run that trains on the annotated problems c0, c1 and c2 and on one that is not."""
    config = make_config(folder, **changes)
    chains = [f"def solution():\n    return {i}" if cot == "program" else "so" for i in range(3)]
    train = [
        Problem(f"c{i}", f"What is {i}?", f"{i + wrong_by}", chain)
        for i, chain in enumerate([*chains, None])
    ]
    write_problems(folder / "train.jsonl", [*train, Problem("v", "What else?", "9")])
    data = config.data.model_copy(update={"cot": cot, "validation_size": 1})
    run = Run(config.model_copy(update={"data": data}), OneOf(process, 2))
    assert ids(run.annotated) == ["c0", "c1", "c2"]
    if judge is not None:
        run.judge = judge
    sft.start(run)


def test_programs_that_do_not_give_their_answer_are_counted(
    tmp_path: Path, given: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    judge = Programs("ok", "timeout", "timeout")
    start_on_chains(tmp_path, judge)
    programs = [f"def solution():\n    return {i}" for i in range(3)]
    assert judge.asked == [(["c0", "c1", "c2"], programs, [True] * 3)]
    assert capsys.readouterr() == (
        "",
        f"{tmp_path}/train.jsonl: 2 of 3 annotated programs do not give their answer"
        f" (first: c1; most often: timeout)\n{tmp_path}/{SHARES}",
    )
    start_on_chains(tmp_path, Programs("crash", "ok", "ok"))
    assert "1 of 3 annotated programs do not give their answer (first: c0;" in capsys.readouterr().err
    start_on_chains(tmp_path, judge, process=1)
    start_on_chains(tmp_path, Programs("ok", "ok", "ok"))
    assert capsys.readouterr() == ("", f"{tmp_path}/{SHARES}")
    assert [ids(stage.train) for stage, _ in given] == [["c0", "c1", "c2"]] * 4  # whatever they give


@pytest.mark.parametrize("process", [0, 1])
def test_programs_of_which_none_gives_its_answer_are_refused(
    tmp_path: Path, given: list[tuple[Any, ...]], process: int
) -> None:
    with pytest.raises(UserError) as error:
        start_on_chains(tmp_path, Programs("crash", "timeout", "timeout"), process)
    assert str(error.value) == (
        f"{tmp_path}/train.jsonl: 3 of 3 annotated programs do not give their answer"
        " (first: c0; most often: timeout); `reftune data check` lists them"
    )
    assert given == []


def test_chains_that_the_built_in_judge_does_not_run_are_not_checked(
    tmp_path: Path, given: list[tuple[Any, ...]]
) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text("def score(question, completion, answer):\n    return 1\n")
    changes: list[dict[str, Any]] = [{"cot": "natural"}, {"reward": {"function": f"{reward}:score"}}]
    for change in changes:
        judge = Programs("crash", "crash", "crash")
        start_on_chains(tmp_path, judge, **change)
        assert judge.asked == []
    assert len(given) == 2


def test_programs_are_run_by_the_runs_own_judge(
    tmp_path: Path, given: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"threads": 1, "sandbox_workers": 1}
    start_on_chains(tmp_path, None, compute=limits)
    assert capsys.readouterr() == ("", f"{tmp_path}/{SHARES}")
    assert len(given) == 1
    with pytest.raises(UserError) as error:
        start_on_chains(tmp_path, None, wrong_by=1, compute=limits)
    assert "3 of 3 annotated programs do not give their answer (first: c0; most often: ok)" in str(
        error.value
    )
