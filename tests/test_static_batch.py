"""Decoding with fixed shapes draws what the other decoders draw; here without CUDA graphs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from precision import CLOSE, float64
from reftune.config import Lora
from reftune.launcher import tell_once
from reftune.model.lora import add_adapter
from reftune.model.policy import PolicyWithValue
from reftune.sampling import engine, static_batch
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.sampler import Sample
from reftune.sampling.static_batch import StaticBatch
from tiny_models import EOS, FAMILIES, VOCAB, WINDOW, random_model, tiny_model

ENDS = [EOS, *range(2, 9)]  # many, so that random responses end at different times
NEW = 14
Patch = pytest.MonkeyPatch


@pytest.fixture
def as_on_gpu(monkeypatch: Patch) -> None:
    """Let samplers decode as they do on a GPU, with columns in small steps."""
    monkeypatch.setattr(engine, "pays_on", lambda device: True)
    monkeypatch.setattr(static_batch, "WIDTH_STEP", 4)


def make_prompts() -> list[list[int]]:
    """Return prompts of 1 to 11 tokens, most of them several times."""
    rng = random.Random(7)
    distinct = [[rng.randrange(13, VOCAB) for _ in range(n)] for n in (3, 11, 1, 5, 8, 2, 9, 3)]
    return [*(prompt for prompt in distinct for _ in range(4)), *distinct]


def draw(sampler: BuiltinSampler, temperature: float = 1.0, new: int = NEW) -> list[Sample]:
    prompts = make_prompts()
    seeds = [31 * i - 2**62 for i in range(len(prompts))]
    return sampler.sample(prompts, seeds, max_new_tokens=new, temperature=temperature)


def assert_same(samples: Sequence[Sample], expected: Sequence[Sample]) -> None:
    for actual, other in zip(samples, expected, strict=True):
        assert (actual.prompt, actual.tokens) == (other.prompt, other.tokens)
        assert actual.finished == other.finished
        assert actual.logprobs == pytest.approx(other.logprobs, abs=CLOSE)
        assert actual.values == pytest.approx(other.values, abs=CLOSE)


def steps_of(sampler: BuiltinSampler) -> list[int]:
    """Return a list that fills with the rows of each decoding step from now on."""
    rows: list[int] = []
    sampler.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])) if "within" in kwargs else None,
        with_kwargs=True,
    )
    return rows


def usual(model: Any, patch: Patch, **more: Any) -> BuiltinSampler:
    """Return the sampler for a CPU."""
    with patch.context() as context:
        context.setattr(engine, "pays_on", lambda device: False)
        sampler = BuiltinSampler(model, ENDS, **more)
    assert not sampler.static
    return sampler


@pytest.mark.parametrize("family", [x for x in FAMILIES if x not in ("mistral", "gemma3")])
@float64()
def test_samples_are_those_of_the_other_decoders(
    family: str, as_on_gpu: None, monkeypatch: Patch
) -> None:
    model = random_model(family)
    sampler, other = BuiltinSampler(model, ENDS), usual(model, monkeypatch)
    samples = draw(sampler)
    assert_same(samples, draw(other))
    assert len({len(s.tokens) for s in samples}) >= 3, "samples should end at different times"
    assert sampler.static is other.shares_prompts


@pytest.mark.parametrize("rows", [1, 3, 7, 16])
@float64()
def test_samples_enter_while_others_run(rows: int, as_on_gpu: None, monkeypatch: Patch) -> None:
    policy = PolicyWithValue(random_model("llama"), "shared")
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    sampler = BuiltinSampler(policy.policy, ENDS, rows, value_head=policy.value_head)
    steps = steps_of(sampler)
    samples = draw(sampler)
    assert set(steps) == {rows}
    tokens = sum(len(s.tokens) for s in samples)
    looks = static_batch.LOOK_EVERY / 2  # that ended rows wait on average
    assert len(steps) * rows < 2 * (tokens + looks * len(samples)), "free rows should be taken"
    assert_same(samples, draw(usual(policy.policy, monkeypatch, value_head=policy.value_head)))


@float64()
def test_prompts_are_read_a_few_at_a_time(as_on_gpu: None, monkeypatch: Patch) -> None:
    model = random_model("llama")
    expected = draw(usual(model, monkeypatch))
    monkeypatch.setattr(static_batch, "PREFILL_TOKENS", 23)
    assert_same(draw(BuiltinSampler(model, ENDS)), expected)


@float64()
def test_the_last_rows_go_on_alone(as_on_gpu: None, monkeypatch: Patch) -> None:
    model = random_model("llama")
    monkeypatch.setattr(static_batch, "SMALLEST", 2)
    monkeypatch.setattr(static_batch, "LOOK_EVERY", 2)
    monkeypatch.setattr(static_batch, "SHRINK_BELOW", 0.6)
    sampler = BuiltinSampler(model, ENDS)
    steps = steps_of(sampler)
    samples = draw(sampler)
    assert steps[0] == 40
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) >= 3
    assert_same(samples, draw(usual(model, monkeypatch)))


def test_the_model_reads_as_many_columns_as_the_longest_text_has(
    as_on_gpu: None, monkeypatch: Patch
) -> None:
    widths: list[int] = []
    step = StaticBatch._step

    def watched(self: StaticBatch, rows: int, width: int) -> None:
        lengths = (self.prompt_lengths[:rows] + self.lengths[:rows]) * self.running[:rows]
        assert int(lengths.max()) <= width, "a text would not see its end"
        widths.append(width)
        step(self, rows, width)

    sampler = BuiltinSampler(tiny_model(), [VOCAB])
    monkeypatch.setattr(static_batch, "LOOK_EVERY", 3)
    monkeypatch.setattr(StaticBatch, "_step", watched)
    draw(sampler)
    assert (widths[0], widths[-1]) == (16, 28)  # 12 tokens and 3 steps; 11 + 14, both rounded up
    assert len(set(widths)) > 2


@float64()
def test_a_short_limit_and_no_prompts_are_fine(as_on_gpu: None) -> None:
    sampler = BuiltinSampler(tiny_model(), ENDS)
    assert {len(s.tokens) for s in draw(sampler, new=1)} == {1}
    assert sampler.sample([], [], max_new_tokens=3, temperature=1.0) == []


@float64()
def test_greedy_decoding_takes_the_likeliest_tokens(as_on_gpu: None) -> None:
    model = random_model("llama")
    for sample in draw(BuiltinSampler(model, ENDS), temperature=0.0)[:12]:
        text = torch.tensor([sample.prompt + sample.tokens])
        logits = model(text).logits[0, len(sample.prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == sample.tokens


@float64()
def test_an_adapter_is_part_of_the_weights_and_new_weights_are_read(
    as_on_gpu: None, monkeypatch: Patch
) -> None:
    pytest.importorskip("peft")
    model = random_model("llama")
    add_adapter(model, Lora(rank=2))
    sampler = BuiltinSampler(model, ENDS)
    before = draw(sampler)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    after = draw(sampler)
    assert_same(after, draw(usual(model, monkeypatch)))
    assert [s.tokens for s in after] != [s.tokens for s in before]


def test_beyond_a_window_rows_are_padded(as_on_gpu: None) -> None:
    sampler = BuiltinSampler(tiny_model("mistral"), ENDS)
    kinds: list[str] = []
    sampler.make_decoder = lambda *given: (
        kinds.append("padded")
        or BuiltinSampler.make_decoder(  # type: ignore[method-assign,func-returns-value]
            sampler, *given
        )
    )
    assert sampler.static
    sampler.sample([[5, 6]], [1], max_new_tokens=WINDOW - 2, temperature=1.0)
    assert not kinds
    sampler.sample([[5, 6]], [1], max_new_tokens=WINDOW - 1, temperature=1.0)
    assert kinds == ["padded"]


BROKEN: dict[str, Callable[[Patch], None]] = {
    "a column too few is seen": lambda patch: patch.setattr(
        StaticBatch, "attend", _seeing(lambda hidden: hidden.roll(-1, -1))
    ),
    "a column too many is seen": lambda patch: patch.setattr(
        StaticBatch,
        "attend",
        _seeing(lambda hidden: hidden.roll(1, -1).index_fill(-1, torch.tensor(0), 0)),
    ),
    "the prompt of another": lambda patch: patch.setattr(
        static_batch, "repeat_index", lambda repeats, device: engine_index(repeats).flip(0)
    ),
}


def engine_index(repeats: Sequence[int]) -> Tensor:
    return torch.tensor([i for i, n in enumerate(repeats) for _ in range(n)])


def _seeing(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    attend = StaticBatch.attend

    def broken(self: StaticBatch, layer: int, *given: Any) -> Tensor:
        kept, self.hidden = self.hidden, change(self.hidden)
        output = attend(self, layer, *given)
        self.hidden = kept
        return output

    return broken


@pytest.mark.parametrize("fault", BROKEN)
def test_a_wrong_decoder_is_noticed_when_it_is_tried(
    fault: str, as_on_gpu: None, monkeypatch: Patch
) -> None:
    BROKEN[fault](monkeypatch)
    sampler = BuiltinSampler(random_model("llama"), ENDS)
    assert not sampler.static
    assert sampler.shares_prompts


@pytest.mark.parametrize(("free", "rows"), [(10**12, 69_702_602), (10**6, 69), (1, 1)])
def test_there_are_no_more_rows_than_memory(free: int, rows: int, as_on_gpu: None) -> None:
    # Two layers with 2 heads of 8 numbers for keys and as many for values.
    layers = static_batch.cache_layers(tiny_model())
    assert layers == [((2, 8, torch.float32), (2, 8, torch.float32))] * 2
    # 28 columns * 2 layers * 2 * 2 heads * 8 numbers * 4 bytes = 7,168; 60 ids * 24 bytes = 1,440
    assert static_batch.rows_within(free, layers, 28, VOCAB) == rows


def test_in_mixed_precision_the_cache_is_small() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        layers = static_batch.cache_layers(tiny_model())
    assert {x.dtype for layer in layers for x in layer} == {torch.bfloat16}


def test_samples_in_mixed_precision_are_nearly_those_in_float32(as_on_gpu: None) -> None:
    model = tiny_model()
    mixed = draw(BuiltinSampler(model, ENDS, context=lambda: torch.autocast("cpu", torch.bfloat16)))
    exact = draw(BuiltinSampler(model, ENDS))
    same = [a.tokens[:2] == b.tokens[:2] for a, b in zip(mixed, exact, strict=True)]
    assert sum(same) > 0.8 * len(same)


class Calls(TorchDispatchMode):
    """Remembers which operations are called, and whether an index is of truth values."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith("index") and isinstance(args[1], list | tuple):
            chosen = [x.dtype for x in args[1] if x is not None]
            name += " by truth" if torch.bool in chosen else ""
        self.names.add(name)
        return func(*args, **(kwargs or {}))


WAITING = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "_unique2", "unique_dim", "masked_select",
    "unique_consecutive", "lift_fresh", "index by truth", "index_put_ by truth", "repeat_interleave",
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_nothing_in_a_step_waits_for_the_device(
    family: str, temperature: float, as_on_gpu: None, monkeypatch: Patch
) -> None:
    policy = PolicyWithValue(tiny_model(family), "shared")
    sampler = BuiltinSampler(policy.policy, ENDS, value_head=policy.value_head)
    calls, step = Calls(), StaticBatch._step

    def watched(self: StaticBatch, rows: int, width: int) -> None:
        with calls:
            step(self, rows, width)

    monkeypatch.setattr(StaticBatch, "_step", watched)
    draw(sampler, temperature)
    assert {"index_put_", "embedding", "index"} <= calls.names
    assert not calls.names & WAITING


@float64()
def test_a_shape_is_decoded_once_and_then_replayed(as_on_gpu: None, monkeypatch: Patch) -> None:
    model = random_model("llama")
    told: list[str] = []
    step = StaticBatch._step

    def capture(self: StaticBatch, rows: int, width: int) -> None:
        told.append(f"captured {rows} {width}")
        replay = lambda: told.append(f"replayed {rows} {width}") or step(self, rows, width)  # noqa: E731
        self.graphs[rows, width] = SimpleNamespace(replay=replay)  # type: ignore[assignment]

    def watched(self: StaticBatch, rows: int, width: int) -> None:
        told.append(f"decoded {rows} {width}")
        step(self, rows, width)

    monkeypatch.setattr(StaticBatch, "_capture", capture)
    monkeypatch.setattr(StaticBatch, "_step", watched)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.append("freed"))
    sampler = BuiltinSampler(model, ENDS)
    sampler.captures = True
    told.clear()
    samples = draw(sampler)
    shapes = {line.partition(" ")[2] for line in told if " " in line}
    assert len(shapes) > 1
    for shape in shapes:
        of_shape = [line.partition(" ")[0] for line in told if line.endswith(f" {shape}")]
        assert of_shape[:3] == ["decoded", "captured", "replayed"]
        assert set(of_shape[3:]) <= {"replayed"}
    assert told[-1] == "freed"
    monkeypatch.setattr(StaticBatch, "_step", step)
    assert_same(samples, draw(usual(model, monkeypatch)))


def test_decoding_without_graphs_is_told(
    as_on_gpu: None, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was silent once, and a card worked at the pace of Python."""
    tell_once.cache_clear()  # other tests have caused it
    BuiltinSampler(random_model("llama"), ENDS)
    assert capsys.readouterr().err == ""
    attend = StaticBatch.attend
    monkeypatch.setattr(StaticBatch, "attend", lambda *given: attend(*given).flip(0))
    assert not BuiltinSampler(random_model("llama"), ENDS).static
    told = capsys.readouterr().err
    assert "a model of type llama samples slowly, without CUDA graphs: with a key-value cache it" in told


@float64()
def test_a_model_that_cannot_be_captured_is_told_once_and_sampled_from(
    as_on_gpu: None, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model("llama")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    sampler = BuiltinSampler(model, ENDS)
    sampler.captures = True  # which fails on a CPU
    for _ in range(2):
        samples = draw(sampler)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(
        "reftune: a model of type llama samples slowly: its steps cannot be captured"
    )
    assert_same(samples, draw(usual(model, monkeypatch)))


@pytest.mark.parametrize("rows", [3, 512])
def test_who_has_enough_ends_and_changes_nobody_else(
    rows: int, as_on_gpu: None, monkeypatch: Patch
) -> None:
    def enough(responses: list[list[int]]) -> list[bool]:
        return [bool({*range(20, 30)} & {*response}) for response in responses]

    model = random_model("llama")
    sampler = BuiltinSampler(model, ENDS, rows, enough=enough)
    assert sampler.static
    whole, cut = draw(usual(model, monkeypatch)), draw(sampler)
    for before, after in zip(whole, cut, strict=True):
        assert after.tokens == before.tokens[: len(after.tokens)]
        if len(after.tokens) < len(before.tokens):
            assert after.finished
            assert enough([after.tokens]) == [True]
    assert sum(len(s.tokens) for s in cut) < sum(len(s.tokens) for s in whole)
