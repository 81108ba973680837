"""Symptoms of rewards that teach nothing, or something else than what is meant."""

import math
from statistics import fmean

from reftune.evaluation.doctor.windows import (
    LIKELY,
    STEPS,
    SURE,
    Rows,
    Settings,
    at_least,
    error,
    first,
    having,
    judged,
    mean,
    numbers,
    questions,
    recent,
    risen,
    size,
    statuses,
    steps_of,
)
from reftune.problem import ANSWERED

FEW_TEACH = 0.8  # share of the questions whose samples agree: from here on four of five are in vain
ALIKE = 0.9  # the same where some are right and others wrong, as they are late in a good run
ALL_RIGHT, ALL_WRONG = 0.9, 0.98  # shares of samples that mean the same where groups are not known
CUT_OFF = 0.15  # share of samples; up to a tenth is usual in the first steps, and goes by itself
LOST = 0.01  # share of samples that something other than the policy has spoilt
READABLE = 0.9  # share of samples whose answer can be read, beyond which form is learned
FEW_TESTS = 2  # validations to compare with as many
NEAR_THE_TOP = 0.9  # validation accuracy from which on there is not much to gain
OUT_OF_FORM = 0.1  # gain in that share; with a smaller one form was no matter
BY_FORM = 0.5  # of that gain: with more, right answers have come with the form

# Statuses that are not the policy's fault, or not its alone, and what mends them.
FAULTS = {
    "sandbox_error": "the sandbox failed, not the programs; lower compute.sandbox_workers, or give the"
    " machine more memory",
    "reward_error": "your reward raises; try it with `reftune reward check` and on the completions in"
    " ppo/samples.jsonl, and mend it (reward.max_failed only hides it)",
    "reward_timeout": "your reward takes too long; raise reward.seconds, or make it faster",
    "unsupported": "programs use what the sandbox does not have, and count as wrong; set"
    ' reward.full_python = true (docs/programs.md), or train on text with data.cot = "natural"',
}


def faults(rows: Rows, settings: Settings) -> str | None:
    """Find samples that were lost to the sandbox, or to the user's reward."""
    last = recent(rows)
    counts = statuses(last)
    shares = {name: counts[name] / max(1, counts.total()) for name in FAULTS}
    worst = max(shares, key=shares.__getitem__)
    if at_least(shares[worst], counts.total()) < LOST:
        return None
    return f'{shares[worst]:.0%} of the samples {steps_of(last)} are "{worst}": {FAULTS[worst]}'


def cut_off(rows: Rows, settings: Settings) -> str | None:
    """Find chains that the token limit has cut off."""
    last, limit = recent(rows), settings.get("prompt.max_new_tokens")
    share = mean(last, "truncated")
    if not at_least(share, questions(last, settings)) > CUT_OFF:
        return None
    fate = "teach nothing" if settings.get("ppo.mask_truncated") else "count as wrong"
    return (
        f"{share:.0%} of the samples {steps_of(last)} were cut off"
        f"{f' at {limit} tokens' if limit else ''}, and {fate} whatever they say; raise"
        f" prompt.max_new_tokens{f' to {2 * limit}' if limit else ''}"
    )


def all_right(rows: Rows, settings: Settings) -> str | None:
    """Find questions that are too easy from the first step on, or a reward that accepts everything."""
    if not (_all(first(rows), settings, "right") and _all(recent(rows), settings, "right", False)):
        return None
    return (
        f"nothing is left to learn: {_told(first(rows), 'right')} already; take harder questions, start"
        f" from an earlier model{_warm_up(settings, 'lower')}, and see with `reftune reward check` that"
        " the reward does not accept everything"
    )


def solved(rows: Rows, settings: Settings) -> str | None:
    """Find a policy that has come to answer nearly every question, and learns no more."""
    last = recent(rows)
    if _all(first(rows), settings, "right") or not _all(last, settings, "right"):
        return None
    return (
        f"these questions are learned: {_told(last, 'right')}; more steps teach little, so lower"
        " ppo.steps, or add harder questions"
    )


def all_wrong(rows: Rows, settings: Settings) -> str | None:
    """Find questions that are too hard from the first step on, or right answers not read as such."""
    last = recent(rows)
    if not (_all(first(rows), settings, "wrong") and _all(last, settings, "wrong", False)):
        return None
    return (
        f"there is nothing to reinforce: {_told(last, 'wrong')}; start from a stronger model"
        f"{_warm_up(settings, 'raise')}, take easier questions, raise ppo.samples_per_question, and see"
        " in ppo/samples.jsonl whether right answers are read as such"
    )


def _warm_up(settings: Settings, change: str) -> str:
    """Name the key that chooses the start, where there is a warm-up."""
    return f" ({change} sft.warmup_epochs)" if "sft.warmup_epochs" in settings else ""


def _told(rows: Rows, kind: str) -> str:
    right, groups = mean(rows, "accuracy"), mean(rows, f"groups_all_{kind}")
    share = right if kind == "right" else 1 - right
    whole = "" if math.isnan(groups) else f", all of them on {groups:.0%} of the questions"
    return f"{share:.0%} of the samples were {kind} {steps_of(rows)}{whole}"


def _all(rows: Rows, settings: Settings, kind: str, sure: bool = True) -> bool:
    """Tell whether nearly all questions have samples that are all right, or all wrong ("wrong")."""
    groups, n = mean(rows, f"groups_all_{kind}"), questions(rows, settings)
    if math.isnan(groups):  # one sample per question, or nobody says
        right = mean(rows, "accuracy")
        share, least = (right, ALL_RIGHT) if kind == "right" else (1 - right, ALL_WRONG)
    else:
        share, least = groups, FEW_TEACH
    return share > least and (not sure or at_least(share, n) > FEW_TEACH)


def samples_alike(rows: Rows, settings: Settings) -> str | None:
    """Find samples of a question that agree, where there are right and wrong ones."""
    last, samples = recent(rows), settings.get("ppo.samples_per_question")
    right, wrong = mean(last, "groups_all_right"), mean(last, "groups_all_wrong")
    alike = mean(last, "groups_alike")
    split = f" (all right on {right:.0%}, all wrong on {wrong:.0%})" if math.isnan(alike) else ""
    alike = right + wrong if split else alike
    if not at_least(alike, questions(last, settings)) > ALIKE:
        return None
    return (
        f"samples of one question agree: so on {alike:.0%} of the questions {steps_of(last)}{split}, and"
        " only the others teach; raise ppo.samples_per_question"
        f"{f' from {samples} to {2 * samples}' if samples else ''} or ppo.temperature, or take questions"
        " of a difficulty in between"
    )


def format_only(rows: Rows, settings: Settings) -> str | None:
    """Find a policy that learns how an answer looks, and not how to find it."""
    rows = [row for row in having(rows, "accuracy") if judged(row) > 0]
    if len(rows) < 2 * STEPS:
        return None
    count, right = size(rows), numbers(rows, "accuracy")
    form = [sum(row["statuses"].get(s, 0) for s in ANSWERED) / judged(row) for row in rows]
    (a, b), (c, d) = ((fmean(x[:count]), fmean(x[-count:])) for x in (form, right))
    gained = b - a - SURE * error(form, count)
    most = d - c + LIKELY * error(right, count)
    if b < READABLE or gained < OUT_OF_FORM or most > BY_FORM * gained:
        return None
    partial = settings.get("reward.partial_reward")
    return (
        f"form is learned and reasoning is not: answers that can be read rose from {a:.0%} to {b:.0%}"
        f" {steps_of(recent(rows))}, right ones went from {c:.0%} to {d:.0%};"
        f"{f' set reward.partial_reward from {partial:g} to 0,' if partial else ''} take easier"
        f" questions, or start from a model that knows more{_warm_up(settings, 'raise')}"
    )


def hacking(rows: Rows, settings: Settings) -> str | None:
    """Find a reward that rises while fewer answers are right, of validation questions or samples."""
    since, what = _fallen(rows, settings)
    if not what or not risen(since, "reward", SURE):
        return None
    return (
        f"the reward rises and what it stands for falls: {what}, while the reward rose from"
        f" {mean(first(since), 'reward'):.2g} to {mean(recent(since), 'reward'):.2g}"
        f" {steps_of(recent(since))}; read in ppo/samples.jsonl what is rewarded, try the reward with"
        " `reftune reward check`, or raise ppo.kl_coef; the best model is kept"
    )


def _fallen(rows: Rows, settings: Settings) -> tuple[Rows, str]:
    """Return since when fewer answers are right, beyond chance, and of what; an empty text for no."""
    tests, n = having(rows, "validation_accuracy"), settings.get("data.validation_size")
    if tests and n:
        peak = max(tests, key=lambda row: row["validation_accuracy"])
        best, last = peak["validation_accuracy"], tests[-1]["validation_accuracy"]
        pooled = (best + last) / 2
        if best - last > SURE * math.sqrt(2 * max(0.0, pooled * (1 - pooled)) / n):
            since = [row for row in rows if row["step"] > peak["step"] - STEPS]
            return since, f"validation from {best:.0%} in step {peak['step']:g} to {last:.0%}"
    if risen(rows, "accuracy", SURE, sign=-1):
        before, now = mean(first(rows), "accuracy"), mean(recent(rows), "accuracy")
        return rows, f"right answers from {before:.0%} of the samples to {now:.0%}"
    return rows, ""


def sharpened(rows: Rows, settings: Settings) -> str | None:
    """Find samples that get better where greedy answers to validation questions do not."""
    tests = numbers(rows, "validation_accuracy")
    half = len(tests) // 2
    if half < FEW_TESTS or not risen(rows, "accuracy") or max(tests) > NEAR_THE_TOP:
        return None
    before, after = fmean(tests[:half]), fmean(tests[-half:])
    if after > before:
        return None
    return (
        f"the policy gets surer and not better: samples went from {mean(first(rows), 'accuracy'):.0%} to"
        f" {mean(recent(rows), 'accuracy'):.0%} right, greedy answers to validation questions from"
        f" {before:.0%} to {after:.0%}; more or other training questions, or a higher"
        " ppo.samples_per_question, would let it find what it does not know"
    )
