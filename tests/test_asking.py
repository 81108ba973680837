"""`reftune evaluate`: outcomes, examples, stop strings, several models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reftune import cli
from reftune.config import Model
from reftune.evaluation.inference import evaluate_on, model_config, open_model
from reftune.evaluation.shots import find_shots
from reftune.model.scratch import new_model
from reftune.problem import Problem, UserError
from reftune.progress import at_work
from reftune.training.rollouts import Generator
from reftune.training.stop_strings import before

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
ROWS = [
    {"id": f"q{i}", "question": f"What is {i}?", "answer": str(i), "chain": f"It is {i}."}
    for i in range(6)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two models that know nothing, four questions, and two examples."""
    folder = tmp_path_factory.mktemp("asking")
    for seed, name in enumerate(("one", "two")):
        given = Model(scratch="tiny", scratch_overrides=SIZES, vocab_size=300)
        for part in new_model(given, ["What is it? It is so. Question Answer reasoning"], seed):
            part.save_pretrained(folder / name / "model")
    write(folder / "test.jsonl", ROWS[:4])
    write(folder / "shots.jsonl", [ROWS[0], *ROWS[4:]])
    return folder


def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[object, str, str]:
    monkeypatch.setattr("sys.argv", ["reftune", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    return end.value.code, " ".join(shown.out.split()), shown.err


def test_several_models_are_compared_on_the_same_questions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [folder / name / "model" for name in ("one", "two")]
    given = ["--data", folder / "test.jsonl", "--cot", "natural", "--set", "prompt.max_new_tokens=5"]
    code, out, err = run_cli(monkeypatch, capsys, *models, *given, "--out", tmp_path / "a.jsonl")
    assert code == 0
    assert [f"reftune: answers: {tmp_path}/a-{name}.jsonl" in err for name in ("one", "two")] == [
        True
    ] * 2
    assert "one: greedy: 0.0% (0 of 4)" in out
    assert "truncated: 4 100.0% of the answers were cut off at 5 tokens" in out
    assert "--set prompt.max_new_tokens=10 gives them more room" in out
    assert "two against one greedy +0.0 [0.0, 0.0] 1" in out
    files = [str(tmp_path / f"a-{name}.jsonl") for name in ("one", "two")]
    monkeypatch.setattr("sys.argv", ["reftune", "compare", *files, "--out", str(tmp_path / "c")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "two against a-one" in " ".join(capsys.readouterr().out.split())


def test_what_came_of_the_answers_so_far_is_told_on_the_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, generate = [], Generator.generate

    def told(self: Generator, *given: Any, **named: Any) -> Any:
        seen.append(str(at_work()[0]))
        return generate(self, *given, **named)

    monkeypatch.setattr(Generator, "generate", told)
    changes = ["prompt.max_new_tokens=3", "compute.sampler_rows=2"]
    evaluate_on(folder / "one/model", folder / "test.jsonl", "natural", 0, None, None, changes)
    assert seen == ["greedy 0/4", "greedy 2/4 right 0.0%, cut off 100.0%"]


def test_an_answer_is_cut_at_a_stop_string_before_it_is_judged(folder: Path) -> None:
    model, test = folder / "one/model", folder / "test.jsonl"
    given = (model, test, "natural", 0, None, None, ["prompt.max_new_tokens=6"])
    _, whole = evaluate_on(*given)
    first = whole[0]["completion"]
    end = first[3:6]
    summary, cut = evaluate_on(*given, stop=[end])
    assert whole[0]["status"] == "truncated"
    assert cut[0]["completion"] == first[: first.index(end)]
    assert cut[0]["status"] == "no_result"  # it ended, without an answer
    assert summary["statuses"]["no_result"] == sum(end in row["completion"] for row in whole)


@pytest.mark.parametrize("chosen", [slice(3, 6), slice(19, 22)])  # early, and behind the first look
def test_what_holds_a_stop_string_is_not_sampled_further(folder: Path, chosen: slice) -> None:
    """The sampler looks every eight tokens; what it leaves reads as if it had gone on to the limit."""
    config = model_config(str(folder / "one/model"), ["prompt.max_new_tokens=60"], cot="natural")
    problem = Problem("q", "What is 3?", "3")
    free = open_model(config).generator
    [whole] = free.generate([problem], 1, 0.0, key=("k",))
    assert len(whole.sample.tokens) == 60
    end = whole.completion[chosen]
    [cut] = open_model(config, stop=(end,)).generator.generate([problem], 1, 0.0, key=("k",))
    [late] = replace(free, stop=(end,)).generate([problem], 1, 0.0, key=("k",))
    assert cut.completion == late.completion == before(whole.completion, [end]) != whole.completion
    assert cut.verdict == late.verdict
    assert len(cut.sample.tokens) < 60
    assert cut.sample.tokens == whole.sample.tokens[: len(cut.sample.tokens)]


def test_examples_are_those_that_are_not_asked(folder: Path) -> None:
    config = model_config("some/model", test=str(folder / "test.jsonl"), cot="natural")
    tested = [Problem("t", "what is  0?", "0")]
    shots = find_shots(config, 2, folder / "shots.jsonl", tested)
    assert [(shot.question, shot.chain) for shot in shots] == [
        ("What is 4?", "It is 4."),
        ("What is 5?", "It is 5."),
    ]
    bare = [{"question": "Why?", "answer": "7"}]
    assert find_shots(config, 1, bare, tested)[0].chain == ""  # the answer alone
    with pytest.raises(UserError, match=r"--shots 3: .*shots.jsonl has 2 examples with a natural chain"):
        find_shots(config, 3, folder / "shots.jsonl", tested)
    with pytest.raises(
        UserError, match=r"test.jsonl is a file without splits; name one with --shots-from"
    ):
        find_shots(config, 1, None, tested)
    built_in = model_config("some/model", test="synthetic", cot="program")
    assert len(find_shots(built_in, 3, None, [])) == 3


def test_behind_examples_in_plain_text_the_next_question_ends_an_answer(folder: Path) -> None:
    config = model_config(str(folder / "one/model"), cot="natural")
    shot = Problem("s", "What is 4?", "4", "It is 4.")
    assert open_model(config, shots=[shot]).generator.stop == ("\nQuestion:",)
    assert open_model(config, shots=[shot], stop=("###",)).generator.stop == ("###",)
    assert open_model(config).generator.stop == ()


def test_a_sampler_that_says_something_else_of_the_first_questions_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "reftune.evaluation.inference.check_first_prompts",
        lambda generator, policy, problems: asked.append((generator, problems)),
    )
    problems = [Problem("s", "What is 4?", "4", "It is 4.")]
    opened = open_model(model_config(str(folder / "one/model"), cot="natural"), problems=problems)
    assert asked == [(opened.generator, problems)]


def test_behind_programs_an_empty_line_ends_one_unless_an_example_has_one(folder: Path) -> None:
    config = model_config(str(folder / "one/model"), cot="program")
    chain = "def solution():\n    return 4"
    shots = [Problem("s", "What is 4?", "4", chain), Problem("t", "What is 4?", "4", chain + "\n\n")]
    assert open_model(config, shots=shots[:1]).generator.stop == ("\nQuestion:", "\n\n")
    assert open_model(config, shots=shots).generator.stop == ("\nQuestion:",)


def test_examples_make_no_prompt_too_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit holds for the question alone."""
    given = [folder / "one/model", "--data", folder / "test.jsonl", "--cot", "natural", "--shots", 2]
    given += ["--shots-from", folder / "shots.jsonl", "--set", "prompt.max_new_tokens=4"]
    code, out, err = run_cli(monkeypatch, capsys, *given, "--set", "prompt.max_prompt_tokens=60")
    assert code == 0, err
    assert "greedy: 0.0% (0 of 4)" in out
    code, _, err = run_cli(monkeypatch, capsys, *given, "--set", "prompt.max_prompt_tokens=6")
    assert code == 2
    assert "raise prompt.max_prompt_tokens" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name a model"),
        (["one/model", "--stop", ""], "stop: an empty text ends every answer"),
        (["m", "--model", "m"], "given twice"),
        (["m", "--shots-from", "x.jsonl"], "--shots-from: has no effect without --shots"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = run_cli(monkeypatch, capsys, *arguments, "--data", "x.jsonl", "--cot", "natural")
    assert code == 2
    assert sentence in err
