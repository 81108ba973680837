"""The numbers of Linux's system calls, by name, on the two machines that are known here."""

import functools
import platform

# Of asm/unistd_64.h.
X86_64 = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7,
    "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13,
    "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "dup": 32, "dup2": 33, "pause": 34, "nanosleep": 35, "getitimer": 36, "alarm": 37,
    "setitimer": 38, "getpid": 39, "socket": 41, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58,
    "execve": 59, "exit": 60, "wait4": 61, "kill": 62, "uname": 63, "fcntl": 72, "fsync": 74,
    "truncate": 76, "ftruncate": 77, "getcwd": 79, "chdir": 80, "rename": 82, "mkdir": 83, "rmdir": 84,
    "link": 86, "unlink": 87, "symlink": 88, "readlink": 89, "chmod": 90, "chown": 92, "umask": 95,
    "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102,
    "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111, "setsid": 112,
    "getgroups": 115, "getpgid": 121, "getsid": 124, "capset": 126, "sigaltstack": 131,
    "getpriority": 140, "setpriority": 141, "pivot_root": 155, "prctl": 157, "setrlimit": 160,
    "chroot": 161, "mount": 165, "umount2": 166, "gettid": 186, "time": 201, "futex": 202,
    "sched_setaffinity": 203, "sched_getaffinity": 204, "getdents64": 217, "set_tid_address": 218,
    "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "tgkill": 234, "waitid": 247, "openat": 257, "mkdirat": 258, "newfstatat": 262,
    "unlinkat": 263, "renameat": 264, "readlinkat": 267, "fchmodat": 268, "faccessat": 269,
    "pselect6": 270, "ppoll": 271, "unshare": 272, "set_robust_list": 273, "dup3": 292, "pipe2": 293,
    "prlimit64": 302, "setns": 308, "seccomp": 317, "getrandom": 318, "memfd_create": 319, "statx": 332,
    "rseq": 334, "clone3": 435, "close_range": 436, "openat2": 437, "faccessat2": 439,
    "landlock_create_ruleset": 444, "landlock_restrict_self": 446,
}  # fmt: skip

# Of asm-generic/unistd.h, which has none of the calls that others replace.
AARCH64 = {
    "getcwd": 17, "dup": 23, "dup3": 24, "fcntl": 25, "ioctl": 29, "mkdirat": 34, "unlinkat": 35,
    "renameat": 38, "umount2": 39, "mount": 40, "pivot_root": 41, "truncate": 45, "ftruncate": 46,
    "faccessat": 48, "chdir": 49, "chroot": 51, "fchmodat": 53, "openat": 56, "close": 57, "pipe2": 59,
    "getdents64": 61, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67,
    "pwrite64": 68, "pselect6": 72, "ppoll": 73, "readlinkat": 78, "newfstatat": 79, "fstat": 80,
    "fsync": 82, "capset": 91, "exit": 93, "exit_group": 94, "waitid": 95, "set_tid_address": 96,
    "unshare": 97, "futex": 98, "set_robust_list": 99, "nanosleep": 101, "getitimer": 102,
    "setitimer": 103, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115,
    "sched_setaffinity": 122, "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128,
    "kill": 129, "tgkill": 131, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135,
    "rt_sigreturn": 139, "setpriority": 140, "getpriority": 141, "times": 153, "getpgid": 155,
    "getsid": 156, "setsid": 157, "getgroups": 158, "uname": 160, "getrlimit": 163, "setrlimit": 164,
    "getrusage": 165, "umask": 166, "prctl": 167, "gettimeofday": 169, "getpid": 172, "getppid": 173,
    "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179,
    "socket": 198, "socketpair": 199, "brk": 214, "munmap": 215, "mremap": 216, "clone": 220,
    "execve": 221, "mmap": 222, "mprotect": 226, "madvise": 233, "wait4": 260, "prlimit64": 261,
    "setns": 268, "seccomp": 277, "getrandom": 278, "memfd_create": 279, "statx": 291, "rseq": 293,
    "clone3": 435, "close_range": 436, "openat2": 437, "faccessat2": 439,
    "landlock_create_ruleset": 444, "landlock_restrict_self": 446,
}  # fmt: skip

# By what `uname -m` says: the name that the kernel gives a filter (AUDIT_ARCH), and the numbers.
MACHINES = {"x86_64": (0xC000003E, X86_64), "aarch64": (0xC00000B7, AARCH64)}


@functools.cache
def machine() -> tuple[int, dict[str, int]]:
    """Return this machine's AUDIT_ARCH and its calls; raise KeyError where it is not known."""
    return MACHINES[platform.machine()]
