"""Questions as turns of a chat, by templates of the kinds that instruct models come with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from reftune import evaluate, sample
from reftune.config import Prompt
from reftune.model.chat import Chat
from reftune.model.prompts import Prompter, make_prompter, saved_settings
from reftune.model.wording import Wording
from reftune.problem import Cot, Problem, UserError
from reftune.stages.run import Run
from reftune.training.rollouts import make_generator
from tiny_models import tiny_model
from tiny_pipeline import make_config

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}"
    "{{ message.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ message.content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "qwen3": QWEN3}
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "qwen3": "<|im_end|>",
}
SPECIAL = [
    "<|end_of_text|>", "<bos>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip
PROBLEM = Problem("1", "Ann has 3 coins and finds 4. How many?", "7", "3 + 4 = 7.")
PROGRAM = Problem("2", PROBLEM.question, "7", "def solution():\n    return 3 + 4\n")
BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."


def tokenizer_with(template: str | None) -> PreTrainedTokenizerFast:
    """Train a tokenizer that puts a BOS before every text, as those of Llama 3 and Gemma do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([PROBLEM.question, "user assistant system"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<|end_of_text|>",
        additional_special_tokens=SPECIAL[2:],
    )  # fmt: skip
    made.chat_template = TEMPLATES.get(template or "", template)
    return made


def spelled(prompter: Prompter, ids: list[int]) -> str:
    return str(prompter.tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "chatml",
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n"
            f"<|im_start|>user\n{PROBLEM.question}{BOXED}<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llama3",
            f"<bos><|start_header_id|>user<|end_header_id|>\n\n{PROBLEM.question}{BOXED}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "gemma",
            f"<bos><start_of_turn>user\n{PROBLEM.question}{BOXED}<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "qwen3",
            f"<|im_start|>user\n{PROBLEM.question}{BOXED}<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_a_question_is_a_turn_of_the_models_own_chat_with_one_bos_at_most(
    family: str, expected: str
) -> None:
    prompter = make_prompter(tokenizer_with(family), Prompt(), "natural")
    prompt, response = prompter.encode_example(PROBLEM)
    assert spelled(prompter, prompt) == expected
    assert prompter.encode_prompt(PROBLEM) == prompt
    written = f"3 + 4 = 7.\nThe answer is \\boxed{{7}}.{ENDS[family]}"
    assert spelled(prompter, response) == written
    assert response[-1] == prompter.eos == SPECIAL.index(ENDS[family])


def test_examples_are_earlier_turns_of_the_chat() -> None:
    shots = (Problem("s", "2 + 2?", "4", "2 + 2 = 4."),)
    prompter = replace(make_prompter(tokenizer_with("llama3"), Prompt(), "natural"), shots=shots)
    assert spelled(prompter, prompter.encode_prompt(PROBLEM)) == (
        f"<bos><|start_header_id|>user<|end_header_id|>\n\n2 + 2?{BOXED}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n2 + 2 = 4.\nThe answer is \\boxed{4}."
        "<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{PROBLEM.question}{BOXED}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
def test_prompt_and_response_are_the_ids_of_the_whole_chat(family: str) -> None:
    for problem, cot in ((PROBLEM, "natural"), (PROGRAM, "program")):
        prompter = make_prompter(tokenizer_with(family), Prompt(), cot)  # type: ignore[arg-type]
        prompt, response = prompter.encode_example(problem)
        said = prompter.wording
        whole = prompter.tokenizer.apply_chat_template(
            [{"role": "user", "content": said.question(problem)},
             {"role": "assistant", "content": said.rest(problem)}], return_dict=False,
        )  # fmt: skip
        assert list(whole)[: len(prompt + response)] == prompt + response
        assert prompter.rewriting(problem) is None


def test_a_template_that_writes_answers_anew_is_told() -> None:
    prompter = make_prompter(tokenizer_with("qwen3"), Prompt(), "natural")
    told = prompter.rewriting(PROBLEM)
    assert told is not None
    assert "as '<think>\\n\\n</think>\\n\\n3 + ...'" in told
    assert "where it is trained as '3 + 4 = 7." in told
    assert told.endswith("the template's text up to the answer, the answer, and <|im_end|>")
    thinks = Prompt(template_args={"enable_thinking": False})
    prompter = make_prompter(tokenizer_with("qwen3"), thinks, "natural")
    assert spelled(prompter, prompter.encode_prompt(PROBLEM)).endswith(
        "assistant\n<think>\n\n</think>\n\n"
    )
    assert prompter.rewriting(PROBLEM) is None


def test_a_system_message_takes_the_place_of_the_templates_own() -> None:
    settings = Prompt(system="Be brief.", template="{question}")
    prompter = make_prompter(tokenizer_with("chatml"), settings, "natural")
    assert spelled(prompter, prompter.encode_prompt(PROBLEM)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{PROBLEM.question}<|im_end|>\n<|im_start|>assistant\n"
    )


ENDLESS = "{% for m in messages %}{{ m.content }};{% endfor %}"
DROPS_SYSTEM = CHATML.replace("in messages %}", "in messages if message.role != 'system' %}", 1)


@pytest.mark.parametrize(
    ("template", "settings", "sentence"),
    [
        ("gemma", {"system": "Be brief."}, r"prompt\.system: .* takes no system message \(System role"),
        (DROPS_SYSTEM, {"system": "Be brief."}, r"prompt\.system: .* leaves it out; write it into"),
        ("{{ 'Hello' }}", {}, r'leaves out what the user says; set prompt\.style = "plain"'),
        ("{{ nobody.knows.it }}", {"system": "Be brief."}, r'fails \(.*; mend it, or set prompt\.style'),
        ("{{ nobody.knows.it }}", {}, r'fails \(.*; mend it, or set prompt\.style'),
        (ENDLESS, {}, r"ends an answer with ';', .*eos_token"),
        (None, {"style": "chat"}, r'has no chat template; set prompt\.style = "plain"'),
        (None, {"system": "Be brief."}, r"prompt\.system has no effect: .* asked in plain text"),
        (None, {"template_args": {"x": 1}}, r"prompt\.template_args has no effect"),
        ("qwen3", {"template_args": {"enable_thinkng": False}}, r"knows no enable_thinkng; leave"),
    ],
)  # fmt: skip
def test_what_a_template_cannot_do_is_refused(
    template: str | None, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        make_prompter(tokenizer_with(template), Prompt(**settings), "natural")


def test_what_ends_a_turn_is_the_whole_token_behind_the_answer() -> None:
    tokenizer = tokenizer_with(CHATML.replace("+ '<|im_end|>'", "+ '\n<|im_end|>'"))
    tokenizer.add_tokens(["<|im"], special_tokens=True)  # the other one begins like it
    assert Chat(tokenizer, Prompt()).turn_end() == "<|im_end|>"


def test_an_eos_of_the_user_ends_a_turn() -> None:
    tokenizer = tokenizer_with(ENDLESS)
    prompter = make_prompter(tokenizer, Prompt(), "natural", "<|end_of_text|>")
    assert prompter.encode_example(PROBLEM)[1][-1] == SPECIAL.index("<|end_of_text|>")
    prompter = make_prompter(tokenizer_with("chatml"), Prompt(), "natural", "<|end_of_text|>")
    assert prompter.eos == SPECIAL.index("<|end_of_text|>")


def test_auto_is_plain_without_a_template_and_plain_stays_plain_with_one() -> None:
    bare = make_prompter(tokenizer_with(None), Prompt(), "natural")
    chosen = make_prompter(tokenizer_with("chatml"), Prompt(style="plain"), "natural")
    for prompter in (bare, chosen):
        assert (prompter.settings.style, prompter.settings.answer_style) == ("plain", "trigger")
        assert spelled(prompter, prompter.encode_prompt(PROBLEM)) == (
            f"<bos>Question:\n{PROBLEM.question}\nAnswer reasoning:\n"
        )
        assert prompter.eos == SPECIAL.index("<|end_of_text|>")


@pytest.mark.parametrize(
    ("style", "asked", "written"),
    [
        ("trigger", 'write your final answer behind "Therefore, the answer is:" at the end.',
         "3 + 4 = 7.\nTherefore, the answer is: 7"),
        ("hashes", 'write your final answer behind "####" in the last line.', "3 + 4 = 7.\n#### 7"),
        ("answer_is", 'end with the sentence "The answer is ...", with your final answer in it.',
         "3 + 4 = 7.\nThe answer is 7."),
        ("boxed", r"put your final answer within \boxed{}.", "3 + 4 = 7.\nThe answer is \\boxed{7}."),
    ],
)  # fmt: skip
def test_the_answer_style_says_what_is_asked_for_and_what_is_written(
    style: Any, asked: str, written: str
) -> None:
    wording = Wording(Prompt(style="chat", answer_style=style), "natural")
    expected = f"{PROBLEM.question}\n\nPlease reason step by step, and {asked}"
    assert wording.question(PROBLEM) == expected
    assert wording.rest(PROBLEM) == written


def test_a_fenced_program_is_written_whole_and_read_back_as_it_is() -> None:
    prompter = make_prompter(tokenizer_with("chatml"), Prompt(), "program")
    asked = prompter.encode_prompt(PROGRAM)
    prompt, response = prompter.encode_example(PROGRAM)
    assert asked == prompt, "nothing of the answer is given away"
    text = "```python\ndef solution():\n    return 3 + 4\n```"
    assert prompter.decode(PROGRAM, response, True) == text
    assert prompter.encode_example(PROGRAM, text) == (prompt, response)
    assert prompter.wording.question(PROGRAM).endswith(
        "\n\nWrite a Python function solution() without arguments that returns the answer."
        " Put it in a ```python block."
    )


def test_a_function_is_opened_in_the_assistants_turn() -> None:
    settings = Prompt(answer_style="function", repeat_question=False)
    prompter = make_prompter(tokenizer_with("chatml"), settings, "program")
    asked = prompter.encode_prompt(PROGRAM)
    assert spelled(prompter, asked).endswith("<|im_start|>assistant\ndef solution():\n")
    prompt, response = prompter.encode_example(PROGRAM)
    sampled = (prompt + response)[len(asked) :]
    assert prompter.decode(PROGRAM, sampled, True) == "def solution():\n    return 3 + 4"


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_saved_model_is_asked_as_it_was_trained(tmp_path: Path, family: str) -> None:
    arguments = {"enable_thinking": False} if family == "qwen3" else {}
    before = make_prompter(tokenizer_with(family), Prompt(template_args=arguments), "natural")
    before.save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.chat_template == TEMPLATES[family], "the base model's own"
    assert saved.eos_token == ENDS[family]
    written = json.loads((tmp_path / "reftune_prompt.json").read_text())["prompt"]
    assert (written["style"], written["answer_style"]) == ("chat", "boxed")
    told = Prompt(**saved_settings(str(tmp_path))["prompt"])
    for settings in (told, Prompt(template_args=arguments)):  # of the model alone, of a later stage
        after = make_prompter(saved, settings, "natural")
        assert after.settings == before.settings
        assert after.encode_example(PROBLEM) == before.encode_example(PROBLEM)


def test_a_model_that_was_trained_on_plain_text_stays_plain_though_it_has_a_template(
    tmp_path: Path,
) -> None:
    before = make_prompter(tokenizer_with("chatml"), Prompt(style="plain"), "program")
    before.save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert "single questions" in saved.chat_template
    after = make_prompter(saved, Prompt(), "program")
    assert after.settings == before.settings
    assert after.encode_example(PROGRAM) == before.encode_example(PROGRAM)
    with pytest.raises(UserError, match=r"was trained by reftune on plain text; set prompt\.style"):
        make_prompter(saved, Prompt(style="chat"), "program")


def test_an_end_that_the_user_chose_outlives_saving(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("chatml")
    tokenizer.eos_token = "<|eot_id|>"  # as `load_tokenizer` sets model.eos_token
    make_prompter(tokenizer, Prompt(), "natural", "<|eot_id|>").save(tmp_path)
    after = make_prompter(AutoTokenizer.from_pretrained(tmp_path), Prompt(), "natural")
    assert after.eos == SPECIAL.index("<|eot_id|>")


def test_another_kind_of_chain_gets_its_own_instruction(tmp_path: Path) -> None:
    make_prompter(tokenizer_with("chatml"), Prompt(max_new_tokens=7), "natural").save(tmp_path)
    prompt = saved_settings(str(tmp_path), "program")["prompt"]
    assert (prompt["style"], prompt["max_new_tokens"]) == ("chat", 7)
    assert not {"answer_style", "template"} & prompt.keys()
    assert saved_settings(str(tmp_path), "natural") == saved_settings(str(tmp_path))


def test_a_template_of_many_names_is_used_by_its_default() -> None:
    tokenizer = tokenizer_with("chatml")
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ 'tools' }}"}
    assert Chat(tokenizer, Prompt(style="chat")).turn_end() == "<|im_end|>"


# A run, and a model alone.


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a model of ChatML that knows nothing."""
    directory = tmp_path_factory.mktemp("instruct") / "model"
    tiny_model("llama", vocab_size=330, max_position_embeddings=512, eos_token_id=0).save_pretrained(
        directory
    )
    tokenizer_with("chatml").save_pretrained(directory)
    return directory


def run_from(tmp_path: Path, directory: Path) -> Run:
    config = make_config(tmp_path, "reft")
    model = config.model.model_copy(
        update={"name": str(directory), "scratch": None, "scratch_overrides": {}}
    )
    prompt = Prompt(max_new_tokens=4)
    return Run(config.model_copy(update={"model": model, "prompt": prompt}), Accelerator(cpu=True))


def test_a_run_asks_an_instruct_model_by_its_template_and_says_so_once(
    tmp_path: Path, instruct: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_from(tmp_path, instruct)
    policy, prompter = run.base_policy()
    stage = run.stage("sft", prompter, run.annotated)
    assert capsys.readouterr().err == (
        f'reftune: {instruct}: is asked by its chat template, and answers in the style "boxed"'
        " (prompt.style, prompt.answer_style)\n"
    )
    asked = spelled(prompter, prompter.encode_prompt(run.annotated[0]))
    assert asked.endswith(f"How many are 0?{BOXED}<|im_end|>\n<|im_start|>assistant\n")
    boxed_first = "It is \\boxed{0}. #### 5"
    [verdict] = run.judge([run.annotated[0]], [boxed_first], [True])
    assert verdict.correct
    stage.export(policy, run.directory("warmup"))
    later = run_from(tmp_path, instruct)
    after = later.prompter("warmup")
    assert after.settings == prompter.settings
    assert after.encode_example(run.annotated[0]) == prompter.encode_example(run.annotated[0])
    [verdict] = later.judge([run.annotated[0]], [boxed_first], [True])
    assert verdict.correct
    generation = json.loads((run.directory("warmup") / "generation_config.json").read_text())
    assert SPECIAL.index("<|im_end|>") in generation["eos_token_id"]
    assert capsys.readouterr().err.startswith(f"reftune: {run.directory('warmup')}: is asked by its")
    sample(run.directory("warmup"), "1 + 1?")
    assert capsys.readouterr().err == "", "a model that was trained says it itself"


def test_a_chat_template_that_writes_answers_anew_is_told_once_in_a_run(
    tmp_path: Path, instruct: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "qwen"
    shutil.copytree(instruct, directory)
    tokenizer_with("qwen3").save_pretrained(directory)
    for _ in range(2):
        run_from(tmp_path / "run", directory).base_policy()
    assert capsys.readouterr().err.count("would write an answer into a chat as") == 1


@pytest.mark.parametrize(("cot", "style"), [("natural", "boxed"), ("program", "fenced")])
def test_a_model_from_elsewhere_is_sampled_and_evaluated_in_its_chat(
    instruct: Path, cot: Cot, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Prompt] = []

    def watched(policy: Any, prompter: Prompter, *rest: Any) -> Any:
        seen.append(prompter.settings)
        return make_generator(policy, prompter, *rest)

    monkeypatch.setattr("reftune.evaluation.inference.make_generator", watched)
    few = ["prompt.max_new_tokens=3"]
    sample(instruct, "1 + 1?", cot=cot, overrides=few)
    evaluate(instruct, [{"question": "1 + 1?", "answer": 2}], cot=cot, overrides=few)
    assert [(asked.style, asked.answer_style) for asked in seen] == [("chat", style)] * 2
