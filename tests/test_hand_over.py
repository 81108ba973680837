"""What `reftune export` writes: a directory that others open, with a card that says what it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import reftune
import tiny_run
from reftune import cli
from reftune.config import Prompt
from reftune.model.prompts import Prompter
from reftune.problem import UserError
from tiny_gguf import CHAT, tiny_llama, write_gguf
from tiny_models import random_model
from tiny_stage import TOKENIZER, VOCAB

FAMILIES = ("llama", "qwen3", "gemma3", "gemma3_text", "gpt2")


def write_model(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """Write a model as a run leaves it; gemma3 is a composite one, gemma3_text its language part."""
    model = random_model(family.removesuffix("_text"), **changes)
    if family.endswith("_text"):
        model = AutoModelForCausalLM.from_config(model.config.text_config)
    model.resize_token_embeddings(VOCAB, mean_resizing=False)
    model.save_pretrained(folder)
    Prompter(TOKENIZER, Prompt(max_new_tokens=7), "program").save(folder)
    return folder


def logits(folder: Path, dtype: Any = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11]])).logits
    return found


def front_matter(folder: Path) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return found


# Others open it.


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_the_same_model(tmp_path: Path, family: str) -> None:
    source, out = write_model(tmp_path / "model", family), tmp_path / "deep/er/out"
    assert reftune.export(source, out) == out
    assert torch.equal(logits(source), logits(out))
    texts = [AutoTokenizer.from_pretrained(x)("what is it?").input_ids for x in (source, out)]
    assert texts[0] == texts[1]
    for name in ("generation_config.json", "reftune_prompt.json", "chat_template.jinja"):
        assert (out / name).read_text() == (source / name).read_text()


def test_an_adapter_comes_along_and_the_card_says_what_it_is(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    reftune.export(source, tmp_path / "plain")
    assert not (tmp_path / "plain/adapter").exists()
    assert "LoRA" not in (tmp_path / "plain/README.md").read_text()
    (source / "adapter").mkdir()
    (source / "adapter/adapter_config.json").write_text("{}")
    reftune.export(source, tmp_path / "out")
    assert (tmp_path / "out/adapter/adapter_config.json").read_text() == "{}"
    assert "`adapter/` has it by itself" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("tied", [True, False])
def test_its_files_are_what_vllms_loader_reads(tmp_path: Path, tied: bool) -> None:
    """vLLM was not run here: it takes the class of config.json, and refuses names that this has not."""
    out = tmp_path / "out"
    reftune.export(write_model(tmp_path / "model", tie_word_embeddings=tied), out)
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["tie_word_embeddings"]) == (["LlamaForCausalLM"], tied)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out))
    with safe_open(out / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
        names = set(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float32}
    own = set(model.state_dict())
    assert names == (own - {"lm_head.weight"} if tied else own)
    template = ImmutableSandboxedEnvironment().from_string((out / "chat_template.jinja").read_text())
    text = template.render(messages=[{"role": "user", "content": "Why?"}], add_generation_prompt=True)
    assert "Why?" in text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_written_in_the_precision_that_is_asked_for(tmp_path: Path, dtype: Any) -> None:
    source, out = write_model(tmp_path / "model"), tmp_path / "out"
    reftune.export(source, out, dtype=dtype)
    exact, rounded = (AutoModelForCausalLM.from_pretrained(x, dtype="auto") for x in (source, out))
    for name, weight in exact.state_dict().items():
        assert torch.equal(rounded.state_dict()[name], weight.to(getattr(torch, dtype)))
    assert json.loads((out / "reftune_prompt.json").read_text())["dtype"] == dtype
    again = tmp_path / "again"
    reftune.export(out, again)  # as it is
    assert AutoModelForCausalLM.from_pretrained(again, dtype="auto").dtype == getattr(torch, dtype)


def test_a_gguf_file_becomes_a_directory(tmp_path: Path) -> None:
    model, tokenizer = tiny_llama()
    licence = {"general.license": "mit"}
    file = write_gguf(tmp_path / "my.gguf", model, tokenizer, **licence)
    reftune.export(file, tmp_path / "out", origin="a friend")
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11]])
    torch.testing.assert_close(logits(tmp_path / "out"), model(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHAT
    assert front_matter(tmp_path / "out")["license"] == "mit"
    card = (tmp_path / "out/README.md").read_text()
    for words in ("# out\n\nmy.gguf, written as", "what was rounded there stays", "Origin: a friend."):
        assert words in card


# Whole, or not at all.


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    with pytest.raises(UserError, match=rf"^{source}: holds something already; give another --out"):
        reftune.export(source, source)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="holds something already"):
        reftune.export(source, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    reftune.export(source, tmp_path / "empty")
    assert (tmp_path / "empty/config.json").exists()


def test_a_directory_is_written_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    source = write_model(tmp_path / "model")
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", fail)
    with pytest.raises(UserError, match="out: cannot be written"):
        reftune.export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The card.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished run."""
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("run")
    reftune.run(reftune.load_config(tiny_run.write_config(folder), ["ppo.steps=2", "sft.epochs=6"]))
    return folder / "runs/tiny"


def test_the_card_of_a_runs_model_says_how_it_was_trained_and_how_good_it_is(
    run: Path, tmp_path: Path
) -> None:
    reftune.export(run, tmp_path / "out", license="apache-2.0")
    card = " ".join((tmp_path / "out/README.md").read_text().split())
    result = json.loads((run / "evaluation/result.json").read_text())
    accuracy = result["models"]["reft"]["greedy"]["accuracy"]
    low, high = (100 * x for x in result["models"]["reft"]["greedy"]["interval"])
    assert f"| ReFT (this model) | {accuracy:.1%} [{low:.1f}, {high:.1f}] |" in card
    [pair] = [
        x
        for x in result["comparisons"]
        if (x["a"], x["b"], x["aggregation"]) == ("sft", "reft", "greedy")
    ]
    assert f"ReFT against SFT: {100 * pair['difference']:+.1f} points".replace("-", "\u2212") in card
    for words in (
        "a new Llama (tiny)", "Reinforced fine-tuning (PPO):", "steps: 2", "KL coefficient: 0.01",
        "Supervised fine-tuning:", "epochs: 6", "Data:", "training questions: 220",
        "Right answers on 40",
    ):  # fmt: skip
        assert words in card, words
    assert str(run.parents[1]) not in card, "nobody's business"
    found = front_matter(tmp_path / "out")
    assert (found["library_name"], found["license"]) == ("transformers", "apache-2.0")
    assert found["tags"] == ["reftune", "reinforced-fine-tuning", "ppo"]
    [[metric]] = [x["metrics"] for x in found["model-index"][0]["results"]]
    assert (metric["type"], metric["value"]) == ("accuracy", round(accuracy, 4))


def test_another_model_of_a_run_is_chosen_by_name_or_by_its_directory(run: Path, tmp_path: Path) -> None:
    reftune.export(run, tmp_path / "named", model="sft")
    reftune.export(run / "sft/model", tmp_path / "placed")
    for name in ("named", "placed"):
        assert torch.equal(logits(run / "sft/model"), logits(tmp_path / name))
        card = (tmp_path / name / "README.md").read_text()
        assert "| SFT (this model) |" in card
        assert "Reinforced fine-tuning (PPO):" not in card, "it was not trained so"
        assert front_matter(tmp_path / name)["license"] == "other"


def test_the_cards_code_runs_and_asks_as_training_did(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    reftune.export(run, out)
    code, vllm = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    compile(vllm, "vllm", "exec")
    assert f'LLM(model="{out}")' in vllm
    exec(code, {})
    shown = capsys.readouterr().out
    [graded] = reftune.sample(out, "Ann has 3 coins and finds 4. How many?")
    assert graded.completion == "def solution():\n" + shown.rstrip("\n")


# The hub.


class Hub:
    """A hub that takes everything, and remembers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        self.calls.append((name, private))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.mark.parametrize("public", [False, True])
def test_a_model_is_pushed_as_a_whole_and_is_private_unless_told_otherwise(
    tmp_path: Path, public: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, out = Hub(), tmp_path / "out"
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    source = write_model(tmp_path / "model")
    assert reftune.export(source, out, push="me/mine", public=public) == "https://hub/me/mine"
    assert hub.calls[0] == ("me/mine", not public)
    assert hub.calls[1] == ("me/mine", sorted(path.name for path in out.iterdir()))
    assert 'from_pretrained("me/mine")' in (out / "README.md").read_text()


def test_what_the_hub_refuses_is_told_and_the_model_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("nobody there\nat all")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    arguments = ["export", str(write_model(tmp_path / "model")), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["reftune", *arguments, "--push", "me/mine"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert f"me/mine: cannot be pushed to the hub (nobody there); the model is in {tmp_path}/out" in told
    assert (tmp_path / "out/config.json").exists()
    with pytest.raises(UserError, match="--public: has no effect without --push"):
        reftune.export("any", tmp_path / "other", public=True)
