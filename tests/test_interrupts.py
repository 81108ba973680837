"""A signal at any moment of a run: what is told is true, nothing that was learnt is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import tiny_run
from child import Child
from reftune import interrupts

# No checkpoint is due before the end of a stage: all that is kept is kept because of a signal.
RARE = """
extends = "tiny.toml"
sft = {checkpoint_every_steps = 1000, epochs = 2, warmup_epochs = 2, validate_every_epochs = 1}
ppo = {checkpoint_every_steps = 1000, steps = 4}
compute = {sampler_rows = 16}
"""
FINISHING = "reftune: finishing this step and saving; once more to leave at once\n"
STOPPING = "reftune: stopping; once more to leave at once\n"
ANEW = "begins {stage} anew, which has no checkpoint yet"
BEHIND = "goes on with {stage} behind step {step}, saved in {run}/{stage}/checkpoints/step-0000000{step}"
WHERE_IT_WAS = "goes on with {stage} where it was"

# One after the other in one run. SFT has 11 or so steps an epoch; PPO validates every second step, and
# draws 32 samples a step, of which 4 updates learn.
MOMENTS = [
    ("sft:rows:1:INT", FINISHING, BEHIND, 1),
    ("sft:validation sampling:3:TERM", STOPPING, BEHIND, None),
    ("ppo:sampling:5:INT", STOPPING, ANEW, 0),
    ("ppo:update rows:6:INT", FINISHING, BEHIND, 2),  # its validation is still to come
    ("ppo:validation sampling:9:INT", STOPPING, BEHIND, 2),
    ("ppo:reading:2:INT", STOPPING, BEHIND, 3),
    ("ppo:update rows:4:TERM", FINISHING, BEHIND, 4),  # the last step
    ("evaluation:greedy sampling:3:INT", "", ANEW, 0),
    ("evaluation:greedy sampling:20:INT", "", WHERE_IT_WAS, 0),
    ("evaluation:test sampling:20:TERM", "", WHERE_IT_WAS, 0),
]
FILES = [
    "sft/metrics.jsonl", "ppo/metrics.jsonl", "ppo/samples.jsonl", "sft/result.json", "ppo/result.json",
    *(f"{stage}/model/model.safetensors" for stage in ("warmup", "sft", "ppo")),
    *(f"evaluation/{name}" for name in ("warmup.jsonl", "sft.jsonl", "reft.jsonl", "result.json")),
]  # fmt: skip
TIMES = re.compile(rb'"(seconds\w*|tokens_per_second|memory_gib)": [-.e\d]+')


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the configuration; its run `whole` is finished."""
    folder = tmp_path_factory.mktemp("interrupts")
    tiny_run.write_config(folder)
    (folder / "rare.toml").write_text(RARE, encoding="utf-8")
    Child("reftune", "run", str(folder / "rare.toml"), "--name", "whole").finish()
    return folder / "rare.toml"


def test_a_run_that_is_interrupted_everywhere_ends_as_an_uninterrupted_one(config: Path) -> None:
    run = config.parent / "runs/broken"
    for moment, announced, told, step in MOMENTS:
        child = Child("signalled", moment, "run", str(config), "--name", "broken")
        output = child.finish(expected=143 if "TERM" in moment else 130)
        stage = moment.partition(":")[0]
        kept = sorted((run / stage / "checkpoints").glob("*"))
        if step is None:
            step = int(kept[-1].name.removeprefix("step-"))
            assert step % (steps_of_sft(config) // 2) == 0, "a validation comes at an epoch's end"
        promise = told.format(stage=stage, step=step, run=run).replace(
            "0000000" + str(step), f"{step:08d}"
        )
        assert output.endswith(f"reftune: interrupted; the same command {promise}\n"), moment
        said = [line for line in output.splitlines() if line.startswith("reftune: ")]
        ahead = [x for x in said if x.startswith(f"reftune: {run}: ") or "questions to train on" in x]
        assert len(said) - len(ahead) == 1 + bool(announced), output
        assert announced in output
        assert [path.name for path in kept][-1:] == ([f"step-{step:08d}"] if step else []), moment
    Child("reftune", "run", str(config), "--name", "broken").finish()
    for name in FILES:
        found = [(config.parent / "runs" / one / name).read_bytes() for one in ("whole", "broken")]
        assert TIMES.sub(b"", found[0]) == TIMES.sub(b"", found[1]), name
    assert not (run / "evaluation/pieces").exists()


def steps_of_sft(config: Path) -> int:
    return (config.parent / "runs/whole/sft/metrics.jsonl").read_text().count("\n")


def test_the_second_signal_leaves_at_once(config: Path) -> None:
    child = Child("signalled", "sft:rows:3:INT+INT", "run", str(config), "--name", "twice")
    output = child.finish(expected=130)
    assert output.endswith(FINISHING)
    assert not (config.parent / "runs/twice/sft/checkpoints").exists()


def test_several_processes_stop_together_whichever_gets_the_signal(config: Path) -> None:
    """Sampling, of which the other finishes its share, and learning, after which all agree.

    What a launcher passes on of a terminal's Ctrl-C, a moment later, is no second signal.
    """
    runs = config.parent / "runs"
    start = ["run", str(config), "--name", "two", "--set", f"start_from={runs / 'whole'}"]
    for moment, step in (("ppo:sampling:20:TERM:1", 1), ("ppo:update rows:1:INT+INT:1", 2)):
        process = tiny_run.start(start, processes=2, moment=moment)
        output = tiny_run.finish(process, expected=1)  # torchrun's own code
        assert f"exitcode  : {143 if 'TERM' in moment else 130}" in output
        place = runs / f"two/ppo/checkpoints/step-0000000{step}"
        assert f"the same command goes on with ppo behind step {step}, saved in {place}" in output
        assert max(path.name for path in place.parent.iterdir()) == place.name
        assert len(list(place.glob("random_states_*.pkl"))) == 2, "both have saved"
        assert output.count("Traceback (most recent call last)") == 1, "torchrun's own"
    Child("reftune", *start).finish()
    lines = (runs / "two/ppo/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_what_may_be_broken_off_does_not_begin_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts._State, "number", 2)
    with pytest.raises(interrupts.Stopped), interrupts.breakable():
        pytest.fail("it has begun")
