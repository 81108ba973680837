"""How the command line ends: exit codes, signals, closed pipes, threads that somebody left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reftune import ending
from reftune.problem import UserError
from tiny_run import heed_ctrl_c

PREPARE = """
import os, signal, sys, threading, time
import typer
from reftune import ending
from reftune.problem import UserError
ending.PATIENCE = 0.2
app = typer.Typer(add_completion=False)
def work(): threading.Event().wait(60)
def forever():
    print("begun", flush=True)
    time.sleep(60)
@app.command()
def command():
"""


def begin(body: str) -> subprocess.Popen[str]:
    """Start a command line whose only command is `body`."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    program = f"{PREPARE}{lines}\nending.run_to_end(app, lambda: 'start again')\n"
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-c", program], text=True, preexec_fn=heed_ctrl_c, **pipes,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip


LEFT = "threading.Thread(target=work, name='mine').start()\n"
TOLD = "reftune: ended, although these threads were still at work: mine\n"
ENDS = [
    ("pass", 0, ""),
    ("raise UserError('a.toml: wrong;\\nmend it')", 2, "reftune: error: a.toml: wrong; mend it\n"),
    ("raise UserError('x' * 10**6 + '; mend it')", 2, "x; mend it\n"),
    ("raise UserError('\\udcff')", 2, "reftune: error: "),
    ("print('\\udcff')", 0, ""),
    ("open('/proc/nothing/here', 'w')", 2, "reftune: error: /proc/nothing/here: No such file or"),
    ("raise MemoryError", 2, "reftune: error: the memory is full; lower compute.tokens_per_microbatch"),
    ("raise KeyError('ours')", 1, "KeyError: 'ours'\n"),
    ("raise OSError('nameless')", 1, "OSError: nameless\n"),
    (LEFT, 0, TOLD),
    (LEFT + "raise UserError('no')", 2, "reftune: error: no\n" + TOLD),
    (LEFT + "raise KeyError('ours')", 1, TOLD),
    ("print('\\xe9')", 0, ""),  # where the terminal knows ASCII only
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "words"), ENDS)
def test_a_command_ends_with_its_code_and_one_sentence(body: str, code: int, words: str) -> None:
    process = begin(body)
    _, told = process.communicate(timeout=30)
    assert process.returncode == code, told
    assert words in told
    assert len(told) < 2200
    assert ("Traceback" in told) == (code == 1)


def test_memory_that_torch_cannot_get_is_named() -> None:
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    sentence = ending.explain(error, lambda: "start again")
    assert sentence is not None
    assert sentence.endswith(
        "lower compute.tokens_per_microbatch or compute.sampler_rows, and start again"
    )
    assert ending.explain(RuntimeError("anything else"), lambda: "") is None


def test_a_full_disk_is_named_with_what_to_do_next() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        sentence = ending.explain(OSError(number, "No space left", "out.jsonl"), lambda: "start again")
        assert sentence == "out.jsonl: the disk is full; free some space, and start again"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_its_code_and_what_comes_next(number: signal.Signals, code: int) -> None:
    process = begin("forever()")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (code, "reftune: interrupted; start again\n")


@pytest.mark.parametrize(
    "body",
    [
        "try: forever()\nfinally: forever()",  # while what the first one has begun is not done
        "while True:\n  try: forever()\n  except BaseException: pass",  # code that catches everything
        f"{LEFT}try: forever()\nfinally: print('begun', flush=True)",  # at Python's own end
    ],
)
def test_the_second_ctrl_c_ends_at_once_and_with_the_same_code(body: str) -> None:
    process = begin(body)
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "body",
    [
        "for _ in range(10**5): print('line')",
        "for _ in range(10**5): typer.echo('line')",
        "from rich.console import Console\nfor _ in range(10**3): Console().print('line' * 99)",
        "time.sleep(0.3)\nsys.stdout.write('one line, that waits for the end')",
    ],
)
def test_a_closed_pipe_ends_with_141_and_without_a_word(body: str) -> None:
    process = begin(body)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        told = process.stderr.read()
    assert (process.wait(timeout=30), told) == (141, "")


def test_a_background_job_ignores_ctrl_c(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with pytest.raises(SystemExit):
            ending.run_to_end(lambda: os.kill(os.getpid(), signal.SIGINT), lambda: "")
    finally:
        signal.signal(signal.SIGINT, before)


def test_only_the_sentence_of_an_error_of_the_user_is_told() -> None:
    assert ending.explain(UserError("one\ntwo"), lambda: "") == "one two"
    assert ending.explain(ValueError("ours"), lambda: "") is None


MET_ON_THE_WAY_OUT = """
import builtins, os, signal, sys, types
from reftune import __main__
class Late:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGINT):
        kill(process, number)  # when Python has put its handlers away
builtins.late = Late()
sys.modules["reftune.cli"] = types.ModuleType("reftune.cli")
sys.modules["reftune.cli"].main = lambda: sys.exit(130)
__main__.main()
"""


def test_the_program_ends_with_its_code_and_not_by_a_signal_on_its_way_out() -> None:
    program = [sys.executable, "-c", MET_ON_THE_WAY_OUT]
    assert subprocess.run(program, preexec_fn=heed_ctrl_c, check=False).returncode == 130
