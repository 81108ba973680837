"""What a critic goes by beside the state: by hand, in loops over tokens, and that nothing leaks."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from made_rollouts import graded_sample, make_rollouts
from reftune.training.types import Rollouts
from reftune.training.value_features import (
    FEATURES,
    company,
    group,
    success_rate,
    surprise,
)

RATES = {"a": 0.25, "b": 0.0}


def table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def batch(*samples: tuple[str, list[int], float, list[float]], unjudged: Sequence[int] = ()) -> Rollouts:
    """Return rollouts of (question, tokens, reward, log-probabilities)."""
    graded = [
        graded_sample(q, tokens, reward, status="sandbox_error" if i in unjudged else "ok")
        for i, (q, tokens, reward, _) in enumerate(samples)
    ]
    return make_rollouts(graded, [logprobs for *_, logprobs in samples])


def flat(*samples: tuple[str, list[int], float], unjudged: Sequence[int] = ()) -> Rollouts:
    """Return rollouts whose log-probabilities do not matter."""
    return batch(*((q, t, r, [-1.0] * len(t)) for q, t, r in samples), unjudged=unjudged)


def company_token_by_token(rows: list[list[int]], rewards: list[float], i: int) -> list[list[float]]:
    """Return what `company` says of one row, as its docstring says it."""
    others = [j for j in range(len(rows)) if j != i]
    if not others:
        return [[0.0] * 3 for _ in rows[i]]
    baseline = math.fsum(rewards[j] for j in others) / len(others)
    numbers, mean = [], baseline
    for t in range(len(rows[i])):
        alike = [j for j in others if len(rows[j]) >= t and rows[j][:t] == rows[i][:t]]
        if alike:
            mean = math.fsum(rewards[j] for j in alike) / len(alike)
        numbers.append([baseline, mean - baseline, len(alike) / len(others)])
    return numbers


def test_the_other_samples_of_a_question_by_hand() -> None:
    rollouts = flat(("a", [5, 6, 7], 1.0), ("a", [5, 6, 8, 9], 0.0), ("a", [4, 6], 0.5))
    found = group(rollouts, {})
    # The others' mean is (0 + 1/2) / 2; the second alone has begun with 5, and with 5 6.
    torch.testing.assert_close(
        found[0], table([[0.25, 0, 1], [0.25, -0.25, 0.5], [0.25, -0.25, 0.5], [0, 0, 0]])
    )
    # Nobody has begun with 5 6 8: the first, who came along to 5 6, still tells the most.
    torch.testing.assert_close(
        found[1], table([[0.75, 0, 1], [0.75, 0.25, 0.5], [0.75, 0.25, 0.5], [0.75, 0.25, 0]])
    )
    # Nobody else has begun with 4; all of them have begun with nothing.
    torch.testing.assert_close(found[2], table([[0.5, 0, 1], [0.5, 0, 0], [0, 0, 0], [0, 0, 0]]))


def test_a_sample_that_ends_where_another_goes_on_has_begun_like_it_up_to_there() -> None:
    found = group(flat(("a", [5, 6, 7], 1.0), ("a", [5, 6], 0.5), ("a", [5], 0.0)), {})
    # behind 5: the second and the third; behind 5 6: the second
    torch.testing.assert_close(found[0], table([[0.25, 0, 1], [0.25, 0, 1], [0.25, 0.25, 0.5]]))


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_company_agrees_with_loops_over_tokens(rows: int) -> None:
    rng = random.Random(rows)
    for _ in range(8):
        texts = [[rng.randrange(2) for _ in range(rng.randint(1, 6))] for _ in range(rows)]
        rewards = [rng.random() for _ in range(rows)]
        time = max(map(len, texts))
        tokens = torch.tensor([[*text, *[1] * (time - len(text))] for text in texts])
        mask = table([[1.0] * len(text) + [0.0] * (time - len(text)) for text in texts])
        found = company(tokens, mask, torch.tensor(rewards, dtype=torch.float64))
        for i, text in enumerate(texts):
            expected = table(company_token_by_token(texts, rewards, i))
            torch.testing.assert_close(found[i, : len(text)], expected)
            assert not found[i, len(text) :].any()


def test_the_first_number_is_the_leave_one_out_baseline_as_verl_has_it() -> None:
    rewards = [1.0, 0.1, 0.0, 1.0, 0.3, 0.7]
    samples = [("a" if i < 4 else "b", [i], reward) for i, reward in enumerate(rewards)]
    found = group(flat(*samples), {})[:, 0, 0]
    # compute_rloo_outcome_advantage of verl (volcengine/verl, verl/trainer/ppo/core_algos.py at
    # 012be9d9dcb7) on the same rewards, of two questions
    verl = [0.6333333333333333, -0.5666666666666667, -0.7, 0.6333333333333333, -0.4, 0.4]
    torch.testing.assert_close(torch.tensor(rewards, dtype=torch.float64) - found, table([verl])[0])


def test_a_question_with_one_sample_says_nothing() -> None:
    assert not group(flat(("a", [5, 6], 1.0), ("b", [5, 6], 0.5)), {}).any()


def test_questions_do_not_know_each_other() -> None:
    mine = [("a", [5, 6, 7], 1.0), ("a", [5, 8], 0.0)]
    alone = group(flat(*mine), {})
    among = group(flat(("b", [5, 6, 7], 0.3), mine[0], ("c", [5, 6], 0.9), mine[1], ("b", [5], 1.0)), {})
    torch.testing.assert_close(among[[1, 3]], alone)


def test_what_nobody_judged_counts_for_nobody() -> None:
    judged = [("a", [5, 6, 7], 1.0), ("a", [5, 6, 8], 0.5), ("b", [4, 4, 4], 1.0)]
    more = [("a", [5, 6, 7], 9.0), judged[0], judged[1], ("b", [4, 4, 4], 9.0), judged[2]]
    for name, feature in FEATURES.items():
        alone = feature.compute(flat(*judged), RATES)
        among = feature.compute(flat(*more, unjudged=(0, 3)), RATES)
        torch.testing.assert_close(among[[1, 2, 4]], alone, msg=name)
        assert not among[[0, 3]].any(), name


def test_surprise_by_hand() -> None:
    rollouts = batch(
        ("a", [5, 6, 7, 8], 1.0, [-1.0, -3.0, -2.0, -4.0]), ("a", [5, 6], 0.0, [-0.5, -0.25])
    )
    found = surprise(rollouts, {})
    # so far -1, -4, -6 in all, -1, -3, -3 at least, -1, -3, -2 at last; in tens and fives
    expected = table([[0, 0, 0], [-0.1, -0.2, -0.2], [-0.4, -0.6, -0.6], [-0.6, -0.6, -0.4]])
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], table([[0, 0, 0], [-0.05, -0.1, -0.1], [0, 0, 0], [0, 0, 0]]))


def test_success_rates_of_the_steps_before_by_hand() -> None:
    rollouts = flat(("a", [5, 6], 1.0), ("b", [5], 1.0), ("c", [5, 6], 0.0))
    found = success_rate(rollouts, RATES)
    torch.testing.assert_close(found[0], table([[0.25, 1], [0.25, 1]]))
    torch.testing.assert_close(found[1], table([[0, 1], [0, 0]]))  # known to fail, then padding
    torch.testing.assert_close(found[2], table([[0, 0], [0, 0]]))  # unknown


@pytest.mark.parametrize("name", FEATURES)
def test_no_feature_of_a_token_knows_that_token_what_follows_or_what_became_of_it(name: str) -> None:
    rng, compute = random.Random(3), FEATURES[name].compute

    def drawn(length: int) -> tuple[list[int], list[float]]:
        return [rng.randrange(2) for _ in range(length)], [-rng.random() for _ in range(length)]

    def sample(question: str) -> tuple[str, list[int], float, list[float]]:
        tokens, logprobs = drawn(rng.randint(2, 5))
        return question, tokens, rng.random(), logprobs

    for _ in range(10):
        samples = [sample(q) for q in "aaaabb"]
        before = compute(batch(*samples), RATES)
        for i, (question, tokens, _, logprobs) in enumerate(samples):
            t = rng.randrange(len(tokens))
            others = drawn(rng.randint(1, 4))
            changed = (question, tokens[:t] + others[0], rng.random(), logprobs[:t] + others[1])
            after = compute(batch(*samples[:i], changed, *samples[i + 1 :]), RATES)
            torch.testing.assert_close(after[i, : t + 1], before[i, : t + 1])


@pytest.mark.parametrize("name", FEATURES)
def test_no_feature_turns_the_policys_gradient(name: str) -> None:
    """Over all that a policy can sample, sum P * d log pi * feature is exactly 0, state by state."""
    chances = {"": 0.3, "0": 0.8, "1": 0.45}  # of the token 1
    rewards = {"00": 1.0, "01": 0.1, "10": 0.0, "11": 0.7}

    def logprobs(text: str) -> list[float]:
        ones = [chances[text[:t]] for t in range(2)]
        return [math.log(p if c == "1" else 1 - p) for p, c in zip(ones, text, strict=True)]

    sums = {state: torch.zeros(len(FEATURES[name].prior), dtype=torch.float64) for state in chances}
    for texts in itertools.product(rewards, repeat=3):
        samples = [("a", [int(c) for c in text], rewards[text], logprobs(text)) for text in texts]
        chance = math.exp(math.fsum(sum(logprobs(text)) for text in texts))
        found = FEATURES[name].compute(batch(*samples), RATES)
        for i, text in enumerate(texts):
            for t in range(2):
                slope = (text[t] == "1") - chances[text[:t]]
                sums[text[:t]] += chance * slope * found[i, t]
    for state, total in sums.items():
        torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-12, rtol=0, msg=state)


@pytest.mark.parametrize("name", FEATURES)
def test_padding_and_row_order_change_nothing(name: str) -> None:
    samples = [
        ("a", [5, 6, 7], 1.0, [-1.0, -0.5, -2.0]),
        ("b", [5], 0.5, [-3.0]),
        ("a", [5, 6], 0.0, [-1.0, -0.1]),
        ("b", [7, 7, 7], 0.2, [-1.0, -1.0, -0.3]),
    ]
    rates: Mapping[str, float] = RATES
    whole = FEATURES[name].compute(batch(*samples), rates)
    order = [2, 3, 0, 1]
    torch.testing.assert_close(
        FEATURES[name].compute(batch(*(samples[i] for i in order)), rates), whole[order]
    )
    longer = ("c", [5] * 5, 0.9, [-1.0] * 5)
    wider = FEATURES[name].compute(batch(*samples, longer), rates)
    torch.testing.assert_close(wider[:4, :3], whole)
    assert not wider[:4, 3:].any()


def test_each_number_has_a_first_weight() -> None:
    rollouts = flat(("a", [5], 1.0), ("a", [5, 6], 0.0))
    for feature in FEATURES.values():
        assert feature.compute(rollouts, {}).shape == (2, 2, len(feature.prior))
