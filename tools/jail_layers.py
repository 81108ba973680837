"""What does each layer of the locked-in CPython keep from happening? Switch layers off, and try.

    python tools/jail_layers.py          # prints the table of docs/full_python.md; best as root

PROBES do no harm where they succeed. They are run in workers that lack a layer or several. The tests use
such workers, too: to be another user, or on a machine that denies something.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reftune.grading.worker_pool import WorkerPool

ROOT = Path(__file__).resolve().parents[1]
NOBODY, PR_SET_KEEPCAPS, CAP_DAC_READ_SEARCH = 65534, 8, 1 << 2
EPERM, ENOSYS, EOPNOTSUPP = 1, 38, 95

# What a machine may deny, as it does by a filter of its own: calls, and the error.
DENIALS = {
    "namespaces denied": ("unshare", EPERM),
    "Landlock denied": ("landlock_create_ruleset", EOPNOTSUPP),
    "seccomp denied": ("seccomp", ENOSYS),
}

LIBC = "import ctypes, os, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n"
# Each has done what its name says where no line raises; what it leaves behind does not matter.
PROBES = {
    "reads a file": "open('/etc/passwd').read(1)",
    "writes a file": "os.close(os.open('/tmp/reft_probe', os.O_CREAT | os.O_WRONLY))",
    "sees others' processes": "assert os.path.exists('/proc/{trainer}/cmdline')",
    "may signal the trainer": "os.kill({trainer}, 0)",
    "may read the trainer's memory": "os.close(os.open('/proc/{trainer}/mem', os.O_RDONLY))",
    "forks": "pid = libc.fork()\n    if pid == 0: libc._exit(0)\n    assert pid > 0",
    "starts a program": "assert os.posix_spawn('/bin/true', ['true'], {{}}) > 0",
    "starts a thread": "import _thread\n    _thread.start_new_thread(len, ('',))",
    "connects": (
        "s = libc.socket(2, 1, 0)\n"
        "    to = bytes([2, 0]) + ({port}).to_bytes(2, 'big') + bytes([127, 0, 0, 1]) + bytes(8)\n"
        "    assert libc.connect(s, to, 16) == 0"
    ),
    "is root": "assert libc.geteuid() == 0",
    "mounts": "assert libc.mount(b'none', b'/', b'tmpfs', 1, None) == 0",  # in a namespace of its own
    "takes 500 MB": "x = bytearray(5 * 10**8)",
    "makes code": "libc.mmap.restype = ctypes.c_long\n    assert libc.mmap(0, 4096, 7, 34, -1, 0) > 0",
    "sleeps": "assert libc.usleep(1000) == 0",
    "stops its clocks": "assert libc.setitimer(2, (ctypes.c_uint64 * 4)(), None) == 0",
}
LOOP = "def solution():\n    while True: pass\n"
# Leaves a process behind that says an answer while the next program runs.
LEAVER = (
    LIBC
    + """
def solution():
    caller = sys._getframe()
    while 'nonce' not in caller.f_locals:
        caller = caller.f_back
    if libc.fork() == 0:
        libc.usleep(200000)
        os.write(3, caller.f_locals['nonce'] + b'A' + bytes([0, 4]) + b'1337')
        libc._exit(0)
    return 5
"""
)
NEXT = "def solution():\n    return sum(range(2 * 10**7)) * 0 + 7\n"

FILTERS = "without seccomp,without program's seccomp"
ROWS = {
    "nothing": "",
    "namespaces": "without namespaces",
    "user": "without user",
    "capabilities": "without capabilities",
    "user and capabilities": "without user,without capabilities",
    "no_new_privs": "without no_new_privs",
    "hidden memory": "without hidden memory",
    "Landlock": "without Landlock",
    "limits": "without limits",
    "program's limits": "without program's limits",
    "seccomp of the worker": "without seccomp",
    "seccomp of the program": "without program's seccomp",
    "all but seccomp and no_new_privs": ",".join(
        f"without {name}"
        for name in ("namespaces", "user", "capabilities", "hidden memory", "Landlock", "limits",
                     "program's limits")
    ),
    "both seccomps": FILTERS,
    "both, namespaces": f"{FILTERS},without namespaces",
    "both, Landlock": f"{FILTERS},without Landlock",
    "both, namespaces, Landlock": f"{FILTERS},without namespaces,without Landlock",
    "both, program's limits": f"{FILTERS},without program's limits",
    "both, user, capabilities": f"{FILTERS},without user,without capabilities",
}  # fmt: skip


def worker(switches: str, arguments: list[str]) -> None:
    """Be a worker with some switches, separated by commas: `user`, one of DENIALS, `without NAME`."""
    sys.path.append(str(ROOT / "src/reftune"))
    from grading.jail import kernel, layers, supervisor  # type: ignore[import-not-found]

    for switch in filter(None, switches.split(",")):
        if switch == "user":
            become_nobody(kernel)
        elif switch in DENIALS:
            deny(*DENIALS[switch])
        elif switch == "seccomp ignored":
            kernel.set_filter = len
        else:
            name = switch.removeprefix("without ")
            (layers.LAYERS if name in layers.LAYERS else layers.PROGRAM_LAYERS).pop(name)
            supervisor.PROBE = "def solution():\n    return 3"  # it would refuse to start
    supervisor.main(arguments)


def deny(call: str, error: int) -> None:
    """Let a system call fail from here on, as a container may."""
    from grading.jail import filters, kernel
    from grading.jail.calls import machine  # type: ignore[import-not-found]

    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    rules = [filters.Rule(call, filters.refuse(error))]
    kernel.set_filter(filters.assemble(rules, filters.ALLOW, *machine()))


def become_nobody(kernel: Any) -> None:
    """Become an unprivileged user, who may still read the files of this Python wherever they lie."""
    if os.geteuid() != 0:
        return
    import ctypes

    kernel.prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    kernel.syscall("capset", header, (ctypes.c_uint32 * 6)(CAP_DAC_READ_SEARCH, CAP_DAC_READ_SEARCH))


def jail(
    switches: str = "", *, seconds: float = 0.5, memory_mb: int = 256, text: bool = False,
    kind: str = "plain",
) -> WorkerPool:  # fmt: skip
    """Return a pool of one worker with some switches, or without any."""
    from reftune.grading.sandbox import cpython
    from reftune.grading.worker_pool import WorkerPool

    executor = cpython((str(seconds), str(memory_mb), str(text)), 11 * seconds + 1, kind)
    if switches:
        flags = executor.command[1:-1]
        executor = replace(executor, command=(sys.executable, *flags, __file__, "--worker", switches))
    return WorkerPool(executor, 1)


def main() -> None:
    """Print what each row lacks, and what then succeeds."""
    print("| without | what succeeds |\n|---|---|")
    for name in ROWS:
        print(row(name), flush=True)


def row(name: str) -> str:
    """Return a line of the table."""
    from reftune.problem import UserError

    try:
        found = ", ".join(successes(ROWS[name])) or "-"
    except UserError as error:
        found = f"no worker starts ({str(error).partition('start: ')[2].partition(';')[0]})"
    return f"| {name} | {found} |"


def successes(switches: str) -> list[str]:
    """Return the names of what programs can do in a worker with these switches."""
    with listener() as port:
        found = list(_successes(jail(switches), port))
    Path("/tmp/reft_probe").unlink(missing_ok=True)
    return found


def _successes(pool: WorkerPool, port: int) -> Iterator[str]:
    for name, lines in PROBES.items():
        lines = lines.format(trainer=os.getpid(), port=port)
        program = LIBC + f"def solution():\n    {lines}\n    return 1337\n"
        if pool.run([program])[program].value == 1337:
            yield name
    if pool.run([LOOP])[LOOP].status != "timeout":
        yield "runs until its worker is killed"
    found = pool.run([LEAVER, NEXT])
    if found[NEXT].value != 7:
        yield f"spoils the next program ({found[NEXT].status})"
    pool.close()


@contextmanager
def listener() -> Iterator[int]:
    """Offer a port that programs can connect to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3:])
    else:
        main()
