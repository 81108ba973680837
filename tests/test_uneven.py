"""Two processes with work that cannot be shared out evenly: none waits for the other for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from child import Child, start_together
from precision import CLOSE

# One question a step: the second process has none. Nine annotations of which three make a batch, and the
# micro-batches of one row. Long and short responses end at their own time.
FEW = [
    "data.max_train=9", "data.validation_size=1", "data.max_test=1", "sft.batch_size=4", "sft.epochs=2",
    "sft.warmup_epochs=1", "sft.validate_every_epochs=1", "ppo.steps=2", "ppo.questions_per_step=1",
    "ppo.samples_per_question=3", "ppo.minibatch_size=1", "ppo.validate_every_steps=1",
    "online_st.steps=1", "online_st.questions_per_step=1", "online_st.samples_per_question=1",
    "online_st.validate_every_steps=1", "warmup_samples.per_question=1", "offline_st.epochs=1",
    "evaluation.samples=1", "evaluation.rerank=false", "compute.tokens_per_microbatch=1",
    "compute.sampler_rows=1",
]  # fmt: skip
# All rewards are equal: no question is kept, no draw fills a batch, no step teaches, and at the end all
# questions are out of the range.
EQUAL = ["ppo.dynamic_sampling=2", "ppo.difficulty_range=[0.3, 0.7]", "ppo.advantage=rloo"]
REWARD = "def reward(question, completion, answer):\n    return 0.0\n"


def finish(folder: Path, config: str, name: str, *changes: str) -> Path:
    """Let two processes do a run; return its directory."""
    sets = [x for change in changes for x in ("--set", change)]
    for process in start_together(2, "reftune", "run", config, "--name", name, *sets, float64=True):
        process.finish()
    return folder / "runs" / name


def metrics(run: Path, stage: str) -> list[dict[str, Any]]:
    text = (run / stage / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# In parts all processes have to gather each weight: one that reads nothing would hold up the others.
CUT = pytest.mark.parametrize(
    "cut", [(), pytest.param(("compute.sharding=fsdp2",), marks=pytest.mark.slow, id="fsdp2")]
)


@CUT
def test_a_process_without_a_question_or_a_row_takes_part(tmp_path: Path, cut: tuple[str, ...]) -> None:
    config = str(tiny_run.write_all_methods(tmp_path))
    two = finish(tmp_path, config, "two", *FEW, *cut)
    sets = [x for change in FEW for x in ("--set", change)]
    Child("reftune", "run", config, "--name", "one", *sets, float64=True).finish()
    one = tmp_path / "runs/one"
    for stage in ("sft", "offline_st", "online_st"):  # in PPO rounding decides where nothing is rewarded
        rows = [metrics(run, stage) for run in (one, two)]
        for a, b in zip(*rows, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], abs=CLOSE, rel=CLOSE), (stage, a["step"])
    assert len(metrics(one, "ppo")) == len(metrics(two, "ppo")) == 2


@CUT
def test_where_all_rewards_are_equal_all_processes_skip_what_teaches_nothing(
    tmp_path: Path, cut: tuple[str, ...]
) -> None:
    config = str(tiny_run.write_config(tmp_path))
    (tmp_path / "mine.py").write_text(REWARD)
    changes = [
        f"reward.function={tmp_path}/mine.py:reward", *EQUAL, "data.max_train=11", "ppo.steps=3",
        "data.validation_size=1", "data.max_test=1", "sft.epochs=1", "sft.warmup_epochs=1",
        "evaluation.samples=0",
    ]  # fmt: skip
    rows = metrics(finish(tmp_path, config, "equal", *changes, *cut), "ppo")
    assert [row["questions_kept"] for row in rows] == [0, 0, 0]
    assert [row["draws"] for row in rows] == [2, 2, 2]
    assert sum(row["questions_left_out"] for row in rows) > 0
    assert all("loss" not in row for row in rows), "no optimizer step was taken"
