"""Seccomp filters: which system calls the worker and a program may make, as code of the kernel's BPF.

`assemble` and what it uses are pure functions. A filter reads `struct seccomp_data` (the call's number
at 0, the machine at 4, six arguments of 8 bytes from 16) and returns what becomes of the call. Of
arguments the lower halves are looked at: all that is named here is in them.
"""

import errno
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, AND, JUMP_IF_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06  # BPF_LD|W|ABS, ALU|AND|K, JMP|JEQ|K, RET|K
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT = 0, 4, 16

PROT_EXEC = 4
MAP_PRIVATE_ANONYMOUS, MAP_NORESERVE, MAP_STACK = 0x22, 0x4000, 0x20000
MREMAP_MAYMOVE = 1
FUTEX_WAKE, FUTEX_COMMANDS = 1, 0x7F
CLONE_OF_FORK = 0x01200000  # CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID, with any signal at the end
MADV_DONTNEED, MADV_FREE = 4, 8
WORD = 0xFFFFFFFF


def refuse(code: int) -> int:
    """Return the action that lets a call fail with this error."""
    return REFUSE | code


@dataclass(frozen=True)
class Where:
    """A condition: the argument with this number, masked, is one of some values."""

    argument: int
    values: Sequence[int]
    mask: int = WORD


@dataclass(frozen=True)
class Rule:
    """What becomes of a call: `action` where all conditions hold, else `otherwise`."""

    call: str
    action: int
    where: Sequence[Where] = ()
    otherwise: int = KILL


def instruction(code: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one `struct sock_filter`; jumps count the instructions that are left out."""
    return struct.pack("<HBBI", code, if_true, if_false, constant)


def block(number: int, rule: Rule) -> list[bytes]:
    """Return the instructions of one rule; where another call is made they leave its number loaded."""
    body: list[bytes] = []
    for where in rule.where:
        body.append(instruction(LOAD, ARGUMENTS_AT + 8 * where.argument))
        if where.mask != WORD:
            body.append(instruction(AND, where.mask))
        for left, value in zip(range(len(where.values), 0, -1), where.values, strict=True):
            body.append(instruction(JUMP_IF_EQUAL, value, if_true=left))
        body.append(instruction(RETURN, rule.otherwise))
    body.append(instruction(RETURN, rule.action))
    return [instruction(JUMP_IF_EQUAL, number, if_false=len(body)), *body]


def assemble(rules: Sequence[Rule], default: int, machine: int, calls: Mapping[str, int]) -> bytes:
    """Return a filter: the first rule of a call counts, `default` is what becomes of all others.

    Calls that this machine does not have are left out, and another machine's (32-bit ones) kill.
    """
    code = [
        instruction(LOAD, MACHINE_AT),
        instruction(JUMP_IF_EQUAL, machine, if_true=1),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER_AT),
    ]
    for rule in rules:
        if rule.call in calls:
            code += block(calls[rule.call], rule)
    code.append(instruction(RETURN, default))
    return b"".join(code)


def _rules(action: int, names: str) -> list[Rule]:
    return [Rule(name, action) for name in names.split()]


# Memory that no code can be put into, and that the limit of address space counts. What forks share
# stays, all of it, while one page is mapped, so does a huge page, and at addresses of one's own choice a
# page costs two more of the kernel's tables.
MEMORY = [
    Rule("mmap", ALLOW,
         [Where(0, [0]), Where(2, [0], PROT_EXEC),
          Where(3, [MAP_PRIVATE_ANONYMOUS], WORD & ~(MAP_NORESERVE | MAP_STACK))],
         refuse(errno.EPERM)),
    Rule("mprotect", ALLOW, [Where(2, [0], PROT_EXEC)], refuse(errno.EPERM)),
    Rule("madvise", ALLOW, [Where(2, [MADV_DONTNEED, MADV_FREE])], refuse(errno.EPERM)),
    Rule("mremap", ALLOW, [Where(3, [0, MREMAP_MAYMOVE])], refuse(errno.EPERM)),
    *_rules(ALLOW, "munmap brk"),
]  # fmt: skip
ENDINGS = _rules(ALLOW, "exit exit_group")
CLOCKS = _rules(ALLOW, "clock_gettime clock_getres gettimeofday time")

# The worker and its zygote: fork, wait, pipes, and what is needed to lock a program in. No files, no
# sockets, no other programs, no threads.
WORKER = [
    *MEMORY, *ENDINGS, *CLOCKS,
    *_rules(ALLOW, "read write poll ppoll close close_range dup2 dup3 futex wait4 getpid gettid"),
    Rule("clone", ALLOW, [Where(0, [CLONE_OF_FORK], 0xFFFFFF00)], refuse(errno.EPERM)),
    # glibc tries it first, and falls back to clone where it does not exist; its flags lie in memory.
    *_rules(refuse(errno.ENOSYS), "clone3"),
    *_rules(ALLOW, "rt_sigaction rt_sigprocmask set_robust_list rseq setitimer prlimit64 setrlimit"),
    *_rules(ALLOW, "seccomp getrandom rt_sigreturn restart_syscall"),
]  # fmt: skip

# A program: memory, and writing to what it has. What an honest program may ask for by accident fails as
# it would for a user without rights; whatever else is tried ends it. No signal is ever handled, and to
# return from one (rt_sigreturn) with a stack of one's own making would hold the clocks' signals back.
PROGRAM = [
    *MEMORY, *ENDINGS, *CLOCKS,
    Rule("write", ALLOW, [Where(0, [1, 2, 3])], refuse(errno.EBADF)),
    # Without threads nobody will ever wake who waits: that must not look like a slow machine.
    Rule("futex", ALLOW, [Where(1, [FUTEX_WAKE], FUTEX_COMMANDS)]),
    *_rules(ALLOW, "close"),
    *_rules(refuse(errno.ENOSYS), "clone3"),
    *_rules(refuse(errno.EACCES), "open openat openat2 stat lstat newfstatat statx access faccessat"
            " faccessat2 readlink readlinkat getcwd chdir mkdir mkdirat rmdir unlink unlinkat rename"
            " renameat link symlink chmod fchmodat chown truncate ftruncate memfd_create"),
    *_rules(refuse(errno.EPERM),
            "read readv writev pread64 pwrite64 lseek fstat fsync getdents64 ioctl fcntl dup dup2"
            " dup3 pipe pipe2 poll ppoll select pselect6 pause nanosleep clock_nanosleep"
            " rt_sigaction rt_sigprocmask sigaltstack alarm getitimer setitimer socket socketpair"
            " clone fork vfork execve wait4 waitid kill tgkill uname sysinfo times getrlimit"
            " setrlimit prlimit64 getrusage getpid getppid gettid getuid geteuid getgid getegid"
            " getgroups getpgrp getpgid getsid setsid umask getpriority setpriority sched_yield"
            " prctl sched_getaffinity sched_setaffinity getrandom set_robust_list rseq"),
]  # fmt: skip
