"""Run PPO from many epochs of SFT, and see whether `sft.warmup_epochs = "auto"` chooses a good one.

`python -m reproduction.warmup` goes on where it was interrupted; `--svamp FILE` adds real problems.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from reftune.config import Config
from reftune.config.files import load_config
from reftune.evaluation.statistics import bootstrap_mean, wilson_interval
from reftune.files import read_json, read_jsonl, write_json
from reftune.model.policy import PolicyWithValue
from reftune.pipeline import run_stages
from reftune.problem import UserError
from reftune.reporting.pages import interval, percent, signed
from reftune.stages.stage import Stage
from reftune.stages.steps import State
from reproduction.series import ROOT

RUNS = ROOT / "runs" / "warmup"
HELD_OUT = 6  # of SVAMP's training problems each 6th: the test file's language is not learnt from them
COMMON = (
    'methods=["reft"]', "evaluation.samples=0", "evaluation.rerank=false", "sft.warmup_epochs=auto",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Problems and a model: a configuration with changes, and the epochs from which PPO starts."""

    title: str
    config: str
    changes: tuple[str, ...]
    starts: tuple[int, ...]


WORLDS = {
    "mini": World(
        "Built-in problems", "configs/mini/program.toml",
        ("data.synthetic.test_size=1000", "sft.validate_every_epochs=2"), (14, 16, 12, 10, 8, 4),
    ),
    "few": World(
        "Built-in problems, 400 chains for SFT", "configs/mini/program.toml",
        ("data.synthetic.test_size=1000", "data.max_chains=400", "sft.epochs=48",
         "sft.validate_every_epochs=8", "ppo.steps=16"), (48, 40, 32, 24),
    ),
    "legs": World(
        "leg_counting of reasoning_gym", "configs/mini/program.toml",
        ("sft.epochs=12", "prompt.max_prompt_tokens=160", "prompt.max_new_tokens=100",
         "sft.validate_every_epochs=2", "ppo.steps=16"), (12, 10, 8, 6),
    ),
    "svamp": World(
        "SVAMP", "configs/svamp_program.toml", ("sft.validate_every_epochs=2",), (12, 8, 4),
    ),
}  # fmt: skip


def main() -> None:
    """Run what is not finished, and print a table per world."""
    parser = argparse.ArgumentParser(prog="reproduction.warmup", description=__doc__)
    parser.add_argument(
        "worlds", nargs="*", default=["mini", "few", "legs"], help=f"of {', '.join(WORLDS)}"
    )
    parser.add_argument("--svamp", type=Path, help="svamp_python_sdp.json; needed for svamp")
    parser.add_argument("--set", action="append", default=[], help="as in `reftune run --set`")
    parser.add_argument("--only-sft", action="store_true", help="no PPO yet")
    options = parser.parse_args()
    try:
        for name in options.worlds:
            changes = {"svamp": partial(_svamp, options.svamp), "legs": _legs}.get(name, list)()
            run_world(name, [*changes, *options.set], options.only_sft)
        for name in options.worlds:
            print(table(name), flush=True)
    except UserError as error:
        sys.exit(f"reproduction.warmup: {error}")


def run_world(name: str, changes: Sequence[str], only_sft: bool = False) -> None:
    """Run SFT once, keeping each validated epoch's model, then PPO from each."""
    world = WORLDS[name]
    settings = [*COMMON, f"output_dir={RUNS}", *world.changes, *changes]
    config = load_config(ROOT / world.config, settings, name=name)
    if not (config.run_dir / "sft/result.json").exists():
        train(config)
    epochs = () if only_sft else world.starts
    for number, epoch in enumerate(epochs, start=1):
        directory = RUNS / f"{name}-{epoch}"
        if not (directory / "evaluation/result.json").exists():
            print(
                f"{name}: [{number}/{len(epochs)}] epoch {epoch}{_time_left(name, epochs)}", flush=True
            )
            reinforce(config, world, settings, epoch)


def train(config: Config) -> None:
    """Run SFT; the model after each validated epoch goes to `epochs/`."""

    def keep(
        stage: Stage, policy: PolicyWithValue, state: State, unit: str, number: int, solved: float
    ) -> None:
        target = config.run_dir / "epochs" / str(number)
        stage.export(policy, target, **{unit: number, "validation_accuracy": solved})
        original(stage, policy, state, unit, number, solved)

    original = Stage.keep_best
    Stage.keep_best = keep  # type: ignore[method-assign]
    try:
        run_stages(config, ("sft",))
    finally:
        Stage.keep_best = original  # type: ignore[method-assign]


def reinforce(config: Config, world: World, settings: Sequence[str], epoch: int) -> None:
    """Run PPO from the model after an epoch, and ask the test questions."""
    name, source = f"{config.name}-{epoch}", config.run_dir
    directory = RUNS / name
    if not (directory / "warmup").exists():
        shutil.copytree(source / "data", directory / "data", dirs_exist_ok=True)
        shutil.copytree(source / "sft", directory / "sft", dirs_exist_ok=True)
        shutil.copytree(source / "epochs" / str(epoch), directory / "warmup.partial/model")
        (directory / "warmup.partial").rename(directory / "warmup")
    command = [sys.executable, "-m", "reftune", "run", world.config, "--name", name]
    for setting in (*settings, "sft.warmup_gate=0"):
        command += ["--set", setting]
    started, resumed = time.monotonic(), (directory / "config.toml").exists()
    if code := subprocess.run(command, cwd=ROOT, env=os.environ, check=False).returncode:
        raise UserError(f"{name} ended with exit code {code}; start the same again")
    if not resumed:
        write_json(directory / "seconds.json", {"seconds": time.monotonic() - started})


def table(name: str) -> str:
    """Return a world's starts with what PPO made of each."""
    rows, chosen = _starts(name), _result(name)["warmup_epoch"]
    done = [row for row in rows if (RUNS / f"{name}-{row['epoch']}/evaluation/result.json").exists()]
    right = {row["epoch"]: _right(f"{name}-{row['epoch']}") for row in done}
    lines = [
        f"**{WORLDS[name].title}**", "",
        "| SFT epoch | greedy, validation | pass@1 | pass@16 | mixed | warm-up, test | ReFT, test | |",
        "|---:|---:|---:|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    best = max(right, key=lambda epoch: right[epoch].mean(), default=chosen)
    for row in rows:
        epoch, cells = row["epoch"], ["", "", ""]
        if epoch in right:
            found, n = right[epoch], right[epoch].size
            warm = _right(f"{name}-{epoch}", "warmup").mean()
            reft = f"{percent(found.mean())} {interval(wilson_interval(float(found.sum()), n))}"
            cells = [percent(warm), reft, "best" if epoch == best else ""]
        cells[2] += " **chosen**" if epoch == chosen else ""
        shares = [
            percent(row[key]) for key in ("validation_accuracy", "pass_at_1", "pass_at_k", "mixed")
        ]
        lines.append(f"| {epoch} | {' | '.join(shares + cells)} |")
    if chosen in right:
        difference = right[chosen] - right[best]
        found = interval(bootstrap_mean(difference[0].astype(float), resamples=10_000, seed=0))
        lines += ["", f"Chosen - best: {signed(float(difference.mean()))} points {found}."]
    return "\n".join([*lines, ""])


def _right(run: str, model: str = "reft") -> np.ndarray[Any, np.dtype[np.int64]]:
    rows = read_jsonl(RUNS / run / f"evaluation/{model}.jsonl")
    return np.array([[row["correct"] for row in rows]], dtype=np.int64)


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(RUNS / name / "sft/result.json")
    return found


def _starts(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _result(name)["starts"]
    return found


def _svamp(path: Path | None) -> list[str]:
    """Divide SVAMP's training file into problems to train and to test on; return the settings."""
    if path is None:
        raise UserError("svamp needs --svamp .../svamp_python_sdp.json (see configs/svamp_program.toml)")
    rows = read_json(path)
    return _written("svamp", [r for i, r in enumerate(rows) if i % HELD_OUT], rows[::HELD_OUT])


def _legs() -> list[str]:
    """Write problems of reasoning_gym's family with programs that know the legs; return the settings."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS
    from reasoning_gym.factory import create_dataset

    rows = []
    for entry in create_dataset("leg_counting", seed=1, size=2700, min_animals=1, max_animals=3):
        sums = [f"{count} * {ANIMALS[name]}" for name, count in entry["metadata"]["animals"].items()]
        chain = f"def solution():\n    return {' + '.join(sums)}"
        question = entry["question"].strip().rpartition("\n")[2].removeprefix("Now, ")
        rows.append({"question": question, "answer": entry["answer"], "chain": chain})
    return _written("legs", rows[1000:], rows[:1000])


def _written(name: str, train: list[Any], test: list[Any]) -> list[str]:
    (RUNS / "data").mkdir(parents=True, exist_ok=True)
    for part, rows in {"train": train, "test": test}.items():
        write_json(RUNS / f"data/{name}_{part}.json", rows)
    return [f"data.{part}={RUNS}/data/{name}_{part}.json" for part in ("train", "test")]


def _time_left(name: str, epochs: Sequence[int]) -> str:
    places = [RUNS / f"{name}-{epoch}" for epoch in epochs]
    known = [read_json(p / "seconds.json")["seconds"] for p in places if (p / "seconds.json").exists()]
    left = sum(not (place / "evaluation/result.json").exists() for place in places)
    return f", {left} to go" + (f", about {left * median(known) / 60:.0f} min left" if known else "")


if __name__ == "__main__":
    main()
