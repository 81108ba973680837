"""Sampling, judging and scoring as one: who does what, what counts, and nothing is read twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from precision import CLOSE, float64
from reftune.config import Compute, Lora, Prompt
from reftune.model.lora import add_adapter
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.model.scratch import train_tokenizer
from reftune.problem import Problem, Status, UserError, Verdict
from reftune.sampling.sampler import Sample, Sampler
from reftune.training import rollouts as module
from reftune.training.rollouts import (
    Generator,
    accuracy,
    compute_logprobs,
    graded_rows,
    make_generator,
    question_groups,
    read_batch,
    sequence_seed,
    visiting,
)
from reftune.training.types import GradedSample, Rollouts
from tiny_models import tiny_model
from tiny_stage import OneOf

SETTINGS: dict[str, Any] = {"samples": 3, "temperature": 1.0, "token_budget": 4096, "key": ("key",)}
FEW = Compute(sampler_rows=5)
PROBLEMS = [Problem(str(i), f"what is {i}?", str(i)) for i in range(4)]


def collect(
    generator: Generator,
    policy: PolicyWithValue,
    reference: PolicyWithValue | None,
    problems: Sequence[Problem],
    *,
    samples: int,
    temperature: float,
    token_budget: int,
    key: tuple[str, ...],
) -> Rollouts:
    """Sample and read a batch, as a step of PPO does."""
    graded = generator.generate(problems, samples, temperature, key=key)
    reading = {"temperature": temperature, "token_budget": token_budget}
    return read_batch(generator, policy, reference, graded, **reading)


class Inexact:
    """A sampler whose numbers are not the trainer's."""

    exact = False

    def __init__(self, sampler: Sampler) -> None:
        self.sample, self.update_weights = sampler.sample, sampler.update_weights


def make_prompter() -> Prompter:
    tokenizer = train_tokenizer(["what is it? Question: Answer reasoning:"], 300)
    return Prompter(tokenizer, Prompt(max_new_tokens=6), "natural")


def judge(problems: Sequence[Problem], texts: Sequence[str], *_: object) -> list[Verdict]:
    return [Verdict("ok", None, len(text) % 2 == 1, float(len(text) % 2)) for text in texts]


def make_policies(critic: str) -> tuple[PolicyWithValue, PolicyWithValue]:
    policy = PolicyWithValue(tiny_model(vocab_size=300), critic)
    if policy.value_head is not None:
        torch.nn.init.normal_(policy.value_head.weight)
    return policy, PolicyWithValue(tiny_model(seed=1, vocab_size=300))


@pytest.mark.parametrize("critic", ["none", "shared", "separate"])
@float64()
def test_the_samplers_numbers_are_taken_where_they_are_the_trainers(critic: str) -> None:
    policy, reference = make_policies(critic)
    generator = make_generator(policy, make_prompter(), judge, Accelerator(cpu=True), Compute())
    reads: list[int] = []
    policy.register_forward_hook(lambda *_: reads.append(1))
    taken = collect(generator, policy, reference, PROBLEMS, **SETTINGS)
    assert bool(reads) == (critic == "separate")  # whose values the sampler cannot know
    reads.clear()
    other = replace(generator, sampler=Inexact(generator.sampler))
    read = collect(other, policy, reference, PROBLEMS, **SETTINGS)
    assert reads
    for name in ("mask", "sampler_logprobs", "logprobs", "ref_logprobs", "values"):
        torch.testing.assert_close(getattr(taken, name), getattr(read, name), atol=CLOSE, rtol=0)
    assert bool(taken.values.any()) == (critic != "none")


def test_what_the_judge_raises_reaches_the_caller() -> None:
    def refuse(*_: object) -> list[Verdict]:
        raise UserError("no such reward")

    policy, _ = make_policies("none")
    generator = make_generator(policy, make_prompter(), refuse, Accelerator(cpu=True), Compute())
    with pytest.raises(UserError, match="no such reward"):
        generator.generate(PROBLEMS, 2, 1.0, key=("key",))


class Told:
    """A sampler that is told its samples (by default one token each), and what it was asked for."""

    def __init__(self, *samples: Sample, exact: bool = True) -> None:
        self.samples, self.exact = samples, exact
        self.prompts: list[list[int]] = []
        self.seeds: list[int] = []
        self.settings: dict[str, float] = {}

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        **settings: float,
    ) -> list[Sample]:
        self.prompts, self.seeds, self.settings = [list(p) for p in prompts], list(seeds), settings
        return list(self.samples) or [Sample(list(p), [65], [0.0], True) for p in prompts]

    def update_weights(self, weights: object) -> None:
        """Nothing that was told depends on them."""


def verdicts_of(*statuses: Status) -> Callable[..., list[Verdict]]:
    """Return a judge with these statuses, whose rewards count from 0.25."""

    def judge(problems: Sequence[Problem], *_: object) -> list[Verdict]:
        return [Verdict(status, None, status == "ok", (i + 1) / 4) for i, status in enumerate(statuses)]

    return judge


def test_an_engine_or_a_judge_that_loses_a_row_is_noticed() -> None:
    one = Sample([1], [65], [0.0], True)
    for sampler, judge in ((Told(one), verdicts_of("ok", "ok")), (Told(one, one), verdicts_of("ok"))):
        generator = Generator(sampler, judge, make_prompter(), Accelerator(cpu=True))
        with pytest.raises(ValueError, match="shorter than"):
            generator.generate(PROBLEMS[:2], 1, 1.0, key=("key",))


def test_the_sampler_gets_the_weights_of_the_policys_language_model() -> None:
    policy, _ = make_policies("shared")
    got: dict[str, torch.Tensor] = {}
    sampler = Told()
    sampler.update_weights = got.update  # type: ignore[method-assign]
    Generator(sampler, judge, make_prompter(), Accelerator(cpu=True)).update_weights(policy)
    assert got.keys() == dict(policy.policy.named_parameters()).keys()
    assert all(got[name] is weight for name, weight in policy.policy.named_parameters())


def test_the_sampler_gets_weights_with_the_adapter_added() -> None:
    policy, _ = make_policies("shared")
    plain = dict(policy.policy.named_parameters())
    add_adapter(policy.policy, Lora(rank=2, targets=["q_proj"]))
    for parameter in policy.policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    got: dict[str, torch.Tensor] = {}
    sampler = Told()
    sampler.update_weights = got.update  # type: ignore[method-assign]
    Generator(sampler, judge, make_prompter(), Accelerator(cpu=True)).update_weights(policy)
    assert got.keys() == plain.keys()
    for name, weight in got.items():
        assert torch.equal(weight, plain[name]) == ("q_proj" not in name), name


def test_a_seed_is_the_blake2b_hash_of_its_key() -> None:
    # printf 42/ppo/1/0/0 | b2sum -l 64, read as a little-endian signed number; and so on
    assert sequence_seed(42, "ppo", 1, 0, 0) == 2142331383667118842
    assert sequence_seed("42/ppo/1", 0, 1) == 651229424974488361
    assert sequence_seed("key", 0, 0) == -5364845092165798592


# Of the key (42, "ppo", 1, question, sample), as above.
SEEDS = {
    (0, 0): 2142331383667118842, (0, 1): 651229424974488361,
    (1, 0): 965304647032557416, (1, 1): -6432673703818550155,
    (2, 0): -2187469056460992038, (2, 1): -1971392248718919952,
}  # fmt: skip


def test_questions_are_dealt_to_processes_and_every_sample_has_a_seed_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gathered: list[list[Any]] = []

    def gather(mine: list[Any]) -> list[Any]:
        gathered.append(mine)
        return [pair for part in reversed(gathered) for pair in reversed(part)]

    monkeypatch.setattr(module, "gather_object", gather)
    prompter = make_prompter()
    prompts = [prompter.encode_prompt(problem) for problem in PROBLEMS]
    for index, questions in enumerate(([0, 2], [1])):
        told = Told()
        generator = Generator(told, judge, prompter, OneOf(index, 2))
        graded = generator.generate(PROBLEMS[:3], 2, 0.5, key=(42, "ppo", 1))
        assert told.prompts == [prompts[i] for i in questions for _ in range(2)]
        assert told.seeds == [SEEDS[i, k] for i in questions for k in range(2)]
        assert told.settings == {"max_new_tokens": 6, "temperature": 0.5}
    assert [g.problem.id for g in graded] == ["0", "0", "1", "1", "2", "2"]


def test_a_process_alone_gathers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gather_object", None)
    generator = Generator(Told(), judge, make_prompter(), Accelerator(cpu=True))
    assert len(generator.generate(PROBLEMS, 2, 1.0, key=("key",))) == 8
    assert generator.generate([], 2, 1.0, key=("key",)) == []


def test_a_sandbox_that_runs_nothing_at_all_stops_the_run() -> None:
    judges = verdicts_of("sandbox_error", "sandbox_error")
    generator = Generator(Told(), judges, make_prompter(), Accelerator(cpu=True))
    with pytest.raises(UserError) as error:
        generator.generate(PROBLEMS[:1], 2, 1.0, key=("key",))
    assert str(error.value) == (
        "the sandbox could run none of the programs; is pydantic-monty installed whole?"
    )
    generator = replace(generator, judge=verdicts_of("sandbox_error", "timeout"))
    assert [a.verdict.status for a in generator.generate(PROBLEMS[:2], 1, 1.0, key=("key",))] == [
        "sandbox_error", "timeout",
    ]  # fmt: skip


def test_each_sample_is_judged_with_its_question_and_its_text() -> None:
    asked: list[tuple[list[str], list[str], list[bool], list[int]]] = []

    def judge(
        problems: Sequence[Problem],
        texts: Sequence[str],
        finished: Sequence[bool],
        tokens: Sequence[int] | None = None,
    ) -> list[Verdict]:
        asked.append(([p.id for p in problems], list(texts), list(finished), list(tokens or ())))
        return [Verdict("ok", None, True, float(i)) for i in range(len(problems))]

    samples = [Sample([1], [40 + i, 60][: 2 - i // 3], [0.0, 0.0], i % 2 == 0) for i in range(4)]
    prompter = make_prompter()
    generator = Generator(Told(*samples), judge, prompter, Accelerator(cpu=True))
    graded = generator.generate(PROBLEMS[:2], 2, 1.0, key=("key",))
    texts = [prompter.decode(PROBLEMS[i // 2], s.tokens, s.finished) for i, s in enumerate(samples)]
    assert len(set(texts)) == 4
    assert asked == [(["0", "0", "1", "1"], texts, [True, False, True, False], [2, 2, 2, 1])]
    assert graded == [
        GradedSample(PROBLEMS[i // 2], sample, texts[i], Verdict("ok", None, True, float(i)))
        for i, sample in enumerate(samples)
    ]


@pytest.mark.parametrize(
    ("ends", "expected"), [(None, [0]), (7, [0, 7]), ([9, 7, 0], [0, 7, 9]), ("nothing", [0])]
)
def test_a_response_ends_where_the_tokenizer_or_the_model_says(ends: Any, expected: list[int]) -> None:
    policy, _ = make_policies("none")
    if ends == "nothing":
        policy.policy.generation_config = None
    else:
        policy.policy.generation_config.eos_token_id = ends
    prompter = make_prompter()
    assert prompter.eos == 0
    generator = make_generator(policy, prompter, judge, Accelerator(cpu=True), FEW)
    assert generator.sampler.eos.tolist() == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize("critic", ["none", "shared", "separate"])
def test_the_generators_sampler_reads_the_policy_itself(critic: str) -> None:
    policy, prompter, accelerator = make_policies(critic)[0], make_prompter(), Accelerator(cpu=True)
    generator = make_generator(policy, prompter, judge, accelerator, FEW)
    sampler: Any = generator.sampler
    assert sampler.model is policy.policy
    assert sampler.packed_forward is policy.packed_forward
    assert sampler.max_rows == 5
    assert sampler.context is nullcontext
    assert sampler.value_head is (policy.value_head if critic == "shared" else None)
    assert (generator.judge, generator.prompter, generator.accelerator) == (judge, prompter, accelerator)
    mixed = Mixed(cpu=True)
    assert make_generator(policy, prompter, judge, mixed, FEW).sampler.context == mixed.autocast  # type: ignore[attr-defined]


class Mixed(Accelerator):  # type: ignore[misc]
    mixed_precision = "bf16"


@pytest.mark.parametrize(
    ("accelerator", "dtype", "exact"),
    [
        (Accelerator, torch.float32, True), (Mixed, torch.float32, False),
        (Accelerator, torch.bfloat16, False), (Mixed, torch.bfloat16, False),
    ],
)  # fmt: skip
def test_only_in_float32_are_the_samplers_numbers_the_trainers(
    accelerator: type[Accelerator], dtype: torch.dtype, exact: bool
) -> None:
    policy = PolicyWithValue(tiny_model(vocab_size=300).to(dtype))
    generator = make_generator(policy, make_prompter(), judge, accelerator(cpu=True), FEW)
    assert generator.sampler.exact is exact


TWO: dict[str, Any] = {"samples": 2, "token_budget": 4096, "key": ("key",)}
# Two samples of two questions; the judge's sandbox fails on the third.
PROMPT_A, PROMPT_B = [20, 21, 22], [30, 31]
SAMPLES = [
    Sample(PROMPT_A, [7, 8], [-0.5, -1.5], True, [0.25, 0.5]),
    Sample(PROMPT_A, [9], [-2.5], True, [0.75]),
    Sample(PROMPT_B, [7, 8, 1], [-3.5, -4.5, -5.5], False, [1.0, 1.25, 1.5]),
    Sample(PROMPT_B, [1], [-6.5], True, [1.75]),
]
LOGPROBS = [[-0.5, -1.5, 0.0], [-2.5, 0.0, 0.0], [-3.5, -4.5, -5.5], [-6.5, 0.0, 0.0]]
VALUES = [[0.25, 0.5, 0.0], [0.75, 0.0, 0.0], [1.0, 1.25, 1.5], [1.75, 0.0, 0.0]]


def told_generator(samples: Iterable[Sample] = SAMPLES, exact: bool = True) -> Generator:
    judges = verdicts_of("ok", "timeout", "sandbox_error", "ok")
    return Generator(Told(*samples, exact=exact), judges, make_prompter(), Accelerator(cpu=True))


@torch.no_grad()
def row_by_row(policy: PolicyWithValue, temperature: float) -> list[list[list[float]]]:
    """Return log-probabilities, entropies and values of SAMPLES, each row read by itself."""
    rows: list[list[list[float]]] = [[], [], []]
    for sample in SAMPLES:
        output = policy.policy(torch.tensor([sample.prompt + sample.tokens]), output_hidden_states=True)
        found: list[list[float]] = [[], [], []]
        for t, token in enumerate(sample.tokens):
            place = len(sample.prompt) - 1 + t
            logits = [x / temperature for x in output.logits[0, place].double().tolist()]
            total = math.log(sum(math.exp(x) for x in logits))
            found[0].append(logits[token] - total)
            found[1].append(-sum(math.exp(x - total) * (x - total) for x in logits))
            state = output.hidden_states[-1][0, place]
            head = policy.value_head
            found[2].append(0.0 if head is None else float(state @ head.weight[0] + head.bias))
        for kind, numbers in zip(rows, found, strict=True):
            kind.append(numbers + [0.0] * (3 - len(numbers)))
    return rows


def close(tensor: torch.Tensor, numbers: list[list[float]]) -> None:
    torch.testing.assert_close(tensor, torch.tensor(numbers), atol=CLOSE, rtol=CLOSE)


@float64()
def test_a_batch_by_hand() -> None:
    policy, reference = make_policies("none")
    samples = [replace(sample, values=None) for sample in SAMPLES]
    found = collect(
        told_generator(samples),
        policy,
        reference,
        PROBLEMS[:2],
        samples=2,
        temperature=0.5,
        token_budget=4096,
        key=("key",),
    )
    assert [a.problem.id for a in found.samples] == ["0", "0", "1", "1"]
    assert [a.sample for a in found.samples] == samples
    assert found.groups.tolist() == [0, 0, 1, 1]
    assert found.rewards.tolist() == [0.25, 0.5, 0.75, 1.0]
    # The third row, the longest one, was not judged: it keeps its place, and teaches nothing.
    assert found.mask.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert found.sampler_logprobs.tolist() == found.logprobs.tolist() == LOGPROBS
    assert found.values.tolist() == [[0.0] * 3] * 4
    close(found.ref_logprobs, row_by_row(reference, 0.5)[0])


def test_a_critics_values_come_with_the_samples() -> None:
    policy, reference = make_policies("shared")
    found = collect(
        told_generator(),
        policy,
        reference,
        PROBLEMS[:2],
        samples=2,
        temperature=1.0,
        token_budget=4096,
        key=("key",),
    )
    assert found.values.tolist() == VALUES
    assert found.logprobs.tolist() == LOGPROBS


@pytest.mark.parametrize("missing", [0, 3])
@float64()
def test_where_one_samples_values_are_not_known_the_policy_reads_them_all(missing: int) -> None:
    policy, reference = make_policies("shared")
    samples = [replace(s, values=None) if i == missing else s for i, s in enumerate(SAMPLES)]
    found = collect(
        told_generator(samples),
        policy,
        reference,
        PROBLEMS[:2],
        samples=2,
        temperature=0.5,
        token_budget=4096,
        key=("key",),
    )
    logprobs, _, values = row_by_row(policy, 0.5)
    assert found.sampler_logprobs.tolist() == LOGPROBS
    close(found.logprobs, logprobs)
    close(found.values, values)
    assert found.mask.sum() == 4


@float64()
def test_where_the_sampler_is_not_the_trainer_the_policy_reads_its_samples() -> None:
    policy, reference = make_policies("none")
    found = collect(
        told_generator(exact=False),
        policy,
        reference,
        PROBLEMS[:2],
        samples=2,
        temperature=0.5,
        token_budget=4096,
        key=("key",),
    )
    assert found.sampler_logprobs.tolist() == LOGPROBS
    close(found.logprobs, row_by_row(policy, 0.5)[0])
    assert not found.values.any()


def graded_of(*statuses: Status) -> list[GradedSample]:
    judged = verdicts_of(*statuses)(PROBLEMS)
    problems = (PROBLEMS[0], PROBLEMS[0], PROBLEMS[1], PROBLEMS[1])
    return [
        GradedSample(problem, sample, f"so {i}", verdict)
        for i, (problem, sample, verdict) in enumerate(zip(problems, SAMPLES, judged, strict=False))
    ]


@pytest.mark.parametrize("budget", [1, 9, 4096])
@float64()
def test_logprobs_are_those_of_each_row_by_itself(budget: int) -> None:
    policy, graded = make_policies("shared")[0], graded_of("ok", "ok", "ok", "ok")
    stats = compute_logprobs(policy, graded, 0.5, budget, Accelerator(cpu=True))
    for tensor, numbers in zip(stats[:3], row_by_row(policy, 0.5), strict=True):
        close(tensor, numbers)
    assert not stats.logprobs.requires_grad


@float64()
def test_processes_share_the_scoring() -> None:
    policy, graded = make_policies("shared")[0], graded_of("ok", "ok", "ok", "ok")
    first, second = (compute_logprobs(policy, graded, 0.5, 4096, OneOf(i, 2)) for i in (0, 1))
    # The second question's rows are the shorter ones: the first process gets the other's.
    expected = row_by_row(policy, 0.5)
    for mine, other, numbers in zip(first[:3], second[:3], expected, strict=True):
        assert not mine[2:].any()
        assert not other[:2].any()
        close(mine + other, numbers)


def test_scoring_keeps_to_the_budget_and_a_questions_rows_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, ...]] = []

    def noted(*given: Any) -> torch.Tensor:
        asked.append(given)
        return original(*given)

    original = module.sharded_map
    monkeypatch.setattr(module, "sharded_map", noted)
    policy, reference = make_policies("none")
    generator = told_generator(exact=False)
    key = ("key",)
    collect(
        generator, policy, reference, PROBLEMS[:2], samples=2, temperature=1.0, token_budget=77, key=key
    )
    assert len(asked) == 2  # the policy, and the reference
    for empty, _, lengths, budget, accelerator, groups in asked:
        assert empty.shape == (3, 4, 3)
        assert (lengths, budget, groups) == ([5, 4, 5, 3], 77, [0, 0, 1, 1])
        assert accelerator == generator.accelerator


def test_samples_of_one_question_share_a_number() -> None:
    problems = [Problem(name, "?", "1") for name in ("b", "a", "b", "c", "a")]
    graded = [GradedSample(p, SAMPLES[0], "", Verdict("ok", None, True, 1.0)) for p in problems]
    assert question_groups(graded) == [0, 1, 0, 2, 1]


def test_accuracy_leaves_out_what_could_not_be_judged() -> None:
    assert accuracy(graded_of("ok", "timeout", "sandbox_error", "ok")) == pytest.approx(2 / 3)
    assert accuracy(graded_of("timeout", "sandbox_error")) == 0.0
    assert accuracy(graded_of("sandbox_error")) == 0.0
    assert accuracy([]) == 0.0
    odd = replace(graded_of("ok")[0], verdict=Verdict("sandbox_error", None, True, 1.0))
    assert accuracy([odd, *graded_of("timeout")]) == 0.0


def test_a_graded_sample_as_a_row() -> None:
    problem = Problem("p", "2 + 2?", "4", "2 + 2 = 4")
    graded = GradedSample(problem, SAMPLES[0], "it is 5", Verdict("ok", 5.0, False, 0.125))
    assert graded_rows([graded]) == [
        {
            "id": "p", "question": "2 + 2?", "answer": "4", "completion": "it is 5", "status": "ok",
            "value": 5.0, "correct": False, "reward": 0.125,
        }
    ]  # fmt: skip


def test_a_reference_visits_the_device_while_it_reads() -> None:
    reference = PolicyWithValue(tiny_model())
    where = []
    reference.to = lambda device: where.append(str(device))  # type: ignore[assignment,method-assign]
    with visiting(reference, torch.device("meta")):
        where.append("reads")
    assert where == ["meta", "reads", "cpu"]
