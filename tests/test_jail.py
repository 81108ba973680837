"""CPython behind the kernel's locks: attacks do nothing, the honest are right, nothing crosses over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import jail_attacks
import reftune
from command_line import start
from jail_attacks import LIBC, body
from jail_workers import ROWS, become_nobody, jail, row, successes
from reftune.grading import sandbox as sandbox_module
from reftune.grading.jail.calls import machine
from reftune.grading.sandbox import Sandbox, kind_of
from reftune.grading.worker_pool import WorkerPool
from reftune.problem import Execution, UserError
from test_sandbox import GOOD, children_of, command_line, load, returning, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs seccomp")

CONDITIONS = ["", "user", "namespaces denied", "user,namespaces denied,Landlock denied"]


@pytest.fixture(scope="module", params=CONDITIONS, ids=lambda one: one or "as it is")
def anywhere(request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    pool = jail(request.param, seconds=0.15, kind="numpy")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    made = jail(seconds=1.0, kind="numpy")
    yield made
    made.close()


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(workers=1, full_python=True) as sandbox:
        yield sandbox


@contextmanager
def nothing_happens() -> Iterator[None]:
    """See that no file has been left behind, nobody has called, and nothing has ended."""
    before = set(children_of(os.getpid(), "jail"))
    with socket.create_server(("127.0.0.1", 18999)) as listener:
        listener.settimeout(0.0)
        yield
        with pytest.raises(BlockingIOError):
            listener.accept()
    left = [*Path("/tmp").glob("reft_canary_*"), *Path("/dev/shm").glob("reft_canary_*")]
    for path in left:
        path.unlink()
    assert not left
    assert before <= set(children_of(os.getpid(), "jail"))


def one(pool: WorkerPool, program: str) -> Execution:
    return pool.run([program])[program]


def each(pool: WorkerPool, programs: list[str]) -> list[Execution]:
    found = pool.run(programs)
    return [found[program] for program in programs]


# Attacks


@pytest.mark.parametrize("group", ["FILES", "PROCESSES", "NETWORK", "RIGHTS", "MEMORY"])
def test_no_attack_does_what_it_wants(anywhere: WorkerPool, group: str) -> None:
    attacks: dict[str, str] = getattr(jail_attacks, group)
    one(anywhere, GOOD)
    with nothing_happens():
        results = anywhere.run(attacks.values())
    won = {name: results[a] for name, a in attacks.items() if results[a].value == 1337}
    assert won == {}
    ours = [name for name, a in attacks.items() if results[a].status == "sandbox_error"]
    assert ours == []
    assert one(anywhere, GOOD) == Execution("ok", 7.0)


@pytest.mark.parametrize("condition", [CONDITIONS[0], CONDITIONS[-1]])
def test_nothing_takes_longer_than_it_may(condition: str) -> None:
    pool = jail(condition, seconds=0.1)
    results = pool.run(jail_attacks.TIME.values())
    pool.close()
    named = {name: results[program].status for name, program in jail_attacks.TIME.items()}
    ended = ("wait for a lock", "wait for a queue", "return from a signal that never came")
    assert {named.pop(name) for name in ended} == {"blocked"}
    assert set(named.values()) == {"timeout"}, named


def test_it_is_the_clock_of_its_own_time_that_ends_a_program(pool: WorkerPool) -> None:
    loop = one(pool, jail_attacks.TIME["loop"])
    assert loop == Execution("timeout", None, "its CPU time was used up (SIGPROF)")


def test_what_a_program_writes_to_its_pipe_is_an_answer_or_charged_to_it(pool: WorkerPool) -> None:
    assert one(pool, jail_attacks.OWN_ANSWER) == Execution("ok", 1337.0)
    results = pool.run(jail_attacks.FORGED.values())
    named = {name: results[program].status for name, program in jail_attacks.FORGED.items()}
    assert named.pop("a frame, and a crash") == "crash"
    assert named.pop("a frame, and a loop") == "timeout"
    assert set(named.values()) == {"bad_result"}, named
    assert one(pool, GOOD) == Execution("ok", 7.0)


def test_every_program_has_an_end_that_is_charged_to_it(pool: WorkerPool) -> None:
    results = pool.run(jail_attacks.ENDS.values())
    named = {name: results[program] for name, program in jail_attacks.ENDS.items()}
    assert named.pop("no modules") == Execution("ok", 5.0)
    assert "sandbox_error" not in {result.status for result in named.values()}
    assert [name for name, result in named.items() if result.value is not None] == []
    crashed = {name for name, result in named.items() if result.status == "crash"}
    assert crashed == {
        "read from nowhere", "write to its own code", "free what is in use", "end by itself",
    }  # fmt: skip
    assert one(pool, GOOD) == Execution("ok", 7.0)


def test_no_system_call_works_that_is_not_on_the_list(pool: WorkerPool) -> None:
    calls = {
        number: LIBC + body(
            f"done = libc.syscall({number}, 0, 0, 0, 0, 0, 0)",
            "return 1337 if done >= 0 else -ctypes.get_errno()",
        )
        for number in range(480)
    }  # fmt: skip
    results = pool.run(calls.values())
    done = {number for number, call in calls.items() if results[call].value == 1337}
    harmless = ("close", "mprotect", "brk", "gettimeofday", "time", "clock_getres", "munmap", "madvise")
    assert done <= {machine()[1].get(name) for name in harmless}
    assert len([call for call in calls.values() if results[call].status == "blocked"]) > 250


@pytest.mark.parametrize("condition", ["", "user", "user,namespaces denied"])
def test_the_hostile_programs_do_no_harm(condition: str) -> None:
    cases = load("hostile_programs.json")
    if not cases:
        pytest.skip("needs shared/data")
    pool = jail(condition, seconds=0.15)
    short = [case for case in cases if len(case["program"]) <= 20_000 and "sympy" not in case["program"]]
    for canary in Path("/tmp").glob("reft_canary_*"):
        canary.unlink()
    with nothing_happens():
        for case in short:
            check_hostile(pool, case)
    pool.close()


# Their attack does not exist here, as what it goes through is not there; or it is Python's own limit.
ELSEWHERE = {"segv": "no_result", "long_sum": "unsupported"}


def check_hostile(pool: WorkerPool, case: dict[str, Any]) -> None:
    result = one(pool, case["program"])
    named = {case["expected_outcome"], *case["also_ok"], "unsupported", ELSEWHERE.get(case["name"])}
    assert result.status in named, (case["name"], result)
    assert result.value != 1337 or case.get("benign_1337"), case["name"]
    assert result.status != "ok" or result.value == case.get("value", 1337), case["name"]
    if "then" in case:
        program, expected, value = case["then"]
        after = one(pool, program)
        assert (after.status, after.value) == (expected, value), case["name"]


# What crosses over from one program to the next, or from us


def test_programs_find_nothing_of_others_in_memory(pool: WorkerPool) -> None:
    secret = "x = ['SECRETMARKER%d' % i for i in range(1000)]\n"
    search = """
import ctypes, gc, numpy
WORD = b"SECRET" + b"MARKER"
def solution():
    texts = [t for t in gc.get_referents(*gc.get_objects()) if type(t) is str]
    pools = {id(text) >> 14 for text in texts}
    found = sum(ctypes.string_at(pool << 14, 1 << 14).count(WORD) for pool in pools)
    used = (numpy.empty(size, dtype=numpy.uint8).tobytes() for size in range(16, 5000, 8))
    return found + sum(one.count(WORD) for one in used)
"""
    results = each(pool, [secret + search, secret + returning("7"), search, search + "\n"])
    assert results[0].value >= 1000  # what is there is found
    assert results[1:] == [Execution("ok", 7.0), Execution("ok", 0.0), Execution("ok", 0.0)]


def test_programs_change_nothing_for_the_next_one(pool: WorkerPool) -> None:
    patches = [
        "import math\nmath.sqrt = lambda x: 1337\nround = abs = sum = lambda *a: 1337\n" + GOOD,
        "import builtins\nbuiltins.abs = builtins.round = lambda *a: 1337\n" + GOOD,
        "import sys\nsys.modules['grading.jail.program'].encode = lambda a: '1337'\n" + GOOD,
        "import sys, json\njson.dumps = lambda a: '1337'\n" + GOOD,
        "import sys\nsys.modules['grading.jail.frames'].pack = lambda *a: b''\n" + GOOD,
    ]
    pool.run(patches)
    assert one(pool, GOOD) == Execution("ok", 7.0)
    results = each(pool, ["leftover = 1\n" + returning("leftover"), returning("leftover")])
    assert [result.status for result in results] == ["ok", "exception"]


def test_a_program_holds_nothing_but_its_pipe(pool: WorkerPool) -> None:
    tried = "import os\n" + body(
        "held = []",
        "for fd in range(4, 300):",
        "    try:",
        "        held += [os.close(fd)]",
        "    except OSError:",
        "        pass",
        "return os.write(1, b'') + os.write(2, b'') + os.write(3, b'') + len(held)",
    )
    assert one(pool, tried) == Execution("ok", 0.0)


def test_no_huge_page_is_given_to_a_worker(pool: WorkerPool) -> None:
    # Most of it could be unmapped, and would stay.
    one(pool, GOOD)
    status = Path(f"/proc/{pool._workers[0]._process.pid}/status").read_text()
    assert "THP_enabled:\t1" not in status


def test_the_trainer_is_not_what_ends_where_memory_runs_out(pool: WorkerPool) -> None:
    one(pool, GOOD)
    worker = pool._workers[0]._process.pid
    for process in (worker, *children_of(worker, "jail/__main__")):
        assert Path(f"/proc/{process}/oom_score_adj").read_text() == "1000\n"


def test_workers_get_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    told = "import os, sys, gc\n" + returning("repr([dict(os.environ), sys.argv[4:]])")
    pool = jail(text=True)
    known = one(pool, told)
    pool.close()
    assert isinstance(known.value, str)
    assert "secret" not in known.value
    assert "OPENBLAS_NUM_THREADS" in known.value


def test_a_program_has_root_nowhere(anywhere: WorkerPool) -> None:
    # From memory that the kernel fills: getuid() itself may not be asked.
    root = "import os\n" + body(
        "try:", "    return 1337 if os.getuid() == 0 else 5", "except OSError: return 6"
    )
    assert one(anywhere, root).value != 1337


# Where the machine allows less


def test_what_a_machine_does_not_allow_is_told() -> None:
    for switches, lacking in [("", []), ("user", []), (CONDITIONS[-1], ["namespaces", "Landlock"])]:
        pool = jail(switches)
        assert one(pool, GOOD) == Execution("ok", 7.0)
        assert pool.lacks == lacking, switches
        pool.close()


@pytest.mark.parametrize(
    ("switch", "words"),
    [("seccomp denied", "has no seccomp filters"), ("seccomp ignored", "does not heed them")],
)
def test_without_seccomp_no_worker_starts(switch: str, words: str) -> None:
    pool = jail(switch)
    with pytest.raises(UserError, match=f"{words}.*; set reward.full_python = false"):
        pool.run([GOOD])


def test_a_sandbox_says_so_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "seccomp_missing", lambda: "there is none")
    Sandbox()
    with pytest.raises(UserError, match=r"reward\.full_python: .* there is none; set it to false"):
        Sandbox(full_python=True)


# Layers that are off


@pytest.mark.parametrize("group", ["FILES", "PROCESSES", "NETWORK", "RIGHTS"])
def test_seccomp_alone_keeps_programs_in(group: str) -> None:
    attacks: dict[str, str] = getattr(jail_attacks, group)
    pool = jail(ROWS["all but seccomp and no_new_privs"])
    with nothing_happens():
        results = pool.run(attacks.values())
    pool.close()
    assert [name for name, attack in attacks.items() if results[attack].value == 1337] == []


def test_without_seccomp_the_other_layers_keep_files_and_processes_away() -> None:
    # A machine that allows no namespaces shows the names of its processes.
    harmless = {"makes code", "sleeps", "stops its clocks", "sees others' processes"}
    assert set(successes(ROWS["both seccomps"])) <= harmless


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="shows what root loses")
@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_layers_is_true(name: str) -> None:
    pool = jail()
    one(pool, GOOD)
    pool.close()
    if pool.lacks:
        pytest.skip(f"this machine lacks {pool.lacks}")
    page = Path(__file__).parents[1] / "docs/full_python.md"
    assert row(name) in page.read_text().splitlines()


AS_NOBODY = """
import json, sys
sys.path.insert(0, sys.argv[1])
import jail_attacks
from reftune.grading.sandbox import Sandbox
attacks = jail_attacks.ATTACKS
with Sandbox(workers=1, full_python=True) as sandbox:
    found = sandbox._jails["plain"].run(attacks.values())
    print(json.dumps([[name, found[a].value] for name, a in attacks.items() if found[a].value == 1337]))
    print(sandbox.run(["class A(list): pass\\ndef solution():\\n    return len(A([1, 2]))"])[0].value)
    print(sandbox._jails["plain"].lacks)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_trainer_without_rights_is_as_safe() -> None:
    command = [sys.executable, "-c", AS_NOBODY, str(Path(__file__).parent)]
    done = subprocess.run(
        command, preexec_fn=become_nobody, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[]", "2.0", "[]"]


# Honest programs


def test_the_benign_programs_are_all_right(box: Sandbox) -> None:
    cases = load("benign_programs.json")
    if not cases:
        pytest.skip("needs shared/data")
    results = box.run([case["program"] for case in cases])
    found = {case["name"]: result.value for case, result in zip(cases, results, strict=True)}
    assert found == {case["name"]: pytest.approx(case["value"], rel=1e-6) for case in cases}


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("import numpy as np\n" + returning("np.mean([1, 2])"), 1.5),
        ("import numpy as np\n" + returning("np.linalg.solve([[2, 0], [0, 4]], [1, 2])[1]"), 0.5),
        ("import numpy as np\n" + returning("np.int64(7)"), 7.0),
        ("import sympy\n" + returning("sympy.factorint(12)[2]"), 2.0),
        ("import sympy\n" + returning("sympy.Rational(1, 4)"), 0.25),
        ("import sympy\n" + returning("sympy.sqrt(2)"), 2**0.5),
        ("from sympy import *\n" + body("x = symbols('x')", "return solve(x**2 - 3*x + 2, x)[1]"), 2.0),
        ("from sympy import *\n" + body("x = symbols('x')", "return integrate(x**2, (x, 0, 3))"), 9.0),
        ("from sympy.ntheory import *\n" + returning("totient(36)"), 12.0),
        ("from enum import Enum\n" + returning("Enum('A', 'b').b.value"), 1.0),
        ("def g():\n    yield 3\n" + returning("next(g())"), 3.0),
        ("class A(dict): pass\n" + returning("len(A())"), 0.0),
        ("class A:\n    @property\n    def x(self): return 4\n" + returning("A().x"), 4.0),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 3\n"
         "class B(A): pass\n" + returning("B().x"), 3.0),
        ("class A(int): pass\nfrom fractions import Fraction\n" + returning("Fraction(1, 4)"), 0.25),
        ("class A(int): pass\nfrom decimal import Decimal\n" + returning("Decimal('0.1') * 3"), 0.3),
        ("class A(int): pass\nfrom datetime import datetime, timedelta\n"
         + returning("(datetime.now() - timedelta(1)).year"), 2023.0),
        ("class A(int): pass\n" + returning("2**70 + 1"), 2**70 + 1),
        ("class A(int): pass\nif __name__ == '__main__':\n    y = 5\n" + returning("y"), 5.0),
    ],
)  # fmt: skip
def test_full_python_is_there(box: Sandbox, program: str, value: float) -> None:
    assert box.run([program]) == [Execution("ok", value)]


def test_it_is_there_for_python_and_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = body("class A(dict): pass", "return 7")
    assert reftune.run_program(program).status == "unsupported"
    assert reftune.run_program(program, full_python=True) == Execution("ok", 7.0)
    (verdict,) = reftune.grade([program], [7], cot="program", full_python=True)
    assert verdict.correct
    completions, problems = tmp_path / "completions.jsonl", tmp_path / "problems.jsonl"
    completions.write_text(json.dumps({"id": 1, "completion": program, "answer": 7}))
    assert start(monkeypatch, "grade", completions, "--cot", "program", "--full-python") == 0
    assert '"correct": true' in (tmp_path / "completions.graded.jsonl").read_text()
    row = {"item_id": "a", "question": "7?", "answer_cot": program, "answer_value": "7"}
    problems.write_text(json.dumps(row))
    assert start(monkeypatch, "data", "check", problems) == 2
    assert start(monkeypatch, "data", "check", problems, "--full-python") == 0


def test_only_what_is_unsupported_goes_on(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for jailed in box._jails.values():
        monkeypatch.setattr(
            jailed, "run", lambda programs: {p: seen.append(p) or Execution("ok", 1.0) for p in programs}
        )
    there = ["class A(list): pass\n", "import numpy\nx = numpy.pi\n", "import sympy\nx = sympy.pi\n"]
    there = [line + GOOD for line in there]
    box.run([GOOD, returning("1 / 0"), returning("open('x')"), *there])
    assert seen == there
    assert [kind_of(program) for program in there] == ["plain", "numpy", "sympy"]


ALIKE = [
    "", "x = 1\n", "solution = 42\n", "def solution(x):\n    return x\n", "solution = lambda: 4\n",
    "def solution(:\n  return 1\n", "```python\ndef solution():\n    return 1\n```", GOOD + "# comment",
    "def solution():\n    return 1\n\x00", "def solution():\n    return len('\ud800')\n", GOOD + "'''",
    "def solution():\n\tx = 1\n        return x", "def solution():\n    return 1\nreturn 1",
    GOOD + "x = \\",
    *map(returning, [
        "None", "True", "'42'", "[42]", "{'a': 1}", "(x for x in [1])", "1 + 2j", "b'5'", "int", "print",
        "'7' * 10**7", "float('nan')", "-1e308 * 10", "10**400", "10**5000", "7", "2**70", "1 / 3",
        "1 / 0", "missing", "5()", "solution()", "open('/etc/passwd').read()", "exit()",
    ]),
    body("import sys", "sys.exit(3)"), body("raise KeyboardInterrupt"), body("raise BaseException('x')"),
    body("exec('def (')", "return 1"), body("while True: pass"), body("import time", "time.sleep(5)"),
    body("x = []", "while True: x.append('a' * 10**6)"), "import nowhere\n" + GOOD + "nowhere.x",
]  # fmt: skip


def test_both_executors_say_the_same(pool: WorkerPool) -> None:
    with Sandbox(workers=1, seconds=1.0) as sandbox:
        expected = dict(zip(ALIKE, sandbox.run(ALIKE), strict=True))
    found = pool.run(ALIKE)
    assert {p: (r.status, r.value) for p, r in found.items()} == {
        p: (r.status, r.value) for p, r in expected.items()
    }


def test_texts_are_answers_where_they_are_asked_for() -> None:
    pool = jail(text=True)
    programs = [returning("'B'"), returning("'é\\n\"'"), returning("'x' * 10**6"), returning("3")]
    results = each(pool, programs)
    assert results[:2] == [Execution("ok_text", "B"), Execution("ok_text", 'é\n"')]
    assert [results[2].status, results[3]] == ["bad_result", Execution("ok", 3.0)]
    pool.close()


def test_memory_is_what_was_asked_for(pool: WorkerPool) -> None:
    program = returning("len('a' * 10**8)")
    assert one(pool, program) == Execution("ok", 1e8)
    small = jail(memory_mb=64)
    assert one(small, program).status == "memory"
    small.close()


def test_chance_and_clock_stand_still(pool: WorkerPool) -> None:
    chances = "import random, numpy, os, time, datetime, uuid\n" + returning(
        "random.random() + random.Random().random() + numpy.random.rand() + os.urandom(1)[0]"
        " + numpy.random.default_rng().random() + uuid.uuid4().int % 1000 + hash('x') % 1000"
        " + random.SystemRandom().random()"
    )
    clock = "import time, datetime\n" + returning("time.time() - datetime.datetime.now().timestamp()")
    first = pool.run([chances, clock])
    assert [result.status for result in first.values()] == ["ok", "ok"]
    assert first[clock].value == 0.0
    other = jail(kind="numpy")
    assert other.run([clock, chances]) == first
    other.close()


def test_big_programs_fill_no_pipe(pool: WorkerPool) -> None:
    size = 300_000
    programs = [body(f"x = '{'é' * size}'", f"return len(x) + {i}") for i in range(3)]
    assert [result.value for result in each(pool, programs)] == [size, size + 1, size + 2]


# Processes


def test_a_zygote_killed_from_outside_changes_no_result(pool: WorkerPool) -> None:
    one(pool, GOOD)
    worker = pool._workers[0]._process.pid
    (zygote,) = children_of(worker, "jail/__main__")
    os.kill(zygote, signal.SIGKILL)
    programs = [returning(str(number)) for number in range(20)]
    assert [result.value for result in each(pool, programs)] == list(range(20))
    assert wait_until(lambda: worker not in children_of(os.getpid(), "jail/__main__"))


TRAINER = """
from reftune.grading.sandbox import Sandbox
with Sandbox(workers=1, seconds=1.0, full_python=True) as sandbox:
    sandbox._jails["plain"].run(["x = 1"])
    print("running", flush=True)
    sandbox._jails["plain"].run(["while True: pass"])
"""


def test_no_process_outlives_its_trainer() -> None:
    with subprocess.Popen([sys.executable, "-c", TRAINER], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "running\n"
        assert wait_until(lambda: len(children_of(trainer.pid, "jail/__main__")) == 3)
        orphans = children_of(trainer.pid, "jail/__main__")
        trainer.kill()
    # The worker hears of it when its program ends, which it does.
    assert wait_until(lambda: not any(map(command_line, orphans)), seconds=30.0)


def test_close_ends_every_process() -> None:
    before = set(children_of(os.getpid(), "jail/__main__"))
    pool = jail()
    assert one(pool, GOOD) == Execution("ok", 7.0)
    assert len(set(children_of(os.getpid(), "jail/__main__")) - before) == 2
    pool.close()
    assert set(children_of(os.getpid(), "jail/__main__")) <= before
