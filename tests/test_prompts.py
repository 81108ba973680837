"""Text to ids and back, with tokenizers of the kinds that models come with, each trained here."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from reftune.config import Prompt
from reftune.data.problems import load_problems
from reftune.model.loading import load_tokenizer
from reftune.model.prompts import PROGRAM_HEAD, Prompter, Wording, saved_settings, trained_at
from reftune.model.scratch import train_tokenizer
from reftune.problem import Cot, Problem, UserError
from reftune.sampling.sampler import Sample

PROGRAM = Problem(
    "p1",
    "Ann has 13 apples. Bob has 4 more. How many has Bob?",
    "17",
    "def solution():\n    ann = 13\n    if ann:\n        bob = ann + 4\n\n    return bob",
)
NATURAL = replace(PROGRAM, chain="Ann has 13 apples.\nBob has 13 + 4 = 17.")
CHOICE = Problem(
    "c1",
    "Bob has 4 and 13 apples. How many?\na ) 9 , b ) 17 , c ) 13 , d ) 4 , e ) none",
    "b",
    "Bob has 13 + 4 = 17.",
    choices=("9", "17", "13", "4", "none"),
)
SETTINGS = Prompt()

# What the paper and its official code feed the model, to the letter.
PROGRAM_PROMPT = (
    "Question:\nAnn has 13 apples. Bob has 4 more. How many has Bob?\nAnswer reasoning:\n"
    'def solution():\n    """Ann has 13 apples. Bob has 4 more. How many has Bob?"""\n'
)
PROGRAM_BODY = "    ann = 13\n    if ann:\n        bob = ann + 4\n\n    return bob"
NATURAL_PROMPT = "Question:\nAnn has 13 apples. Bob has 4 more. How many has Bob?\nAnswer reasoning:\n"
NATURAL_TARGET = "Ann has 13 apples.\nBob has 13 + 4 = 17.\nTherefore, the answer is: 17"

# Nothing of this is in what the tokenizers are trained on.
NASTY = [
    'Bob says "17',
    'He said "no"',
    'Is """ a docstring?',
    '"""',
    '""""""" "',
    "A \\ and a \\n",
    "It ends with \\",
    "Half is \\frac{1}{2}, {answer} {question} %s",
    "Zoë pays 5 € 🍏",
    "  two  spaces  \n\n\tand a tab ",
    "'''",
    "",
]


def texts() -> Iterable[str]:
    return [PROGRAM_PROMPT, PROGRAM_BODY, NATURAL_PROMPT, NATURAL_TARGET, *PROGRAM_BODY.split("\n")] * 5


def scratch() -> PreTrainedTokenizerFast:
    return train_tokenizer(texts(), 400)


def byte_level(add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """Train a tokenizer as GPT-2's: BOS and EOS are one token, and none is put in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(), trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end
    )


def sentencepiece(tokenizer: Tokenizer) -> Tokenizer:
    """Train on single lines, as SentencePiece does, so that newlines are left to the bytes."""
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([line for text in texts() for line in text.split("\n")], trainer)
    settings = json.loads(tokenizer.to_str())
    settings["added_tokens"] = settings["added_tokens"][:3]  # the bytes are pieces like all others
    return Tokenizer.from_str(json.dumps(settings))


def llama(add_eos_token: bool = False) -> PreTrainedTokenizerFast:
    """Train a tokenizer as Llama 2's: a normalizer puts a space before every text, indented or not."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece(tokenizer), bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        add_bos_token=True, add_eos_token=add_eos_token,
    )  # fmt: skip
    assert wrapped.decode(wrapped("    ann", add_special_tokens=False).input_ids) == "    ann"
    return wrapped


def metaspace() -> PreTrainedTokenizerFast:
    """Train a tokenizer that puts a space before texts without one; a template puts BOS in front."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer = sentencepiece(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def newline_pieces() -> PreTrainedTokenizerFast:
    """Train a tokenizer that joins a newline with the indentation behind it, as code models do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+|[^\s]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "scratch": scratch,
    "gpt2": byte_level,
    "gpt2 with prefix space": lambda: byte_level(add_prefix_space=True),
    "llama": llama,
    "metaspace": metaspace,
    "newline pieces": newline_pieces,
}
# How many ids stand before the text of a prompt.
BOS = {"llama": 1, "metaspace": 1}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def spell(kind: str, ids: list[int]) -> str:
    """Return the text of whole ids, as the tokenizer alone says it."""
    text = str(tokenizer_of(kind).decode(ids, clean_up_tokenization_spaces=False))
    return (
        text.removeprefix(" ") if kind == "gpt2 with prefix space" else text
    )  # it does not take it back


def without_bos(kind: str, ids: list[int]) -> list[int]:
    return ids[BOS.get(kind, 0) :]


def test_the_strings_are_the_papers() -> None:
    assert Wording(SETTINGS, "program").pieces(PROGRAM) == [
        NATURAL_PROMPT,
        'def solution():\n    """Ann has 13 apples. Bob has 4 more. How many has Bob?"""\n',
        PROGRAM_BODY,
    ]
    assert Wording(SETTINGS, "natural").pieces(NATURAL) == [NATURAL_PROMPT, "", NATURAL_TARGET]
    assert Wording(SETTINGS, "natural").pieces(CHOICE) == [
        "Question:\nBob has 4 and 13 apples. How many?\n"
        "a ) 9 , b ) 17 , c ) 13 , d ) 4 , e ) none\nAnswer reasoning:\n",
        "",
        "Bob has 13 + 4 = 17.\nTherefore, the answer is: b",
    ]


def test_the_published_programs_are_spelled_to_the_letter(shared_data: Path) -> None:
    path = shared_data / "mwp_reft" / "svamp_python_sdp.json"
    published = json.loads(path.read_text(encoding="utf-8"))
    wording, spelled = Wording(SETTINGS, "program"), 0
    for row, problem in zip(published, load_problems(str(path), cot="program"), strict=True):
        target = row["answer_cot"].rstrip()
        # A few annotators wrote the question anew in the docstring ("ca n't" as "can't").
        if f'"""{row["question"]}"""' in target:
            assert wording.opening(problem) + wording.rest(problem) == target
            spelled += 1
    assert spelled > 3000


def test_the_strings_follow_the_settings() -> None:
    settings = Prompt(template="Q: {question} {x}\nA: ", trigger=" => ", repeat_question=False)
    assert Wording(settings, "program").pieces(PROGRAM)[:2] == [
        "Q: Ann has 13 apples. Bob has 4 more. How many has Bob? {x}\nA: ",
        "def solution():\n",
    ]
    assert Wording(settings, "natural").rest(NATURAL).endswith(" = 17. => 17")


def test_a_program_loses_its_trailing_space_and_keeps_its_blank_lines() -> None:
    spaced = replace(PROGRAM, chain=f"{PROGRAM.chain}\n\n  \n")
    assert Wording(SETTINGS, "program").rest(spaced) == PROGRAM_BODY


@pytest.mark.parametrize("question", NASTY)
def test_the_opening_is_the_start_of_a_program_whatever_the_question_holds(question: str) -> None:
    opening = Wording(SETTINGS, "program").opening(replace(PROGRAM, question=question))
    module = ast.parse(opening + PROGRAM_BODY)
    function = module.body[0]
    assert len(module.body) == 1
    assert isinstance(function, ast.FunctionDef)
    assert ast.get_docstring(function, clean=False) == question.replace('"""', "'''")


@pytest.mark.parametrize(
    ("problem", "cot", "message"),
    [
        (replace(PROGRAM, chain=None), "program", "p1 has no chain"),
        (replace(NATURAL, chain=None), "natural", "p1 has no chain"),
        (NATURAL, "program", r'p1: a program chain must start with "def solution\(\):"'),
    ],
)
def test_a_problem_without_a_fitting_chain_is_named(problem: Problem, cot: str, message: str) -> None:
    prompter = Prompter(tokenizer_of("scratch"), SETTINGS, "program" if cot == "program" else "natural")
    with pytest.raises(UserError, match=message):
        prompter.encode_example(problem)


def test_a_program_example_spells_the_papers_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt, response = Prompter(tokenizer, SETTINGS, "program").encode_example(PROGRAM)
    ids = without_bos(kind, prompt + response)
    assert ids[-1] == tokenizer.eos_token_id
    assert spell(kind, ids[:-1]) == PROGRAM_PROMPT + PROGRAM_BODY
    assert (
        spell(kind, without_bos(kind, prompt)) == NATURAL_PROMPT
    )  # the opening belongs to the response


def test_a_natural_example_spells_the_papers_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt, response = Prompter(tokenizer, SETTINGS, "natural").encode_example(NATURAL)
    ids = without_bos(kind, prompt + response)
    assert ids[-1] == tokenizer.eos_token_id
    assert spell(kind, ids[:-1]) == NATURAL_PROMPT + NATURAL_TARGET
    assert spell(kind, without_bos(kind, prompt)) == NATURAL_PROMPT


def test_the_prompt_of_rl_starts_the_sequence_of_sft(kind: str) -> None:
    for problem, cot, text in (
        (PROGRAM, "program", PROGRAM_PROMPT),
        (NATURAL, "natural", NATURAL_PROMPT),
    ):
        prompter = Prompter(tokenizer_of(kind), SETTINGS, "program" if cot == "program" else "natural")
        asked = prompter.encode_prompt(problem)
        prompt, response = prompter.encode_example(problem)
        assert (prompt + response)[: len(asked)] == asked
        assert spell(kind, without_bos(kind, asked)) == text


def test_the_prompt_starts_as_the_tokenizer_starts_a_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt = Prompter(tokenizer, SETTINGS, "natural").encode_prompt(NATURAL)
    assert prompt == tokenizer(NATURAL_PROMPT).input_ids
    assert [tokenizer.bos_token_id] * BOS.get(kind, 0) == prompt[: BOS.get(kind, 0)]
    assert prompt.count(tokenizer.bos_token_id) == BOS.get(kind, 0)


@pytest.mark.parametrize("cot", ["natural", "program"])
def test_examples_stand_before_the_question_in_plain_text(kind: str, cot: Cot) -> None:
    chain = "So 4." if cot == "natural" else "def solution():\n    return 4"
    shot, asked = Problem("s", "2 + 2?", "4", chain), Problem("q", "3 + 3?", "6")
    plain = Prompter(tokenizer_of(kind), Prompt(style="plain", repeat_question=False), cot)
    said = "So 4.\nTherefore, the answer is: 4" if cot == "natural" else chain
    shown = replace(plain, shots=(shot,))
    begins = "" if cot == "natural" else "def solution():\n"
    assert spell(kind, without_bos(kind, shown.encode_prompt(asked))) == (
        f"Question:\n2 + 2?\nAnswer reasoning:\n{said}\n\nQuestion:\n3 + 3?\nAnswer reasoning:\n{begins}"
    )
    # In the tokens in which it would be asked: so lines begin as behind the opening that is given away.
    as_asked = plain.encode_prompt(shot)
    assert shown.encode_prompt(asked)[: len(as_asked)] == as_asked
    tokens = plain.encode_example(shot)[1]
    assert shown.decode(shot, tokens, True) == plain.decode(shot, tokens, True)


def test_a_template_that_says_bos_itself_gets_no_second_one() -> None:
    settings = Prompt(template="<|endoftext|>Question: {question}\n")
    tokenizer = tokenizer_of("gpt2")
    prompt = Prompter(tokenizer, settings, "natural").encode_prompt(NATURAL)
    assert prompt[0] == tokenizer.bos_token_id
    assert prompt.count(tokenizer.bos_token_id) == 1


def test_bos_outlives_saving_and_loading(tmp_path: Path, kind: str) -> None:
    before = Prompter(tokenizer_of(kind), SETTINGS, "program")
    before.save(tmp_path)
    after = Prompter(AutoTokenizer.from_pretrained(tmp_path), SETTINGS, "program")
    assert after.encode_example(PROGRAM) == before.encode_example(PROGRAM)


TEMPLATES = [
    SETTINGS.template,
    "{question}",
    "'{question}' \\n \\ \t{{ 7 }} {% x %}\r\n«{question}» Q:",
]


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("cot", ["natural", "program"])
def test_a_chat_with_a_saved_model_asks_as_training_did(
    tmp_path: Path, kind: str, cot: Cot, template: str, repeat: bool
) -> None:
    tokenizer = copy(tokenizer_of(kind))
    tokenizer.chat_template = "<|im_start|>the base model's"
    prompter = Prompter(tokenizer, Prompt(template=template, repeat_question=repeat), cot)
    prompter.save(tmp_path)
    assert tokenizer.chat_template == "<|im_start|>the base model's", "the run's own is left alone"
    saved = AutoTokenizer.from_pretrained(tmp_path)
    begin = {"llama": "<s>", "metaspace": "<s> "}.get(kind, "")
    for question in [PROGRAM.question, *NASTY[:-1], '"', '""""', "\\", "{{ bos_token }}", "{question}"]:
        problem = Problem("1", question.strip(), "7")
        chat = [{"role": "user", "content": f"\n{question} "}]
        text = saved.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        wording = prompter.wording
        assert text == begin + wording.question(problem) + wording.opening(problem)
        ids = saved.apply_chat_template(chat, return_dict=False)
        assert ids == prompter.encode_prompt(problem)


@pytest.mark.parametrize(
    "chat",
    [
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "7?"}],
        [{"role": "assistant", "content": "7?"}],
        [{"role": "user", "content": [{"type": "text", "text": "7?"}]}],
    ],
)
def test_a_chat_that_nobody_trained_is_refused(tmp_path: Path, chat: list[dict[str, Any]]) -> None:
    Prompter(tokenizer_of("scratch"), SETTINGS, "natural").save(tmp_path)
    with pytest.raises(TemplateError, match="trained on single questions: send one message"):
        AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(chat)


def test_an_eos_that_the_tokenizer_appends_does_not_end_the_prompt() -> None:
    tokenizer = llama(add_eos_token=True)
    assert tokenizer("Ann").input_ids[-1] == tokenizer.eos_token_id
    prompt = Prompter(tokenizer, SETTINGS, "natural").encode_prompt(NATURAL)
    assert prompt == tokenizer_of("llama")(NATURAL_PROMPT).input_ids


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [None, "<s>", "</s>", "<unk>"])
def test_a_tokenizer_that_would_pad_or_cut_does_neither(
    side: str, pad: str | None, tmp_path: Path
) -> None:
    tokenizer = llama()
    tokenizer.padding_side = tokenizer.truncation_side = side
    tokenizer.model_max_length = 5
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    padding = {
        "strategy": {"Fixed": 500}, "direction": side.capitalize(), "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
    }  # fmt: skip
    truncation = {
        "max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": side.capitalize()
    }  # fmt: skip
    settings = json.loads(path.read_text()) | {"padding": padding, "truncation": truncation}
    path.write_text(json.dumps(settings), encoding="utf-8")
    prompter = Prompter(load_tokenizer(tmp_path), SETTINGS, "program")
    expected = Prompter(tokenizer_of("llama"), SETTINGS, "program")
    assert prompter.encode_example(PROGRAM) == expected.encode_example(PROGRAM)


@pytest.mark.parametrize("question", [PROGRAM.question, *NASTY])
@pytest.mark.parametrize("finished", [True, False])
def test_a_sampled_program_is_read_back(kind: str, question: str, finished: bool) -> None:
    # The body's first line has four spaces. With five or three it is another program, or none.
    prompter = Prompter(tokenizer_of(kind), SETTINGS, "program")
    problem = replace(PROGRAM, question=question)
    asked = prompter.encode_prompt(problem)
    prompt, response = prompter.encode_example(problem)
    sampled = (prompt + response)[len(asked) :]
    sample = Sample(asked, sampled if finished else sampled[:-1], [0.0] * len(sampled), finished)
    assert prompter.decode(problem, sample.tokens, sample.finished) == PROGRAM.chain


@pytest.mark.parametrize(
    "chain",
    [NATURAL.chain, "He does n't know . So : 5 , 6 !", "Zoë has 5 €.\n\n  So: \\frac{1}{2} 🍏", ""],
)
def test_a_sampled_chain_is_read_back(kind: str, chain: str) -> None:
    prompter = Prompter(tokenizer_of(kind), SETTINGS, "natural")
    problem = replace(NATURAL, chain=chain)
    prompt, response = prompter.encode_example(problem)
    sample = Sample(prompt, response, [0.0] * len(response), True)
    completion = prompter.decode(problem, sample.tokens, sample.finished)
    assert completion == f"{chain}\nTherefore, the answer is: 17"


def test_what_ends_a_response_is_not_part_of_it(kind: str) -> None:
    # A model may end its text with a token that the tokenizer does not call special.
    prompter = Prompter(tokenizer_of(kind), SETTINGS, "natural")
    prompt, response = prompter.encode_example(NATURAL)
    ordinary = response[3]
    sample = Sample(prompt, [*response[:-1], ordinary], [0.0] * len(response), True)
    assert prompter.decode(NATURAL, sample.tokens, sample.finished) == NATURAL_TARGET


def test_special_tokens_in_the_middle_are_not_part_of_the_text(kind: str) -> None:
    prompter = Prompter(tokenizer_of(kind), SETTINGS, "natural")
    _, response = prompter.encode_example(NATURAL)
    sampled = [*response[:-1], prompter.eos, prompter.eos]
    assert prompter.decode(NATURAL, sampled, True) == NATURAL_TARGET


def test_a_program_cut_in_the_middle_of_a_character_is_read_back(kind: str) -> None:
    prompter = Prompter(tokenizer_of(kind), SETTINGS, "program")
    problem = replace(PROGRAM, chain='def solution():\n    text = "🍏"\n    return 1')
    asked = prompter.encode_prompt(problem)
    prompt, response = prompter.encode_example(problem)
    sampled = (prompt + response)[len(asked) :]
    for length in range(len(sampled)):
        text = prompter.decode(problem, sampled[:length], False)
        assert text.startswith(PROGRAM_HEAD)
        assert str(problem.chain).startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))


@pytest.mark.parametrize("cot", ["program", "natural"])
def test_an_empty_response_is_read_back(kind: str, cot: str) -> None:
    prompter = Prompter(tokenizer_of(kind), SETTINGS, "program" if cot == "program" else "natural")
    head = PROGRAM_HEAD if cot == "program" else ""
    assert prompter.decode(PROGRAM, [prompter.eos], True) == head
    assert prompter.decode(PROGRAM, [], False) == head


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = scratch()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"no EOS token; set model\.eos_token"):
        Prompter(tokenizer, SETTINGS, "program").encode_example(PROGRAM)


def test_what_save_writes_is_read_back(tmp_path: Path) -> None:
    settings = Prompt(template="{question}\n", trigger=" = ", max_new_tokens=7)
    Prompter(tokenizer_of("scratch"), settings, "natural").save(tmp_path, {"step": 7})
    written = json.loads((tmp_path / "reftune_prompt.json").read_text(encoding="utf-8"))
    prompt = {
        "style": "plain", "template": "{question}\n", "system": "", "template_args": {},
        "answer_style": "trigger", "trigger": " = ", "repeat_question": True,
        "max_prompt_tokens": 300, "max_new_tokens": 7,
    }  # fmt: skip
    expected = {"cot": "natural", "prompt": prompt, "dtype": "float32", "trained": {"step": 7}}
    assert written == expected
    assert trained_at(tmp_path) == {"step": 7}
    settings = {"data": {"cot": "natural"}, "prompt": prompt, "model": {"dtype": "float32"}}
    assert saved_settings(str(tmp_path)) == settings
    assert AutoTokenizer.from_pretrained(tmp_path)("7 + 8").input_ids == scratch()("7 + 8").input_ids


def test_a_model_from_elsewhere_has_no_settings(tmp_path: Path) -> None:
    assert saved_settings(str(tmp_path)) == saved_settings("some/hub-model") == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"cot": "music", "prompt": {}}',
        '{"cot": "natural", "prompt": {"a": 1}}',
        '{"cot": "natural", "prompt": {}, "dtype": "int8"}',
    ],
)
def test_damaged_settings_are_named_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "reftune_prompt.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"^[^\n]*reftune_prompt\.json:(1:)? not (JSON|an object|the settings)[^\n]*\Z"
    ):
        saved_settings(str(tmp_path))
