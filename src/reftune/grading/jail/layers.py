"""The layers that lock a worker in, each by itself; what each one is there for: docs/architecture.md."""

import errno
import functools
import os
import resource
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import kernel
from .calls import machine
from .filters import KILL, PROGRAM, WORKER, assemble, refuse

NOBODY = 65534
NAMESPACES = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWCGROUP | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
)  # fmt: skip
EMPTY_ROOT = "/tmp"  # where the empty root is mounted, in a mount namespace of its own
STACK_BYTES = 8 << 20
WITHOUT_PROC = 1 << 30  # bytes that this process is taken to map where nobody tells

# What Landlock can forbid, by the version that brought it: (files, network, scopes) as bits.
LANDLOCK_RIGHTS = {
    1: ((1 << 13) - 1, 0, 0), 2: (1 << 13, 0, 0), 3: (1 << 14, 0, 0), 4: (0, 0b11, 0),
    5: (1 << 15, 0, 0), 6: (0, 0, 0b11),
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a program may use: seconds of CPU time, seconds of the clock, bytes of address space."""

    seconds: float
    wall_seconds: float
    address_space: int


def mapped_bytes() -> int:
    """Return how much address space this process has now."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return WITHOUT_PROC


def end_first() -> None:
    """Let the kernel end this process and its forks before others where memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


# Of the worker


def enter_namespaces(_: Limits) -> None:
    """Leave network, mounts and, for the processes that start from here on, other processes behind."""
    if os.geteuid() == 0:
        try:
            kernel.unshare(NAMESPACES)
        except OSError:  # root without its rights, as in a container: try as anybody else
            drop_root(_)
    if os.geteuid() != 0:
        kernel.unshare(kernel.CLONE_NEWUSER | NAMESPACES)
    kernel.mount(None, "/", kernel.MS_REC | kernel.MS_PRIVATE)
    flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", EMPTY_ROOT, flags, "size=4k,nr_inodes=2,mode=0555")
    kernel.pivot_to(EMPTY_ROOT)


def drop_root(_: Limits) -> None:
    """Become a user without rights, where we are root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities(_: Limits) -> None:
    """Give up what is left of root's rights, also those inside of a user namespace."""
    kernel.drop_capabilities()


def forbid_new_privileges(_: Limits) -> None:
    """Let no program that would be started gain rights; seccomp asks for it."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def hide_memory(_: Limits) -> None:
    """Let no process of this user look into this one, and no core be written."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def restrict_by_landlock(_: Limits) -> None:
    """Forbid files, TCP, and signals to others, by Landlock as far as this kernel knows it."""
    version = kernel.landlock_version()
    known = [rights for since, rights in LANDLOCK_RIGHTS.items() if since <= version]
    kinds = 3 if version >= 6 else 2 if version >= 4 else 1
    kernel.restrict_by_landlock([sum(column) for column in zip(*known, strict=True)][:kinds])


def limit_worker(limits: Limits) -> None:
    """Bound memory and descriptors, and let nothing be written to files."""
    with suppress(OSError):  # a huge page stays whole while one of its 512 pages is mapped
        kernel.prctl(kernel.PR_SET_THP_DISABLE, 1)
    bounds = {
        resource.RLIMIT_AS: limits.address_space, resource.RLIMIT_STACK: STACK_BYTES,
        resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_MSGQUEUE: 0, resource.RLIMIT_RTPRIO: 0,
    }  # fmt: skip
    for kind, most in bounds.items():
        lower_limit(kind, most)


def lower_limit(kind: int, most: int) -> None:
    """Set a limit, unless a stricter one holds already."""
    hard = resource.getrlimit(kind)[1]
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (bound, bound))


def filter_worker(_: Limits) -> None:
    """Let this process, and those that it forks, make few system calls only."""
    program_filter()  # made here once, and not in each fork
    kernel.set_filter(assemble(WORKER, refuse(errno.EPERM), *machine()))


Layers = Mapping[str, Callable[[Limits], None]]

LAYERS: Layers = {
    "namespaces": enter_namespaces,
    "user": drop_root,
    "capabilities": drop_capabilities,
    "no_new_privs": forbid_new_privileges,
    "hidden memory": hide_memory,
    "Landlock": restrict_by_landlock,
    "limits": limit_worker,
    "seccomp": filter_worker,
}
# What not every machine allows; the others must hold, or the worker does not start.
OPTIONAL = ("namespaces", "user", "capabilities", "Landlock")


def lock_down(limits: Limits) -> list[str]:
    """Put all layers around this process; return the names of those that the machine does not allow.

    Raises OSError or ValueError where one fails that must hold.
    """
    missing = []
    for name, put in LAYERS.items():
        try:
            put(limits)
        except OSError:
            if name not in OPTIONAL:
                raise
            missing.append(name)
    return missing


# Of a program, on top


def limit_program(limits: Limits) -> None:
    """Let the kernel end this process in time, and let it start none."""
    lower_limit(resource.RLIMIT_NPROC, 0)
    lower_limit(resource.RLIMIT_CPU, int(limits.seconds) + 2)  # a backstop, in whole seconds
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)
    signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds)


def filter_program(_: Limits) -> None:
    """Let this process make the system calls of a program only."""
    kernel.set_filter(program_filter())


@functools.cache
def program_filter() -> bytes:
    """Return the filter of a program, for this machine."""
    return assemble(PROGRAM, KILL, *machine())


PROGRAM_LAYERS: Layers = {"program's limits": limit_program, "program's seccomp": filter_program}
