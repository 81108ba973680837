"""The stages of a run: their order, what each needs, what is done again and what is not.

The stages' own work is done by stand-ins, which remember that they were called and finish their stage.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedConfig

from reftune import pipeline as module
from reftune.config import Compute, Config
from reftune.config.files import load_config
from reftune.files import read_json, write_json
from reftune.model.scratch import new_model
from reftune.pipeline import models_of, run_stages, stages_of
from reftune.planning import shapes
from reftune.problem import UserError
from reftune.runs.setup import make_accelerator
from reftune.stages.run import Run
from tiny_pipeline import make_config, with_model
from tiny_stage import OneOf, look_oneself

PLACES = {
    "sft": "sft.start", "warmup_samples": "warmup_samples.start",
    "offline_st": "self_training.start_offline", "online_st": "self_training.start_online",
    "ppo": "ppo.step.start", "reranker": "reranker.start", "evaluation": "evaluation.start",
}  # fmt: skip
ALL = ("offline_st", "online_st", "reft")
RERANK = {"samples": 2, "rerank": True}
GIVEN = {"model": {"name": "some/model"}}  # stand-ins never look for it
WITHOUT_SFT: dict[str, Any] = GIVEN | {"sft": {"epochs": 0}}
STAGES_OF_ALL = [
    "sft", "warmup_samples", "offline_st", "online_st", "ppo", "reranker/sft", "reranker/offline_st",
    "reranker/online_st", "reranker/reft", "evaluation",
]  # fmt: skip


@dataclass
class Work:
    """What the stand-ins have done, in order; the stage that breaks off, if any."""

    names: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    found: list[tuple[Any, ...]] = field(default_factory=list)  # what a stage finds when it begins
    broken: str = ""

    def stand_in(self, name: str) -> Callable[..., None]:
        def start(run: Run, *model: str) -> None:
            stage = "/".join([name, *model])
            self.found.append((torch.initial_seed(), torch.rand(1).item(), run.accelerator._models[:]))
            torch.manual_seed(999)
            run.accelerator.prepare(torch.nn.Linear(1, 1))
            if stage == self.broken:
                raise KeyboardInterrupt
            self.names.append(stage)
            self.runs.append(run)
            if run.accelerator.is_main_process:
                finish(run.config, stage)

        return start


def finish(config: Config, *stages: str) -> None:
    """Write what a stage is known by when it is finished, and what it is told from others by."""
    for stage in stages:
        result: dict[str, Any] = {"of": config.name}
        if stage == "evaluation":
            models = {m: {} for m in ("offline_st", "online_st", "reft") if m in config.methods}
            result["models"] = {"warmup": {}, "sft": {}, **models}
            for model in result["models"]:
                write_json(config.run_dir / f"evaluation/{model}.jsonl", {})
        if stage == "sft":
            write_json(config.run_dir / "warmup/model/config.json", {"of": config.name})
        write_json(config.run_dir / stage / "result.json", result)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Put stand-ins in the places of the stages; the end of a run is noted among them."""
    work = Work()
    for name, place in PLACES.items():
        monkeypatch.setattr(f"reftune.stages.{place}", work.stand_in(name))
    monkeypatch.setattr(Accelerator, "end_training", lambda _: work.names.append("end"))
    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # which takes longer here than all the rest
    return work


class Watching(OneOf):
    """One of two processes; a test says what happens whenever it waits for the other."""

    def __init__(self, index: int, on_wait: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(index, 2)
        self.on_wait = on_wait

    def wait_for_everyone(self) -> None:
        super().wait_for_everyone()
        self.on_wait(self.waits)

    def free_memory(self, *objects: Any) -> list[Any]:
        self._models.clear()
        return list(objects)


def use(monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator) -> None:
    monkeypatch.setattr(module, "make_accelerator", lambda config: accelerator)
    monkeypatch.setattr(module, "by_main", look_oneself)
    monkeypatch.setattr(module, "ending_together", lambda *_: nullcontext())  # with nobody


# Order.


def test_every_stage_is_done_once_and_in_order(tmp_path: Path, work: Work) -> None:
    config = make_config(tmp_path, *ALL, evaluation=RERANK)
    assert run_stages(config) == STAGES_OF_ALL
    assert work.names == [*STAGES_OF_ALL, "end"]


@pytest.mark.parametrize(
    ("methods", "rerank", "stages", "models"),
    [
        ((), False, "sft evaluation", "warmup sft"),
        (("reft",), False, "sft ppo evaluation", "warmup sft reft"),
        (("reft", "online_st"), False, "sft online_st ppo evaluation", "warmup sft online_st reft"),
        (
            ("offline_st",), False,
            "sft warmup_samples offline_st evaluation", "warmup sft offline_st",
        ),
        (
            ("reft",), True,
            "sft warmup_samples ppo reranker/sft reranker/reft evaluation", "warmup sft reft",
        ),
    ],
)  # fmt: skip
def test_a_run_has_the_stages_that_its_methods_need(
    tmp_path: Path, work: Work, methods: tuple[str, ...], rerank: bool, stages: str, models: str
) -> None:
    config = make_config(tmp_path, *methods, evaluation=RERANK if rerank else {})
    assert stages_of(config) == stages.split()
    assert models_of(config) == models.split()
    assert run_stages(config) == stages.split()
    assert work.names == [*stages.split(), "end"]


def test_without_sft_the_stages_are_those_of_the_methods(tmp_path: Path, work: Work) -> None:
    stages = ["warmup_samples", "offline_st", "ppo", "reranker/base", "reranker/offline_st"]
    config = make_config(tmp_path, "offline_st", "reft", evaluation=RERANK, **WITHOUT_SFT)
    assert run_stages(config) == [*stages, "reranker/reft", "evaluation"]


@pytest.mark.parametrize("stage", ["warmup_samples", "online_st", "ppo"])
@pytest.mark.parametrize("epochs", [0, 4])
def test_what_starts_from_the_given_model_needs_nothing_before(
    tmp_path: Path, work: Work, stage: str, epochs: int
) -> None:
    sft = {"epochs": epochs, "warmup_epochs": 0}
    config = make_config(tmp_path, *ALL, **GIVEN, sft=sft)
    assert run_stages(config, (stage,)) == [stage]


def test_sft_is_refused_where_the_run_has_none(tmp_path: Path, work: Work) -> None:
    config = make_config(tmp_path, "reft", **WITHOUT_SFT)
    with pytest.raises(UserError) as error:
        run_stages(config, ("sft",))
    assert str(error.value) == (
        "sft.epochs = 0: there is no SFT to do; raise it, or start `reftune run`"
    )
    assert work.names == []
    assert not config.run_dir.exists()


def test_only_the_named_stages_are_done(tmp_path: Path, work: Work) -> None:
    config = make_config(tmp_path, *ALL, evaluation=RERANK)
    assert run_stages(config, ("sft", "ppo")) == ["sft", "ppo"]
    assert run_stages(config, ("ppo", "online_st")) == ["online_st"]
    assert run_stages(config, ()) == []
    assert work.names == ["sft", "ppo", "end", "online_st", "end", "end"]


def test_every_stage_begins_as_if_it_were_the_first(tmp_path: Path, work: Work) -> None:
    run_stages(make_config(tmp_path, *ALL, evaluation=RERANK, seed=7))
    first = torch.rand(1, generator=torch.Generator().manual_seed(7)).item()
    # torch's seed, what it draws, and the models that a checkpoint would hold
    assert work.found == [(7, first, [])] * len(STAGES_OF_ALL)


def test_all_stages_share_one_run(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Config, Accelerator]] = []

    def make(config: Config) -> Accelerator:
        made.append((config, make_accelerator(config)))
        return made[-1][1]

    monkeypatch.setattr(module, "make_accelerator", make)
    config = make_config(tmp_path, "reft")
    run_stages(config)
    [(asked, accelerator)] = made
    assert asked is config
    assert len(work.runs) == 3
    for run in work.runs:
        assert run is work.runs[0]
        assert run.config is config
        assert run.accelerator is accelerator


def test_stages_read_as_much_at_once_as_fits(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def fit(config: Config, stages: list[str], *_: object) -> Config:
        asked.append(stages)
        return config.model_copy(update={"compute": Compute(tokens_per_microbatch=77)})

    monkeypatch.setattr(module, "fit", fit)
    config = make_config(tmp_path, "reft")
    finish(config, "sft")
    run_stages(config)
    assert asked == [["ppo", "evaluation"]]  # what is left
    assert work.runs[0].config.compute.tokens_per_microbatch == 77
    assert "77" not in (config.run_dir / "config.toml").read_text(encoding="utf-8")  # it is no setting


def test_the_sizes_of_a_given_model_are_found_out_once(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, shape_of = [], shapes.shape_of

    def watched(architecture: PreTrainedConfig, *given: Any, **named: Any) -> shapes.Shape:
        built.append(architecture)
        return shape_of(architecture, *given, **named)

    monkeypatch.setattr(shapes, "shape_of", watched)
    config = make_config(tmp_path, "reft")
    for part in new_model(config.model, ["How many are it?"], seed=0):
        part.save_pretrained(tmp_path / "model")
    run_stages(with_model(config, name=str(tmp_path / "model"), scratch=None))
    assert len(built) == 1


def test_a_run_tells_how_it_was_started(tmp_path: Path, work: Work) -> None:
    config = make_config(tmp_path, name="a")
    run_stages(config, (), ("reftune", "run", "it"))
    told = read_json(config.run_dir / "run.json")
    assert (told["command"], told["processes"], told["seed"]) == ("reftune run it", 1, 42)
    other = make_config(tmp_path, name="b")
    run_stages(other, ())
    assert read_json(other.run_dir / "run.json")["command"] == " ".join(sys.argv)


# Done before.


def test_finished_stages_are_not_done_again(tmp_path: Path, work: Work) -> None:
    config = make_config(tmp_path, *ALL, evaluation=RERANK)
    finish(config, *STAGES_OF_ALL)
    assert run_stages(config) == []
    assert work.names == ["end"]


@pytest.mark.parametrize("stage", STAGES_OF_ALL)
def test_an_interrupted_run_goes_on_with_the_stage_that_was_broken_off(
    tmp_path: Path, work: Work, stage: str
) -> None:
    config = make_config(tmp_path, *ALL, evaluation=RERANK)
    work.broken = stage
    with pytest.raises(KeyboardInterrupt):
        run_stages(config)
    at = STAGES_OF_ALL.index(stage)
    assert work.names == STAGES_OF_ALL[:at]
    work.names, work.broken = [], ""
    assert run_stages(config) == STAGES_OF_ALL[at:]
    assert work.names == [*STAGES_OF_ALL[at:], "end"]


def test_when_methods_grow_only_what_is_new_is_done(tmp_path: Path, work: Work) -> None:
    assert run_stages(make_config(tmp_path, "reft")) == ["sft", "ppo", "evaluation"]
    assert run_stages(make_config(tmp_path, "reft", "online_st")) == ["online_st", "evaluation"]
    assert run_stages(make_config(tmp_path, "online_st", "reft")) == []  # the same ones
    grown = make_config(tmp_path, *ALL)
    assert run_stages(grown) == ["warmup_samples", "offline_st", "evaluation"]
    assert run_stages(grown) == []


def test_the_given_model_may_be_asked_later(tmp_path: Path, work: Work) -> None:
    alone: dict[str, Any] = {"evaluation": {"base": False, "bootstrap": 100}}
    run_stages(make_config(tmp_path, "reft", **GIVEN, **alone))
    config = make_config(tmp_path, "reft", **GIVEN)
    assert run_stages(config) == ["evaluation"]
    assert load_config(config.run_dir / "config.toml").evaluation.base
    write_json(config.run_dir / "evaluation/base.jsonl", {})
    write_json(config.run_dir / "evaluation/result.json", {"models": dict.fromkeys(models_of(config))})
    assert run_stages(config) == []


def test_answers_that_are_gone_are_given_again(tmp_path: Path, work: Work) -> None:
    config = make_config(tmp_path, "reft")
    run_stages(config)
    (config.run_dir / "evaluation/reft.jsonl").unlink()
    assert run_stages(config) == ["evaluation"]
    assert run_stages(config) == []


def test_a_finished_run_looks_at_its_data_once_more(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(run: Run) -> None:
        raise UserError("the test problems are not those with which the run began")

    run_stages(make_config(tmp_path, "reft"))
    monkeypatch.setattr(Run, "splits", property(changed))
    with pytest.raises(UserError, match="the test problems are not those"):
        run_stages(make_config(tmp_path, "reft"))


def test_a_run_of_another_configuration_is_left_alone(tmp_path: Path, work: Work) -> None:
    config = make_config(tmp_path)
    run_stages(config, ("sft",))
    with pytest.raises(UserError, match=r"holds a run of another configuration \(different: seed\)"):
        run_stages(make_config(tmp_path, seed=7))
    assert work.names == ["sft", "end"]


def test_a_method_that_comes_later_brings_its_own_settings(tmp_path: Path, work: Work) -> None:
    run_stages(make_config(tmp_path, "reft"))
    grown = make_config(tmp_path, "online_st", "reft", online_st={"steps": 7})
    assert "online_st" in run_stages(grown)
    assert load_config(grown.run_dir / "config.toml").online_st.steps == 7
    run_stages(make_config(tmp_path, "reft", online_st={"steps": 7}))  # without it for a while
    for changes in ({"online_st": {"steps": 8}}, {"online_st": {"steps": 7}, "ppo": {"kl_coef": 0.5}}):
        with pytest.raises(UserError, match=r"\(different: (online_st.steps|ppo.kl_coef)\)"):
            run_stages(make_config(tmp_path, "online_st", "reft", **changes))


def test_a_start_that_saved_nothing_leaves_the_directory_free(tmp_path: Path, work: Work) -> None:
    work.broken = "sft"
    with pytest.raises(KeyboardInterrupt):
        run_stages(make_config(tmp_path, "reft"))
    work.broken = ""
    mended = make_config(tmp_path, "reft", seed=7)
    assert run_stages(mended) == ["sft", "ppo", "evaluation"]
    assert load_config(mended.run_dir / "config.toml").seed == 7
    assert read_json(mended.run_dir / "run.json")["seed"] == 7


def test_a_run_is_held_while_it_works_and_free_afterwards(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, refused = make_config(tmp_path), []

    def start_again(run: Run) -> None:
        with pytest.raises(UserError, match=r"another process \(.*\) works on this run") as error:
            run_stages(config)
        refused.append(error)
        finish(config, "sft")

    monkeypatch.setattr("reftune.stages.sft.start", start_again)
    assert run_stages(config, ("sft",)) == ["sft"]
    assert refused
    assert run_stages(config) == ["evaluation"]


# Taken over.


def test_a_run_takes_over_the_start_of_another_and_nothing_else(tmp_path: Path, work: Work) -> None:
    first = make_config(tmp_path, *ALL, evaluation=RERANK, name="first")
    finish(first, *STAGES_OF_ALL)
    run_stages(first)  # which writes its configuration
    start = {"name": "second", "start_from": str(first.run_dir), "ppo": {"kl_coef": 0.5}}
    config = make_config(tmp_path, *ALL, evaluation=RERANK, **start)
    assert run_stages(config) == STAGES_OF_ALL[2:]
    results = {stage: read_json(config.run_dir / stage / "result.json")["of"] for stage in STAGES_OF_ALL}
    taken = {stage for stage, run in results.items() if run == "first"}
    assert taken == {"sft", "warmup_samples"}
    assert read_json(config.run_dir / "warmup/model/config.json") == {"of": "first"}


def test_samples_that_the_other_run_has_not_drawn_are_drawn_here(tmp_path: Path, work: Work) -> None:
    first = make_config(tmp_path, name="first")
    run_stages(first)
    config = make_config(tmp_path, "offline_st", name="second", start_from=str(first.run_dir))
    assert run_stages(config) == ["warmup_samples", "offline_st", "evaluation"]


def test_sft_without_a_warm_up_is_taken_over_alone(tmp_path: Path, work: Work) -> None:
    sft = GIVEN | {"sft": {"epochs": 4, "warmup_epochs": 0}}
    first = make_config(tmp_path, name="first", **sft)
    write_json(first.run_dir / "sft/result.json", {"of": "first"})
    run_stages(first, ())
    config = make_config(tmp_path, "reft", name="second", start_from=str(first.run_dir), **sft)
    assert run_stages(config) == ["ppo", "evaluation"]
    assert read_json(config.run_dir / "sft/result.json") == {"of": "first"}
    assert not (config.run_dir / "warmup").exists()


def test_the_gate_of_a_start_may_be_moved_without_another_start(tmp_path: Path, work: Work) -> None:
    auto = {"epochs": 4, "warmup_epochs": "auto"}
    run_stages(make_config(tmp_path, "reft", name="first", sft=auto), ("sft",))
    open_to_all = make_config(tmp_path, "reft", name="first", sft=auto | {"warmup_gate": 0.0})
    assert run_stages(open_to_all) == ["ppo", "evaluation"]
    assert load_config(open_to_all.run_dir / "config.toml").sft.warmup_gate == 0.0
    for changes in ({"warmup_gate": 0.5}, {"warmup_k": 8}):
        start = {"name": f"second-{min(changes)}", "start_from": str(open_to_all.run_dir)}
        config = make_config(tmp_path, "reft", sft=auto | changes, **start)
        if "warmup_k" not in changes:
            assert run_stages(config) == ["ppo", "evaluation"]
            continue
        with pytest.raises(
            UserError, match=r"first: that run differs in sft\.warmup_k; make them equal"
        ):
            run_stages(config)


def test_what_a_run_does_not_need_it_does_not_take_over(tmp_path: Path, work: Work) -> None:
    first = make_config(tmp_path, "offline_st", name="first")
    run_stages(first)
    config = make_config(tmp_path, "reft", name="second", start_from=str(first.run_dir))
    assert run_stages(config) == ["ppo", "evaluation"]
    assert not (config.run_dir / "warmup_samples").exists()


# Needs.


@pytest.mark.parametrize(
    ("stage", "finished", "missing"),
    [
        ("warmup_samples", (), "sft"),
        ("offline_st", (), "sft"),
        ("offline_st", ("sft",), "warmup_samples"),
        ("online_st", (), "sft"),
        ("ppo", (), "sft"),
        ("reranker/sft", ("sft",), "warmup_samples"),
        ("reranker/sft", ("warmup_samples",), "sft"),
        ("reranker/reft", ("sft", "ppo"), "warmup_samples"),
        ("reranker/reft", ("sft", "warmup_samples"), "ppo"),
        ("reranker/offline_st", ("sft", "warmup_samples"), "offline_st"),
        ("evaluation", (), "sft"),
        ("evaluation", ("sft", "online_st", "ppo"), "offline_st"),
        ("evaluation", ("sft", "offline_st"), "online_st"),
        ("evaluation", ("sft", "offline_st", "online_st"), "ppo"),
    ],
)
def test_a_stage_says_which_one_it_needs(
    tmp_path: Path, work: Work, stage: str, finished: tuple[str, ...], missing: str
) -> None:
    config = make_config(tmp_path, *ALL, evaluation=RERANK)
    finish(config, *finished)
    with pytest.raises(UserError) as error:
        run_stages(config, (stage,))
    assert str(error.value) == (
        f"{config.run_dir}: stage {missing} must be finished first; `reftune run` runs all in order"
    )
    assert work.names == []


@pytest.mark.parametrize(
    ("stage", "finished"),
    [
        ("sft", ()), ("warmup_samples", ("sft",)), ("offline_st", ("sft", "warmup_samples")),
        ("online_st", ("sft",)), ("ppo", ("sft",)), ("reranker/sft", ("sft", "warmup_samples")),
        ("reranker/reft", ("warmup_samples", "ppo")), ("evaluation", ("sft", "ppo")),
    ],
)  # fmt: skip
def test_a_stage_needs_no_more_than_that(
    tmp_path: Path, work: Work, stage: str, finished: tuple[str, ...]
) -> None:
    config = make_config(tmp_path, "reft")
    finish(config, *finished)
    assert run_stages(config, (stage,)) == [stage]


# Refused before anything is done.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ppo": {"policy_loss": "ppo"}},
            'ppo.policy_loss: there is no "ppo"; choose clip, gspo, cispo, dppo_tv',
        ),
        (
            {"ppo": {"importance_sampling": "token"}},
            'ppo.importance_sampling: there is no "token"; choose token_truncate, sequence_truncate,'
            " token_mask, sequence_mask",
        ),
        (
            {"reward": {"function": "nowhere.py:score"}},
            "reward nowhere.py:score: no such file nowhere.py",
        ),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_what_a_later_stage_could_not_work_with_is_refused_before_anything_is_done(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch, index: int,
    changes: dict[str, Any], message: str,
) -> None:  # fmt: skip
    use(monkeypatch, Watching(index))
    config = make_config(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        run_stages(config)
    assert str(error.value) == message
    assert work.names == []
    assert not config.run_dir.exists()


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_what_is_known_is_not_refused(tmp_path: Path, work: Work, advantage: str) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text("def score(question, completion, answer):\n    return 1\n")
    ppo = {"advantage": advantage, "samples_per_question": 2}
    config = make_config(tmp_path, *ALL, ppo=ppo, reward={"function": f"{reward}:score"})
    assert run_stages(config, ("sft",)) == ["sft"]


def test_an_adapter_makes_another_start(tmp_path: Path, work: Work) -> None:
    first = make_config(tmp_path, name="first")
    run_stages(first)
    config = make_config(tmp_path, name="second", start_from=str(first.run_dir), lora={"rank": 4})
    with pytest.raises(UserError, match=r"first: that run differs in lora\.rank; make them equal"):
        run_stages(config)


# Several processes.


def test_the_main_process_writes_before_the_others_go_on(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_config(tmp_path, name="first")
    run_stages(first)
    config = make_config(tmp_path, name="second", start_from=str(first.run_dir))
    there: list[list[str]] = []

    def look(_: int) -> None:
        there.append(sorted(path.name for path in config.run_dir.iterdir()))

    use(monkeypatch, Watching(0, look))
    assert run_stages(config, ("sft", "ppo")) == ["ppo"]
    opened = [".holder.json", ".lock", "config.toml", "run.json"]
    taken = [*opened[:3], "data", *opened[3:], "sft", "warmup"]
    # When the directory is open, for which stages are left, and for the settings that fit the machine;
    # then whether each stage is finished, behind what was taken over, and for what PPO needs.
    assert there == [opened] * 3 + [taken] * 3
    assert read_json(config.run_dir / "run.json")["processes"] == 2


def test_other_processes_write_nothing_and_wait(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, accelerator := Watching(1))
    config = make_config(tmp_path, start_from=str(tmp_path / "nowhere"))
    assert run_stages(config, ("sft",)) == ["sft"]  # whose start the first process looks for
    assert not config.run_dir.exists()
    # For the directory, the stages left, the settings that fit, what is taken over, and SFT's needs.
    assert accelerator.waits == 5


def test_other_processes_see_what_the_first_has_taken_over(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, "reft")

    def take_over(waits: int) -> None:
        if waits == 4:
            finish(config, "sft")

    use(monkeypatch, Watching(1, take_over))
    assert run_stages(config, ("sft", "ppo")) == ["ppo"]
