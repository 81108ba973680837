from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

import reftune.runs.display
from reftune.problem import UserError
from reftune.progress import advance, counting
from reftune.runs.display import within_step
from reftune.runs.run_log import RunLog


def open_log(directory: Path, total: int = 10, done: int = 0) -> RunLog:
    return RunLog(directory, Accelerator(cpu=True), "ppo", total, done)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    with open_log(tmp_path / "new" / "ppo") as log:
        log.samples(1, [{"question": "Zoë\u2028?\n", "correct": True}, {"question": "b"}])
        log.metrics(1, {"reward": 0.25, "statuses": {"ok": 2}})
        log.samples(2, [])
        log.metrics(2, {"reward": 0.5})
        directory = tmp_path / "new" / "ppo"  # read while the log is open: nothing may wait in a buffer
        assert read(directory / "metrics.jsonl") == [
            {"step": 1, "reward": 0.25, "statuses": {"ok": 2}},
            {"step": 2, "reward": 0.5},
        ]
        assert read(directory / "samples.jsonl") == [
            {"step": 1, "question": "Zoë\u2028?\n", "correct": True},
            {"step": 1, "question": "b"},
        ]


@pytest.mark.parametrize("rest", ["", '{"step": 2, "question": "x', "\x00\x00\x00"])
def test_a_resumed_stage_drops_the_rows_beyond_its_checkpoint(rest: str, tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in (1, 2, 3, 4):
            log.samples(step, [{"question": "Zoë\u2028?"}, {"question": "b"}])
            log.metrics(step, {"reward": step / 10})
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(rest)
    with open_log(tmp_path, done=3) as log:
        log.metrics(4, {"reward": 9.0})
    assert [row["reward"] for row in read(tmp_path / "metrics.jsonl")] == [0.1, 0.2, 0.3, 9.0]
    assert [row["step"] for row in read(tmp_path / "samples.jsonl")] == [1, 1, 2, 2, 3, 3]
    assert read(tmp_path / "samples.jsonl")[4]["question"] == "Zoë\u2028?"


def test_a_last_line_that_was_cut_off_goes_and_the_others_stay(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1}\n{"step": 2}\n{"step": 3, "rew', encoding="utf-8"
    )
    open_log(tmp_path, done=5)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n'


def test_a_stage_that_starts_anew_starts_with_empty_files(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_text('{"step": 1}\n', encoding="utf-8")
    open_log(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "samples.jsonl").read_bytes() == b""


def test_files_that_need_no_change_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n', encoding="utf-8")
    before = path.stat()
    open_log(tmp_path, done=1)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_without_a_terminal_progress_is_plain_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reftune.runs.display, "PLAIN_LINE_SECONDS", 0.0)
    row = {
        "loss": 1.23456, "reward": 0.5, "accuracy": 0.4567, "kl": 0.012, "response_length": 37.4,
        "tokens_per_second": 12345.6, "entropy": 0.3,
    }  # fmt: skip
    with open_log(tmp_path, total=3) as log:
        log.metrics(1, row | {"validation_accuracy": 0.75})
        log.metrics(2, row | {"accuracy": 1.0})
        log.say("[saved] to a/b.json")
        log.metrics(3, {})
    captured = capsys.readouterr()
    first, second, said, last = map(without_time, captured.err.splitlines())
    assert first.startswith(
        "ppo 1/3  reward 0.500  accuracy 45.7%  loss 1.235  validation 75.0%  KL 0.012  length 37"
        "  tokens/s 12,346  "
    )
    assert first.endswith("s left")
    assert (
        "accuracy 100.0%  loss 1.235  validation 75.0%" in second
    )  # the latest validation stays in view
    assert said == "[saved] to a/b.json"
    assert last.startswith("ppo 3/3  reward 0.500")
    assert last.endswith("  0 s left")
    assert captured.out == ""
    assert "\x1b" not in captured.err


def test_plain_lines_are_few_but_the_last_step_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log(tmp_path, total=4) as log:
        for step in (1, 2, 3, 4):
            log.metrics(step, {"loss": float(step)})
    [line] = map(without_time, capsys.readouterr().err.splitlines())
    assert line.startswith("ppo 4/4  loss 4.000")


def test_time_left_counts_only_the_steps_of_this_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reftune.runs.display, "PLAIN_LINE_SECONDS", 0.0)
    log = open_log(tmp_path, total=100, done=50)
    log.display.started -= 20  # 10 s a step
    log.metrics(52, {})
    assert capsys.readouterr().err.endswith(" 8 min left\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}", r"metrics\.jsonl:2: step: field required; delete that line$"),
        ("[1]", r"metrics\.jsonl:2: not an object; delete that line$"),
        ('{"step": "9"}', r"metrics\.jsonl:2: step: input should be a valid number; delete that line$"),
        ('{"step"', r"metrics\.jsonl:2: not JSON .*; delete that line$"),
        ("\udcff", r"metrics\.jsonl:2: not JSON .*; delete that line$"),
    ],
)
def test_a_damaged_line_of_an_interrupted_run_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n', errors="surrogateescape")
    before = path.read_bytes()
    with pytest.raises(UserError, match=words):
        open_log(tmp_path, total=9, done=5)
    assert path.read_bytes() == before


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written"):
        open_log(tmp_path / "file", total=9)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written .*; delete it and run"):
        open_log(tmp_path, total=9)


def test_a_long_step_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reftune.runs.display, "WITHIN_STEP_SECONDS", 0.1)
    monkeypatch.setattr(reftune.runs.display, "SHOWN_AFTER_SECONDS", 0.05)
    with open_log(tmp_path, total=20, done=2) as log, counting("update", 2) as count:
        count.advance()
        with counting("rows", 128):
            advance(64)
            wait_for(lambda: "rows" in capsys.readouterr().err)
        log.metrics(3, {"loss": 0.5})
        log.display.started = time.monotonic() - 10
        found = wait_for(lambda: capsys.readouterr().err)
    told = without_time(found.splitlines()[0])
    assert re.fullmatch(r"ppo 3/20  update 1/2  loss 0.500  2\.[89] min left", told)


def without_time(line: str) -> str:
    """Return a line without the time at which it was printed, if it has that."""
    return re.sub(r"^[012]\d:[0-5]\d:[0-5]\d  ", "", line)


def wait_for(find: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_what_is_over_in_a_moment_is_not_shown() -> None:
    with counting("update", 2) as count, counting("rows", 8):
        assert within_step() == ""
        count.started -= 1.5
        assert within_step() == "update 0/2  rows 0/8"
    assert within_step() == ""
    advance()  # of nothing


def test_on_80_columns_a_line_shows_what_is_at_work_and_as_many_metrics_as_fit_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "80"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    row = {"loss": 0.5, "reward": 0.5, "accuracy": 0.4, "kl": 0.1, "tokens_per_second": 1e4}
    for title, within, told in (
        ("ppo", "sampling 37/128", "  reward 0.500  accuracy 40.0% "),
        ("reranker/offline_st", "rows 37/128", " "),
        ("a" * 30, "sampling 37/128", " "),
    ):
        log = RunLog(tmp_path, Accelerator(cpu=True), title, 1000)
        log.metrics(213, row)
        with counting(within.split()[0], 128, 37) as count:
            count.started -= 2
            with log.display.console.capture() as capture:
                log.display.console.print(log.display.progress.get_renderable())
        [line] = re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).splitlines()
        assert len(line) <= 80
        assert f" 213/1000 {within}{told}" in line
        assert ("loss" in line, "…" in line) == (False, False)
        assert line.rstrip().endswith("-:--:--")
