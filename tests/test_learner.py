"""What every training stage does the same way: rates, one exact optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from precision import CLOSE, float64
from reftune.model.batch import collate
from reftune.model.policy import PolicyWithValue
from reftune.training.learner import Learner, linear_schedule, online_schedule
from reftune.training.optimizer import make_optimizer
from tiny_models import tiny_model

PROMPTS = [[20 + i % 3] * (1 + i % 3) for i in range(11)]
RESPONSES = [[7 + i] * (1 + i % 4) for i in range(11)]


# The optimizer and its rates.


class Parts(nn.Module):
    """Parameters named as those of a language model with what may be put beside it."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(1, 1, bias=False))


def described(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> list[tuple[list[str], float, float]]:
    """Return of each group the names of its parameters, its rate and its peak."""
    names = {id(p): name.partition(".")[0] for name, p in model.named_parameters()}
    groups = optimizer.param_groups
    return [([names[id(p)] for p in g["params"]], g["lr"], g["peak"]) for g in groups]


def test_heads_learn_at_a_rate_of_their_own() -> None:
    model = Parts("policy", "value_backbone", "value_head", "class_head", "backbone")
    optimizer = make_optimizer(model, 1e-4, 0.25, 1e-2)
    assert described(optimizer, model) == [
        (["policy", "backbone"], 1e-4, 1e-4),
        (["value_backbone", "value_head", "class_head"], 1e-2, 1e-2),
    ]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert all(group["fused"] for group in optimizer.param_groups)  # one pass over all weights, not many


def test_heads_learn_at_the_models_rate_if_no_other_is_given() -> None:
    model = Parts("policy", "value_head")
    expected = [(["policy"], 1e-4, 1e-4), (["value_head"], 1e-4, 1e-4)]
    assert described(make_optimizer(model, 1e-4, 0.0), model) == expected
    assert described(make_optimizer(model, 1e-4, 0.0, None), model) == expected


def test_a_model_without_a_head_has_one_group() -> None:
    model = Parts("policy", "lm_head")
    optimizer = make_optimizer(model, 1e-4, 0.0, 1e-2)
    assert described(optimizer, model) == [(["policy", "lm_head"], 1e-4, 1e-4)]


def test_factors_are_of_the_peak_and_one_for_each_group() -> None:
    model = Parts("policy", "value_head")
    optimizer = make_optimizer(model, 1e-4, 0.0, 1e-2)
    learner = Learner(model, optimizer, Accelerator(cpu=True), 1, 1.0)
    for policy, critic in ((0.0, 1.0), (0.5, 0.25), (0.5, 0.25)):  # twice: not of the rate before
        learner.set_learning_rates(policy, critic)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([policy * 1e-4, critic * 1e-2])


def test_factors_for_a_model_without_a_head() -> None:
    model = Parts("policy")
    optimizer = make_optimizer(model, 1e-4, 0.0)
    Learner(model, optimizer, Accelerator(cpu=True), 1, 1.0).set_learning_rates(0.5, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5e-4])


@pytest.mark.parametrize(
    ("total", "share", "factors"),
    [
        # two of eight steps up, then in six steps from 1 towards 0
        (8, 0.25, [1 / 2, 2 / 2, 6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (8, 0.5, [1 / 4, 2 / 4, 3 / 4, 4 / 4, 4 / 4, 3 / 4, 2 / 4, 1 / 4]),
        (4, 0.0, [4 / 4, 3 / 4, 2 / 4, 1 / 4]),
        (4, 1.0, [1 / 4, 2 / 4, 3 / 4, 4 / 4]),
        (4, 0.1, [1.0, 3 / 3, 2 / 3, 1 / 3]),  # 0.4 of a step is one
        (5, 0.5, [1 / 2, 2 / 2, 3 / 3, 2 / 3, 1 / 3]),  # 2.5 steps are two: half to even
        (2, 0.5, [1.0, 1.0]),
        (1, 0.0, [1.0]),
        (1, 1.0, [1.0]),
    ],
)
def test_linear_schedule_by_hand(total: int, share: float, factors: list[float]) -> None:
    assert [linear_schedule(step, total, share) for step in range(total)] == pytest.approx(factors)


def test_linear_schedule_ends_at_zero() -> None:
    assert linear_schedule(8, 8, 0.25) == 0.0
    assert linear_schedule(4, 4, 1.0) == 0.0


@pytest.mark.parametrize(
    ("warmup", "falling", "factors"),
    [
        (0, False, [1, 1, 1, 1]),
        (2, False, [1 / 2, 1, 1, 1]),
        (0, True, [1, 3 / 4, 2 / 4, 1 / 4]),
        (1, True, [1, 3 / 4, 2 / 4, 1 / 4]),
        (2, True, [1 / 2, 1, 2 / 3, 1 / 3]),
        (4, True, [1 / 4, 2 / 4, 3 / 4, 1]),
        (8, True, [1 / 8, 2 / 8, 3 / 8, 4 / 8]),
    ],
)
def test_online_schedule_by_hand(warmup: int, falling: bool, factors: list[float]) -> None:
    found = [online_schedule(step, 4, warmup, falling=falling) for step in (1, 2, 3, 4)]
    assert found == pytest.approx(factors)


# One step, on a model of two numbers whose gradient is known.


class Pair(nn.Module):
    """Two numbers, 0 at first; the gradient of a row's loss in each is that row's entry of SLOPES."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Parameter(torch.zeros(()))
        self.value_head = nn.Parameter(torch.zeros(()))


SLOPES = [(1.0, 0.0), (2.0, 0.0), (0.0, 3.0), (0.0, 1.0)]  # their sum is (3, 4), of norm 5


def slopes(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = 0.5 * weights.sum()
    for row, weight in zip(mine, weights, strict=True):
        first, second = SLOPES[row]
        if first:  # a row that says nothing of a number gives it no gradient, not even 0
            loss = loss + weight * first * model.policy
        if second:
            loss = loss + weight * second * model.value_head
    return loss, {"rows": weights.sum(), "tens": 10 * weights.sum()}


def step_of(
    accelerator: Accelerator | None = None, *, budget: int = 100, norm: float = 100.0, **more: Any
) -> tuple[list[float], dict[str, float], Pair]:
    """Take a plain gradient step of rate 1; return both numbers, what it tells, and the model."""
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    learner = Learner(model, optimizer, accelerator or Accelerator(cpu=True), budget, norm)
    told = learner.step(range(4), [2] * 4, more.get("loss_fn", slopes))
    return [model.policy.item(), model.value_head.item()], told, model


@pytest.mark.parametrize("budget", [1, 2, 4, 100])  # one row at a time, ..., all at once
def test_a_step_sums_the_gradients_of_all_rows_however_they_are_cut(budget: int) -> None:
    numbers, told, _ = step_of(budget=budget)
    assert numbers == [-3.0, -4.0]
    assert told == {"loss": 2.0, "rows": 4.0, "tens": 40.0, "grad_norm": 5.0}


def test_gradients_do_not_pile_up_from_step_to_step() -> None:
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    learner = Learner(model, optimizer, Accelerator(cpu=True), 4, 100.0)
    for _ in range(3):
        told = learner.step(range(4), [2] * 4, slopes)
    assert (model.policy.item(), model.value_head.item()) == (-9.0, -12.0)
    assert told["grad_norm"] == 5.0


def test_a_long_gradient_is_scaled_down_as_a_whole() -> None:
    numbers, told, _ = step_of(norm=1.0)
    assert numbers == pytest.approx([-0.6, -0.8], rel=1e-6)  # (3, 4) / 5
    assert told["grad_norm"] == 5.0  # before clipping
    assert step_of(norm=6.0)[0] == [-3.0, -4.0]  # a short one is not scaled up


def test_a_group_whose_rate_is_zero_moves_neither_its_moments_nor_the_norm() -> None:
    model = Pair()
    optimizer = make_optimizer(model, 0.5, 0.0, 0.25)
    learner = Learner(model, optimizer, Accelerator(cpu=True), 4, 100.0)
    learner.set_learning_rates(0.0, 1.0)
    for _ in range(3):
        assert learner.step(range(4), [2] * 4, slopes)["grad_norm"] == 4.0  # of (3, 4) the second
    assert (model.policy.item(), model.value_head.item()) == (0.0, pytest.approx(-0.75))
    assert not optimizer.state[model.policy]
    learner.set_learning_rates(1.0, 1.0)
    assert learner.step(range(4), [2] * 4, slopes)["grad_norm"] == 5.0
    assert model.policy.item() == pytest.approx(-0.5)  # Adam's first step has the length of its rate


@pytest.mark.parametrize("slope", [math.inf, math.nan])
def test_a_step_of_non_finite_norm_is_not_taken(slope: float) -> None:
    def broken(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return model.policy * slope + model.value_head, {}

    numbers, told, model = step_of(loss_fn=broken)
    assert numbers == [0.0, 0.0]
    assert not math.isfinite(told["grad_norm"])
    assert model.policy.grad is None


@pytest.mark.parametrize("count", [1, 2])
def test_gradients_are_gone_when_a_step_is_over(count: int) -> None:
    with threads(count):
        numbers, _, model = step_of()
    assert numbers == [-3.0, -4.0]
    assert (model.policy.grad, model.value_head.grad) == (None, None)


class Scaling(Accelerator):
    """It scales losses up, as in float16 on a GPU."""

    def __init__(self, scale: float) -> None:
        super().__init__(cpu=True)
        self.scaler = torch.amp.GradScaler("cpu", scale)

    def unscale_gradients(self, optimizer: Any = None) -> None:
        for prepared in self._optimizers:
            self.scaler.unscale_(prepared.optimizer)


@pytest.mark.parametrize(
    ("scale", "left"),
    [(2.0**10, 2.0**10), (2.0**127, 2.0**125)],  # 4 * 2^126 is no float32, 4 * 2^125 the last that is
)
def test_a_scale_at_which_gradients_overflow_is_lowered_until_they_do_not(
    scale: float, left: float
) -> None:
    accelerator = Scaling(scale)
    numbers, told, _ = step_of(accelerator, budget=1)
    assert numbers == [-3.0, -4.0]
    assert told == {"loss": 2.0, "rows": 4.0, "tens": 40.0, "grad_norm": 5.0}
    assert accelerator.scaler.get_scale() == left


def test_a_gradient_that_no_scale_makes_finite_is_told() -> None:
    def broken(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return model.policy * math.inf + model.value_head, {}

    numbers, told, _ = step_of(Scaling(2.0**10), loss_fn=broken)
    assert numbers == [0.0, 0.0]
    assert not math.isfinite(told["grad_norm"])


def test_rows_of_a_group_go_to_the_loss_together() -> None:
    pieces: list[list[int]] = []

    def note(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        pieces.append(mine)
        return model.policy * weights.sum(), {}

    model = Pair()
    learner = Learner(model, torch.optim.SGD(model.parameters(), lr=1.0), Accelerator(cpu=True), 6, 1.0)
    learner.step([3, 0, 2, 1], [3, 3, 3, 3], note, [7, 5, 7, 5])
    assert pieces == [[1, 3], [0, 2]]  # two rows of three tokens within six; question 5 before 7
    pieces.clear()
    learner.step([3, 0, 2, 1], [3, 3, 2, 3], note)
    assert pieces == [[0, 1], [3, 2]]  # the longest first


def test_all_is_made_on_the_device_of_the_accelerator() -> None:
    model = Pair()
    learner = Learner(
        model, torch.optim.SGD(model.parameters(), lr=1.0), Accelerator(cpu=True), 4, 100.0
    )
    with torch.device("meta"):  # where a tensor that names no device goes, and has no numbers
        told = learner.step(range(4), [2] * 4, slopes)
    assert told == {"loss": 2.0, "rows": 4.0, "tens": 40.0, "grad_norm": 5.0}


# Several processes, one after the other: each does what it would do beside the others.


class Process(Accelerator):
    """One of several processes, whose sums are those of all: the totals of this one times their number.

    It notes after which micro-batches the gradients would be exchanged, and which sums were asked for.
    """

    def __init__(self, index: int, count: int) -> None:
        super().__init__(cpu=True)
        self.index, self.count, self.keeps = index, count, False
        self.exchanged: list[bool] = []
        self.reductions: list[str] = []

    @property
    def num_processes(self) -> int:
        return self.count

    @property
    def process_index(self) -> int:
        return self.index

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        assert isinstance(model, Pair)
        self.keeps = True
        yield
        self.keeps = False

    def backward(self, loss: Tensor, **more: Any) -> None:
        self.exchanged.append(not self.keeps)
        super().backward(loss, **more)

    def reduce(self, tensor: Tensor, reduction: str = "mean", scale: float = 1.0) -> Tensor:
        self.reductions.append(reduction)
        return tensor * self.count


@pytest.mark.parametrize("count", [2, 4])
def test_the_mean_over_processes_is_the_gradient_of_all_rows(count: int) -> None:
    results = [step_of(Process(index, count))[:2] for index in range(count)]
    # What DDP does with the gradients of the processes is to average them.
    for number, expected in ((0, -3.0), (1, -4.0)):
        assert sum(numbers[number] for numbers, _ in results) / count == expected
    assert all(told["rows"] == 4.0 for _, told in results)  # each was dealt 4 / count of them


def test_a_process_without_rows_of_its_own_adds_nothing() -> None:
    results = [step_of(Process(index, 3), budget=1)[:2] for index in range(3)]  # three rows, then one
    assert sum(numbers[0] for numbers, _ in results) / 3 == -3.0
    assert sum(numbers[1] for numbers, _ in results) / 3 == -4.0
    assert sum(told["rows"] for _, told in results) / 3 == 4.0


def test_gradients_are_exchanged_once_per_step_after_its_last_micro_batch() -> None:
    process = Process(0, 2)
    step_of(process, budget=1)  # one row for each process at a time: two micro-batches
    assert process.exchanged == [False, True]
    assert process.reductions == ["sum"]


def test_one_process_alone_exchanges_nothing() -> None:
    process = Process(0, 1)
    step_of(process, budget=1)
    assert process.reductions == []


# CpuThreads: several threads beside each other.


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_gradients_of_all_replicas_are_added(count: int) -> None:
    with threads(count):  # of four replicas some read no row that has to do with a number
        numbers, told, _ = step_of()
    assert numbers == [-3.0, -4.0]
    assert told == {"loss": 2.0, "rows": 4.0, "tens": 40.0, "grad_norm": 5.0}


@pytest.mark.usefixtures("kept_gradients")
def test_what_no_replica_knows_of_has_no_gradient() -> None:
    def first(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return model.policy * weights.sum(), {}

    with threads(3):
        _, _, model = step_of(loss_fn=first)
    assert (model.policy.grad, model.value_head.grad) == (torch.tensor(4.0), None)


class Dropping(Pair):
    """The same with dropout, either of a module or in a function that knows the rate from a config."""

    def __init__(self, module: float, function: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(module)
        self.model = tiny_model("llama", attention_dropout=function)


@pytest.mark.parametrize(
    ("module", "function", "train", "count"),
    [
        (0.0, 0.0, True, 3),
        (0.1, 0.0, True, 1),  # threads would draw from one generator in any order
        (0.0, 0.1, True, 1),
        (0.1, 0.0, False, 3),  # but there is nothing to draw
        (0.0, 0.1, False, 3),
    ],
)
def test_dropout_is_drawn_in_one_thread(module: float, function: float, train: bool, count: int) -> None:
    used: list[nn.Module] = []

    def note(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        used.append(model)
        return model.policy * weights.sum(), {}

    with threads(3):
        model = Dropping(module, function)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        learner = Learner(model, optimizer, Accelerator(cpu=True), 100, 100.0)
        learner.model.train(train)
        learner.step(range(4), [2] * 4, note)
    assert len(set(map(id, used))) == count  # replicas
    assert {model.training for model in used} == {train}
    assert model.policy.item() == -4.0


def loss_fn(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    scores = model(collate([PROMPTS[i] for i in mine], [RESPONSES[i] for i in mine]))
    losses = -scores.logprobs.sum(1) * weights / 11
    return losses.sum(), {"rows": weights.sum()}


def learn(count: int, train: bool = False, **changes: Any) -> tuple[list[Tensor], dict[str, float]]:
    """Take two plain gradient steps in so many threads; return the weights and the last sums."""
    with threads(count):
        policy = PolicyWithValue(tiny_model("gpt2", **changes), "shared")
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        learner = Learner(policy, optimizer, Accelerator(cpu=True), 12, 1.0)
        learner.model.train(train)
        torch.manual_seed(0)
        lengths = [len(p) + len(r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        for _ in range(2):
            sums = learner.step(range(11), lengths, loss_fn)
    return [p.detach() for p in policy.parameters()], sums


@float64()
def test_threads_change_a_step_by_no_more_than_rounding() -> None:
    expected, sums = learn(1)
    assert sums["rows"] == 11
    for count in (2, 3):
        weights, others = learn(count)
        assert others == pytest.approx(sums, rel=CLOSE)
        for ours, theirs in zip(weights, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=0)


def test_a_step_in_threads_repeats_bit_for_bit() -> None:
    for ours, theirs in zip(learn(3)[0], learn(3)[0], strict=True):
        assert torch.equal(ours, theirs)


def test_a_step_with_dropout_repeats() -> None:
    plain, first, second = learn(3, True), learn(3, True, attn_pdrop=0.3), learn(3, True, attn_pdrop=0.3)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain[0], first[0], strict=True))
