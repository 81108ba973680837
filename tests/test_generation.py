"""Completions of any prompt by any model: what is asked, what comes back, where it ends."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import reftune
from reftune.config import Model, Prompt
from reftune.model.prompts import Prompter
from reftune.model.scratch import new_model

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content + '' }}<eos>{% endfor %}"
PROMPTS = ["a b", "b a b", "a b"]


def random_model() -> tuple[Any, Any]:
    """Return a model whose greedy texts do not repeat one token, and its tokenizer."""
    settings = Model(scratch="tiny", vocab_size=280, scratch_overrides=SHAPE)
    made, tokenizer = new_model(settings, ["a b c d e"], 1)
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made, tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a model that has learned nothing, with a chat template."""
    directory = tmp_path_factory.mktemp("generation") / "model"
    made, tokenizer = random_model()
    tokenizer.chat_template = TEMPLATE
    made.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def generate(model: Path, prompts: Any, **how: Any) -> list[list[reftune.Completion]]:
    return reftune.generate(model, prompts, **{"max_new_tokens": 20, **how})


def texts(found: list[list[reftune.Completion]]) -> list[list[str]]:
    return [[one.text for one in several] for several in found]


def test_greedy_completions_and_their_log_probabilities_are_those_of_transformers(model: Path) -> None:
    [[first], [second]] = generate(model, PROMPTS[:2], temperature=0.0)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    for found, prompt in ((first, "a b"), (second, "b a b")):
        ids: Any = tokenizer(prompt, return_tensors="pt").input_ids
        output = loaded.generate(ids, do_sample=False, max_new_tokens=20)[0].tolist()
        written = output[ids.shape[1] :]
        assert found.tokens == written
        assert found.finished == (written[-1] == tokenizer.eos_token_id)
        with torch.no_grad():
            logprobs = loaded(torch.tensor([output])).logits[0].log_softmax(-1)
        each = [logprobs[ids.shape[1] - 1 + i, token] for i, token in enumerate(written)]
        assert found.logprob == pytest.approx(float(sum(each)), abs=1e-3)
        assert found.text == tokenizer.decode(output, skip_special_tokens=True)[len(prompt) :]


def test_each_prompt_has_its_completions_whatever_the_others_are(model: Path) -> None:
    found = generate(model, PROMPTS, n=3)
    assert [len(several) for several in found] == [3, 3, 3]
    assert len({*texts(found)[0], *texts(found)[2]}) == 6, "each has randomness of its own"
    for alone in (PROMPTS[:1], "a b"):
        assert texts(generate(model, alone, n=3)) == texts(found[:1])
    assert texts(generate(model, "a b", n=3, seed=1)) != texts(found[:1])
    assert generate(model, []) == []


def test_without_the_unlikely_tokens_the_likeliest_is_left(model: Path) -> None:
    greedy = generate(model, PROMPTS, temperature=0.0)
    narrow = generate(model, PROMPTS, temperature=1.0, top_p=1e-6)
    assert [[c.tokens for c in several] for several in narrow] == [
        [c.tokens for c in several] for several in greedy
    ]
    for a, b in zip(narrow, greedy, strict=True):  # of the whole distribution
        assert a[0].logprob == pytest.approx(b[0].logprob, abs=1e-4)


def test_a_stop_string_ends_a_completion(model: Path) -> None:
    free = generate(model, PROMPTS, n=4, max_new_tokens=40)
    letter = free[0][0].text[6]
    cut = generate(model, PROMPTS, n=4, max_new_tokens=40, stop=[letter, "never so"])
    for before, after in zip(chain(*free), chain(*cut), strict=True):
        text, found, _ = before.text.partition(letter)
        assert after.text == text
        assert after.finished == (bool(found) or before.finished)
        assert after.tokens == before.tokens[: len(after.tokens)]
        if found:
            assert after.logprob > before.logprob
    assert sum(len(c.tokens) for c in chain(*cut)) < sum(len(c.tokens) for c in chain(*free))
    assert texts(generate(model, PROMPTS, n=4, max_new_tokens=40, stop=letter)) == texts(cut)


def test_what_is_cut_off_is_not_finished(model: Path) -> None:
    [[one]] = generate(model, "a b", max_new_tokens=1, temperature=0.0)
    assert (len(one.tokens), one.finished) == (1, False)


def test_chats_are_written_by_the_template_and_may_stand_beside_texts(model: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chat += [{"role": "user", "content": "c"}]
    plain = "<s>user: a<eos><s>assistant: b<eos><s>user: c<eos>"
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.apply_chat_template(chat, return_dict=False) == tokenizer(plain).input_ids
    [one], [same] = generate(model, [chat, plain], temperature=0.0)
    [[alone]] = generate(model, chat, temperature=0.0)
    assert one.tokens == same.tokens == alone.tokens


def test_a_run_stands_for_its_last_finished_model_and_what_it_knows(model: Path, tmp_path: Path) -> None:
    """A model that we have trained says how long its responses are, and takes chats of one question."""
    made, tokenizer = random_model()
    made.save_pretrained(tmp_path / "sft/model")
    asked = Prompt(template="{question} ->", max_new_tokens=3)
    Prompter(tokenizer, asked, "program").save(tmp_path / "sft/model")
    for name in ("config.toml", "sft/result.json"):
        (tmp_path / name).write_text("{}")
    question = [{"role": "user", "content": "a b"}]
    [one], [asked_in_chat] = reftune.generate(tmp_path, ["a b ->", question], temperature=0.0)
    assert len(one.tokens) == 3, "its own limit"
    assert one.tokens != [] == asked_in_chat.tokens[3:]
    [[same]] = reftune.generate(tmp_path / "sft/model", "a b ->", temperature=0.0)
    assert same.tokens == one.tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: 1 or more completions per prompt, not 0"),
        ({"temperature": -1.0}, "temperature: 0, or from 0.01 to 100, not -1.0"),
        ({"top_p": 0.0}, "top_p: above 0 and up to 1, not 0.0"),
        ({"stop": ["a", ""]}, "stop: a text or a list of texts, none of them empty, not ['a', '']"),
        ({"max_new_tokens": 0}, "max_new_tokens: 1 or more, not 0"),
        ({"prompts": ["a", ""]}, "prompt 2: is empty; write what the model shall go on with"),
        ({"max_new_tokens": 10**4}, "prompt 1: its 2 tokens and max_new_tokens = 10000 exceed"),
        ({"prompts": [{"role": "user"}]}, "prompt 1: the chat template fails ("),
        ({"overrides": ["ppo.steps=3"]}, "--set ppo.steps=3: has no effect when a model is asked"),
        ({"model": "./none"}, "./none: cannot be loaded: its tokenizer"),
    ],
)
def test_what_cannot_be_generated_is_named(model: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(reftune.UserError) as caught:
        reftune.generate(**{"model": model, "prompts": ["a b"], **arguments})
    assert str(caught.value).startswith(message)


def test_messages_need_a_chat_template(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        reftune.UserError, match="prompt 1: this model has no chat template; give a text"
    ):
        generate(tmp_path, [{"role": "user", "content": "a"}])
