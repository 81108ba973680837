"""Whatever is wrong with a model's files is told in one sentence, before anything is computed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reftune.config import Model
from reftune.data.checking import check_source
from reftune.data.problems import write_problems
from reftune.model import loading
from reftune.model.loading import (
    build_model,
    end_tokens,
    load_both,
    load_model,
    load_tokenizer,
    make_policy,
)
from reftune.model.scratch import new_model
from reftune.problem import Problem, UserError
from tiny_models import tiny_model

SIZES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
WEIGHTS, CONFIG, ENDS = "model.safetensors", "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    settings = Model(scratch="tiny", scratch_overrides=SIZES, vocab_size=300)
    for part in new_model(settings, ["She has 3 apples."], 0):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    """Return a directory of its own with a sound model."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def says(file: str, **values: Any) -> Damage:
    """Let a JSON file say something else."""
    return lambda folder: (folder / file).write_text(
        json.dumps(json.loads((folder / file).read_text(encoding="utf-8")) | values), encoding="utf-8"
    )


def holds(file: str, content: bytes) -> Damage:
    return lambda folder: (folder / file).write_bytes(content)


def cut(file: str, size: int) -> Damage:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


class Code:
    """What runs a program when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/reftune-was-tricked",)


def pickles(content: object) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return damage


DAMAGED: dict[str, tuple[Damage, str]] = {  # what is done to the files, and a part of the reason
    "unknown activation": (says(CONFIG, hidden_act="nonsense"), "KeyError: 'nonsense'"),
    "unknown rope type": (
        says(CONFIG, rope_parameters={"rope_type": "nonsense", "rope_theta": 1e4}), "'nonsense'"
    ),
    "unknown kind of model": (says(CONFIG, model_type="nonsense"), "model type `nonsense`"),
    "unknown attention": (says(CONFIG, attn_implementation="nonsense"), "nonsense"),
    "a config that is a list": (holds(CONFIG, b"[1, 2]"), "Should have a `model_type`"),
    "a config that is null": (holds(CONFIG, b"null"), "damaged, or unknown"),
    "a config that is empty": (holds(CONFIG, b""), "is not a valid JSON file"),
    "a config that is no text": (holds(CONFIG, b"\xff\xfe\x00"), "is not a valid JSON file"),
    "a config that is nested deeply": (holds(CONFIG, b"[" * 100_000), "maximum recursion depth"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "a directory without config.json"),
    "a model of images": (holds(CONFIG, b'{"model_type": "vit"}'), "ViTConfig"),
    "code of its own": (
        holds(CONFIG, b'{"model_type": "x", "auto_map": {"AutoConfig": "x.X"}}'), "custom code"
    ),
    "quantised without the package": (
        says(CONFIG, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "pip install -U bitsandbytes",
    ),
    "sizes that contradict": (
        says(CONFIG, num_attention_heads=3), r"\(16\) is not a multiple .* heads \(3\)"
    ),
    "no heads": (says(CONFIG, num_attention_heads=0), "damaged, or unknown"),
    "a size that is text": (says(CONFIG, hidden_size="x"), "'hidden_size' expected int, got str"),
    "other sizes than the weights'": (says(CONFIG, hidden_size=32), "other shapes than config.json"),
    "more layers than the weights'": (says(CONFIG, num_hidden_layers=2), r"weights of model.layers.1"),
    "pickled code": (pickles({"x": Code()}), "pickled weights hold more than tensors"),
    "pickled numbers": (pickles([1, 2]), "damaged, or unknown"),
    "weights that are cut off": (cut(WEIGHTS, 1000), "deserializing header"),
    "weights that are empty": (cut(WEIGHTS, 0), "deserializing header"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no file named model.safetensors"),
    "EOS as text": (says(CONFIG, eos_token_id="</s>"), "'eos_token_id' with value '</s>'"),
    "EOS as text for sampling": (says(ENDS, eos_token_id="</s>"), "eos_token_id = '</s>' is not a numb"),
    "one EOS of several as text": (says(ENDS, eos_token_id=[0, "</s>"]), "'</s>' is not a number"),
    "settings of sampling that are a list": (holds(ENDS, b"[]"), "not a mapping"),
}  # fmt: skip
DAMAGED_TOKENIZERS: dict[str, tuple[Damage, str]] = {
    "cut off": (cut(TOKENIZER, 500), "one of its JSON files is damaged"),
    "empty": (cut(TOKENIZER, 0), "one of its JSON files is damaged"),
    "a list": (holds(TOKENIZER, b"[]"), "damaged, or unknown"),
    "of an unknown kind": (holds(TOKENIZER, b'{"model": {"type": "Nonsense"}}'), "damaged, or unknown"),
    "settings that are a list": (holds(TOKENIZER_CONFIG, b"[]"), "no attribute 'get'"),
    "EOS as a number": (
        holds(TOKENIZER_CONFIG, b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": 5}'),
        "eos_token has to be either str",
    ),
    "of a model whose config is null": (holds(CONFIG, b"null"), "damaged, or unknown"),
    "of a model whose config is nested deeply": (holds(CONFIG, b"[" * 100_000), "recursion depth"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_wrong_with_a_model_is_one_sentence(damage: Damage, reason: str, model: Path) -> None:
    damage(model)
    with pytest.raises(UserError, match=rf"^{model}: cannot be loaded: .*{reason}") as caught:
        load_model(model)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)
    assert not os.path.exists("/tmp/reftune-was-tricked")


@pytest.mark.parametrize(("damage", "reason"), DAMAGED_TOKENIZERS.values(), ids=DAMAGED_TOKENIZERS)
def test_what_is_wrong_with_a_tokenizer_is_one_sentence(
    damage: Damage, reason: str, model: Path
) -> None:
    damage(model)
    with pytest.raises(
        UserError, match=rf"^{model}: cannot be loaded: its tokenizer: .*{reason}"
    ) as caught:
        load_tokenizer(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("{}/config.json", "it is a file, neither a model's directory nor named"),
        ("{}/none", "no such directory"),
        ("{}/" + "x" * 5000, "no such directory"),  # longer than any name may be
        ("./none", "no such directory"),
        ("two words", "Repo id must"),
        ("", "Repo id must"),
    ],
)
def test_a_name_that_is_none_is_told(load: Any, name: str, reason: str, model: Path) -> None:
    with pytest.raises(UserError, match=rf"cannot be loaded: (its tokenizer: )?{reason}"):
        load(name.format(model))


@pytest.mark.parametrize(
    "error",
    [
        Exception("bare, as tokenizers raises it"),
        AttributeError("a"),
        MemoryError(),
        RecursionError("b"),
    ],
)
def test_errors_of_every_type_are_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(UserError, match=r"^any: cannot be loaded: its tokenizer: ") as caught:
        load_tokenizer("any")
    assert str(error) in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_stays_one(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", interrupt)
    with pytest.raises(error):
        load_model("any")


def test_faults_of_our_own_do_not_hide(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(loading, "end_tokens", fail)
    with pytest.raises(KeyError):
        load_model(model)


def test_a_model_that_contradicts_itself_only_when_it_reads_is_refused() -> None:
    model = tiny_model()
    model.model.layers[0].self_attn.head_dim = 5
    with pytest.raises(UserError, match=r"^a model of type llama cannot read a few tokens: "):
        make_policy(model, Model(name="any"))


def test_quantised_weights_are_read_but_not_trained() -> None:
    model = tiny_model()
    model.is_quantized = True
    make_policy(model, Model(name="any"))
    with pytest.raises(UserError, match=r"^a model of type llama cannot be trained: its weights are q"):
        make_policy(model, Model(name="any"), trainable=True)


# Tokenizer and model together.


def add_tokens(folder: Path, count: int) -> int:
    """Add tokens to a tokenizer; return how many it has then."""
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([f"<new {i}>" for i in range(count)])
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def test_more_tokens_than_the_model_knows_are_refused(model: Path) -> None:
    known = len(load_tokenizer(model))
    load_both(model)
    total = add_tokens(model, 2)
    sentence = rf"^{model}: .* has {total} tokens with ids up to {total - 1}, the model knows {known} "
    for load in (lambda: load_both(model), lambda: build_model(Model(name=str(model)), [], 0)):
        with pytest.raises(UserError, match=sentence):
            load()


def test_more_embeddings_than_tokens_are_fine(model: Path) -> None:
    """Many models round their vocabulary up."""
    network = load_model(model)
    network.resize_token_embeddings(320, mean_resizing=False)
    network.save_pretrained(model)
    assert add_tokens(model, 5) < 320
    load_both(model)


@pytest.fixture
def endless(model: Path) -> Path:
    """Return a model whose tokenizer has a token </s>, but no EOS, like Galactica's."""
    tokenizer = load_tokenizer(model)
    text = tokenizer.backend_tokenizer.to_str().replace("<eos>", "</s>")
    (model / TOKENIZER).write_text(text, encoding="utf-8")
    (model / TOKENIZER_CONFIG).write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return model


def test_a_run_is_no_model_to_start_from(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    with pytest.raises(UserError, match="is the directory of a run, not of a model"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_eos_is_given_one(endless: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{endless}: .* no EOS token; set model\.eos_token"):
        load_both(endless)
    with pytest.raises(UserError, match=rf'^model\.eos_token: "<none>" is no token of {endless}$'):
        load_both(endless, "<none>")
    _, tokenizer = build_model(Model(name=str(endless), eos_token="</s>"), [], 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 0)
    tokenizer.save_pretrained(tmp_path / "trained")
    assert load_tokenizer(tmp_path / "trained").eos_token_id == 0  # later stages need no setting


def test_lengths_are_measured_without_an_eos(endless: Path, tmp_path: Path) -> None:
    write_problems(tmp_path / "rows.jsonl", [Problem("q", "How many?", "3", "3 apples.")])
    lengths = []
    for end in (None, "</s>"):
        if end is not None:
            load_tokenizer(endless, end).save_pretrained(endless)
        checked = check_source(str(tmp_path / "rows.jsonl"), cot="natural", tokenizer=str(endless))
        lengths.append((checked.prompt_lengths, checked.response_lengths))
    assert lengths[0] == lengths[1]


def test_another_eos_than_the_tokenizers_can_be_chosen(model: Path) -> None:
    tokenizer = load_tokenizer(model, "a")
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("a") != 0
    assert isinstance(tokenizer, PreTrainedTokenizerFast)


@pytest.mark.parametrize(("said", "ends"), [(None, []), (7, [7]), ([7, 9], [7, 9]), (0, [0])], ids=str)
def test_all_ids_that_end_a_text_are_known(said: Any, ends: list[int]) -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **SIZES))
    model.generation_config.eos_token_id = said
    assert end_tokens(model) == ends


def test_a_missing_directory_beside_others_is_no_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`models/x` where there is a `models`: the hub would be asked for half a minute."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    asked = []
    monkeypatch.setattr(
        loading.AutoTokenizer, "from_pretrained", lambda *given, **_: asked.append(given)
    )
    with pytest.raises(UserError, match=r"^models/none: cannot be loaded: .*no such directory"):
        load_tokenizer("models/none")
    assert asked == []
