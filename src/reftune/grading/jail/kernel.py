"""Ask the kernel for what Python has no functions for, by ctypes."""

import ctypes
import errno
import functools
import os
import platform
import sys
from collections.abc import Sequence

from .calls import MACHINES, machine

SECCOMP_SET_MODE_FILTER, SECCOMP_GET_ACTION_AVAIL = 1, 2
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_SET_THP_DISABLE = 4, 38, 24, 41
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 1 << 14, 1 << 18
MNT_DETACH = 2
LANDLOCK_CREATE_RULESET_VERSION = 1
CAPABILITIES = 64  # more than there are


class _Program(ctypes.Structure):
    """`struct sock_fprog`: a filter's length in instructions and where it lies."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def syscall(name: str, *arguments: object) -> int:
    """Make a system call by its name; raise OSError where it fails."""
    plain = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result: int = _libc().syscall(ctypes.c_long(machine()[1][name]), *plain)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def prctl(option: int, value: int = 0) -> int:
    """Change or ask something of this process; raise OSError where the kernel refuses."""
    return syscall("prctl", option, value, 0, 0, 0)


def seccomp_missing() -> str | None:
    """Return why this machine has no seccomp filters, None where it has them; nothing is changed."""
    if sys.platform != "linux":
        return f"seccomp is a part of Linux, and this is {sys.platform}"
    if platform.machine() not in MACHINES:
        return (
            f"no seccomp filter is written for {platform.machine()} ({' and '.join(MACHINES)} have one)"
        )
    kill = ctypes.c_uint32(0x80000000)
    try:
        syscall("seccomp", SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(kill))
    except OSError as error:
        return f"the kernel, or the container that we are in, has no seccomp filters ({error.strerror})"
    return None


def set_filter(program: bytes) -> None:
    """Put a seccomp filter over this process, for good, on top of those that it has."""
    laid_out = _Program(len(program) // 8, program)
    syscall("seccomp", SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(laid_out))


def unshare(flags: int) -> None:
    """Leave namespaces that this process shares with others."""
    syscall("unshare", flags)


def mount(kind: str | None, place: str, flags: int, options: str | None = None) -> None:
    """Mount a file system without a device, or change how what is mounted there is shared."""
    name = None if kind is None else kind.encode()
    syscall("mount", name, place.encode(), name, flags, None if options is None else options.encode())


def pivot_to(place: str) -> None:
    """Make a mounted file system the only one that this mount namespace has."""
    os.chdir(place)
    syscall("pivot_root", b".", b".")
    syscall("umount2", b".", MNT_DETACH)
    os.chdir("/")


def drop_capabilities() -> None:
    """Give all capabilities up, also those that a program could get back."""
    for number in range(CAPABILITIES):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError as error:  # there are no more, or there was none to drop them with
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            break
    version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
    syscall("capset", version_3, (ctypes.c_uint32 * 6)())


def landlock_version() -> int:
    """Return which version of Landlock the kernel has; raise OSError where it has none."""
    return syscall("landlock_create_ruleset", None, 0, LANDLOCK_CREATE_RULESET_VERSION)


def restrict_by_landlock(rights: Sequence[int]) -> None:
    """Forbid rights on files, on the network and across the domain: no rule allows any of them."""
    attributes = (ctypes.c_uint64 * len(rights))(*rights)
    rules = syscall("landlock_create_ruleset", attributes, ctypes.sizeof(attributes), 0)
    try:
        syscall("landlock_restrict_self", rules, 0)
    finally:
        os.close(rules)
