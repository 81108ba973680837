"""Faults planted in real runs of PPO, and healthy runs of many seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reftune.evaluation.doctor.diagnosis import Finding, history
from reftune.reporting.run.diagnosis import logged_steps, run_settings
from reftune.reporting.run.run_files import read_run
from tiny_ppo import make_start, run_ppo

REWARDS = """
calls = []

def always(question, completion, answer, truncated):
    return 1.0

def never(question, completion, answer):
    return 0.0

def raises(question, completion, answer):
    calls.append(1)
    if len(calls) % 7 == 0:
        raise RuntimeError("no connection")
    return float("7" in completion)

def likes_eights(question, completion, answer):
    return {"correct": float("7" in completion), "nice": 2.0 * ("8" in completion)}
"""

# By name: what is set, which symptom must be told, and what its sentence says.
FAULTS: dict[str, tuple[list[str], str, str]] = {
    "cut": (["prompt.max_new_tokens=3"], "cut_off", "cut off at 3 tokens"),
    "rate": (["ppo.learning_rate=0.3"], "kl_runaway", "ppo.learning_rate from 0.3 to 0.1"),
    "unheld": (
        ["ppo.learning_rate=0.03", "ppo.kl_coef=0"],
        "clipped_everywhere", "ppo.learning_rate from 0.03 to 0.01, or ppo.ppo_epochs from 2 to 1",
    ),
    "dead": (
        ["ppo.learning_rate=0.03", "ppo.kl_coef=0", "ppo.ppo_epochs=4"],
        "collapsed", "one step has destroyed the policy: step 1 ",
    ),
    "asleep": (["ppo.learning_rate=1e-10"], "clipped_nowhere", "ppo.learning_rate from 1e-10 to 1e-09"),
    "always": (['reward.function="REWARDS:always"'], "all_right", "100% of the samples were right"),
    "never": (['reward.function="REWARDS:never"'], "all_wrong", "100% of the samples were wrong"),
    "raises": (['reward.function="REWARDS:raises"'], "faults", '14% of the samples in steps 6-10'),
    "hacked": (
        ['reward.function="REWARDS:likes_eights"', "ppo.kl_coef=0", "ppo.learning_rate=1e-3"],
        "hacking", "the reward rises and what it stands for falls",
    ),
}  # fmt: skip
# Such a step throws the policy anywhere, and where hangs on rounding: more may be wrong behind it.
WILD = ("rate", "unheld", "dead")
SEEDS = range(1, 21)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    return make_start(folder)


def findings(run_dir: Path) -> list[Finding]:
    run = read_run(run_dir)
    return history(logged_steps(run), run_settings(run))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_in_a_real_run_is_named_and_no_other(
    fault: str, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, name, words = FAULTS[fault]
    place = str(start.parent / "rewards.py")
    run = run_ppo(start, fault, *(one.replace("REWARDS", place) for one in settings))
    warnings = [finding for finding in findings(run) if finding.level == "warning"]
    (planted,) = [finding for finding in warnings if finding.name == name]
    assert fault in WILD or warnings == [planted]
    assert words in planted.sentence
    said = capsys.readouterr().err
    assert said.count(f"ppo: warning, {name} (from step {planted.step:g} on): ") == 1
    assert said.count("ppo: warning") == len(warnings)


@pytest.mark.slow
def test_twenty_healthy_seeds_raise_no_alarm(start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gains = []
    for seed in SEEDS:
        run = run_ppo(
            start, f"seed{seed}", f"seed={seed}", "ppo.steps=12", "ppo.validate_every_steps=12"
        )
        assert [str(f) for f in findings(run) if f.level == "warning"] == [], seed
        lines = (run / "ppo/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        right = [json.loads(line)["accuracy"] for line in lines]
        gains.append(sum(right[-4:]) / 4 - sum(right[:4]) / 4)
    assert sum(gains) / len(gains) > 0.1, "healthy runs learn"
    assert "warning" not in capsys.readouterr().err
