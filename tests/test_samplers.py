from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from scipy.stats import chisquare
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from precision import CLOSE, float64
from reftune.model.batch import collate
from reftune.model.policy import PolicyWithValue
from reftune.problem import Problem, UserError, Verdict
from reftune.sampling import shared_prefix
from reftune.sampling.decoders import PreallocatedLayer
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.rng import nucleus_tokens, sample_tokens, uniform
from reftune.sampling.sampler import Sample
from reftune.sampling.static_batch import LOOK_EVERY
from reftune.training.rollouts import compute_logprobs
from reftune.training.types import GradedSample
from tiny_models import EOS, FAMILIES, VOCAB, WINDOW, tiny_model

ENDS = [EOS, *range(2, 13)]  # many, so that random responses end at different times
NEVER = [VOCAB]
NEW = 12
MASK64 = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def make_prompts() -> list[list[int]]:
    """Return prompts of 1 to 11 tokens, some of them several times."""
    rng = random.Random(7)
    distinct = [[rng.randrange(13, VOCAB) for _ in range(n)] for n in (3, 11, 1, 5, 8, 2, 9, 3)]
    return [*distinct, *distinct[:4], distinct[1]]


def graded_of(samples: Sequence[Sample]) -> list[GradedSample]:
    """Return samples as `compute_logprobs` takes them; equal prompts are the same problem."""
    verdict = Verdict("no_result", None, False, 0.0)
    return [GradedSample(Problem(str(s.prompt), "q", "1"), s, "", verdict) for s in samples]


def generate_greedily(model: PreTrainedModel, prompts: list[list[int]]) -> list[list[int]]:
    """Return what `model.generate` writes after left-padded prompts, up to the first end."""
    width = max(map(len, prompts))
    ids = torch.tensor([[EOS] * (width - len(p)) + p for p in prompts])
    attended = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output: Any = model.generate(
        ids, attention_mask=attended, do_sample=False, max_new_tokens=NEW,
        pad_token_id=EOS, eos_token_id=ENDS,
    )  # fmt: skip
    rows = output[:, width:].tolist()
    return [row[: next((i + 1 for i, x in enumerate(row) if x in ENDS), NEW)] for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
@float64()
def test_greedy_tokens_are_those_of_generate(family: str) -> None:
    model, prompts = tiny_model(family, seed=1), make_prompts()
    samples = BuiltinSampler(model, ENDS).sample(
        prompts, range(len(prompts)), max_new_tokens=NEW, temperature=0.0
    )
    assert [s.tokens for s in samples] == generate_greedily(model, prompts)
    assert [s.prompt for s in samples] == prompts
    assert [s.finished for s in samples] == [s.tokens[-1] in ENDS for s in samples]
    lengths = {len(s.tokens) for s in samples}
    assert len(lengths) >= 3, "the rows should end at different times, or nothing is dropped"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@float64()
def test_sampler_and_trainer_agree_on_log_probabilities(family: str, temperature: float) -> None:
    model, prompts = tiny_model(family), make_prompts()
    samples = BuiltinSampler(model, ENDS).sample(
        prompts, range(len(prompts)), max_new_tokens=NEW, temperature=temperature
    )
    assert len({len(s.tokens) for s in samples}) >= 3
    graded = graded_of(samples)
    stats = compute_logprobs(PolicyWithValue(model), graded, temperature, 64, Accelerator(cpu=True))
    for row, sample in zip(stats.logprobs.tolist(), samples, strict=True):
        assert row[: len(sample.tokens)] == pytest.approx(sample.logprobs, abs=CLOSE)
        assert not any(row[len(sample.tokens) :])


@float64()
def test_logprobs_do_not_depend_on_how_the_batch_is_cut() -> None:
    policy = PolicyWithValue(tiny_model(), "shared")
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    prompts = make_prompts()
    samples = BuiltinSampler(policy.policy, ENDS).sample(
        prompts, range(len(prompts)), max_new_tokens=NEW, temperature=1.0
    )
    with torch.no_grad():
        whole = policy(collate(prompts, [s.tokens for s in samples]))
    for budget in (1, 50, 10_000):
        cut = compute_logprobs(policy, graded_of(samples), 1.0, budget, Accelerator(cpu=True))
        for expected, actual in zip(whole[:3], cut[:3], strict=True):
            torch.testing.assert_close(actual, expected, atol=CLOSE, rtol=0)


@float64()
def test_a_sample_depends_on_nothing_but_its_prompt_and_seed() -> None:
    model, prompts = tiny_model(), make_prompts()
    seeds = [3 - 2**63, -5, 0, 2**63 - 1, *range(10, 10 + len(prompts) - 4)]

    def draw(order: Sequence[int], max_rows: int) -> dict[int, Sample]:
        samples = BuiltinSampler(model, [EOS], max_rows).sample(
            [prompts[i] for i in order], [seeds[i] for i in order], max_new_tokens=NEW, temperature=1.0
        )
        return dict(zip(order, samples, strict=True))

    everyone = range(len(prompts))
    expected = draw(everyone, 512)
    assert len({tuple(s.tokens) for s in expected.values()}) == len(prompts)
    alone = {i: draw([i], 512)[i] for i in everyone}
    for samples in (draw(everyone, 1), draw(everyone, 4), draw(everyone[::-1], 5), alone):
        for i, sample in samples.items():
            assert sample.tokens == expected[i].tokens
            assert sample.logprobs == pytest.approx(expected[i].logprobs, abs=CLOSE)


def shapes_read(sampler: BuiltinSampler) -> list[tuple[int, ...]]:
    """Return a list that fills with the shapes of what the sampler's model reads from now on."""
    shapes: list[tuple[int, ...]] = []
    sampler.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("family", ["llama", "codegen"])
def test_equal_prompts_share_a_prefill_and_finished_rows_leave(family: str) -> None:
    prompts, sampler = make_prompts(), BuiltinSampler(tiny_model(family), ENDS)
    shapes = shapes_read(sampler)
    samples = sampler.sample(prompts * 4, range(4 * len(prompts)), max_new_tokens=NEW, temperature=1.0)
    assert shapes[0] == (8, 11)  # 8 distinct prompts, the longest of 11 tokens
    for t, (rows, width) in enumerate(shapes[1:], start=1):
        running = [s for s in samples if len(s.tokens) > t]
        needed = len({(*s.prompt, -1, *s.tokens[:t]) for s in running} if family == "llama" else running)
        assert width == 1
        assert needed <= rows < needed + len(running) / 9
    assert shapes[1][0] > shapes[-1][0]


@pytest.mark.parametrize("max_rows", [512, 20])
@float64()
def test_responses_are_one_row_until_they_differ(max_rows: int) -> None:
    policy = PolicyWithValue(tiny_model(), "shared")
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    prompts = [prompt for prompt in make_prompts() for _ in range(4)]

    def draw(rows: int) -> tuple[list[Sample], int]:
        sampler = BuiltinSampler(policy.policy, ENDS, rows, value_head=policy.value_head)
        shapes = shapes_read(sampler)
        samples = sampler.sample(prompts, range(len(prompts)), max_new_tokens=NEW, temperature=0.2)
        return samples, sum(rows for rows, width in shapes if width == 1)

    samples, together = draw(max_rows)
    one_by_one, apart = draw(1)
    for sample, alone in zip(samples, one_by_one, strict=True):
        assert sample.tokens == alone.tokens
        assert sample.logprobs == pytest.approx(alone.logprobs, abs=CLOSE)
        assert sample.values == pytest.approx(alone.values, abs=CLOSE)
    several = {(*s.prompt, -1, *s.tokens[:t]) for s in samples for t in range(1, len(s.tokens))}
    assert len(several) < 0.6 * apart, "the samples should begin alike"
    assert together < 1.1 * len(several) if max_rows == 512 else together < 0.9 * apart


@float64()
def test_prompts_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> tuple[list[Sample], list[tuple[int, ...]]]:
        sampler, prompts = BuiltinSampler(tiny_model(), ENDS), make_prompts()
        shapes = shapes_read(sampler)
        samples = sampler.sample(prompts, range(len(prompts)), max_new_tokens=NEW, temperature=1.0)
        return samples, shapes

    whole, _ = draw()
    monkeypatch.setattr(shared_prefix, "PREFILL_TOKENS", 23)
    pieces, shapes = draw()
    assert shapes[:4] == [(2, 2), (2, 3), (2, 8), (2, 11)]  # two at a time: 2 * 11 <= 23
    for a, b in zip(whole, pieces, strict=True):
        assert a.tokens == b.tokens
        assert a.logprobs == pytest.approx(b.logprobs, abs=CLOSE)


@pytest.mark.parametrize("family", ["llama", "codegen"])
def test_more_samples_than_rows_are_decoded_batch_by_batch(family: str) -> None:
    sampler = BuiltinSampler(tiny_model(family), ENDS, max_rows=8)
    shapes, prompts = shapes_read(sampler), [[20 + i // 8, 30 + i % 8] for i in range(20)]
    sampler.sample(prompts, range(len(prompts)), max_new_tokens=NEW, temperature=1.0)
    prefills = [i for i, (_, width) in enumerate(shapes) if width > 1]
    assert [shapes[i] for i in prefills] == [(8, 2), (8, 2), (4, 2)]
    assert all(shapes[i - 1][0] < 8 for i in prefills[1:])  # the last ones of a batch have few rows


def test_prompts_of_equal_length_are_decoded_together() -> None:
    sampler = BuiltinSampler(tiny_model(), NEVER, max_rows=2)
    shapes = shapes_read(sampler)
    prompts = [[20, 21], [30, 31, 32, 33, 34], [20, 21], [40, 41, 42, 43, 44]]
    sampler.sample(prompts, range(4), max_new_tokens=1, temperature=1.0)
    assert shapes == [(1, 2), (2, 5)]  # no padding, and [20, 21] is read once


@pytest.mark.parametrize("family", ["llama", "opt"])
@float64()
def test_values_on_the_way_are_the_trainers(family: str) -> None:
    policy, prompts = PolicyWithValue(tiny_model(family), "shared"), make_prompts()
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    sampler = BuiltinSampler(policy.policy, ENDS, 5, value_head=policy.value_head)
    samples = sampler.sample(prompts, range(len(prompts)), max_new_tokens=NEW, temperature=1.0)
    scores = compute_logprobs(policy, graded_of(samples), 1.0, 64, Accelerator(cpu=True))
    for row, sample in zip(scores.values.tolist(), samples, strict=True):
        assert sample.values == pytest.approx(row[: len(sample.tokens)], abs=CLOSE)
    assert max(abs(v) for s in samples for v in s.values or []) > 0.1


@pytest.mark.parametrize("mixed", [True, False])
def test_a_critic_speaks_beside_a_model_in_bfloat16(mixed: bool) -> None:
    """Mixed precision, or bfloat16 weights: states are rounded to 8 bits, the critic's sums are not."""
    model, prompts = tiny_model(), make_prompts()
    policy = PolicyWithValue(model if mixed else model.bfloat16(), "shared")
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    context = (lambda: torch.autocast("cpu", torch.bfloat16)) if mixed else nullcontext
    sampler = BuiltinSampler(policy.policy, ENDS, value_head=policy.value_head, context=context)
    samples = sampler.sample(prompts, range(len(prompts)), max_new_tokens=NEW, temperature=1.0)
    assert not sampler.exact
    with torch.no_grad(), context():
        stats = policy(collate(prompts, [s.tokens for s in samples]))
    said = torch.tensor([value for s in samples for value in s.values or []])
    read = torch.cat([row[: len(s.tokens)] for row, s in zip(stats.values, samples, strict=True)])
    assert said.dtype == torch.float32
    assert not torch.equal(said, said.bfloat16().float())  # the critic itself is not rounded
    assert torch.corrcoef(torch.stack((said, read.float())))[0, 1] > 0.98  # two roundings of one model


def test_a_model_with_another_head_gives_no_values() -> None:
    policy = PolicyWithValue(tiny_model("gemma2"), "shared")
    sampler = BuiltinSampler(policy.policy, ENDS, value_head=policy.value_head)
    [sample] = sampler.sample([[20, 21]], [0], max_new_tokens=3, temperature=1.0)
    assert sample.values is None


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    model, count = tiny_model("gemma2", final_logit_softcapping=1.5), 10_000
    samples = BuiltinSampler(model, ENDS, count).sample(
        [[8, 9, 10]] * count, range(count), max_new_tokens=1, temperature=temperature
    )
    with torch.no_grad():
        logits = model(torch.tensor([[8, 9, 10]])).logits[0, -1].double()
    weights = torch.exp(logits / temperature).tolist()
    expected = [count * w / sum(weights) for w in weights]
    assert min(expected) > 5
    seen = Counter(s.tokens[0] for s in samples)
    assert chisquare([seen[i] for i in range(VOCAB)], expected).pvalue > 0.01


def test_numbers_of_neighbouring_seeds_and_positions_are_independent() -> None:
    seeds = torch.arange(10_000)
    now, next_token, neighbour = uniform(seeds, 0), uniform(seeds, 1), uniform(seeds + 1, 0)
    for other in (next_token, neighbour):
        cells = torch.bincount((now * 8).long() * 8 + (other * 8).long(), minlength=64)
        assert chisquare(cells.tolist()).pvalue > 0.01


def test_uniform_is_splitmix64() -> None:
    # the generator's well-known output for seed 1234567
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
        4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    for t, number in enumerate(published):
        assert uniform(torch.tensor([1234567]), t).item() == (number >> 11) / 2**53


def test_uniform_agrees_with_whole_numbers_on_every_seed() -> None:
    rng = random.Random(0)
    seeds = [0, -1, 2**63 - 1, -(2**63), *(rng.randrange(-(2**63), 2**63) for _ in range(200))]
    for t in (0, 1, 5000):
        assert uniform(torch.tensor(seeds), t).tolist() == [
            (mix(seed + (t + 1) * GAMMA) >> 11) / 2**53 for seed in seeds
        ]


def test_a_token_of_probability_0_is_never_chosen() -> None:
    lowest, highest = -GAMMA, unmix(MASK64) - GAMMA
    seeds = torch.tensor([(s + 2**63) % 2**64 - 2**63 for s in (lowest, highest)])
    assert uniform(seeds, 0).tolist() == [0.0, 1 - 2**-53]  # which rounds to 1 in float32
    logits = torch.tensor([[-1e9, 0.0, 1.0, -1e9, -1e9]]).expand(2, -1)
    tokens, logprobs = sample_tokens(logits, seeds, 0, 1.0)
    assert tokens.tolist() == [1, 2]
    assert logprobs.tolist() == pytest.approx([-1.313262, -0.313262], abs=1e-5)


def test_the_most_likely_token_keeps_its_plain_probability() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, logprobs = sample_tokens(logits, torch.tensor([0]), 0, 0.0)
    assert tokens.tolist() == [1]
    assert logprobs.tolist() == pytest.approx([-0.407606], abs=1e-5)


def test_a_response_is_finished_only_if_it_ends_within_the_limit() -> None:
    model, prompt = tiny_model("gpt2"), [9, 8, 7]

    def greedy(eos: list[int], limit: int) -> Sample:
        [sample] = BuiltinSampler(model, eos).sample(
            [prompt], [0], max_new_tokens=limit, temperature=0.0
        )
        return sample

    free = greedy(NEVER, NEW)
    assert len(free.tokens) == len(free.logprobs) == NEW
    assert not free.finished
    end = next(i for i, token in enumerate(free.tokens) if i >= 2 and token not in free.tokens[:i])
    just_in_time = greedy([free.tokens[end]], end + 1)
    assert (just_in_time.tokens, just_in_time.finished) == (free.tokens[: end + 1], True)
    too_late = greedy([free.tokens[end]], end)
    assert (too_late.tokens, too_late.finished) == (free.tokens[:end], False)
    one = greedy([free.tokens[0]], 1)
    assert (one.tokens, one.finished) == (free.tokens[:1], True)
    assert greedy(NEVER, 1).finished is False


def test_no_prompts_give_no_samples() -> None:
    assert BuiltinSampler(tiny_model(), ENDS).sample([], [], max_new_tokens=3, temperature=1.0) == []


def test_a_model_without_a_key_value_cache_is_refused() -> None:
    config = MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(UserError, match=r"mamba .* no key-value cache"):
        BuiltinSampler(MambaForCausalLM(config), ENDS)


def test_a_model_that_says_something_else_with_a_cache_is_refused() -> None:
    model = tiny_model("bart")  # it counts the padding before a prompt as positions
    with pytest.raises(
        UserError,
        match=r"^a model of type bart cannot be sampled from: with a key-value cache it says something"
        r" else than without$",
    ):
        BuiltinSampler(model, ENDS)


def test_a_model_that_fails_with_a_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("keys of another size")

    monkeypatch.setattr(PreallocatedLayer, "update", fail)
    with pytest.raises(UserError, match=r"fails: .keys of another size.$"):
        BuiltinSampler(tiny_model("codegen"), ENDS)


@pytest.mark.parametrize(
    ("family", "shares"), [("llama", True), ("diffllama", False), ("deepseek_v3", False)]
)
def test_prompts_are_shared_only_where_a_trial_says_the_same(family: str, shares: bool) -> None:
    sampler = BuiltinSampler(tiny_model(family), ENDS)
    assert sampler.packed_forward.supports_packing
    assert sampler.shares_prompts is shares


@float64()
def test_a_window_in_the_settings_that_the_model_does_not_use_changes_nothing() -> None:
    model, prompts = tiny_model("moshi"), make_prompts()
    samples = BuiltinSampler(model, ENDS).sample(
        prompts, range(len(prompts)), max_new_tokens=NEW, temperature=0.0
    )
    assert max(len(s.prompt + s.tokens) for s in samples) > WINDOW
    for sample in samples:
        logits = model(torch.tensor([sample.prompt + sample.tokens])).logits[0]
        assert logits[len(sample.prompt) - 1 : -1].argmax(-1).tolist() == sample.tokens


def mix(z: int) -> int:
    """Return SplitMix64's output function on unsigned whole numbers."""
    z &= MASK64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK64
    return z ^ (z >> 31)


def unmix(z: int) -> int:
    """Return the state whose output is `z`."""
    z = unshift(z, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK64
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK64
    return unshift(z, 30)


def unshift(z: int, bits: int) -> int:
    """Return x where z = x ^ (x >> bits)."""
    x = z
    for _ in range(64 // bits):
        x = z ^ (x >> bits)
    return x


def test_the_nucleus_is_the_fewest_tokens_that_are_likely_enough() -> None:
    """Probabilities 0.5, 0.3, 0.15, 0.05, in another order in every row."""
    table = torch.tensor([[0.05, 0.5, 0.3, 0.15], [0.3, 0.15, 0.05, 0.5]])
    seeds = torch.arange(4000)
    rows = seeds % 2
    for top_p, left in ((0.45, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.9, 3), (0.96, 4), (1.0, 4)):
        chosen, logprobs = nucleus_tokens(table.log(), seeds, 0, 1.0, rows, top_p=top_p)
        drawn = table[rows, chosen]
        assert torch.allclose(logprobs, drawn.log()), "they are those of the whole distribution"
        inside = [0.5, 0.3, 0.15, 0.05][:left]
        counts = [int((drawn - p).abs().lt(1e-6).sum()) for p in inside]
        assert sum(counts) == 4000, (top_p, counts)
        expected = [4000 * p / sum(inside) for p in inside]
        assert left == 1 or chisquare(counts, expected).pvalue > 1e-3


def test_at_another_temperature_the_nucleus_is_another() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()  # squared: 0.36, 0.09, 0.01 of 0.46
    seeds = torch.arange(500)
    rows = torch.zeros_like(seeds)
    chosen, logprobs = nucleus_tokens(logits, seeds, 3, 0.5, rows, top_p=0.75)
    assert set(chosen.tolist()) == {0}
    assert logprobs.exp().tolist() == pytest.approx([0.36 / 0.46] * 500)
    assert set(nucleus_tokens(logits, seeds, 3, 1.0, rows, top_p=0.75)[0].tolist()) == {0, 1}
    greedy = nucleus_tokens(logits, seeds, 3, 0.0, rows, top_p=0.75)
    assert torch.equal(greedy[0], torch.zeros_like(seeds))
    assert greedy[1].exp().tolist() == pytest.approx([0.6] * 500)


@pytest.mark.parametrize("family", ["llama", "codegen"])
def test_who_has_enough_ends_and_changes_nobody_else(family: str) -> None:
    """Enough is a token of a kind: it ends its response within the steps between two looks."""
    prompts, model = make_prompts(), tiny_model(family)

    def draw(sampler: BuiltinSampler) -> list[Sample]:
        return sampler.sample(prompts, range(len(prompts)), max_new_tokens=40, temperature=1.0)

    free = draw(BuiltinSampler(model, NEVER, 5))
    stopped = draw(
        BuiltinSampler(model, NEVER, 5, enough=lambda rows: [bool({*ENDS} & {*row}) for row in rows])
    )
    for whole, cut in zip(free, stopped, strict=True):
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
        first = next((i + 1 for i, x in enumerate(whole.tokens) if x in ENDS), 40)
        assert min(first, 40) <= len(cut.tokens) < first + LOOK_EVERY
        assert cut.finished or len(cut.tokens) == 40
    assert any(len(cut.tokens) < 40 for cut in stopped)
