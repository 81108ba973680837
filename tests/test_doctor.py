"""Symptoms in rows of metrics that are made up; `test_doctor_faults.py` plants faults in real runs."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reftune.config import Config
from reftune.config.checks import flat
from reftune.evaluation.doctor import diagnosis, windows
from reftune.evaluation.doctor.diagnosis import (
    SYMPTOMS,
    Finding,
    Watch,
    diagnose,
    history,
    not_checked,
)
from reftune.evaluation.doctor.rewards import FAULTS
from reftune.problem import STATUSES, Row

ROOT = Path(__file__).parents[1]
SETTINGS = windows.settings_of(
    Config.model_validate(
        {
            "model": {"scratch": "tiny"},
            "prompt": {"max_new_tokens": 80},
            "ppo": {"questions_per_step": 16, "samples_per_question": 8, "learning_rate": 3e-5},
        }
    ).model_dump()
)
Course = Callable[[float], Any]  # from the share of the run that is over to a metric


def line(start: float, end: float) -> Course:
    return lambda over: start + (end - start) * over


# What a run that learns looks like, from its first step to its last.
HEALTHY: dict[str, Any] = {
    "reward": line(0.45, 0.75), "accuracy": line(0.4, 0.7), "groups_all_right": line(0.1, 0.35),
    "groups_all_wrong": line(0.3, 0.1), "kl": line(0.0, 3.0), "response_length": line(60, 50),
    "truncated": line(0.08, 0.0), "explained_variance": line(0.1, 0.5), "sampler_weight": 1.0,
    "sampler_truncated": 0.0, "statuses": {"ok": 120, "syntax_error": 8}, "approx_kl": 3e-4,
    "clip_fraction": 0.01, "entropy": line(0.3, 0.15), "logprob_gap": 1e-6, "loss": 0.1,
    "grad_norm": 0.5, "learning_rate": 3e-5,
}  # fmt: skip


GREEDY = line(0.5, 0.7)  # on validation questions


def rows(steps: int = 20, *, tests: Course = GREEDY, **changes: Any) -> list[Row]:
    """Return the rows of a healthy run but for some metrics, with a little noise; None: not logged."""
    rng, found = random.Random(1), list[Row]()
    for step in range(1, steps + 1):
        over = (step - 1) / (steps - 1)
        courses = {**HEALTHY, **changes}
        row = {k: c(over) if callable(c) else c for k, c in courses.items() if c is not None}
        noisy = {"accuracy", "reward"} & {*row}
        row |= {key: row[key] + rng.uniform(-0.01, 0.01) for key in sorted(noisy)}
        if step % 5 == 0:
            row["validation_accuracy"] = tests(over)
        found.append({"step": step, **row})
    return found


def form(start: int, end: int) -> Course:
    """Return statuses of which ever more, of 128 samples, are answers that can be read."""
    return lambda over: {
        "ok": (ok := round(start + (end - start) * over)), "syntax_error": 128 - ok
    }  # fmt: skip


# Faults, how each looks, and what the sentence says: numbers that are seen, and the key with its cure.
RIGHT = {"accuracy": 0.98, "reward": 0.98, "groups_all_right": 0.96, "groups_all_wrong": 0.0}
WRONG = {"accuracy": 0.005, "reward": 0.1, "groups_all_right": 0.0, "groups_all_wrong": 0.97}
FLAT = {"accuracy": 0.3, "reward": 0.35}
PLANTED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "all groups right": (
        "all_right", {**RIGHT, "tests": lambda over: 0.99},
        ["98% of the samples were right in steps 1-5, all of them on 96%", "lower sft.warmup_epochs"],
    ),
    "all groups wrong": (
        "all_wrong", {**WRONG, "tests": lambda over: 0.0},
        ["of the samples were wrong in steps 16-20, all of them on 97%", "raise sft.warmup_epochs"],
    ),
    "chains cut off": (
        "cut_off", {"truncated": 0.4, "statuses": {"ok": 77, "truncated": 51}},
        ["40% of the samples in steps 16-20 were cut off at 80 tokens", "max_new_tokens to 160"],
    ),
    "format learned": (
        "format_only", {"statuses": form(70, 126), "accuracy": 0.2, "reward": line(0.25, 0.3)},
        ["from 59% to 94%", "right ones went from 20% to 20%", "reward.partial_reward from 0.1 to 0"],
    ),
    "entropy collapsed": (
        "entropy_collapsed", {"entropy": lambda over: 0.3 * 1e-3**over, **FLAT},
        ["fell from 0.16 to 0.00071 per token in steps 16-20, with 30% right", "ppo.temperature"],
    ),
    "KL runs away": (
        "kl_runaway", {"kl": line(0, 75), **FLAT},
        ["nats of KL per token in steps 16-20", "ppo.learning_rate from 3e-05 to 1e-05",
         "ppo.kl_coef from 0.01 to 0.05"],
    ),
    "KL penalty as large as the reward": (
        "kl_runaway", {"kl": line(0, 130), "response_length": 400.0, **FLAT}, ["nats of KL per token"],
    ),
    "clipped everywhere": (
        "clipped_everywhere", {"clip_fraction": 0.5, "approx_kl": 0.3},
        ["clipped on 50% of the tokens in steps 16-20", "ppo.learning_rate from 3e-05 to 1e-05",
         "ppo.ppo_epochs from 2 to 1"],
    ),
    "clipped nowhere": (
        "clipped_nowhere", {"clip_fraction": 0.0, "approx_kl": 1e-8, **FLAT},
        ["in steps 1-20", "1e-08 nats", "raise ppo.learning_rate from 3e-05 to 0.0003"],
    ),
    "sampler and trainer apart": (
        "sampler_apart", {"logprob_gap": 0.2, "sampler_weight": 1.02},
        ["0.2 nats between their log-probabilities", 'model.dtype = "float32"'],
    ),
    "weights at their cap": (
        "sampler_apart", {"sampler_truncated": 0.03}, ["3.0% of the tokens", "importance_sampling_cap"],
    ),
    "validation falls, reward rises": (
        "hacking", {"tests": line(0.6, 0.3), "reward": line(0.4, 0.9)},
        ["validation from 54% in step 5 to 30%, while the reward rose", "`reftune reward check`"],
    ),
    "right samples get fewer, reward rises": (
        "hacking", {"accuracy": line(0.5, 0.1), "reward": line(0.5, 1.8)},
        ["right answers from 46% of the samples to 14%, while the reward rose from 0.64 to 1.7"],
    ),
    "the sandbox fails": (
        "faults", {"statuses": {"ok": 110, "sandbox_error": 18}},
        ['14% of the samples in steps 16-20 are "sandbox_error"', "compute.sandbox_workers"],
    ),
    "the reward raises": (
        "faults", {"statuses": {"ok": 110, "reward_error": 18}}, ["your reward raises"],
    ),
    "the reward hangs": (
        "faults", {"statuses": {"ok": 110, "reward_timeout": 18}}, ["raise reward.seconds"],
    ),
    "the policy unlearns": (
        "collapsed", {"accuracy": lambda over: 0.6 if over < 0.5 else 0.1, "reward": 0.2},
        ["60% of the samples were right around step ", "10% in steps 16-20", "the best model is kept"],
    ),
    "one step destroys the policy": (
        "collapsed",
        {
            "accuracy": lambda over: 0.5 if over < 0.3 else 0.0, "reward": 0.2, "clip_fraction": 0.0,
            "approx_kl": lambda over: 2.0 if 0.25 < over < 0.3 else 0.0, "steps": 18,
            "truncated": lambda over: 0.0 if over < 0.3 else 1.0, "entropy": line(0.3, 0.0),
        },
        ["step 6 moved it by 2 nats per token, and right samples fell from 50% to",
         "ppo.learning_rate from 3e-05 to 1e-05"],
    ),
    "samples agree": (
        "samples_alike", {"groups_all_right": 0.5, "groups_all_wrong": 0.49, "steps": 40},
        ["on 99% of the questions in steps 33-40 (all right on 50%, all wrong on 49%)",
         "ppo.samples_per_question from 8 to 16"],
    ),
    "an update blows up": (
        "not_finite", {"loss": lambda over: 0.1 if over < 1 else math.nan},
        ["loss is not finite in step 20", "ppo.lr_warmup_steps = 10"],
    ),
}  # fmt: skip
NOTED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "critic_blind": (
        {"explained_variance": -0.2},
        ["explains -0.20 of the variance of returns in steps 16-20", 'ppo.advantage = "group"'],
    ),
    "solved": (
        {
            "groups_all_right": line(0.3, 1.0),
            "accuracy": line(0.6, 1.0),
            "groups_all_wrong": 0.0,
            "steps": 40,
        },
        ["lower ppo.steps", "all of them on 9"],
    ),
    "sharpened": ({"tests": lambda over: 0.5}, ["from 50% to 50%", "ppo.samples_per_question"]),
}


def names(found: list[Finding], level: str = "warning") -> list[str]:
    return [finding.name for finding in found if finding.level == level and not finding.gone]


def test_a_run_that_learns_is_left_in_peace() -> None:
    for steps in (10, 20, 300):
        assert diagnose(rows(steps), SETTINGS) == []


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_named_by_its_sentence_and_by_no_other(fault: str) -> None:
    name, changes, words = PLANTED[fault]
    found = diagnose(rows(**changes), SETTINGS)
    assert names(found) == [name]
    [sentence] = [finding.sentence for finding in found if finding.name == name]
    assert [word for word in words if word not in sentence] == [], sentence


def test_every_warning_has_been_planted_and_every_note_been_made() -> None:
    warnings = {name for name, symptom in SYMPTOMS.items() if symptom.level == "warning"}
    assert {name for name, *_ in PLANTED.values()} == warnings
    assert {*NOTED} == {*SYMPTOMS} - warnings


@pytest.mark.parametrize("name", NOTED)
def test_a_note_is_no_warning(name: str) -> None:
    changes, words = NOTED[name]
    found = diagnose(rows(**changes), SETTINGS)
    assert (names(found, "note"), names(found)) == ([name], [])
    assert [word for word in words if word not in found[0].sentence] == [], found[0].sentence


@pytest.mark.parametrize(
    "changes",
    [
        {"entropy": lambda over: 0.3 * 1e-3**over, **RIGHT, "groups_all_right": line(0.5, 0.8)},
        {"clip_fraction": 0.0, "approx_kl": 1e-8, "accuracy": line(0.3, 0.8)},
        {"clip_fraction": 0.0, "approx_kl": 1e-8, "learning_rate": 0.0, **FLAT},  # the critic's warm-up
        {"kl": line(0, 90)},  # 1.8 nats per token, for which there are more right answers
        {"statuses": form(70, 126), "accuracy": line(0.2, 0.5)},
        {"tests": line(0.6, 0.3), "reward": 0.5},
        {"tests": line(0.6, 0.52), "reward": line(0.4, 0.9)},  # 8 points of 200 questions are chance
        {"truncated": line(0.12, 0.1)},
        {"logprob_gap": 0.016, "sampler_weight": 1.0004},  # bfloat16
        {"statuses": {"ok": 127, "sandbox_error": 1}},
        {"groups_all_right": 0.6, "groups_all_wrong": 0.2},
        {"loss": None, "kl": None, "statuses": None, "entropy": None},
    ],
)
def test_what_looks_like_a_fault_and_is_none(changes: dict[str, Any]) -> None:
    assert names(diagnose(rows(**changes), SETTINGS)) == []


def test_a_warm_up_is_blamed_only_where_there_is_one() -> None:
    none = {key: value for key, value in SETTINGS.items() if key != "sft.warmup_epochs"}
    for changes in (RIGHT, WRONG):
        [found] = diagnose(rows(**changes), none)
        assert "sft" not in found.sentence


def test_without_a_critic_nothing_is_said_of_it() -> None:
    assert diagnose(rows(explained_variance=0.0), SETTINGS) == []


# What a setting changes in what is said: rows, settings, names of warnings, words that are (not) there.
@pytest.mark.parametrize(
    ("changes", "on", "warned", "there", "not_there"),
    [
        ({"clip_fraction": 0.5}, {"ppo.policy_loss": "gspo"}, [], [], []),
        ({"clip_fraction": 0.7}, {"ppo.policy_loss": "gspo"}, ["clipped_everywhere"], [], []),
        (
            {"clip_fraction": 0.5}, {"ppo.policy_loss": "dppo_tv"}, ["clipped_everywhere"],
            ["far beyond ppo.tv_range"], ["clip_range"],
        ),
        (
            {"clip_fraction": 0.5}, {"ppo.policy_loss": "cispo"}, ["clipped_everywhere"],
            ["far beyond ppo.clip_range_high"], [],
        ),
        (
            {"kl": line(0, 130), "response_length": 400.0, **FLAT}, {"ppo.kl_penalty": "loss_k3"},
            [], [], [],
        ),
        (
            {"truncated": 0.4, "statuses": {"ok": 77, "truncated": 51}}, {"ppo.mask_truncated": True},
            ["cut_off"], ["teach nothing whatever they say"], ["wrong"],
        ),
        (
            {"sampler_weight": None, "sampler_truncated": None, "sampler_masked": 0.2},
            {"ppo.importance_sampling": "token_mask"}, ["sampler_apart"],
            ["20.0% of the tokens masked", "widen ppo.importance_sampling_min"], ["_cap"],
        ),
        ({"sampler_masked": 0.05}, {"ppo.importance_sampling": "sequence_mask"}, [], [], []),
        ({"logprob_gap": 0.2}, {"ppo.async_rollouts": True}, [], [], []),
    ],
)  # fmt: skip
def test_what_a_setting_changes_in_what_is_said(
    changes: dict[str, Any],
    on: dict[str, Any],
    warned: list[str],
    there: list[str],
    not_there: list[str],
) -> None:
    found = diagnose(rows(**changes), {**SETTINGS, **on})
    assert names(found) == warned
    said = " ".join(finding.sentence for finding in found)
    assert [word for word in there if word not in said] == [], said
    assert [word for word in not_there if word in said] == [], said


def test_a_sampler_that_is_a_step_ahead_is_not_checked() -> None:
    ahead = {**SETTINGS, "ppo.async_rollouts": True}
    assert not_checked(rows(), ahead) == {"sampler_apart": "no ppo.async_rollouts"}
    assert "sampler_apart" not in not_checked(rows(), SETTINGS)


def test_a_blind_critic_is_not_told_to_do_what_is_refused_or_done() -> None:
    blind = rows(explained_variance=-0.2)
    [one] = diagnose(blind, {**SETTINGS, "ppo.samples_per_question": 1})
    assert one.sentence.endswith(' ppo.advantage = "group" and ppo.samples_per_question = 8')
    [sees] = diagnose(blind, {**SETTINGS, "ppo.value_features": ["group"]})
    assert "value_features" not in sees.sentence
    assert sees.sentence.endswith(': do without it by ppo.advantage = "group"')


def test_with_one_update_per_batch_a_ratio_of_one_is_right() -> None:
    still = rows(clip_fraction=0.0, approx_kl=0.0, **FLAT)
    once = {**SETTINGS, "ppo.ppo_epochs": 1}
    assert names(diagnose(still, once)) == []
    assert names(diagnose(still, once | {"ppo.minibatch_size": 64})) == ["clipped_nowhere"]


def test_with_one_sample_per_question_the_accuracy_tells_what_groups_would() -> None:
    alone = {"groups_all_right": None, "groups_all_wrong": None}
    settings = SETTINGS | {"ppo.samples_per_question": 1}
    assert names(diagnose(rows(**RIGHT | alone), settings)) == ["all_right"]
    assert names(diagnose(rows(**WRONG | alone), settings)) == ["all_wrong"]
    assert names(diagnose(rows(accuracy=0.85, **alone), settings)) == []


def test_with_dynamic_sampling_what_was_drawn_tells_and_not_what_was_kept() -> None:
    kept = rows(accuracy=0.5, groups_all_right=0.0, groups_all_wrong=0.0)
    assert names(diagnose(kept, SETTINGS)) == []
    drawn = [row | {"accuracy_drawn": 0.999} for row in kept]
    assert names(diagnose(drawn, SETTINGS)) == ["all_right"]
    drawn = [row | {"accuracy_drawn": 0.001} for row in kept]
    assert names(diagnose(drawn, SETTINGS)) == ["all_wrong"]


def test_a_few_questions_are_no_evidence() -> None:
    few = SETTINGS | {"ppo.samples_per_question": 32}
    told = {"statuses": {"ok": 64}}  # of two questions
    assert names(diagnose(rows(10, **RIGHT, **told), few)) == []
    assert names(diagnose(rows(10, truncated=0.3, **told), few)) == []
    assert names(diagnose(rows(60, truncated=0.5, **told), few)) == ["cut_off"]


def test_four_steps_are_too_few_unless_an_update_has_blown_up() -> None:
    early = rows(10, clip_fraction=0.9)[:4]
    assert diagnose(early, SETTINGS) == []
    early[3]["grad_norm"] = math.inf
    assert names(diagnose(early, SETTINGS)) == ["not_finite"]


def test_a_cause_is_told_in_place_of_what_follows_from_it() -> None:
    dead = WRONG | {"kl": 400.0, "clip_fraction": 0.8, "truncated": 1.0, "entropy": line(0.3, 0.0)}
    assert names(diagnose(rows(**dead), SETTINGS)) == ["kl_runaway"]
    assert names(diagnose(rows(**dead | {"kl": 0.0}), SETTINGS)) == ["clipped_everywhere"]
    assert names(diagnose(rows(**dead | {"kl": 0.0, "clip_fraction": 0.0}), SETTINGS)) == ["cut_off"]


def test_a_cause_that_is_seen_no_more_holds_as_long_as_what_follows_from_it() -> None:
    early = lambda over: 0.8 if over < 0.3 else 0.0  # noqa: E731
    dead = {"truncated": lambda over: 0.0 if over < 0.3 else 1.0, "clip_fraction": early}
    [found] = history(rows(30, **dead), SETTINGS)
    assert (found.name, found.step, found.gone) == ("clipped_everywhere", 5, False)
    watch = Watch([], SETTINGS)
    told = [finding.name for row in rows(30, **dead) for finding in watch.hear(row)]
    assert told == ["clipped_everywhere"]
    [alone] = history(rows(30, clip_fraction=early), SETTINGS)
    assert (alone.name, alone.gone) == ("clipped_everywhere", True)


def test_no_symptom_explains_itself_and_all_causes_are_symptoms() -> None:
    causes = {name: {*symptom.causes.split()} for name, symptom in SYMPTOMS.items()}
    done: set[str] = set()
    while left := {name for name in causes if name not in done}:
        ready = {name for name in left if causes[name] <= done}
        assert ready, f"{left} explain each other, or by what is no symptom"
        done |= ready


def test_runs_without_a_fault_raise_no_alarm_however_often_they_are_looked_at() -> None:
    alarms = [
        name for seed in range(40) for name in names([*Watch(drawn(seed), SETTINGS).told.values()])
    ]
    assert alarms == []


def drawn(seed: int, steps: int = 60) -> list[Row]:
    """Draw a run of 16 questions x 8 samples per step, of any difficulty, that learns or does not."""
    rng = random.Random(seed)
    skill, gain = rng.uniform(-1.5, 1.0), rng.choice((0.0, 0.02))
    solved = rng.uniform(0.3, 0.6)
    found = []
    for step in range(1, steps + 1):
        skill += gain
        chances = [1 / (1 + math.exp(-skill - rng.gauss(0, 1.5))) for _ in range(16)]
        right = [[rng.random() < chance for _ in range(8)] for chance in chances]
        samples = [one for group in right for one in group]
        lost = sum(rng.random() < 0.06 for one in samples if not one)
        row = {
            key: course(step / steps) if callable(course) else course for key, course in HEALTHY.items()
        }
        row |= {
            "step": step, "accuracy": sum(samples) / 128, "reward": 0.1 + 0.9 * sum(samples) / 128,
            "groups_all_right": sum(map(all, right)) / 16,
            "groups_all_wrong": sum(not any(group) for group in right) / 16,
            "truncated": lost / 128, "statuses": {"ok": 128 - lost, "truncated": lost},
            "explained_variance": rng.gauss(0.3, 0.1), "entropy": 0.2 * rng.uniform(0.7, 1.3),
        }  # fmt: skip
        if step % 10 == 0:
            row["validation_accuracy"] = sum(rng.random() < solved for _ in range(200)) / 200
        found.append(row)
    return found


def test_each_symptom_is_told_once_when_it_is_first_seen() -> None:
    cut = lambda over: 0.0 if over < 0.5 else 0.6  # noqa: E731
    watch = Watch([], SETTINGS)
    told = [(row["step"], f.name) for row in rows(40, truncated=cut) for f in watch.hear(row)]
    assert told == [(25, "cut_off")]


def test_long_runs_are_looked_at_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(diagnosis, "diagnose", lambda rows, *_: looks.append(len(rows)) or [])
    Watch(rows(1100), SETTINGS)
    assert looks[:3] == [5, 10, 15]
    assert looks[-3:] == [1000, 1050, 1100]
    assert len(looks) < 100


@pytest.mark.parametrize("logged", [25, 27, 30])
def test_what_was_told_before_an_interruption_is_not_told_again(logged: int) -> None:
    everything = rows(40, truncated=0.6)
    watch = Watch(everything[:logged], SETTINGS)
    assert [f.name for row in everything[22:] for f in watch.hear(row)] == []  # from step 23 on, anew
    assert [row["step"] for row in watch.rows] == [*range(1, 41)]


def test_what_has_passed_is_told_last_and_as_gone() -> None:
    late = rows(40, truncated=lambda over: 0.6 if over < 0.4 else 0.0, explained_variance=-0.1)
    found = history(late, SETTINGS)
    assert [(f.name, f.step, f.gone) for f in found] == [
        ("critic_blind", 20, False), ("cut_off", 5, True)
    ]  # fmt: skip
    assert str(found[1]).startswith("warning, cut_off (from step 5 on, gone since): ")


def test_what_cannot_be_seen_is_not_said_to_be_well() -> None:
    bare = [{"step": step, "reward": 0.5} for step in range(20)]
    assert {*SYMPTOMS} - {*not_checked(bare, {})} == {"not_finite"}
    assert not_checked(rows(), SETTINGS) == {}
    assert [*not_checked(rows(), {})] == ["clipped_nowhere"]


def test_numbers_that_are_none_harm_nobody() -> None:
    odd = [None, math.nan, math.inf, -math.inf, 1e308, 10**400, True]
    broken = rows(20)
    for key in HEALTHY:
        for value in odd if key != "statuses" else [{}, {"ok": -3}, {"ok": 10**30}]:
            for row in broken:
                row[key] = value
            history(broken, SETTINGS)
        for row, old in zip(broken, rows(20), strict=True):
            row |= old
    config = {"ppo": dict.fromkeys(("samples_per_question", "learning_rate", "kl_coef"), "x" * 9)}
    assert windows.settings_of(config | {"data": {"validation_size": 0}, "seed": math.nan}) == {}


def test_windows_by_hand() -> None:
    assert windows.error([1.0, 3.0, 1.0, 3.0], 2) == pytest.approx(math.sqrt(4 / 2))
    ten = [{"step": i, "x": x} for i, x in enumerate([0.0, 1.0] * 5 + [2.0, 3.0] * 5)]
    assert windows.risen(ten, "x")
    assert not windows.risen(ten, "x", sure=5)
    assert not windows.risen(ten[:10], "x")
    assert windows.steps_of(ten[3:5]) == "in steps 3-4"
    assert [windows.size([{}] * n) for n in (1, 25, 50, 1000)] == [5, 5, 10, 200]
    # Wilson, z = 3: 40 of 40 are at least 40 / (40 + 9).
    assert windows.at_least(1.0, 40) == pytest.approx(40 / 49, abs=1e-4)
    merged = windows.in_order(
        [{"step": 2, "a": 1}, {"step": 1}, {"a": 5}, {"step": "3"}, {"step": 2, "b": 2}]
    )
    assert merged == [{"step": 1}, {"step": 2, "a": 1, "b": 2}]


def test_faults_are_statuses() -> None:
    assert {*FAULTS} <= {*STATUSES}


def test_the_page_has_every_symptom_with_keys_that_exist() -> None:
    page = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \|(.*)$", page, re.MULTILINE)
    assert [name for name, _ in table] == [*SYMPTOMS]
    known = flat(Config.model_validate({"model": {"scratch": "tiny"}}).model_dump())
    for name, text in table:
        keys = re.findall(r"`([a-z]+\.[a-z_]+)", text)
        assert {*keys} <= {*known}, name
    told = [
        f.sentence for _, changes, _ in PLANTED.values() for f in diagnose(rows(**changes), SETTINGS)
    ]
    for sentence in told:
        keys = set(re.findall(r"\b(?:ppo|prompt|reward|sft|compute|model|data)\.[a-z_]+", sentence))
        assert keys - {"ppo.samples"} <= {*known}, sentence
