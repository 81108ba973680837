"""Symptoms of updates that go wrong: too large, too small, in a wrong direction, on wrong samples."""

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean, median

from reftune.evaluation.doctor.windows import (
    STEPS,
    SURE,
    Rows,
    Settings,
    error,
    first,
    having,
    mean,
    now,
    numbers,
    recent,
    risen,
    size,
    steps_of,
)

FAR = 1.0  # nats per token: the start gives each token an e-th of the policy's probability
MUCH_CLIPPED = 0.3  # share of tokens; steps that teach clip some 1%, large ones 10 to 20%
MUCH_CLIPPED_BY = {"gspo": 0.6}  # which clips a sixth in runs that learn (Zheng et al. 2025, figure 2)
RANGES = {"cispo": "ppo.clip_range_high", "dppo_tv": "ppo.tv_range"}
LEAP = 1.0  # approx_kl of a step; those of runs that learn stay below a third of it
STANDS_STILL = 1e-6  # approx_kl: below, what an update changes is next to rounding
LOGPROB_GAP = 0.05  # nats; bfloat16 makes 0.01 to 0.02
PROBABILITY_GAP = 0.01  # what verl's documentation calls a fault of precision
WEIGHT_OFF = 0.05  # of the mean importance weight, which is 1 where both agree
WEIGHTS_CAPPED = 0.01  # share of tokens
MUCH_MASKED = 0.1  # share of tokens; to leave out a few is what masks are for
ABLE = 0.1  # accuracy that there is something to lose of
HALF = 0.5  # of the accuracy: less than that is no bad luck
LITTLE_ENTROPY = 0.1  # of what it was in the first steps; runs that get better keep a third or more
NEARLY_RIGHT = 0.9  # accuracy from which on little entropy is as it should be
BLIND = 0.1  # explained variance that is next to none
VARIED = (0.05, 0.95)  # accuracies between which there is something to foresee

LOWER = 1 / 3
LESS_RATE = "ppo.learning_rate"


def not_finite(rows: Rows, settings: Settings) -> str | None:
    """Find a loss, gradient norm, reward or KL that is no finite number."""
    for row in rows:
        for key in ("loss", "grad_norm", "reward", "kl"):
            value = row.get(key)
            if isinstance(value, float) and not math.isfinite(value):
                return (
                    f"{key} is not finite in step {row['step']:g}: an update has blown up; lower"
                    f" {now(settings, LESS_RATE, LOWER)}, and let it rise slowly with"
                    " ppo.lr_warmup_steps = 10"
                )
    return None


def kl_runaway(rows: Rows, settings: Settings) -> str | None:
    """Find a policy that leaves its reference, and does not get better by it."""
    last, held = recent(rows), settings.get("ppo.kl_coef", 0.0)
    per_token = _kl_per_token(last)
    in_rewards = settings.get("ppo.kl_penalty", "reward") == "reward"
    cost = held * mean(last, "kl") if held and in_rewards else 0.0  # a right answer is worth 1
    if not (per_token > FAR or cost > 1) or risen(rows, "accuracy"):
        return None
    return (
        f"the policy runs away from its start: {per_token:.2g} nats of KL per token {steps_of(last)},"
        f" with no gain in right answers; lower {now(settings, LESS_RATE, LOWER)}, or raise"
        f" {now(settings, 'ppo.kl_coef', 5)}"
    )


def _kl_per_token(rows: Rows) -> float:
    known = numbers(rows, "kl_per_token")
    summed = having(rows, "kl", "response_length")
    known += [row["kl"] / max(1.0, row["response_length"]) for row in summed]
    return fmean(known) if known else math.nan


def clipped_everywhere(rows: Rows, settings: Settings) -> str | None:
    """Find updates that go far beyond the clip range."""
    last, epochs = recent(rows), settings.get("ppo.ppo_epochs", 0)
    share, loss = mean(last, "clip_fraction"), settings.get("ppo.policy_loss", "clip")
    if not share > MUCH_CLIPPED_BY.get(loss, MUCH_CLIPPED):
        return None
    return (
        f"the ratio is clipped on {share:.0%} of the tokens {steps_of(last)}: updates go far beyond"
        f" {_range(settings)}; lower {now(settings, LESS_RATE, LOWER)}"
        f"{f', or ppo.ppo_epochs from {epochs} to 1' if epochs > 1 else ''}"
    )


def clipped_nowhere(rows: Rows, settings: Settings) -> str | None:
    """Find updates that change next to nothing; with one per batch the ratio is 1 rightly."""
    moving = [r for r in having(rows, "clip_fraction", "approx_kl") if r.get("learning_rate", 1.0)]
    if len(moving) < 2 * STEPS or _updates(settings) < 2 or risen(rows, "accuracy"):
        return None
    moved = fmean(abs(row["approx_kl"]) for row in moving)
    if any(row["clip_fraction"] for row in moving) or moved > STANDS_STILL:
        return None
    return (
        f"the policy stands still: nothing has reached {_range(settings)} {steps_of(moving)}, and"
        f" updates move it by {moved:.1g} nats per token; raise {now(settings, LESS_RATE, 10)}"
    )


def _range(settings: Settings) -> str:
    """Name the key that bounds an update."""
    return RANGES.get(settings.get("ppo.policy_loss", ""), "ppo.clip_range")


def _updates(settings: Settings) -> int:
    """Return how many optimizer steps a batch gets."""
    batch = settings["ppo.questions_per_step"] * settings["ppo.samples_per_question"]
    minibatch = settings.get("ppo.minibatch_size") or batch
    return int(settings["ppo.ppo_epochs"] * math.ceil(batch / minibatch))


def sampler_apart(rows: Rows, settings: Settings) -> str | None:
    """Find a sampler whose probabilities are not the trainer's."""
    last = recent(rows)
    seen = (
        ("logprob_gap", 0.0, LOGPROB_GAP, "{:.3g} nats between their log-probabilities of a token"),
        ("probability_gap", 0.0, PROBABILITY_GAP, "{:.3g} between their probabilities of a token"),
        ("sampler_weight", 1.0, WEIGHT_OFF, "a mean importance weight of {:.3g}"),
        ("sampler_truncated", 0.0, WEIGHTS_CAPPED, "{:.1%} of the tokens at the weights' cap"),
        ("sampler_masked", 0.0, MUCH_MASKED, "{:.1%} of the tokens masked"),
    )
    masks = settings.get("ppo.importance_sampling", "").endswith("_mask")
    keep = (
        "widen ppo.importance_sampling_min and ppo.importance_sampling_max"
        if masks
        else "keep ppo.importance_sampling_cap = 2"
    )
    for key, expected, allowed, told in seen:
        found = mean(last, key)
        if abs(found - expected) > allowed:
            return (
                f"sampler and trainer are apart: {told.format(found)} {steps_of(last)}, so PPO learns"
                ' from the samples of another policy; set model.dtype = "float32" to see whether that is'
                f" rounding, and {keep}"
            )
    return None


def collapsed(rows: Rows, settings: Settings) -> str | None:
    """Find a policy that could do far more than it can now."""
    rows = having(rows, "accuracy")
    found, count = numbers(rows, "accuracy"), size(rows)
    if destroyed := _at_once(rows, found, settings):
        return destroyed
    if len(found) < 2 * STEPS:
        return None
    sums = [0.0, *accumulate(found)]
    means = [(b - a) / count for a, b in zip(sums, sums[count:], strict=False)]
    best, last = max(means), means[-1]
    if best < ABLE or last > HALF * best or best - last < SURE * error(found, count):
        return None
    return (
        f"the policy has unlearned: {best:.0%} of the samples were right around step"
        f" {rows[means.index(best)]['step']:g}, {last:.0%} {steps_of(recent(rows))}; lower"
        f" {now(settings, LESS_RATE, LOWER)}, or raise ppo.kl_coef; the best model is kept"
    )


def _at_once(rows: Rows, found: Sequence[float], settings: Settings) -> str | None:
    """Find a step behind which hardly anything is right."""
    for i, row in enumerate(rows[: 1 - STEPS]):
        if not having([row], "approx_kl") or row["approx_kl"] < LEAP:
            continue
        before, after = fmean(found[: i + 1]), fmean(found[i + 1 :])
        if before > ABLE and after < HALF * before:
            return (
                f"one step has destroyed the policy: step {row['step']:g} moved it by"
                f" {row['approx_kl']:.2g} nats per token, and right samples fell from {before:.0%} to"
                f" {after:.0%}; lower {now(settings, LESS_RATE, LOWER)}, or raise ppo.kl_coef"
            )
    return None


def entropy_collapsed(rows: Rows, settings: Settings) -> str | None:
    """Find a policy that tries nothing any more, though it is not right."""
    last = recent(rows)
    before, after, right = mean(first(rows), "entropy"), mean(last, "entropy"), mean(last, "accuracy")
    if len(rows) < 2 * STEPS or not (after < LITTLE_ENTROPY * before and right < NEARLY_RIGHT):
        return None
    return (
        f"the policy tries nothing any more: entropy fell from {before:.2g} to {after:.2g} per token"
        f" {steps_of(last)}, with {right:.0%} right; lower {now(settings, LESS_RATE, LOWER)}, sample at"
        " a higher ppo.temperature, or set ppo.clip_range_high = 0.28 or ppo.entropy_coef = 0.001"
    )


def critic_blind(rows: Rows, settings: Settings) -> str | None:
    """Find a critic that foresees no more than a constant would."""
    last, (low, high) = recent(rows), VARIED
    found = numbers(last, "explained_variance")
    if len(rows) < 2 * STEPS or not low < mean(last, "accuracy") < high:
        return None
    if not any(found) or median(found) > BLIND:  # exactly 0: there is no critic
        return None
    features = 'let it go by ppo.value_features = ["group", "surprise"], or '
    alone = settings.get("ppo.samples_per_question") == 1
    several = " and ppo.samples_per_question = 8" if alone else ""
    return (
        f"the critic explains {median(found):.2f} of the variance of returns {steps_of(last)}, no more"
        f" than a constant: {'' if settings.get('ppo.value_features') else features}do without it by"
        f' ppo.advantage = "group"{several}'
    )
