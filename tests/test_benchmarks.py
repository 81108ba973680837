"""The benchmarks run at tiny sizes, their arithmetic is right, and contestants do the same work."""

from __future__ import annotations

import copy
import importlib.util
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks import settings, tricks, workload
from benchmarks.contest import (
    REAL,
    Contestant,
    Options,
    Turn,
    Turns,
    compete,
    parse_options,
    ratios,
    spread,
    table,
)
from benchmarks.roofline import Shape, decode_work, model_shape, prefill_work
from benchmarks.settings import Measured, bytes_per_token, recommended
from benchmarks.update import Experience, make_experience, plain_update, reftune_update
from benchmarks.workload import LARGE, described, new_large, open_workload
from child import Child
from precision import CLOSE, float64
from reftune.config import Prompt
from reftune.model import forward
from reftune.model.prompts import make_prompter
from reftune.sampling import shared_prefix
from reftune.sampling.decoders import PaddedDecoder
from reftune.sampling.engine import BuiltinSampler
from reftune.training import learner

HEADLINES = {"rollouts": 2, "update": 3, "rl_step": 1, "programs": 2, "roofline": 1}  # tables of each


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what all benchmarks together print with --quick, on a SVAMP of our own making."""
    folder = tmp_path_factory.mktemp("svamp")
    _write_svamp(folder)
    options = ["--quick", "--rounds", "1", "--threads", "1", "--data", str(folder)]
    return Child("benchmarks", *options).finish()


def test_every_benchmark_prints_finite_figures(document: str) -> None:
    for name, tables in HEADLINES.items():
        section = document.partition(f"-m benchmarks.{name} ")[2].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("|")]
        assert sum(row.startswith("|---") for row in rows) == tables, name
        figures = re.findall(r"(?<=\| )-?[\d.,]+", "\n".join(rows))
        assert len(figures) >= 6 * tables  # of one contestant at least
        assert all(math.isfinite(float(figure.replace(",", ""))) for figure in figures)
        assert "nan" not in section
        assert "inf" not in section


def test_missing_libraries_are_named_and_left_out(document: str) -> None:
    for library, contestant in (("trl", "TRL GRPO"), ("pebble", "pebble")):
        row, reason = f"| {contestant} |", f"{contestant} is left out"
        installed = importlib.util.find_spec(library) is not None
        assert (row in document, reason in document) == (installed, not installed)


def test_ratios_are_of_pairs_and_spread_is_median_lowest_highest() -> None:
    ours = [Turn(2.0, 100, 50, 10), Turn(1.0, 100, 60, 10), Turn(4.0, 100, 60, 10)]  # 50, 100, 25 per s
    theirs = [Turn(10.0, 100, 80, 20), Turn(4.0, 80, 80, 20), Turn(8.0, 100, 80, 20)]  # 10, 20, 12.5
    assert ratios(ours, theirs) == [5.0, 5.0, 2.0]
    assert spread([3.0, 1.0, 10.0]) == (3.0, 1.0, 10.0)
    rows = table({"ours": ours, "theirs": theirs}, "tokens").splitlines()
    assert rows[2] == "| ours | 50.00 | 25.00-100 | 1.00 | 1.00-1.00 | 60 | 10 |"
    assert rows[3] == "| theirs | 12.50 | 10.00-20.00 | 5.00 | 2.00-5.00 | 80 | 20 |"
    assert "| theirs | 8.00 | 4.00-10.00 |" in table({"ours": ours, "theirs": theirs}, "")


@float64()
@pytest.mark.usefixtures("kept_gradients")
def test_both_updates_have_the_same_gradient() -> None:
    gradients = []
    for make in (reftune_update, plain_update):
        options = parse_options("", ["--quick", "--threads", "1"])
        options.workload = "demo"
        experience = make_experience(options)
        make(experience, options)(1)
        weights = experience.workload.model.parameters()
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
    assert gradients[0].norm() > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=CLOSE, atol=CLOSE)


def test_flops_of_a_forward_pass_are_counted_by_hand() -> None:
    from tiny_models import tiny_model

    shape = model_shape(tiny_model())
    # Two layers: queries and output 32 x 32 each, keys and values 16 x 32 each, three matrices 32 x 48.
    assert shape == Shape(2 * (2 * 1024 + 2 * 512 + 3 * 1536), 60 * 32, 2, 32, 60, 32, 4)
    # 10 tokens that see 5 positions on average (4 * 2 * 32 * 5 FLOPs each), logits of one of them.
    assert prefill_work(shape, 1, 10).flops == 2 * 15360 * 10 + 1280 * 10 + 2 * 1920
    # All weights, 2 layers x 32 numbers x 4 bytes for each of 3 x 7 positions, and 3 x 60 logits.
    assert decode_work(shape, 3, 7, 1).bytes == 17280 * 4 + 256 * 21 + 720


def test_a_real_model_gets_less_work_unless_the_command_line_says_how_much() -> None:
    sizes = [
        parse_options("", arguments.split())
        for arguments in ("", "--model-size 135m", "--model-size 135m --rounds 7 --questions 5")
    ]
    assert [(each.rounds, each.questions, each.samples) for each in sizes] == [
        (5, 64, 8), (3, 2, 8), (7, 5, 8),
    ]  # fmt: skip


def test_without_the_real_model_its_shape_takes_part_and_that_is_said() -> None:
    options = parse_options("", ["--model-size", REAL, "--smollm2", "/nowhere", "--data", "/nowhere"])
    assert "random weights in the shape of SmolLM2-135M-Instruct" in described(options)
    assert "the demo's" in described(options)
    model = new_large(REAL, "meta")
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008  # as its card says
    assert LARGE[REAL]["num_hidden_layers"] == 30


def test_the_real_model_is_asked_svamps_questions_by_its_chat_template(tmp_path: Path) -> None:
    _write_svamp(tmp_path)
    _write_chat_model(tmp_path / "model")
    places = ["--smollm2", str(tmp_path / "model"), "--data", str(tmp_path)]
    options = parse_options("", ["--quick", "--threads", "1", "--model-size", REAL, *places])
    asked = open_workload(options, 3)
    assert "SmolLM2-135M-Instruct, by its chat template" in described(options)
    decode = asked.prompter.tokenizer.decode
    prompts = [decode(prompt) for prompt in asked.prompts]
    for prompt, problem in zip(prompts, asked.problems, strict=True):
        assert problem.question.startswith("A shop has")
        assert prompt.startswith(f"<user>{problem.question}\n\n")
        assert prompt.endswith("```python block.<end><bot>")
    assert [decode(end) for end in asked.eos] == ["<end>"]


def test_what_was_trained_from_the_real_model_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    _write_svamp(tmp_path)
    _write_chat_model(tmp_path / "model")
    settings = Prompt(style="plain", template="{question} =>", repeat_question=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    make_prompter(tokenizer, settings, "program").save(tmp_path / "model")
    places = ["--smollm2", str(tmp_path / "model"), "--data", str(tmp_path)]
    options = parse_options("", ["--quick", "--threads", "1", "--model-size", REAL, *places])
    asked = open_workload(options, 2)
    assert "SmolLM2-135M-Instruct, as it was trained" in described(options)
    prompts = [asked.prompter.tokenizer.decode(prompt) for prompt in asked.prompts]
    assert prompts == [f"{problem.question} =>def solution():\n" for problem in asked.problems]
    assert asked.limit == 12  # of --quick


def test_the_smallest_value_within_three_percent_is_recommended() -> None:
    rates = {256: 90.0, 512: 97.5, 1024: 100.0, 2048: 99.0}
    measured = [Measured(value, (rate, rate, rate), 0.0) for value, rate in rates.items()]
    assert recommended(measured).value == 512
    assert recommended(measured[:1]).value == 256


def test_memory_of_a_token_is_the_slope_up_to_where_the_batch_is_one_micro_batch() -> None:
    peaks = {256: 1000.0, 512: 1256.0, 1024: 1768.0, 2048: 1768.0}  # a MB each, and 800 in a batch
    measured = [Measured(value, (1.0, 1.0, 1.0), peak) for value, peak in peaks.items()]
    assert bytes_per_token(measured) == 2**20


def test_settings_prints_what_was_measured_and_recommends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compete(contestants: Any, options: Options) -> dict[str, list[Turn]]:
        rate = 50.0 if options.value == 256 else 100.0
        return {contestants[0].name: [Turn(1.0, rate / options.replicas, options.value, 1.0)]}

    monkeypatch.setattr(settings, "compete", compete)
    monkeypatch.setattr(settings, "_free_bytes", lambda device: 2.0**32)
    settings.main(["--questions", "8"])
    printed = capsys.readouterr().out
    assert "| 256 | 50 | 50-50 | 256 |\n| 512 | 100 | 100-100 | 512 |" in printed
    assert "| 512 | 50 | 50-50 | 512 |" in printed  # with two replicas
    assert "| 64 | 50 | 50-50 | 64 |\n\n" in printed, "64 responses fill no more rows"
    assert "tokens_per_microbatch = 512 with 1 replica(s), compute.sampler_rows = 16," in printed
    # A MB for each token, and half of 4 GB.
    assert "1,024 KB; with 4.0 GB free the rule of training/token_budget.py would choose 2048" in printed
    measured = [Measured(value, (1.0, 1.0, 1.0), value) for value in (256, 512)]
    # Two replicas that take half a MB each for a token of their own need as much.
    told = "512 KB; with 4.0 GB free the rule of training/token_budget.py would choose 2048"
    assert told in settings.chosen(measured, 2, parse_options("", []))


def test_where_memory_runs_out_smaller_values_are_recommended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compete(contestants: Any, options: Options) -> dict[str, list[Turn]]:
        if options.value > 512:
            raise RuntimeError("its process died")
        return {"": [Turn(1.0, options.value, 1.0, 1.0)]}

    monkeypatch.setattr(settings, "compete", compete)
    settings.main([])
    printed = capsys.readouterr().out
    assert "tokens_per_microbatch = 512 with 1 replica(s), compute.sampler_rows = 512," in printed
    monkeypatch.setattr(settings, "MICROBATCHES", (1024, 2048))
    with pytest.raises(RuntimeError, match="its process died"):
        settings.main([])


def test_each_setting_reaches_what_it_sets(experience: Experience) -> None:
    def seen(owner: Any, name: str, run: Any, value: int) -> list[Any]:
        options = _quick()
        options.value, options.replicas = value, 3
        with _watch(owner, name) as watched:
            run(mock.Mock(serve=lambda act: act(1)), options)
        return list(watched.call_args_list)

    calls = seen(learner, "make_microbatches", settings.updating, 123)
    assert [call.args[2:4] for call in calls] == [(123, 3)]
    calls = seen(workload, "BuiltinSampler", settings.sampling, 5)
    assert [call.args[2] for call in calls] == [5]
    few = seen(shared_prefix, "prefill", settings.prefilling, 16384)
    many = seen(shared_prefix, "prefill", settings.prefilling, 40)
    assert len(many) > len(few)


def test_tricks_prints_a_column_for_each_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compete(contestants: Any, options: Options) -> dict[str, list[Turn]]:
        slow = 3.0 if options.model_size == REAL else 2.0
        names = [contestant.name for contestant in contestants]
        return {names[0]: [Turn(1.0, 1.0, 0.0, 0.0)], names[1]: [Turn(slow, 1.0, 0.0, 0.0)]}

    monkeypatch.setattr(tricks, "compete", compete)
    tricks.main(["--only", "forks", "lanes"])
    table = capsys.readouterr().out.partition("| trick ")[2]
    assert table.startswith("| tiny: faster by | 135m: faster by |\n|---|---:|---:|\n")
    assert "| forks | 2.00 (2.00-2.00) | 3.00 (3.00-3.00) |\n| lanes | 2.00" in table
    tricks.main(["--model-size", "small", "--only", "forks"])
    assert "| trick | small: faster by |\n" in capsys.readouterr().out


@pytest.mark.parametrize("trick", tricks.SAMPLING)
def test_without_a_trick_of_the_sampler_other_decoding_gives_the_same_samples(
    experience: Experience, trick: str
) -> None:
    drawn, seen = [], []
    for on in (True, False):
        decoders, logits = _watch(BuiltinSampler, "make_decoder"), _watch(BuiltinSampler, "logits")
        with float64(), decoders as made, logits as read:
            samples = tricks.sampler(_quick(), trick, on)(1)
        drawn.append([s.tokens for s in samples])
        rows = sum(len(call.args[1]) for call in read.call_args_list)
        padded = sum(isinstance(decoder, PaddedDecoder) for decoder in made.results)
        seen.append((rows, padded))
    assert drawn[0] == drawn[1]
    (rows, padded), (rows_off, padded_off) = seen
    assert (rows < rows_off) is (trick == "forks")
    assert (padded < padded_off) is (trick == "shared prompts (sampling)")


@pytest.mark.parametrize("trick", [name for name in tricks.UPDATE if name != "keep_freed_memory"])
@pytest.mark.usefixtures("kept_gradients")
def test_without_a_trick_of_the_update_other_reading_gives_the_same_gradient(
    experience: Experience, trick: str
) -> None:
    gradients, seen = [], []
    for on in (True, False):
        packed, rows = _watch(forward, "_read_packed"), _watch(forward, "read_rows")
        with float64(), packed as as_one, rows as as_rows, _watch(forward, "gather_rows") as distinct:
            act = tricks.updater(_quick("2" if trick == "lanes" else "1"), trick, on)
            for watched in (as_one, as_rows, distinct):
                watched.reset_mock()
            act(1)
        weights = tricks.make_experience.made.workload.model.parameters()  # type: ignore[attr-defined]
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
        tokens = sum(call.args[1].numel() for call in distinct.call_args_list)
        seen.append((as_one.call_count, as_rows.call_count, tokens))
    assert gradients[0].norm() > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=CLOSE, atol=CLOSE)
    (packs, rows_read, tokens), (packs_off, rows_off, tokens_off) = seen
    assert (packs, packs_off) == {"lanes": (2, 1), "prefix tree": (1, 1)}.get(trick, (1, 0))
    assert (tokens < tokens_off) is (trick == "prefix tree")
    assert rows_off - rows_read == (trick == "shared prompts (update)")


@pytest.fixture
def experience(monkeypatch: pytest.MonkeyPatch, made: Experience) -> Experience:
    """Let all benchmarks of a test work on one experience, each on a model of its own."""

    def open_again(options: Options, questions: int, name: str = "demo") -> Any:
        return copy.deepcopy(made.workload)

    def make_again(options: Options) -> Experience:
        torch.set_num_threads(options.threads)
        make_again.made = copy.deepcopy(made)  # type: ignore[attr-defined]
        return make_again.made  # type: ignore[attr-defined, no-any-return]

    for module in (settings, tricks):
        monkeypatch.setattr(module, "open_workload", open_again)
        monkeypatch.setattr(module, "make_experience", make_again)
    return made


@pytest.fixture(scope="module")
def made() -> Experience:
    """Make what the tests' benchmarks learn from."""
    options = _quick()
    options.workload = "demo"
    with float64():
        experience = make_experience(options)
    for first, second in zip(experience.samples[::2], experience.samples[1::2], strict=True):
        alike = min(len(first.tokens), len(second.tokens)) - 1  # but not in how they end
        second.tokens[:alike] = first.tokens[:alike]
    return experience


def _quick(threads: str = "1") -> Options:
    return parse_options("", ["--quick", "--threads", threads])


@contextmanager
def _watch(owner: Any, name: str) -> Iterator[Any]:
    """Let a function do what it does, and remember its calls and results."""
    real, results = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        results.append(real(*args, **kwargs))
        return results[-1]

    watching = mock.MagicMock(side_effect=call)
    watching.results = results

    def watched(*args: Any, **kwargs: Any) -> Any:  # a function, so that it also is a method
        return watching(*args, **kwargs)

    with mock.patch.object(owner, name, watched):
        yield watching


def _write_chat_model(folder: Path) -> None:
    """Write a tiny model with a chat template and a tokenizer of its own."""
    from reftune.config import Model
    from reftune.model.scratch import new_model

    model, tokenizer = new_model(Model(scratch="tiny", vocab_size=300), ["def solution():"], 0)
    tokenizer.add_tokens(["<user>", "<bot>", "<end>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<bot>' }}{{ m.content }}<end>"
        "{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<end>")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_svamp(folder: Path) -> None:
    """Write training and test problems in the format of the official files."""
    import json

    def row(i: int) -> dict[str, Any]:
        chain = f"def solution():\n    boxes = {i}\n    return boxes + 1"
        return {
            "item_id": f"svamp_{i}", "question": f"A shop has {i} boxes and gets one. How many?",
            "answer_cot": chain, "answer_value": float(i + 1),
        }  # fmt: skip

    (folder / "svamp_python_sdp.json").write_text(json.dumps([row(i) for i in range(300)]))
    (folder / "svamp_test_set.json").write_text(json.dumps([row(i) for i in range(300, 310)]))


def _works(turns: Turns, options: Any) -> None:
    turns.serve(lambda turn: 1.0)


def _fails_to_begin(turns: Turns, options: Any) -> None:
    raise ValueError("no room")


def _fails_late(turns: Turns, options: Any) -> None:
    turns.serve(lambda turn: 1.0 if turn < 3 else 1 / 0)


def test_a_contestant_that_fails_is_left_out_but_not_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = parse_options("", ["--quick"])
    contestants = [Contestant(f.__name__, f) for f in (_works, _fails_to_begin, _fails_late)]
    turns = compete(contestants, options)
    assert {name: len(each) for name, each in turns.items()} == {"_works": 2}
    told = capsys.readouterr().out
    assert "_fails_to_begin is left out: it failed, ValueError('no room')" in told
    assert "_fails_late is left out: it failed, ZeroDivisionError" in told
    with pytest.raises(RuntimeError, match="_fails_late failed"):
        compete(contestants[::-1], options)
