"""A GGUF file is opened as the ordinary model that it was made from, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reftune.config import Model
from reftune.model import gguf as ours
from reftune.model.loading import load_both, load_model, load_policy, load_tokenizer
from reftune.problem import UserError
from tiny_gguf import CHAT, tiny_llama, write_gguf

TEXT = "She has 35 apples.\n  return 7"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", *tiny_llama())


def test_it_says_what_the_model_says_that_it_was_made_from(file: Path) -> None:
    (model, tokenizer), (plain, its) = load_both(file), tiny_llama()
    assert tokenizer(TEXT).input_ids == its(TEXT).input_ids
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    ids = torch.tensor([its(TEXT).input_ids])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert load_model(file, torch.bfloat16).dtype == torch.bfloat16


def test_its_tokenizer_has_template_end_and_padding(file: Path) -> None:
    tokenizer = load_tokenizer(file)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<eos>")
    assert tokenizer.chat_template == CHAT
    assert len(tokenizer) == len(tiny_llama()[1]), "and no token more"


def test_quantised_weights_are_read_back_to_half_a_step(tmp_path: Path) -> None:
    """A step of 8 bits is a 127th of the largest of 32 weights; its own 11 bits add a little."""
    model, tokenizer = tiny_llama()
    path = write_gguf(tmp_path / "blocks.gguf", model, tokenizer, quantised=True)
    assert path.stat().st_size < 0.6 * 4 * sum(p.numel() for p in model.parameters())
    policy = load_policy(path, Model(name=str(path)), trainable=True)  # which quantised weights are not
    for name, parameter in policy.policy.named_parameters():
        exact = model.get_parameter(name)
        assert 0 <= (parameter - exact).abs().max() <= 0.57 / 127 * exact.abs().max()
        assert parameter.dtype == torch.float32


def test_it_trains_and_is_saved_as_any_other(file: Path, tmp_path: Path) -> None:
    policy = load_policy(file, Model(name=str(file)), trainable=True)
    model = policy.policy
    ids = torch.tensor([load_tokenizer(file)(TEXT).input_ids])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    model.save_pretrained(tmp_path)
    load_tokenizer(file).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == CHAT
    assert "gguf" not in (tmp_path / "config.json").read_text()


def test_nothing_is_shown_while_it_is_read(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_both(file)
    assert capfd.readouterr() == ("", "")


# What cannot be used.


def refusal(name: Path) -> str:
    with pytest.raises(UserError, match=rf"^{name}: cannot be loaded: ") as caught:
        load_both(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_and_one_that_is_no_gguf_file_are_told(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    assert "it is no GGUF file" in refusal(tmp_path / "text.gguf")
    (tmp_path / "empty.gguf").touch()
    assert "it is no GGUF file" in refusal(tmp_path / "empty.gguf")


@pytest.mark.parametrize("share", [0.05, 0.6, 0.99])
def test_a_file_that_is_cut_off_is_told(file: Path, tmp_path: Path, share: float) -> None:
    content = file.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    assert "damaged" in refusal(tmp_path / "cut.gguf")


def test_an_architecture_that_transformers_does_not_read_is_told(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "odd.gguf", *tiny_llama(), architecture="minicpm3")
    assert "architecture minicpm3 is not supported" in refusal(path)


@pytest.mark.parametrize(
    "extra",
    [
        {"rope_freqs.weight": torch.ones(4)},  # Llama 3.1 and later
        {"llama.rope.scaling.factor": 8.0, "llama.rope.scaling.type": "linear"},
        {"llama.rope.scale_linear": 4.0},
    ],
    ids=str,
)
def test_scaled_positions_that_would_be_lost_are_refused(tmp_path: Path, extra: dict[str, Any]) -> None:
    path = write_gguf(tmp_path / "scaled.gguf", *tiny_llama(), **extra)
    with pytest.raises(UserError, match="scales rotary positions, which transformers does not read"):
        load_model(path)


def test_positions_that_are_scaled_by_nothing_are_fine(tmp_path: Path) -> None:
    for i, extra in enumerate(({"llama.rope.scaling.type": "none"}, {"llama.rope.scale_linear": 1.0})):
        load_model(write_gguf(tmp_path / f"{i}.gguf", *tiny_llama(), **extra))


def test_tensors_that_would_be_left_out_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "biased.gguf", *tiny_llama(), **{"blk.0.attn_q.bias": torch.ones(32)})
    with pytest.raises(
        UserError, match=r"it holds [\d,]+ weights, of which transformers takes [\d,]+: "
    ):
        load_model(path)


def test_without_the_package_the_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    assert refusal(file).endswith("pip install 'reftune[gguf]'")
