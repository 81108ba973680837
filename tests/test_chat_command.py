"""A conversation with a model: what comes in, what is printed, and how it ends."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from reftune import cli
from reftune.config import Model, Prompt
from reftune.evaluation import inference
from reftune.evaluation.inference import OpenModel
from reftune.model.prompts import Prompter
from reftune.model.scratch import new_model
from reftune.problem import UserError
from reftune.runs.run_dir import choose_model

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_key_value_heads": 1}


def write_model(folder: Path, seed: int) -> Path:
    settings = Model(scratch="tiny", scratch_overrides={**SIZES, "num_attention_heads": 1})
    model, tokenizer = new_model(settings, ["How many are it?"], seed)
    for parameter in model.parameters():  # far from zero, so that answers differ
        parameter.data += parameter.data.roll(1) + 0.3 * parameter.data.sign()
    model.save_pretrained(folder)
    Prompter(tokenizer, Prompt(max_new_tokens=6, max_prompt_tokens=60), "natural").save(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose SFT is finished and whose PPO goes on."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.toml").touch()
    for seed, name in enumerate(("warmup", "sft", "ppo")):
        write_model(folder / name / "model", seed)
    (folder / "sft/result.json").write_text("{}")
    return folder


class Input(io.TextIOWrapper):
    """Standard input, perhaps a terminal."""

    def __init__(self, content: bytes, terminal: bool) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def start(
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    *arguments: object,
    typed: str | bytes = "",
    terminal: bool = False,
) -> int:
    """Run a command with this standard input; return its exit code."""
    content = typed if isinstance(typed, bytes) else typed.encode()
    monkeypatch.setattr("sys.stdin", Input(content, terminal))
    monkeypatch.setattr("sys.argv", ["reftune", command, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


# Which model of a run.


def test_the_last_finished_model_of_a_run_answers(tmp_path: Path, run: Path) -> None:
    assert choose_model(str(run)) == ("sft", str(run / "sft/model"))
    assert choose_model(str(run), "reft") == ("reft", str(run / "ppo/model"))
    assert choose_model(str(run / "ppo/model")) == (None, str(run / "ppo/model"))
    assert choose_model("some/hub-model") == (None, "some/hub-model")
    (tmp_path / "config.toml").touch()
    with pytest.raises(UserError, match="no model of this run is finished"):
        choose_model(str(tmp_path))
    for name in ("warmup", "sft", "ppo"):  # in this order they come
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model/config.json").touch()
        (tmp_path / name / "result.json").touch()
        assert choose_model(str(tmp_path))[1] == str(tmp_path / name / "model")


def test_a_model_that_is_not_there_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"--model offline_st: .* it has warmup, sft, reft$"):
        choose_model(str(run), "offline_st")
    with pytest.raises(UserError, match=r"--model sft: some/hub-model is no run"):
        choose_model("some/hub-model", "sft")


# What is printed.


def test_each_line_is_answered_as_sample_answers_it_and_the_model_is_loaded_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, shown = ["How many?", "What is it?"], []
    for i, question in enumerate(questions):
        given = ("--question", question, "--temperature", 1, "--seed", 5 + i)
        assert start(monkeypatch, "sample", "--model", run / "sft/model", *given) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] != shown[1]
    loaded, load = [], inference.load_both
    monkeypatch.setattr(inference, "load_both", lambda *given: loaded.append(1) or load(*given))
    typed = f"{questions[0]}\n\n   \n{questions[1]}"  # empty lines, and none at the end
    assert start(monkeypatch, "chat", run, "--temperature", 1, "--seed", 5, typed=typed) == 0
    out, err = capsys.readouterr()
    assert out == "\n".join(shown)
    assert f"SFT answers: {run / 'sft/model'}" in err
    assert loaded == [1]


def test_another_model_and_other_settings_are_taken(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--model", "reft", "--set", "prompt.max_new_tokens=1")
    assert start(monkeypatch, "chat", run, *given, typed="How many?\n") == 0
    assert f"ReFT answers: {run / 'ppo/model'}" in (found := capsys.readouterr()).err
    assert "status:  truncated" in found.out


@pytest.mark.parametrize("bad", ["word " * 100, "a\0b", b"caf\xe9"], ids=["long", "NUL", "Latin-1"])
def test_a_question_that_cannot_be_asked_ends_nothing(
    run: Path, bad: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = bad.encode() if isinstance(bad, str) else bad
    assert start(monkeypatch, "chat", run, typed=bad + b"\nHow many?\n") == 0
    out, err = capsys.readouterr()
    assert err.count("reftune: error: ") == 1
    assert "Traceback" not in err
    assert out.count("status: ") == 1


def test_what_makes_every_question_useless_is_refused_at_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(monkeypatch, "chat", run, "--temperature", 1000) == 2
    assert "temperature: 0, or from 0.01" in capsys.readouterr().err
    for text in ("", "  \n"):
        assert start(monkeypatch, "sample", "--model", run / "sft/model", "--question", text) == 2
        assert "question: is empty" in capsys.readouterr().err


# How it ends.


def test_ctrl_c_stops_one_answer_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = OpenModel.ask
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def asked(self: OpenModel, questions: list[str], *given: Any) -> Any:
        if questions == ["long"]:
            os.kill(os.getpid(), signal.SIGINT)
        return ask(self, questions, *given)

    monkeypatch.setattr(OpenModel, "ask", asked)
    try:
        assert start(monkeypatch, "chat", run, typed="long\nHow many?\nlong\nHow many?\n") == 0
    finally:
        signal.signal(signal.SIGINT, before)
    out, err = capsys.readouterr()
    assert err.count("reftune: stopped") == 2, "the second one does not end the process either"
    assert out.count("status: ") == 2


def test_sigterm_ends_a_conversation(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]

    def asked(self: OpenModel, *given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(OpenModel, "ask", asked)
    try:
        assert start(monkeypatch, "chat", run, typed="How many?\nHow many?\n") == 143
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@pytest.mark.parametrize(("key", "code"), [(EOFError, 0), (KeyboardInterrupt, 130)])
def test_in_a_terminal_there_is_a_prompt_until_a_key_ends_it(
    run: Path, key: type[BaseException], code: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    typed, prompts = ["How many?", "", "What is it?"], []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        if not typed:
            raise key
        return typed.pop(0)

    monkeypatch.setattr("builtins.input", read)
    assert start(monkeypatch, "chat", run, terminal=True) == code
    assert prompts == ["question: "] * 4
    assert capsys.readouterr().out.count("status: ") == 2
