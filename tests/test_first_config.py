"""`reftune init`: a file that loads, says what is in the data, and refuses what could not be run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import start
from reftune.config.files import load_config

PROGRAM = "def solution():\n    return 3 + 4"


def write(path: Path, count: int, **more: Any) -> Path:
    rows = [{"question": f"{path.stem} {i}: 3 + 4?", "answer": "7"} | more for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def init(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    return start(monkeypatch, "init", *arguments)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.chdir(tmp_path)
    train, test = write(tmp_path / "train.jsonl", 50, chain=PROGRAM), write(tmp_path / "test.jsonl", 5)
    return ["my.toml", "--model", "some/model", "--train", train, "--test", test]


def test_a_first_file_loads_and_tells_what_was_found(
    given: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(monkeypatch, *given) == 0
    config = load_config("my.toml")
    assert (config.name, config.model.name, config.data.cot) == ("my", "some/model", "program")
    assert config.data.validation_size == 5
    assert config.sft.epochs > config.sft.warmup_epochs > 0
    assert "# 50 problems, 50 with a chain" in Path("my.toml").read_text(encoding="utf-8")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "reftune: my.toml: written for 50 problems, 50 with a program chain"
    assert "reftune plan my.toml" in told[1]
    text = Path("my.toml").read_bytes()
    assert init(monkeypatch, *given) == 2
    assert "my.toml: is there already; name another file" in capsys.readouterr().err
    assert Path("my.toml").read_bytes() == text


def test_the_guide_shows_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("my_train.jsonl"), 500, chain="3 + 4 = 7.")
    write(Path("my_test.jsonl"), 5)
    model = "HuggingFaceTB/SmolLM2-135M"
    given = ["--model", model, "--train", "my_train.jsonl", "--test", "my_test.jsonl"]
    assert init(monkeypatch, "my.toml", *given) == 0
    guide = (Path(__file__).parents[1] / "docs/guide.md").read_text(encoding="utf-8")
    assert f"```toml\n{Path('my.toml').read_text(encoding='utf-8')}```" in guide


def test_without_chains_there_is_no_sft(
    given: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("train.jsonl"), 2500)
    assert init(monkeypatch, *given) == 0
    config = load_config("my.toml")
    assert (config.sft.epochs, config.data.cot) == (0, "natural")
    assert config.data.validation_size == 200
    assert "2,500 problems, none with a chain: no SFT" in capsys.readouterr().err


def test_chains_of_text_and_a_kind_that_is_named(
    given: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(Path("train.jsonl"), 20, chain="3 + 4 = 7.")
    assert init(monkeypatch, *given) == 0
    config = load_config("my.toml")
    assert (config.data.cot, config.sft.epochs) == ("natural", 10)
    Path("my.toml").unlink()
    assert init(monkeypatch, *given, "--cot", "program") == 0  # whose chains are none of the file's
    config = load_config("my.toml")
    assert (config.data.cot, config.sft.epochs) == ("program", 0)


def test_columns_of_other_names_are_written(
    given: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "test"):
        row = {"task": f'say "{name}"', "result": "7"}
        Path(f"{name}.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert init(monkeypatch, *given) == 2
    assert "has 'task', 'result', not 'question' and 'answer'" in capsys.readouterr().err
    assert not Path("my.toml").exists()
    columns = ["--column", "question=task", "--column", "answer=result"]
    assert init(monkeypatch, *given, *columns) == 0
    found = load_config("my.toml").data
    assert found.columns is not None
    assert (found.columns.question, found.columns.answer) == ("task", "result")
    assert found.validation_size == 1


def test_what_is_trained_on_is_no_test(
    given: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(monkeypatch, *given[:-1], "train.jsonl", "--train", "train.jsonl") == 2
    assert capsys.readouterr().err == (
        "reftune: error: --train train.jsonl: every question is among those of --test train.jsonl, and"
        " what is tested on must not be trained on; name another split or file, or divide this one with"
        " `reftune data split`\n"
    )
    assert init(monkeypatch, *given[:-1], "none.jsonl") == 2
    assert not Path("my.toml").exists()


def test_the_version_and_a_short_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, told in (("--version", "reftune 0."), ("-h", "Make a language model reason better")):
        assert start(monkeypatch, option) == 0
        assert told in capsys.readouterr().out


def test_the_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # what is started is reftune
    monkeypatch.setenv("_REFTUNE_COMPLETE", "complete_bash")
    for words, found in {"reftune pl": ["plan"], "reftune init --col": ["--column"]}.items():
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        assert start(monkeypatch) == 0
        assert capsys.readouterr().out.split() == found


def test_what_the_options_say_is_written(
    given: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("train.jsonl"), 20, answer="a poem", level=3)
    write(Path("test.jsonl"), 5, level=3)
    options = ["--reward", "own.py:rhymes", "--keep", "level", "--max", 9, "--json"]
    assert init(monkeypatch, *given, *options) == 0
    config = load_config("my.toml")
    assert (config.reward.function, config.data.keep_columns) == ("own.py:rhymes", ["level"])
    assert config.data.max_train == 9
    assert json.loads(capsys.readouterr().out) == {
        "config": "my.toml", "problems": 20, "chains": 0, "cot": "natural"
    }  # fmt: skip
