"""The run configuration: what is read, what is refused, and with which words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reftune.config import Config
from reftune.config.data import PAPERS_TEMPLATE
from reftune.config.files import changed_settings, dump_config, load_config
from reftune.model.wording import resolved
from reftune.problem import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = CONFIGS / "paper"
COMMITTED = sorted(
    path for path in CONFIGS.rglob("*.toml") if path.parent.name not in ("parts", "ppo", "recipes")
)


GIVEN = '[model]\nname = "m"\n[sft]\nepochs = 0\n'


def write(folder: Path, text: str = "", name: str = "run.toml") -> Path:
    """Write a config file; one that names no model and no parent gets a tiny one."""
    if "model" not in text and "extends" not in text:
        text += '\n[model]\nscratch = "tiny"\n'
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, overrides: Sequence[str] = ()) -> str:
    """Return the one sentence with which a config is refused."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_all_that_is_wrong_is_told_at_once_each_with_its_place(tmp_path: Path) -> None:
    base = write(tmp_path, "[sft]\nepochs = 0.5\n", "base.toml")
    path = write(
        tmp_path,
        'extends = "base.toml"\n[ppo]\nkl_coef = -1\nstepz = 3\n[reward]\nfunction = 3\n',
    )
    with pytest.raises(UserError) as caught:
        load_config(path, ["lora.targets=[1, 2]"])
    told = {line.partition(", not ")[0] for line in str(caught.value).splitlines()}
    assert told == {
        f"{base}: sft.epochs: input should be a valid integer, got a number with a fractional part",
        f"{path}: ppo.kl_coef: input should be greater than or equal to 0",
        f"{path}: unknown key ppo.stepz; did you mean steps?",
        f"{path}: reward.function: input should be a valid string",
        "--set: lora.targets.0: input should be a valid string",
    }


def test_a_run_in_the_place_of_its_configuration_is_told_apart(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("; give a TOML file")
    record = write(tmp_path, name="config.toml")
    assert refusal(tmp_path).endswith(f"; give {record}")


def test_the_users_own_keys_may_have_dots() -> None:
    """Only names of settings are split at them."""
    given: dict[str, Any] = {
        "model.scratch": "tiny",
        "data": {"mixture": {"a.jsonl": 2, "b/c.d.csv": 1}},
    }
    assert load_config(given).data.mixture == {"a.jsonl": 2.0, "b/c.d.csv": 1.0}
    given = {"model": {"scratch": "tiny"}, "data.mixture": {"a.jsonl": 2}, "data.columns": {"id": "x.y"}}
    config = load_config(given)
    assert (config.data.mixture, config.data.columns and config.data.columns.id) == (
        {"a.jsonl": 2.0},
        "x.y",
    )


def test_all_that_has_no_effect_is_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "[reward]\nmax_failed = 0.5\n")
    with pytest.raises(UserError) as caught:
        load_config(path, ["evaluation.temperature=0.5"])
    told = {line.partition(" has no effect")[0] for line in str(caught.value).splitlines()}
    assert told == {f"{path}: reward.max_failed", "--set: evaluation.temperature"}


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert (config.sft.batch_size, config.sft.learning_rate, config.sft.epochs) == (48, 1e-5, 40)
    assert (config.ppo.gamma, config.ppo.gae_lambda, config.ppo.value_coef) == (1.0, 0.95, 5.0)
    assert (config.ppo.clip_range, config.ppo.ppo_epochs) == (0.2, 2)
    assert config.reward.partial_reward == 0.1
    asked = resolved(config.prompt, config.data.cot)
    assert asked.template == "Question:\n{question}\nAnswer reasoning:\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ppo.reward", "reward.function"),
        ("ppo.partial_reward", "reward.partial_reward"),
        ("ppo.updates_per_batch", "ppo.ppo_epochs"),
        ("online_st.updates_per_batch", "online_st.update_epochs"),
        ("ppo.group_scale", "ppo.scale_rewards"),
        ("ppo.sampler_correction", "ppo.importance_sampling_cap"),
        ("ppo.critic_warmup_steps", "ppo.value_pretraining_steps"),
        ("compute.sandbox_seconds", "reward.sandbox_seconds"),
        ("compute.sandbox_memory_mb", "reward.sandbox_memory_mb"),
    ],
)
def test_a_key_of_an_earlier_version_is_refused_with_its_new_name(
    tmp_path: Path, old: str, new: str
) -> None:
    section, _, key = old.partition(".")
    path = write(tmp_path, f"[{section}]\n{key} = 1\n")
    assert refusal(path) == f"{path}: {old} is called {new} now; rename it"
    assert refusal(write(tmp_path), [f"{old}=1"]) == f"--set: {old} is called {new} now; rename it"


def test_name_is_the_files_stem_unless_given(tmp_path: Path) -> None:
    path = write(tmp_path, name="trial-7.toml")
    assert load_config(path).name == "trial-7"
    assert load_config(path, name="other").name == "other"
    assert load_config(path, ["name=third"]).run_dir == Path("runs/third")
    assert load_config(write(tmp_path, 'name = "inside"')).name == "inside"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede = 1", "unknown key sede; did you mean seed?"),
        ("[pppo]\nsteps = 1", "unknown key pppo; did you mean ppo?"),
        ("[ppo]\nkl_coeff = 0.1", "unknown key ppo.kl_coeff; did you mean kl_coef?"),
        ("[data.synthetic]\npeeple = 3", "unknown key data.synthetic.peeple; did you mean people?"),
        (
            '[data.columns]\nquestions = "q"',
            "unknown key data.columns.questions; did you mean question?",
        ),
        (
            "[evaluation]\nzzz = 1",
            "unknown key evaluation.zzz; known keys: base, bootstrap, rerank, samples, temperature",
        ),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert refusal(path) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[ppo]\nsteps = "many"', "ppo.steps: input should be a valid integer, .*, not 'many'"),
        ("[ppo]\nsteps = 2.5", "ppo.steps: input should be a valid integer, .*, not 2.5"),
        ("[ppo]\ngae_lambda = 1.5", "ppo.gae_lambda: input should be less than or equal to 1, not 1.5"),
        ("[ppo]\nlearning_rate = inf", "ppo.learning_rate: input should be a finite number, not inf"),
        ("[ppo]\nkl_coef = nan", "ppo.kl_coef: input should be a finite number, not nan"),
        ('[data]\ncot = "python"', "data.cot: input should be 'natural' or 'program', not 'python'"),
        ("seed = [1]", r"seed: input should be a valid integer, not \[1\]"),
        ("ppo = 3", "ppo: is a section with keys of its own, not 3"),
        ("[model]", r'set exactly one of model.name and model.scratch \("tiny" or "small"\)'),
        (
            '[model]\nname = "gpt2"\nscratch = "tiny"',
            "set exactly one of model.name and model.scratch .*",
        ),
        ("[sft]\nepochs = 3\nwarmup_epochs = 4", "sft.warmup_epochs must not exceed sft.epochs"),
        (
            "[sft]\nepochs = 0\nwarmup_epochs = 2",
            "sft.warmup_epochs must not exceed sft.epochs; set both to 0 to leave SFT out",
        ),
        (
            "[sft]\nepochs = 0\nwarmup_epochs = 'auto'",
            "sft.warmup_epochs must not exceed sft.epochs; .*",
        ),
        (
            "[sft]\nwarmup_epochs = -1",
            'sft.warmup_epochs: a number of epochs from 0 on, or "auto", not -1',
        ),
        (
            "[sft]\nwarmup_epochs = 'best'",
            "sft.warmup_epochs: a number of epochs from 0 on, or \"auto\", not 'best'",
        ),
        (
            "[sft]\nwarmup_gate = 0.2",
            "sft.warmup_gate has no effect: the start is not chosen by samples; set sft.warmup_epochs ="
            ' "auto"',
        ),
        (
            "[sft]\nepochs = 0",
            r"sft.epochs = 0: the methods would start from a new model \(model.scratch\), which knows"
            " nothing that could be reinforced; set model.name, or raise it",
        ),
        ("[sft]\nwarmup_epochs = 0", "sft.warmup_epochs = 0: the methods would start from a new .*"),
        (
            f'start_from = "runs/a"\n{GIVEN}',
            "start_from takes over the SFT stage of another run, and with sft.epochs = 0 there is none;"
            " leave start_from out, or raise sft.epochs",
        ),
        (
            f"methods = []\n{GIVEN}",
            r'methods = \[\] and sft.epochs = 0: nothing is trained; add "reft" to methods, or raise'
            " sft.epochs",
        ),
    ],
)
def test_wrong_value_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert re.fullmatch(re.escape(f"{path}: ") + message, refusal(path))


def test_warmup_may_be_the_whole_sft_run(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "[sft]\nepochs = 4\nwarmup_epochs = 4")).sft.warmup_epochs == 4
    auto = write(tmp_path, "[sft]\nepochs = 4\nwarmup_epochs = 'auto'\nwarmup_k = 8\nwarmup_gate = 0.2")
    assert load_config(auto).sft.warmup_epochs == "auto"


def test_without_sft_there_is_no_warm_up_either(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GIVEN))
    assert (config.sft.epochs, config.sft.warmup_epochs) == (0, 0)
    assert (config.lineup.start, config.lineup.baseline) == ("base", "base")
    again = tmp_path / "again.toml"
    again.write_text(dump_config(config), encoding="utf-8")  # which says both
    assert load_config(again, name=config.name) == config
    both = load_config(write(tmp_path, '[model]\nname = "m"\n[sft]\nwarmup_epochs = 0'))
    assert (both.sft.epochs, both.lineup.start, both.lineup.baseline) == (40, "base", "sft")


def test_the_given_model_is_compared_where_it_is_given_and_wanted(tmp_path: Path) -> None:
    def models(text: str, *overrides: str) -> list[str]:
        return load_config(write(tmp_path, text), overrides).lineup.models

    assert models('[model]\nscratch = "tiny"') == ["warmup", "sft", "reft"]
    assert models('[model]\nname = "m"') == ["base", "warmup", "sft", "reft"]
    assert models('[model]\nname = "m"', "evaluation.base=false") == ["warmup", "sft", "reft"]
    assert models(GIVEN, "evaluation.base=false") == ["base", "reft"]  # it is what ReFT starts from


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.toml") == f"{tmp_path / 'none.toml'}: no such config file"
    assert f"{tmp_path}: cannot be read" in refusal(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    assert "latin.toml:1: cannot be read as UTF-8" in refusal(tmp_path / "latin.toml")
    bad = write(tmp_path, "seed = 1\nseed 2")
    assert re.match(re.escape(f"{bad}: not valid TOML: ") + ".*line 2", refusal(bad))
    empty = tmp_path / "empty.toml"
    empty.touch()
    assert refusal(empty) == f"{empty}: the section [model] is missing"


def test_overrides_are_parsed_as_toml_or_as_text(tmp_path: Path) -> None:
    overrides = [
        "ppo.kl_coef=0.05",
        "ppo.learning_rate = 1e-4",
        "ppo.whiten=false",
        "reward.function=my rewards.py:f=g",
        "data.cot=natural",
        'data.train="a.jsonl"',
        'compute.trackers=["wandb", "mlflow"]',
        "data.synthetic.people=4",
        "data.columns.question=problem",
        "model.scratch_overrides.hidden_size=64",
        "seed=1",
        "seed=2",
    ]
    config = load_config(write(tmp_path, "[ppo]\nkl_coef = 0.2\nsteps = 5"), overrides)
    assert (config.ppo.kl_coef, config.ppo.learning_rate, config.ppo.whiten) == (0.05, 1e-4, False)
    assert config.ppo.steps == 5
    assert config.reward.function == "my rewards.py:f=g"
    assert (config.data.cot, config.data.train) == ("natural", "a.jsonl")
    assert config.compute.trackers == ["wandb", "mlflow"]
    assert (config.data.synthetic.people, config.data.synthetic.max_events) == (4, 4)
    assert config.data.columns is not None
    assert (config.data.columns.question, config.data.columns.answer) == ("problem", "answer")
    assert config.model.scratch_overrides == {"hidden_size": 64}
    assert config.seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.steps", "--set ppo.steps: write section.key=value"),
        ("=3", "--set =3: write section.key=value"),
        ("ppo.=3", "--set ppo.=3: write section.key=value"),
        ("ppo.kl_coeff=0.1", "unknown key ppo.kl_coeff; did you mean kl_coef?"),
        ("ppo=3", "ppo: is a section"),
        ("seed.deep=1", "seed: input should be a valid integer, not {'deep': 1}"),
        ("ppo.steps=0", "ppo.steps: input should be greater than or equal to 1, not 0"),
    ],
)
def test_bad_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in refusal(write(tmp_path), [override])


def test_one_model_source_replaces_the_other(tmp_path: Path) -> None:
    hub = write(tmp_path, '[model]\nname = "gpt2"\ndtype = "bfloat16"', "hub.toml")
    scratch = write(tmp_path, 'extends = "hub.toml"\n[model]\nscratch = "small"', "scratch.toml")
    tiny = load_config(hub, ["model.scratch=tiny"]).model
    assert (tiny.name, tiny.scratch, tiny.dtype) == (None, "tiny", "bfloat16")
    child = load_config(scratch).model
    assert (child.name, child.scratch) == (None, "small")
    back = load_config(scratch, ["model.name=gpt2", "model.dtype=float32"]).model
    assert (back.name, back.scratch, back.dtype) == ("gpt2", None, "float32")


def test_extends_merges_from_a_parent_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(
        tmp_path,
        'name = "grand"\nseed = 1\n[ppo]\nsteps = 1\nkl_coef = 0.5\n[model]\nscratch = "tiny"',
        "a.toml",
    )
    write(tmp_path, 'extends = "../a.toml"\nseed = 2\n[ppo]\nsteps = 2', "deep/b.toml")
    config = load_config(write(tmp_path, 'extends = "b.toml"\n[ppo]\nsteps = 3', "deep/c.toml"))
    assert (config.seed, config.ppo.steps, config.ppo.kl_coef) == (2, 3, 0.5)
    assert config.name == "c"  # not the grandparent's: each run has a directory of its own


def test_several_parents_are_laid_one_over_the_other(tmp_path: Path) -> None:
    write(tmp_path, 'name = "a"\n[ppo]\nsteps = 1\nkl_coef = 0.1\n[model]\nscratch = "tiny"', "a.toml")
    write(tmp_path, '[ppo]\nsteps = 2\ngamma = 0.9\n[model]\nname = "gpt2"', "b.toml")
    config = load_config(write(tmp_path, 'extends = ["a.toml", "b.toml"]\n[ppo]\ngamma = 0.8'))
    assert (config.ppo.steps, config.ppo.kl_coef, config.ppo.gamma) == (2, 0.1, 0.8)
    assert (config.model.name, config.model.scratch, config.name) == ("gpt2", None, "run")


def test_extends_that_leads_nowhere(tmp_path: Path) -> None:
    assert "none.toml: no such config file" in refusal(write(tmp_path, 'extends = "none.toml"'))
    for wrong in ("3", "[3]", '{a = "b"}'):
        assert "extends names files" in refusal(write(tmp_path, f"extends = {wrong}"))
    write(tmp_path, 'extends = "b.toml"', "a.toml")
    circle = write(tmp_path, 'extends = "a.toml"', "b.toml")
    assert refusal(circle) == f"{circle}: extends itself; remove the circle"


@pytest.mark.parametrize("source", ['scratch = "tiny"', 'name = "some/model"'])
def test_a_run_of_a_version_without_styles_was_asked_in_plain_text(tmp_path: Path, source: str) -> None:
    style = "style=auto" if "scratch" in source else "style=plain"
    now = load_config(write(tmp_path, f"[model]\n{source}\n"), [f"prompt.{style}"])
    known = ("style", "system", "answer_style", "template_args")
    rows = [row for row in dump_config(now).splitlines() if not row.startswith(known)]
    text = "\n".join(rows).replace("[prompt.template_args]", "").replace("[prompt]", "[prompt]\n{}")
    assert "style" not in text
    papers = load_config(
        write(tmp_path, text.format(f"template = {json.dumps(PAPERS_TEMPLATE)}"), "old.toml")
    )
    other = load_config(write(tmp_path, text.format('template = "{question}?"'), "old.toml"))
    assert changed_settings(papers, now) == {}
    assert changed_settings(other, now) == {"prompt.template": None}
    assert other.prompt.template == "{question}?"


def test_dump_reads_back_as_the_same_config(tmp_path: Path) -> None:
    overrides = [
        "model.scratch_overrides.hidden_size=64",
        "data.columns.chain=steps",
        "data.train=a.jsonl",
        "ppo.minibatch_size=7",
    ]
    config = load_config(write(tmp_path, 'name = "ünusual \\"name\\""'), overrides)
    dumped = tmp_path / "dumped.toml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert load_config(dumped) == config
    assert (
        "gae_lambda = 0.95" in dumped.read_text()
    )  # complete: a default of today is part of the record
    assert config.ppo.minibatch_size == 7


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_committed_config_parses_and_shrinks_to_a_laptop(path: Path) -> None:
    config = load_config(path)
    assert isinstance(config, Config)
    if config.sft.epochs:
        assert load_config(path, ["model.scratch=tiny"]).model.name is None
        return
    with pytest.raises(UserError, match="a new model"):  # which has nothing to reinforce
        load_config(path, ["model.scratch=tiny"])


@pytest.mark.parametrize(
    ("name", "kl_coef", "partial_reward", "warmup_epochs", "epochs", "questions"),
    [
        ("galactica-6.7b/gsm8k_natural", 0.05, 0.1, 2, 300, 7465),
        ("codellama-7b/gsm8k_program", 0.01, 0.1, 2, 300, 7356),
        ("codellama-7b/svamp_natural", 0.05, 0.1, 2, 300, 3076),
        ("galactica-6.7b/svamp_program", 0.01, 0.1, 2, 300, 3043),
        ("codellama-7b/mathqa_mcq_natural", 0.05, 0.0, 5, 300, 14862),
        ("galactica-6.7b/mathqa_mcq_program", 0.01, 0.0, 2, 300, 15250),
        ("galactica-6.7b/mathqa_numeric_natural", 0.01, 0.1, 10, 300, 8955),
        ("galactica-125m/gsm8k_program", 0.01, 0.1, 10, 700, 7356),
        ("codegen-350m/svamp_program", 0.01, 0.1, 10, 700, 3043),
        ("codeparrot-small/mathqa_mcq_program", 0.01, 0.0, 40, 700, 15250),
    ],
)
def test_paper_configs_hold_the_papers_settings(
    name: str, kl_coef: float, partial_reward: float, warmup_epochs: int, epochs: int, questions: int
) -> None:
    config = load_config(PAPER / f"{name}.toml")
    assert (config.ppo.kl_coef, config.reward.partial_reward) == (kl_coef, partial_reward)
    assert config.sft.warmup_epochs == warmup_epochs
    assert config.ppo.steps == math.ceil(epochs * questions / config.ppo.questions_per_step)
    assert config.data.cot == ("natural" if "natural" in name else "program")
    small = epochs == 700
    rates = (config.sft.learning_rate, config.ppo.learning_rate)
    assert rates == ((2e-5, 3e-6) if small else (1e-5, 3e-7))
    assert config.methods == (["reft"] if small else ["offline_st", "online_st", "reft"])


def test_the_papers_baselines_have_the_papers_settings() -> None:
    config = load_config(PAPER / "codellama-7b/gsm8k_program.toml")
    assert config.warmup_samples.per_question == config.evaluation.samples == 100
    offline, online, reranker = config.offline_st, config.online_st, config.reranker
    assert (offline.epochs, offline.batch_size, offline.learning_rate, offline.keep) == (
        20,
        48,
        1e-5,
        10,
    )
    assert (online.steps, online.learning_rate) == (config.ppo.steps, 3e-7)
    assert (online.questions_per_step, online.update_epochs) == (32, 2)
    assert (reranker.epochs, reranker.batch_size, reranker.learning_rate) == (3, 24, 1e-6)


def test_each_run_of_the_paper_has_a_directory_of_its_own() -> None:
    configs = [load_config(path) for path in COMMITTED if PAPER in path.parents]
    assert len({config.run_dir for config in configs}) == len(configs) == 28
    names = {config.model.name for config in configs}
    assert names == {
        "facebook/galactica-6.7b", "codellama/CodeLlama-7b-hf", "facebook/galactica-125m",
        "Salesforce/codegen-350M-mono", "codeparrot/codeparrot-small",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "section", "changes"),
    [
        ("no_partial_reward", "reward", {"partial_reward": 0.0}),
        ("no_kl", "ppo", {"kl_coef": 0.0}),
        ("separate_value_model", "model", {"value_model": "separate"}),
    ],
)
def test_an_ablation_differs_from_its_main_run_in_one_setting(
    name: str, section: str, changes: dict[str, object]
) -> None:
    main = load_config(PAPER / "codellama-7b/gsm8k_program.toml")
    ablation = load_config(PAPER / f"ablations/{name}.toml")
    assert ablation.start_from == str(main.run_dir)
    for key in ("data", "prompt", "model", "reward", "sft", "ppo"):
        expected = getattr(main, key).model_dump() | (changes if key == section else {})
        assert getattr(ablation, key).model_dump() == expected


# From Python.


def test_a_mapping_is_what_a_file_would_say(tmp_path: Path) -> None:
    path = write(tmp_path, '[ppo]\nsteps = 5\n[data]\ntrain = "t.jsonl"\n[model]\nscratch = "tiny"\n')
    given = {"ppo.steps": 5, "data": {"train": Path("t.jsonl")}, "model": {"scratch": "tiny"}}
    assert load_config(given) == load_config(path)
    assert load_config(given, ["ppo.steps=6"], name="other").ppo.steps == 6
    assert load_config(given, name="other").name == "other"
    assert load_config({"name": "own", "model.scratch": "tiny"}).name == "own"
    child = load_config({"extends": str(path), "ppo": {"gamma": 0.5}})
    assert (child.ppo.steps, child.ppo.gamma, child.name) == (5, 0.5, "run")
    assert given["data"] == {"train": Path("t.jsonl")}, "it stays as it was"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ppo": {"lr": 1}}, "config: unknown key ppo.lr; it is called ppo.learning_rate here"),
        ({"ppo.step": 1}, "config: unknown key ppo.step; did you mean steps?"),
        ({"ppo": 3}, "config: ppo: is a section with keys of its own, not 3"),
        ({"data": {"train": [{"question": "?"}]}},
         "config: data.train is a name; give what it names to reftune.run as train="),
        ({"reward": {"function": [len]}},
         "config: reward.function is a name; give what it names to reftune.run as reward="),
        ({"extends": 3}, 'config: extends names files, as in extends = "base.toml", not 3'),
        ({"extends": "nowhere.toml"}, "nowhere.toml: no such config file"),
        ({"lora.alpha": 3}, "config: lora.alpha has no effect: no adapter is trained; set lora.rank"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_mapping_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config({"model": {"scratch": "tiny"}, **values})
    assert str(caught.value) == message


def test_a_program_may_still_hand_over_the_reward_that_settings_are_for() -> None:
    values = {"model.scratch": "tiny", "reward.max_failed": 0.5, "data.keep_columns": ["level"]}
    assert load_config(values, reward_follows=True).reward.max_failed == 0.5
    assert load_config(values, ["reward.seconds=9"], reward_follows=True).reward.seconds == 9
    assert load_config({"model.scratch": "tiny", "reward.partial_reward": 0.3}, reward_follows=True)
    with pytest.raises(UserError, match=r"reward\.partial_reward has no effect"):
        load_config(values | {"reward.partial_reward": 0.3}, reward_follows=True)
    with pytest.raises(UserError, match=r"reward\.max_failed has no effect"):
        load_config(values)
    with pytest.raises(UserError, match=r"ppo\.gamma has no effect"):
        load_config(values | {"methods": [], "ppo.gamma": 0.5}, reward_follows=True)
