"""Plans: memory and time by hand, shapes beside real models, and what the command says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny_run
from command_line import start
from reftune.config import Compute, Config
from reftune.planning import fitting
from reftune.planning.fitting import fit, with_microbatches, with_rows
from reftune.planning.machine import Machine, named_machine
from reftune.planning.memory import memory
from reftune.planning.pace import Card, Pace, assumed
from reftune.planning.plan import find_cures
from reftune.planning.shapes import Shape, given_shape, shape_of
from reftune.planning.workload import Draw, Lengths, StageWork, works
from reftune.problem import UserError
from reftune.progress import duration

LLAMA = LlamaConfig(
    vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip
# 1,000 weights, all trained, in float32
SHAPE = Shape(
    weights=1000, trained=1000, trained_bytes=4, largest_trained=300, adapted=0, width=8, layers=2,
    vocabulary=50, cache_width=6, activation_bytes=700, bytes_each=4,
)  # fmt: skip
GPU = Machine("a card", 1e12, 0.0, gpu=True)
CPU = Machine("a laptop", 1e12, 0.0, gpu=False)
LENGTHS = Lengths(
    prompt=30.0, longest_prompt=40, response=20.0, longest_response=50, example=50.0, longest_example=80
)


def make_config(**sections: Any) -> Config:
    return Config.model_validate({"model": {"name": "some/model"}, **sections})


def test_a_shape_is_that_of_the_real_model() -> None:
    model = LlamaForCausalLM(LLAMA)
    shape = shape_of(LLAMA, make_config())
    assert shape.weights == shape.trained == sum(p.numel() for p in model.parameters())
    assert shape.largest_trained == 300 * 64
    assert (shape.width, shape.layers, shape.vocabulary) == (64, 3, 300)
    assert shape.cache_width == 2 * 2 * 16  # keys and values of two heads of 16
    assert shape.cache_bytes == 3 * 64 * 4
    assert (shape.bytes_each, shape.trained_bytes, shape.adapted) == (4, 4, 0)


def test_activations_are_those_that_a_real_forward_pass_keeps() -> None:
    """Counted by hand for the linear layers alone: what they read, and what the SwiGLU multiplies."""
    shape = shape_of(LLAMA, make_config())
    read_by_linears = 64 + 64 + 64 + 128  # q, k and v read one state; o; gate and up; down
    least = 3 * 4 * (read_by_linears + 2 * 128)
    assert least < shape.activation_bytes < 4 * least
    deeper = LlamaConfig(**{**LLAMA.to_dict(), "num_hidden_layers": 6})
    twice = shape_of(deeper, make_config()).activation_bytes
    assert twice == pytest.approx(2 * shape.activation_bytes, rel=0.1)


def test_in_16_bits_a_weight_and_its_activations_take_half() -> None:
    whole, half = (shape_of(LLAMA, make_config(model={"name": "m", "dtype": d})) for d in
                   ("float32", "bfloat16"))  # fmt: skip
    assert half.cache_bytes * 2 == whole.cache_bytes
    assert half.activation_bytes < 0.7 * whole.activation_bytes
    assert (half.bytes_each, half.trained_bytes) == (2, 2)


def test_an_adapter_is_all_that_is_trained() -> None:
    pytest.importorskip("peft")
    shape = shape_of(LLAMA, make_config(lora={"rank": 2}))
    linears = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128  # q, k and v, o, gate and up and down
    assert shape.adapted == 3 * linears
    sides = (64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128)
    assert shape.trained == 3 * 2 * sides
    assert shape.weights == shape_of(LLAMA, make_config()).weights
    assert shape.trained_bytes == 4


def work(**changes: Any) -> StageWork:
    """Return PPO that learns from 100 tokens at a time, 40 of them responses."""
    draw = Draw(
        questions=4, samples=2, response=20.0, longest=50, prompt=30.0, longest_prompt=35, learning=True
    )
    given = {"learns": 100.0, "reads": 50.0, "reference": True, "draws": draw}
    return StageWork("ppo", steps=10, microbatch=100.0, targets=40.0, **{**given, **changes})


FULL = {"weights": 4000, "optimizer": 8000, "reference": 4000}


def test_memory_of_an_update_in_float32() -> None:
    update = memory(work(), SHAPE, make_config(), GPU)["update"]
    logits = 3 * 40 * 50 * 4
    rest = {"gradients": 4000, "activations": 70000, "logits": logits, "working space": 1200}
    assert update == FULL | rest


def test_memory_while_samples_are_drawn() -> None:
    """Eight rows of 50 tokens, four prompts as wide as 35; of each token two layers keep six numbers."""
    sampling = memory(work(), SHAPE, make_config(), CPU)["sampling"]
    cache, inside = (8 * 50 + 4 * 35) * 2 * 6 * 4, 4 * 35 * 700 / 2  # one of two layers
    assert sampling == FULL | {"cache": cache, "working space": inside, "logits": 4 * 8 * 50 * 4}
    few = make_config(compute={"sampler_rows": 4})
    sampling = memory(work(), SHAPE, few, CPU)["sampling"]
    assert sampling["cache"] == (4 * 50 + 2 * 35) * 2 * 6 * 4
    many = replace(work().draws, questions=1000, samples=1)
    sampling = memory(work(draws=many), SHAPE, make_config(), CPU)["sampling"]
    assert sampling["working space"] == 8192 * 350  # no more prompts than that are read at once


def test_a_critic_of_its_own_has_what_the_policy_has_but_is_in_no_reference() -> None:
    """600 numbers of the backbone beside the 1,000 of the policy, and two forward passes to remember."""
    shape, own = replace(SHAPE, critic=600), make_config(model={"name": "m", "value_model": "separate"})
    update = memory(work(), shape, own, GPU)["update"]
    assert (update["weights"], update["reference"]) == (4 * 1600, 4000)
    assert (update["gradients"], update["optimizer"]) == (4 * 1600, 8 * 1600)
    assert update["activations"] == 2 * 70000
    halves = {"name": "m", "value_model": "separate", "dtype": "bfloat16"}
    in_16_bits = replace(shape, trained_bytes=2, bytes_each=2)
    update = memory(work(), in_16_bits, make_config(model=halves), GPU)["update"]
    assert (update["weights"], update["masters"]) == (2 * 1600, 4 * 1600)
    together = memory(work(), shape, own, replace(GPU, processes=2))["update"]
    assert together["gradients to exchange"] == 4 * 1600
    cut = own.model_copy(update={"compute": own.compute.model_copy(update={"sharding": "fsdp2"})})
    assert memory(work(), shape, cut, replace(GPU, processes=2))["update"]["optimizer"] == 8 * 800
    # Neither another stage has it, nor PPO without a critic.
    assert memory(replace(work(), name="sft"), shape, own, GPU)["update"]["optimizer"] == 8000
    rloo = make_config(
        model={"name": "m", "value_model": "separate"},
        ppo={"advantage": "rloo", "samples_per_question": 2},
    )
    assert memory(work(), shape, rloo, GPU)["update"]["optimizer"] == 8000


def test_a_critic_of_its_own_is_what_a_shapes_backbone_learns_by(tmp_path: Path) -> None:
    with_head = LlamaConfig(**{**LLAMA.to_dict(), "tie_word_embeddings": False})
    found, tied = (shape_of(x, make_config(), activations=False) for x in (with_head, LLAMA))
    assert (found.critic, tied.critic) == (found.weights - 300 * 64, tied.weights)
    lora = shape_of(LLAMA, make_config(lora={"rank": 2}), activations=False)
    assert lora.critic == lora.trained > 0  # what no one changes is shared


def test_what_samples_while_the_policy_learns_has_a_copy_and_a_cache_of_its_own() -> None:
    one, two = ({"ppo": {"async_rollouts": ahead}} for ahead in (False, True))
    apart = memory(work(), SHAPE, make_config(**one), CPU)
    update = memory(work(), SHAPE, make_config(**two), CPU)["update"]
    cache = apart["sampling"]["cache"]
    assert update["copy that samples"] == 4000
    assert update["cache"] == cache
    assert update["logits"] == apart["update"]["logits"] + apart["sampling"]["logits"]
    assert update["optimizer"] == apart["update"]["optimizer"]
    evaluation = StageWork("evaluation", steps=1, draws=work().draws)
    assert "copy that samples" not in memory(evaluation, SHAPE, make_config(**two), CPU)["sampling"]


def test_on_a_gpu_each_row_has_its_prompt_for_itself() -> None:
    """Eight rows of 85 tokens, in 128 columns; sums of probabilities are float64."""
    sampling = memory(work(), SHAPE, make_config(), GPU)["sampling"]
    inside = 4 * 35 * 700 / 2
    cache = 8 * 128 * 2 * 6 * 4
    assert sampling == FULL | {"cache": cache, "working space": inside, "logits": 24 * 8 * 50}


def test_masters_stand_beside_weights_of_16_bits() -> None:
    half = replace(SHAPE, trained_bytes=2, bytes_each=2)
    kept = memory(work(), half, make_config(), GPU)["update"]
    expected = {
        "weights": 2000,
        "masters": 4000,
        "gradients": 4000,
        "optimizer": 8000,
        "reference": 2000,
    }
    assert {name: kept[name] for name in expected} == expected
    eight = make_config(model={"name": "m", "optimizer": "adamw_8bit"})
    assert memory(work(), half, eight, GPU)["update"]["optimizer"] == 2000


def test_a_head_in_float32_is_a_copy_whose_gradient_is_one_more_where_it_learns() -> None:
    half = replace(SHAPE, trained_bytes=2, bytes_each=2)
    exact = make_config(model={"name": "m", "dtype": "bfloat16", "float32_head": True})
    head = 4 * SHAPE.vocabulary * SHAPE.width
    moments = memory(work(), half, exact, GPU)
    assert moments["update"]["head in float32"] == 2 * head
    assert moments["sampling"]["head in float32"] == head
    adapted = replace(half, adapted=600)
    assert memory(work(), adapted, exact, GPU)["update"]["head in float32"] == head
    assert "head in float32" not in memory(work(), half, make_config(), GPU)["update"]


def test_with_an_adapter_there_is_no_reference_and_merged_weights_only_while_sampling() -> None:
    adapted = replace(SHAPE, trained=100, largest_trained=20, adapted=600)
    moments = memory(work(), adapted, make_config(), GPU)
    assert "reference" not in moments["update"]
    assert moments["update"]["gradients"] == 400
    assert moments["sampling"]["merged weights"] == 2400
    assert "merged weights" not in moments["update"]


def test_a_reference_in_the_cpus_memory_takes_none_of_a_gpus() -> None:
    away = make_config(compute={"offload_reference": True})
    assert "reference" not in memory(work(), SHAPE, away, GPU)["update"]
    assert memory(work(), SHAPE, away, CPU)["update"]["reference"] == 4000


def test_replicas_on_a_cpu_have_gradients_and_activations_of_their_own() -> None:
    two = replace(CPU, threads=2)
    once, twice = (memory(work(), SHAPE, make_config(), x)["update"] for x in (CPU, two))
    grown = {"gradients", "activations", "logits", "working space"}
    assert {name for name in once if twice[name] != once[name]} == grown
    assert all(twice[name] == 2 * once[name] for name in grown)
    large = replace(SHAPE, trained=2**27)
    assert memory(work(), large, make_config(), two)["update"]["gradients"] == 2**27 * 4


def test_checkpointing_keeps_states_and_one_layer() -> None:
    less = make_config(compute={"gradient_checkpointing": True})
    activations = memory(work(), SHAPE, less, GPU)["update"]["activations"]
    assert activations == 100 * 2 * 8 * 4 + 70000 / 2


def test_a_stage_that_only_answers_has_weights_and_a_cache() -> None:
    moments = memory(work(learns=0.0, reads=0.0, reference=False), SHAPE, make_config(), GPU)
    assert list(moments) == ["sampling"]
    assert list(moments["sampling"]) == ["weights", "cache", "working space", "logits"]


PACE = Pace(learn_token=0.1, optimizer_step=2.0, read_token=0.01, draw_step=1.0, draw_token=0.05)


def test_drawing_lasts_as_long_as_its_longest_row_or_its_queue() -> None:
    draw = Draw(
        questions=4, samples=2, response=20.0, longest=50, prompt=30.0, longest_prompt=35, learning=True
    )
    prompts, tokens = 4 * 30 * 0.01, 8 * 20
    assert PACE.drawing(draw, 8) == pytest.approx(prompts + 50 * 1.0 + tokens * 0.05)
    assert PACE.drawing(draw, 2) == pytest.approx(prompts + 80 * 1.0 + tokens * 0.05)


def test_a_stage_takes_its_steps_and_its_validations() -> None:
    validates = Draw(
        questions=5, samples=1, response=20.0, longest=50, prompt=30.0, longest_prompt=35, learning=True
    )
    found = work(validates=validates, validations=3, updates=2)
    step = 100 * 0.1 + 2 * 2.0 + 50 * 0.01 + PACE.drawing(found.draws, 8)  # type: ignore[arg-type]
    assert PACE.step(found, 8) == pytest.approx(step)
    assert PACE.stage(found, 8) == pytest.approx(10 * step + 3 * PACE.drawing(validates, 8))


def test_a_cards_pace_follows_from_its_data_sheet() -> None:
    card = Card(memory=24, tflops=100, bandwidth=1000)
    large = replace(SHAPE, weights=10**9, trained=10**9, bytes_each=2)
    pace = assumed(card, large, make_config(model={"name": "m", "dtype": "bfloat16"}))
    assert pace.learn_token == pytest.approx(6e9 / 40e12)
    assert pace.read_token == pytest.approx(2e9 / 40e12)
    assert pace.draw_step == pytest.approx(2e9 / 400e9)  # the weights, read at 40% of the bandwidth
    slow = assumed(card, large, make_config())
    assert slow.learn_token == pytest.approx(8 * pace.learn_token)


def test_what_the_stages_of_a_run_do() -> None:
    config = make_config(
        sft={"epochs": 3, "warmup_epochs": 1, "batch_size": 8},
        ppo={"steps": 7, "questions_per_step": 4, "samples_per_question": 5, "ppo_epochs": 2,
             "minibatch_size": 10, "validate_every_steps": 2},
        compute={"tokens_per_microbatch": 200},
    )  # fmt: skip
    counts = {"train": 90, "annotated": 60, "validation": 11, "test": 13, "models": 4}
    sft, ppo, evaluation = works(config, LENGTHS, counts)
    assert (sft.name, sft.steps, sft.learns, sft.validations) == ("sft", 3 * 8, 8 * 50.0, 3)
    assert sft.updates == 1
    assert sft.microbatch == 2 * 80  # two of the longest fit into 200
    assert sft.targets == pytest.approx(160 * (1 - 30 / 50))
    assert sft.validates is not None
    assert (sft.validates.questions, sft.validates.samples) == (11, 1)
    auto, *_ = works(make_config(sft={"warmup_epochs": "auto", "warmup_k": 8}), LENGTHS, counts)
    assert auto.validates is not None
    assert (auto.validates.questions, auto.validates.samples) == (11, 9)  # one of them greedy
    distinct = 4 * 30 + 20 * 20.0
    assert (ppo.steps, ppo.learns, ppo.reads, ppo.updates) == (7, 2 * distinct, distinct, 4)
    # With a critic of its own, or where the policy moves on, the samples are read anew, by both.
    own = make_config(model={"name": "m", "value_model": "separate"}, ppo={"kl_coef": 0.0})
    ahead = make_config(ppo={"kl_coef": 0.0, "async_rollouts": True})
    [_, plain, _] = works(make_config(ppo={"kl_coef": 0.0}), LENGTHS, counts)
    [_, both, _], [_, moved, _] = (works(x, LENGTHS, counts) for x in (own, ahead))
    assert (plain.reads, both.reads, moved.reads) == (0.0, plain.learns, plain.learns / 2)
    assert both.learns == 2 * plain.learns
    [_, free, _] = works(make_config(ppo={"kl_coef": 0.0}), LENGTHS, counts)
    assert (ppo.reference, free.reference, free.reads) == (True, False, 0.0)  # nor does anybody read
    assert ppo.draws is not None
    assert (ppo.draws.rows, ppo.validations) == (20, 4)
    assert evaluation.draws is not None
    assert (evaluation.steps, evaluation.draws.questions, evaluation.learns) == (4, 13, 0.0)
    assert evaluation.updates == 0


@pytest.mark.parametrize(
    ("name", "gigabytes"), [("24GB", 24), ("24 gb", 24), ("80GiB", 80), ("H100", 80), ("RTX 4090", 24)]
)
def test_gpus_by_name_and_by_memory(name: str, gigabytes: float) -> None:
    machine = named_machine(name)
    assert machine.gpu
    assert machine.memory == gigabytes * 1e9


def test_an_unknown_gpu_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UserError, match="--gpu voodoo2: not known; give its memory, such as 24GB, or"):
        named_machine("voodoo2")


def save_tiny(folder: Path) -> Path:
    LlamaForCausalLM(LLAMA).save_pretrained(folder / "tiny")
    return folder / "tiny"


def fitted(name: Path | str, memory: float, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> Config:
    machine = Machine("this toaster", memory, program=1000.0, gpu=False)
    monkeypatch.setattr(fitting, "this_machine", lambda device: machine)
    config = make_config(model={"name": str(name)}, **sections)
    return fit(config, ["sft", "ppo", "evaluation"], torch.device("cpu"), given_shape(config))


def test_a_run_is_refused_where_weights_and_moments_alone_are_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PPO has the weights five times: themselves, gradients, two moments and the reference."""
    name, weights = save_tiny(tmp_path), sum(p.numel() for p in LlamaForCausalLM(LLAMA).parameters())
    least = 5 * 4 * weights + 1000
    fitted(name, least, monkeypatch)
    with pytest.raises(UserError, match=r"^ppo: .*tiny takes .*this toaster has .*`reftune plan` says"):
        fitted(name, least - 1, monkeypatch)
    with pytest.raises(UserError, match=r"^sft: "):
        fitted(name, least - 4 * weights - 1, monkeypatch)


def test_a_model_that_cannot_be_measured_is_left_to_whoever_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted(tmp_path / "none", 0.0, monkeypatch)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": -1}')
    fitted(tmp_path, 0.0, monkeypatch)


def test_micro_batches_are_as_large_as_the_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, weights = save_tiny(tmp_path), sum(p.numel() for p in LlamaForCausalLM(LLAMA).parameters())
    each = shape_of(LLAMA, make_config()).activation_bytes
    taken = 1000 + 5 * 4 * weights + 3 * 4 * 2**25  # program, what PPO keeps, and a chunk of logits
    least = taken + 2 * 512 * each  # half of what is left holds 512 tokens
    assert fitted(name, least, monkeypatch).compute.tokens_per_microbatch == 512
    assert fitted(name, least - 1, monkeypatch).compute.tokens_per_microbatch == 256
    told = capsys.readouterr().err
    assert "reftune: compute.tokens_per_microbatch = 512: more would not fit into this toaster" in told
    assert fitted(name, 1e12, monkeypatch).compute.tokens_per_microbatch == 4096
    assert "4096" not in capsys.readouterr().err
    given = {"compute": {"tokens_per_microbatch": 77}}
    assert fitted(name, least, monkeypatch, **given).compute.tokens_per_microbatch == 77
    # where nothing is left to do nothing is looked at
    config = make_config(model={"name": str(name)})
    assert fit(config, [], torch.device("cpu"), given_shape(config)) == config


def test_what_micro_batches_share_a_memory_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token takes 100 bytes, and half of what is left holds exactly 4,096."""

    def tokens(gpu: bool = False, threads: int = 1, beside: float = 0.0, **sections: Any) -> list[Any]:
        config, shape = make_config(**sections), replace(SHAPE, activation_bytes=100)
        chunk = 12 * (2**26 if gpu else 2**25) * threads
        kept = 4000 * (4 + threads)  # weights, reference and two moments, and each replica's gradients
        memory = 2 * 4096 * 100 + kept + chunk + beside
        machines = [Machine("m", x, beside, gpu, threads=threads) for x in (memory, memory - 1)]
        fitted = [with_microbatches(config, ["sft", "ppo"], shape, x) for x in machines]
        return [x.compute.tokens_per_microbatch for x in fitted]

    assert tokens() == tokens(beside=5000.0) == tokens(gpu=True) == [4096, 2048]
    assert tokens(threads=2) == [2048, 1024]
    # states of two layers, eight numbers each, and half of 100 bytes: more than without
    assert tokens(compute={"gradient_checkpointing": True}) == [2048, 2048]
    assert tokens(model={"scratch": "llama"}) == [None, None]  # small
    monkeypatch.setattr(fitting, "local_processes", lambda: 4)
    assert tokens(gpu=True) == [4096, 2048]
    assert max(tokens()) < 4096  # four processes share a CPU's memory


def test_as_many_rows_are_decoded_as_the_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has 12 numbers of each of 30 tokens, 50 logits and a prompt of its own."""
    config = make_config(prompt={"max_prompt_tokens": 10, "max_new_tokens": 20})

    def rows(memory: float, gpu: bool = False, **compute: Any) -> int | None:
        given = config.model_copy(update={"compute": Compute(tokens_per_microbatch=64, **compute)})
        machine = Machine("m", memory, 1000.0, gpu)
        return with_rows(given, ["sft", "ppo"], SHAPE, machine).compute.sampler_rows

    def least(count: int) -> float:
        cache, logits = count * 30 * 2 * 6 * 4, count * 50 * 16
        reading = min(8192, count * 10) * 700 / 2  # the inside of one of two layers
        return 1000 + 4000 * 5 + cache + logits + reading

    assert [rows(least(n)) for n in (512, 256, 32, 16)] == [512, 256, 32, 16]
    assert [rows(least(n) - 1) for n in (512, 256, 32, 16)] == [256, 128, 16, 16]
    assert rows(least(64), sampler_rows=999) == 999
    assert rows(least(64), gpu=True) is rows(least(64), sampler="vllm") is None
    monkeypatch.setattr(fitting, "local_processes", lambda: 4)
    assert rows(least(512)) == 64  # four processes share a CPU's memory


def test_all_processes_of_a_cpu_have_to_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, weights = save_tiny(tmp_path), sum(p.numel() for p in LlamaForCausalLM(LLAMA).parameters())
    least = 5 * 4 * weights + 1000
    monkeypatch.setattr(fitting, "local_processes", lambda: 3)
    fitted(name, 3 * least, monkeypatch)
    with pytest.raises(UserError, match=r"^ppo: .* in each of 3 processes, and this toaster has"):
        fitted(name, 3 * least - 1, monkeypatch)


def test_a_gpu_reads_more_at_once_where_it_can() -> None:
    machine = Machine("m", 1e12, 0.0, gpu=True)
    fitted = with_microbatches(make_config(), ["sft"], SHAPE, machine)
    assert fitted.compute.tokens_per_microbatch == 16384


def test_settings_under_which_a_run_would_fit_are_named_in_order() -> None:
    """Each takes off a part, and the second, which does little, is left out."""
    config, sizes = make_config(), {"start": 100.0}

    def peak(changed: Config) -> float:
        left = sizes["start"]
        left -= 10 * (changed.compute.tokens_per_microbatch == 1024)
        left -= 1 * (changed.compute.sampler_rows == 64)
        left -= 50 * changed.compute.gradient_checkpointing
        return left - 30 * (changed.lora.rank > 0)

    def cured(memory: float, gpu: bool = True) -> list[str]:
        return find_cures(config, peak, Machine("m", memory, 0.0, gpu))

    assert cured(95) == ["compute.tokens_per_microbatch = 1024"]
    both = ["compute.tokens_per_microbatch = 1024", "compute.gradient_checkpointing = true"]
    assert cured(40) == both
    assert cured(10) == [*both, "lora.rank = 16"]
    assert cured(5) == []


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "unknown"), (0.0042, "4.2 ms"), (1.0, "1 s"), (90.0, "1.5 min"), (5400.0, "1.5 h"),
     (2 * 86400.0, "2 d")],
)  # fmt: skip
def test_durations_are_told_in_their_unit(seconds: float | None, told: str) -> None:
    assert duration(seconds) == told
    assert duration(123.4, digits=2) == "2.1 min"
    assert duration(0.5634, digits=2) == "560 ms"


def plan(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    return start(monkeypatch, "plan", *arguments)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny_run.write_config(tmp_path)


def test_the_command_plans_for_this_machine_and_makes_no_run(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(monkeypatch, written) == 0
    told = capsys.readouterr().out
    for word in ("this machine with", "sft", "ppo", "evaluation", "working space", "peak", "It fits:"):
        assert word in told
    assert "unknown" not in told  # the pace was tried
    assert not (written.parent / "runs").exists()


def test_the_command_plans_for_a_gpu_that_is_not_at_hand(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(monkeypatch, written, "--gpu", "24GB") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "a GPU of 24 GB" in told
    assert "Times are assumed, not measured" in told
    assert plan(monkeypatch, written, "--gpu", "0.1GB") == 0
    assert "It does not fit: peak" in " ".join(capsys.readouterr().out.split())
    assert plan(monkeypatch, written, "--gpu", "voodoo2") == 2
    assert "--gpu voodoo2: not known" in " ".join(capsys.readouterr().err.split())


def test_vllm_takes_its_share_while_it_samples_and_nothing_where_a_server_does() -> None:
    """By hand: 1,000 weights of 4 bytes; on a CPU they are there twice, with a cache of a GiB."""
    draws = StageWork("ppo", 1, draws=LENGTHS.draw(4), learns=100.0)
    here = make_config(compute={"sampler": "vllm", "vllm_gpu_memory": 0.25})
    there = make_config(compute={"sampler": "vllm", "vllm_server": "gpu2"})
    on_gpu, on_cpu = (memory(draws, SHAPE, here, machine) for machine in (GPU, CPU))
    assert on_gpu["sampling"]["vLLM"] == 0.25 * 1e12
    assert on_gpu["update"]["vLLM"] == 1e9
    assert on_cpu["sampling"]["vLLM"] == on_cpu["update"]["vLLM"] == 4000 + 2**30
    for moment in memory(draws, SHAPE, there, GPU).values():
        assert not {"vLLM", "cache"} & moment.keys()
    counts = {"train": 9, "annotated": 9, "validation": 1, "test": 1, "models": 2}
    ppo, builtin = (
        next(work for work in works(config, LENGTHS, counts) if work.name == "ppo")
        for config in (here, make_config())
    )
    assert ppo.reads == 2 * builtin.reads, "the policy reads what another engine has drawn"
