"""The commands as a user meets them: bad input, a finished run, one question, Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

import tiny_run
from child import Child
from reftune import asking, cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which `tiny.toml` has been run to its end, as `tiny`."""
    folder = tmp_path_factory.mktemp("cli")
    output = tiny_run.finish(tiny_run.start(["run", str(tiny_run.write_config(folder))]))
    assert "report.html" in output
    return folder


def _fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Run a command that must end with exit code 2 and one sentence; return the sentence."""
    monkeypatch.setattr("sys.argv", ["reftune", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr().err
    assert end.value.code == 2, shown
    assert "Traceback" not in shown
    lines = [line for line in shown.splitlines() if line.startswith("reftune: error: ")]
    assert len(lines) == 1, shown
    return lines[0]


def test_bad_input_is_named_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(tiny_run.write_config(tmp_path))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "a", "question": "1+1?", "answer": "2"}\n{"id": "b", "question"\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    chainless = tmp_path / "chainless.jsonl"
    chainless.write_text(
        "".join(json.dumps({"question": f"{i}+1?", "answer": i + 1}) + "\n" for i in range(90))
    )
    (tmp_path / "weightless").mkdir()
    weightless = str(tmp_path / "weightless")
    cases: list[tuple[list[str], list[str]]] = [
        (["run", "nowhere.toml"], ["nowhere.toml", "no such"]),
        (["run", config, "--set", "ppo.kl_coeff=1"], ["ppo.kl_coeff", "did you mean kl_coef"]),
        (["run", config, "--set", "ppo.advantage=gaee"], ["ppo.advantage", "gae or group"]),
        (["run", config, "--set", "model.scratch=huge"], ["model.scratch", "tiny or small"]),
        (["run", config, "--set", f"data.train={bad}"], ["bad.jsonl:2"]),
        (["run", config, "--set", f"data.train={empty}"], ["empty.jsonl"]),
        (["run", config, "--set", f"data.train={chainless}"], ["chainless.jsonl", "chain"]),
        (["run", config, "--set", f"data.test={tmp_path / 'no.jsonl'}"], ["no.jsonl", "no such file"]),
        (["run", config, "--set", "prompt.max_prompt_tokens=5"], ["limit is 5", "max_prompt_tokens"]),
        (["run", config, "--set", "reward.function=none.py:f"], ["none.py"]),
        (["run", config, "--set", 'compute.trackers=["tensorbord"]'], ["tensorbord", "tensorboard"]),
        (["run", config, "--set", 'compute.trackers=["aim"]'], ["aim", "not installed"]),
        (["ppo", config, "--name", "early"], ["sft", "first"]),
        (["report", weightless], ["weightless"]),
        (["evaluate", "--model", weightless, "--data", str(bad), "--cot", "natural"], ["bad.jsonl:2"]),
        (["sample", "--model", weightless, "--question", "?", "--cot", "natural"], ["weightless"]),
        (["grade", str(bad), "--cot", "natural"], ["bad.jsonl:2"]),
    ]
    for i, (arguments, expected) in enumerate(cases):
        name = ["--name", f"bad{i}"] if arguments[0] == "run" else []
        sentence = _fails(capsys, monkeypatch, *arguments, *name)
        for words in expected:
            assert words in sentence, (arguments, sentence)


def test_a_finished_run_is_not_run_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "runs/tiny/ppo/metrics.jsonl").read_bytes()
    monkeypatch.setattr("sys.argv", ["reftune", "run", str(folder / "tiny.toml")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "already finished" in capsys.readouterr().err
    assert (folder / "runs/tiny/ppo/metrics.jsonl").read_bytes() == before


def test_a_run_directory_of_another_configuration_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = _fails(capsys, monkeypatch, "run", str(folder / "tiny.toml"), "--set", "ppo.kl_coef=0.5")
    assert "ppo.kl_coef" in sentence
    assert "--name" in sentence


def test_evaluate_agrees_with_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "answers.jsonl"
    arguments = ["--model", str(folder / "runs/tiny/sft/model"), "--out", str(out)]
    data = ["--data", str(folder / "runs/tiny/data/test.jsonl")]
    monkeypatch.setattr("sys.argv", ["reftune", "evaluate", *arguments, *data])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    result = json.loads((folder / "runs/tiny/evaluation/result.json").read_text())
    greedy = result["models"]["sft"]["greedy"]
    assert f"greedy: {greedy['accuracy']:.1%} ({greedy['correct']} of 40)" in capsys.readouterr().out
    rows = [
        json.loads(line) for line in (folder / "runs/tiny/evaluation/sft.jsonl").read_text().splitlines()
    ]
    assert [json.loads(line)["completion"] for line in out.read_text().splitlines()] == [
        row["completion"] for row in rows
    ]


def test_evaluate_makes_its_own_questions(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--model", str(folder / "runs/tiny/sft/model"), "--data", "synthetic"]
    changes = ["--set", "data.max_test=5", "--set", "prompt.max_new_tokens=1"]
    monkeypatch.setattr(
        "sys.argv",
        ["reftune", "evaluate", *arguments, *changes, "--set", "prompt.max_prompt_tokens=200"],
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "greedy: 0.0% (0 of 5)" in capsys.readouterr().out  # nobody answers in one token


def test_wrong_chains_are_printed_below_the_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    greedy = {"correct": 8, "accuracy": 0.8, "interval": [0.49, 0.943]}
    chains = {"wrong": 1, "checked": 8, "unchecked": 0, "share": 0.125, "interval": [0.022, 0.471]}
    summary = {
        "greedy": greedy, "statuses": {"ok": 9, "truncated": 1}, "limit": 60, "unjudged": 0,
        "right_answer_wrong_chain": chains,
    }  # fmt: skip
    asking._print_summary(summary, 10)
    assert capsys.readouterr().out.splitlines() == [
        "greedy: 80.0% (8 of 10), 95% interval 49.0% to 94.3%",
        "  ok: 9",
        "  truncated: 1",
        "  10.0% of the answers were cut off at 60 tokens; --set prompt.max_new_tokens=120 gives them"
        " more room",
        "right answer, wrong chain: 12.5% (1 of 8), 95% interval 2.2% to 47.1%",
    ]


def test_a_response_longer_than_the_model_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(folder / "runs/tiny/sft/model")
    arguments = ["--model", model, "--question", "How many?", "--set", "prompt.max_new_tokens=2048"]
    sentence = _fails(capsys, monkeypatch, "sample", *arguments)
    assert "2048 positions; lower prompt.max_new_tokens" in sentence


def test_grade_takes_a_trigger_and_an_own_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": "a", "completion": "so: 4", "answer": "4"}]
    (tmp_path / "in.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "own.py").write_text("def never(question, completion, answer):\n    return 0\n")
    arguments = ["reftune", "grade", str(tmp_path / "in.jsonl"), "--cot", "natural", "--trigger", "so:"]
    for more, correct in (([], "100.0%"), (["--reward", f"{tmp_path / 'own.py'}:never"], "0.0%")):
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        with pytest.raises(SystemExit):
            cli.main()
        assert f"correct: {correct} (" in capsys.readouterr().out


def test_sample_shows_chain_outcome_and_answer(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "Ann has 3 coins. How many?"
    model = str(folder / "runs/tiny/ppo/model")
    monkeypatch.setattr("sys.argv", ["reftune", "sample", "--model", model, "--question", question])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    assert shown.startswith("def solution():\n    ")
    assert "\nstatus: " in shown
    assert "\nanswer:  " in shown


def test_a_model_directory_without_weights_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(folder / "runs/tiny/sft/model", tmp_path / "gutted")
    (model / "model.safetensors").unlink()
    sentence = _fails(capsys, monkeypatch, "sample", "--model", str(model), "--question", "?")
    assert "gutted" in sentence


def test_ctrl_c_ends_with_130_and_the_next_start_goes_on(folder: Path) -> None:
    arguments = ["run", str(folder / "tiny.toml"), "--name", "interrupted"]
    process = tiny_run.start(arguments)
    metrics = folder / "runs/interrupted/sft/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 10:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output = tiny_run.finish(process, expected=130)
    assert "interrupted; the same command " in output
    assert "Traceback" not in output
    Child("reftune", *arguments).finish()
    models = [folder / "runs" / name / "ppo/model/model.safetensors" for name in ("tiny", "interrupted")]
    assert models[0].read_bytes() == models[1].read_bytes()
