"""A model that lies in parts on several processes (`compute.sharding`) learns what a whole one does.

In float64, as in `test_distributed`: rounding is too small there to have a say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_run
from child import Child
from precision import CLOSE
from reftune.config.files import load_config
from reftune.problem import UserError

SHORT = (
    "sft.epochs=18", "sft.warmup_epochs=18", "sft.validate_every_epochs=18", "sft.batch_size=8",
    "ppo.steps=4", "data.max_train=20", "data.validation_size=20", "data.max_test=4",
    "evaluation.samples=0",
)  # fmt: skip
KEYS = {
    "sft": ("loss", "grad_norm"),
    "ppo": ("loss", "policy_loss", "value_loss", "reward", "grad_norm", "kl", "entropy"),
}
METHODS = {
    "warmup_samples": ("accuracy",),
    "offline_st": ("loss", "grad_norm"),
    "online_st": ("loss", "grad_norm", "accuracy"),
    "reranker/reft": ("loss", "grad_norm"),
}


def _arguments(config: Path, *changes: str) -> list[str]:
    return ["run", str(config), *(x for change in changes for x in ("--set", change))]


def _rows(run: Path, stage: str) -> list[dict[str, Any]]:
    text = (run / stage / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _agree(one: Path, other: Path, keys: dict[str, tuple[str, ...]]) -> None:
    for stage, names in keys.items():
        expected, found = _rows(one, stage), _rows(other, stage)
        assert len(expected) == len(found) > 3
        for a, b in zip(expected, found, strict=True):
            for key in names:
                assert b[key] == pytest.approx(a[key], abs=CLOSE, rel=CLOSE), (stage, a["step"], key)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of one process."""
    folder = tmp_path_factory.mktemp("sharding")
    arguments = _arguments(tiny_run.write_config(folder), *SHORT)
    Child("reftune", *arguments, "--name", "one", float64=True).finish()
    run = folder / "runs" / "one"
    assert max(row["reward"] for row in _rows(run, "ppo")) > 0.1, "there is something to compare"
    return run


def test_parts_are_gathered_as_what_they_were(tmp_path: Path) -> None:
    script = Path(__file__).with_name("sharded_parts.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [sys.executable, *launcher, str(script), str(tmp_path)],
        check=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("processes", "sharding"),
    [
        (2, "fsdp2"),
        pytest.param(4, "fsdp2", marks=pytest.mark.slow),
        pytest.param(2, "none", marks=pytest.mark.slow),
        pytest.param(4, "none", marks=pytest.mark.slow),
    ],
)
def test_several_processes_give_the_losses_of_one(one: Path, processes: int, sharding: str) -> None:
    name = f"{sharding}{processes}"
    changes = (*SHORT, f"compute.sharding={sharding}")
    arguments = _arguments(one.parents[1] / "tiny.toml", *changes)
    tiny_run.finish(tiny_run.start([*arguments, "--name", name], processes, float64=True))
    other = one.with_name(name)
    _agree(one, other, KEYS)
    _is_the_same_model(one / "ppo/model", other / "ppo/model")
    answers = [(run / "evaluation/reft.jsonl").read_text() for run in (one, other)]
    assert answers[0] == answers[1]


def _is_the_same_model(first: Path, second: Path) -> None:
    """Whoever opens both gets the same greedy texts."""
    weights = [load_file(path / "model.safetensors") for path in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    tokenizer = AutoTokenizer.from_pretrained(second)
    ids = tokenizer("On page 3 Ann finds a pen. What is its price?", return_tensors="pt")["input_ids"]
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (first, second)]
    with torch.no_grad():
        texts = [model.generate(ids, max_new_tokens=12, do_sample=False).tolist() for model in models]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "starts",
    [
        [(2, "fsdp2", "sft:rows:30:TERM"), (1, "none", "")],
        pytest.param(
            [
                (1, "none", "sft:rows:30:TERM"),
                (2, "fsdp2", "ppo:update rows:3:TERM"),
                (2, "none", "ppo:update rows:3:TERM"),
                (4, "fsdp2", ""),
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["fsdp2-one", "many"],
)
def test_a_stopped_run_goes_on_with_other_processes_and_other_sharding(
    one: Path, starts: list[tuple[int, str, str]]
) -> None:
    name = f"resumed{len(starts)}"
    for processes, sharding, moment in starts:
        changes = (*SHORT, f"compute.sharding={sharding}")
        arguments = [*_arguments(one.parents[1] / "tiny.toml", *changes), "--name", name]
        process = tiny_run.start(arguments, processes, float64=True, moment=moment)
        output, _ = process.communicate(timeout=240)
        assert (process.returncode != 0) is bool(moment), output
        assert bool(list(one.with_name(name).glob("*/checkpoints/step-*"))) is bool(moment)
    _agree(one, one.with_name(name), KEYS)


@pytest.mark.slow
def test_all_methods_learn_in_parts(tmp_path: Path) -> None:
    config = tiny_run.write_all_methods(tmp_path)
    Child("reftune", *_arguments(config), "--name", "one", float64=True).finish()
    parts = [*_arguments(config, "compute.sharding=fsdp2"), "--name", "two"]
    tiny_run.finish(tiny_run.start(parts, 2, float64=True))
    runs = tmp_path / "runs"
    _agree(runs / "one", runs / "two", KEYS | METHODS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("lora.rank=4",),
        ("model.value_model=separate", "model.value_targets=normalised", "model.value_hidden_size=8",
         "compute.gradient_checkpointing=true"),
        ("ppo.reference_reset_steps=2", "ppo.value_epochs=1", "model.value_targets=two_hot"),
        ("ppo.advantage=rloo", "ppo.kl_penalty=loss_k3", "ppo.dynamic_sampling=2"),
    ],
    ids=["lora", "separate", "reset", "group"],
)  # fmt: skip
def test_kinds_of_models_learn_in_parts(one: Path, changes: tuple[str, ...]) -> None:
    """From the trained model: where no answer is right, advantages are rounding alone."""
    config = one.parents[1] / "tiny.toml"
    text = [line for line in config.read_text().splitlines() if not line.startswith("scratch")]
    given = config.with_name("given.toml")
    given.write_text("\n".join(text), encoding="utf-8")
    start = (f"model.name={one / 'sft/model'}", "sft.epochs=2", "sft.warmup_epochs=2",
             "sft.validate_every_epochs=1", *SHORT[3:])  # fmt: skip
    name, arguments = changes[0].replace("=", "-"), _arguments(given, *start, *changes)
    Child("reftune", *arguments, "--name", f"{name}-one", float64=True).finish()
    parts = [*arguments, "--set", "compute.sharding=fsdp2", "--name", f"{name}-two"]
    tiny_run.finish(tiny_run.start(parts, 2, float64=True))
    _agree(one.with_name(f"{name}-one"), one.with_name(f"{name}-two"), KEYS)


@pytest.mark.slow
def test_parts_in_float32_are_the_masters_of_bfloat16(one: Path) -> None:
    """The first steps; in 8 bits rounding grows with each. Masters come back in one process, too."""
    changes = (*SHORT[3:], "model.dtype=bfloat16", "sft.epochs=4", "sft.warmup_epochs=4")
    arguments = ["sft", *_arguments(one.parents[1] / "tiny.toml", *changes)[1:]]
    Child("reftune", *arguments, "--name", "half-one").finish()
    parts = [*arguments, "--set", "compute.sharding=fsdp2", "--name", "half-two"]
    stopped = tiny_run.start(parts, 2, moment="sft:rows:4:TERM")
    stopped.communicate(timeout=240)
    Child("reftune", *arguments, "--name", "half-two").finish()
    rows = [_rows(one.with_name(name), "sft") for name in ("half-one", "half-two")]
    for key in ("loss", "grad_norm"):
        for a, b in zip(*rows, strict=True):
            assert b[key] == pytest.approx(a[key], rel=0.02), (key, a["step"])


@pytest.mark.parametrize("change", ["model.dtype=float16", "model.optimizer=adamw_8bit"])
def test_what_cannot_be_cut_is_refused(tmp_path: Path, change: str) -> None:
    config = tiny_run.write_config(tmp_path)
    key = change.partition("=")[0]
    with pytest.raises(UserError, match=f"compute.sharding .* {key} "):
        load_config(config, [change, "compute.sharding=fsdp2"])
