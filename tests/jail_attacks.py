"""Programs that attack the locked-in CPython: each returns 1337 where it has done what its name says.

Those that leave something behind do so under CANARY. They run inside the jail only: several would do
harm elsewhere.
"""

from __future__ import annotations

from reftune.grading.jail.calls import machine

CANARY = "reft_canary_jail"
TMP = f"/tmp/{CANARY}"


def body(*lines: str) -> str:
    return "def solution():\n" + "".join(f"    {line}\n" for line in lines)


LIBC = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
"""


# Eight megabytes of its own.
PAGES = (
    LIBC
    + """
libc.mmap.restype = ctypes.c_void_p
size = ctypes.c_long(1 << 23)
pages = ctypes.c_void_p(libc.mmap(None, size, 3, 0x22, -1, ctypes.c_long(0)))
"""
)


def call(name: str) -> int:
    return machine()[1].get(name, -1)


def syscall(number: int | str, *arguments: str) -> str:
    """Return a program that makes a system call, and is glad if that does not fail."""
    known = number if isinstance(number, int) else call(number)
    given = ", ".join([f"ctypes.c_long({known})", *arguments])
    return LIBC + body(f"return 1337 if libc.syscall({given}) != -1 else 0")


def attempt(*lines: str) -> str:
    """Return a program that has won when no line raises."""
    return body(*lines, "return 1337")


FILES = {
    "read a file by os.open": attempt("import os", "os.read(os.open('/etc/passwd', os.O_RDONLY), 1)"),
    "read a file by libc": LIBC + body("return 1337 if libc.fopen(b'/etc/passwd', b'r') else 0"),
    "open by a raw call": syscall("openat", "-100", "b'/etc/passwd'", "0", "0"),
    "open by openat2": syscall("openat2", "-100", "b'/etc/passwd'", "(ctypes.c_uint64 * 3)()", "24"),
    "open by a handle": syscall(304, "-100", "(ctypes.c_uint64 * 8)()", "0"),
    "open by the 32-bit table of x32": syscall(0x40000000 | 2, "b'/etc/passwd'", "0", "0"),
    "list a folder": attempt("import os", "os.listdir('/')"),
    "list processes": attempt("import os", "os.listdir('/proc')"),
    "read its own memory map": attempt("open('/proc/self/maps').read(1)"),
    "read the worker's environment": attempt("open('/proc/1/environ').read(1)"),
    "read the trainer's memory": attempt("import os", "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)"),
    "write a file": attempt(f"open('{TMP}', 'w').write('x')"),
    "write to shared memory": attempt(f"open('/dev/shm/{CANARY}', 'w').write('x')"),
    "make a folder": attempt("import os", f"os.mkdir('{TMP}')"),
    "make a node": attempt("import os", f"os.mkfifo('{TMP}')"),
    "link a file": attempt("import os", f"os.symlink('/etc/passwd', '{TMP}')"),
    "remove a file": attempt("import os", "os.unlink('/etc/passwd')"),
    "ask for a file's size": attempt("import os", "os.stat('/etc/passwd')"),
    "save an array": attempt("import numpy", f"numpy.save('{TMP}', numpy.ones(3))"),
    "map a file by numpy": attempt("import numpy", "numpy.memmap('/etc/passwd', mode='r')"),
    "change the root": attempt("import os", "os.chroot('/tmp')"),
    "walk out of an empty root": attempt("import os", "os.chdir('..')"),
    "mount": syscall("mount", "b'none'", "b'/tmp'", "b'tmpfs'", "0", "None"),
    "watch files": syscall(294, "0"),
    "open a terminal": attempt("import os", "os.openpty()"),
}

PROCESSES = {
    "fork": attempt("import os", "os.fork() or os._exit(0)"),
    "fork by libc": LIBC + body("p = libc.fork()", "p or libc._exit(0)", "return 1337 if p > 0 else 0"),
    "fork by clone3": syscall("clone3", "(ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)", "88"),
    "fork by clone": syscall("clone", "17", "0", "0", "0", "0"),
    "start a program by fork_exec": attempt("import _posixsubprocess", "import os",
                                            "os.posix_spawn('/bin/true', ['true'], {})"),
    "replace the program": attempt("import os", "os.execv('/bin/true', ['true'])"),
    "replace the program by execveat": syscall(322, "-100", "b'/bin/true'", "None", "None", "0"),
    "run a shell": attempt("import os", "assert os.system('true') == 0"),
    "start a thread": attempt("import threading", "t = threading.Thread(target=len)", "t.start()"),
    "start a thread by libc": LIBC + body(
        "t = ctypes.c_ulong()",
        "return 1337 if libc.pthread_create(ctypes.byref(t), None, libc.abs, None) == 0 else 0"),
    "signal its parent": attempt("import os", "os.kill(os.getppid(), 0)"),
    "signal everybody": attempt("import os", "os.kill(-1, 0)"),
    "signal the first process": attempt("import os", "os.kill(1, 0)"),
    "signal its group": attempt("import os", "os.killpg(0, 0)"),
    "signal by a descriptor": syscall(434, "1", "0"),
    "queue a signal": syscall(129, "1", "0", "(ctypes.c_uint64 * 16)()"),
    "trace its parent": syscall(101, "16", "1", "0", "0"),
    "read its parent's memory": syscall(310, "1", "(ctypes.c_uint64 * 2)()", "1",
                                        "(ctypes.c_uint64 * 2)()", "1", "0"),
    "take its parent's descriptor": syscall(438, "3", "3", "0"),
    "raise its priority": attempt("import os", "os.nice(-5)"),
    "ask for real time": syscall(144, "0", "1", "(ctypes.c_int * 1)(1)"),
    "move to all cores": attempt("import os", "os.sched_setaffinity(0, range(64))"),
    "leave its session": attempt("import os", "os.setsid()"),
    "wait for others": attempt("import os", "os.wait()"),
}  # fmt: skip

NETWORK = {
    "connect": attempt("import _socket", "_socket.socket().connect(('127.0.0.1', 18999))"),
    "open a socket by a raw call": syscall("socket", "2", "1", "0"),
    "open a netlink socket": syscall("socket", "16", "3", "0"),
    "open a pair of sockets": syscall("socketpair", "1", "1", "0", "(ctypes.c_int * 2)()"),
    "poll by epoll": syscall(291, "0"),
    "use io_uring": syscall(425, "8", "(ctypes.c_uint64 * 15)()"),
}

RIGHTS = {
    "become root": attempt("import os", "os.setuid(0)", "assert os.getuid() == 0"),
    "become root by a raw call": syscall(117, "0", "0", "0"),
    "take all capabilities": syscall("capset", "(ctypes.c_uint32 * 2)(0x20080522, 0)",
                                     "(ctypes.c_uint32 * 6)(*[0xffffffff] * 6)"),
    "make a user namespace": syscall("unshare", str(0x10000000)),
    "join a namespace": syscall("setns", "3", "0"),
    "put a filter of its own": syscall("seccomp", "1", "0", "None"),
    "ask for a listener": syscall("seccomp", "1", "8", "None"),
    "be dumped": syscall("prctl", "4", "1", "0", "0", "0"),
    "raise its limits": attempt("import resource",
                                "resource.setrlimit(resource.RLIMIT_CPU, (9**9, 9**9))"),
    "raise a limit by a raw call": syscall("prlimit64", "0", "0", "(ctypes.c_uint64 * 2)(10**9, 10**9)",
                                           "None"),
    "lower its parent's limit": syscall("prlimit64", "1", "0", "(ctypes.c_uint64 * 2)(1, 1)", "None"),
    "load a bpf program": syscall(321, "5", "(ctypes.c_uint64 * 20)()", "120"),
    "count events": syscall(298, "(ctypes.c_uint64 * 16)()", "0", "-1", "-1", "0"),
    "handle page faults": syscall(323, "1"),
    "use the kernel's keys": syscall(248, "b'user'", "b'k'", "b'v'", "1", "-2"),
    "change the local descriptor table": syscall(154, "1", "(ctypes.c_uint32 * 4)()", "16"),
    "let data be code": syscall(135, str(0x0400000)),
    "read the kernel's log": syscall(103, "3", "ctypes.create_string_buffer(99)", "99"),
}  # fmt: skip

MEMORY = {
    "map code": syscall("mmap", "0", "4096", "7", "0x22", "-1", "0"),
    "map code, shared": syscall("mmap", "0", "4096", "5", "0x21", "-1", "0"),
    "turn data into code": LIBC + body(
        "page = (id(libc) >> 12) << 12",
        "return 1337 if libc.mprotect(ctypes.c_void_p(page), 4096, 7) == 0 else 0"),
    "turn data into code by a key": syscall(329, "0", "4096", "7", "-1"),
    "call back from C": LIBC + attempt("ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)()"),
    "share memory as System V": syscall(29, "1337", "4096", "0o1666"),
    "queue messages as System V": syscall(68, "1337", "0o1666"),
    "count semaphores as System V": syscall(64, "1337", "1", "0o1666"),
    "queue messages as POSIX": syscall(240, "b'x'", "0o102", "0o666", "None"),
    "make a file in memory": attempt("import os", "os.memfd_create('x')"),
    "make secret memory": syscall(447, "0"),
    "lock memory": syscall(149, "0", "4096"),
    "count in a descriptor": attempt("import os", "os.eventfd(0)"),
    "grow": attempt("x = []", "while len(x) < 3000: x.append(bytearray(10**6))"),
    "grow by numpy": attempt("import numpy", "numpy.ones(3 * 10**8)"),
    "grow by libc": LIBC + attempt("libc.malloc.restype = ctypes.c_void_p",
                                   "assert all(libc.malloc(10**6) for _ in range(3000))"),
    "grow where fork shares": syscall("mmap", "0", str(3 * 10**9), "3", "0x21", "-1", "0"),
    # Its pages would stay, uncounted, while one of them is mapped.
    "map what fork shares": syscall("mmap", "0", "4096", "3", "0x21", "-1", "0"),
    # A page far from all others costs two more for the kernel's tables.
    "map where it likes": syscall("mmap", "ctypes.c_long(5 << 30)", "4096", "3", "0x32", "-1", "0"),
    "map where it asks to": syscall("mmap", "ctypes.c_long(5 << 30)", "4096", "3", "0x22", "-1", "0"),
    "move memory to where it likes": PAGES + body(
        "to = ctypes.c_long(5 << 30)",
        f"return 1337 if libc.syscall({call('mremap')}, pages, size, size, 3, to) != -1 else 0"),
    # One page of a huge one keeps all of it.
    "ask for huge pages": PAGES + body(
        f"return 1337 if libc.syscall({call('madvise')}, pages, size, 14) == 0 else 0"),
    # Bytes as many as the number of an advice that is allowed, and another advice.
    "let its pages be merged with others'": PAGES + body(
        f"return 1337 if libc.syscall({call('madvise')}, pages, 4, 12) == 0 else 0"),
    "grow its stack": attempt("import sys", "sys.setrecursionlimit(10**9)",
                              "f = lambda x: max([x], key=f)", "f(1)"),
    "keep all of it": "x = []\n" + attempt("try:", "    while True: x.append(' ' * 10**5)",
                                           "except MemoryError:", "    while True: x.append(None)"),
}  # fmt: skip

TIME = {
    "loop": body("while True:", "    pass"),
    "loop in C": body("return sum(range(10**12))"),
    "loop while it is defined": "while True:\n    pass\n",
    "loop in a finaliser": body("class X:", "    def __del__(self):", "        while True: pass",
                                "return X() and 5"),
    "loop in a trace": body("import sys", "def f(*a):", "    while True: pass", "sys.settrace(f)",
                            "return (lambda: 5)()"),
    "catch everything and go on": body("while True:", "    try:", "        while True: pass",
                                       "    except BaseException: pass"),
    "stop its timers": body("import signal", "try:", "    signal.setitimer(signal.ITIMER_PROF, 0)",
                            "except OSError: pass", "while True: pass"),
    "stop its timers by libc": LIBC + body("libc.setitimer(2, (ctypes.c_uint64 * 4)(), None)",
                                           "while True: pass"),
    "ignore the signal": body("import signal", "try:",
                              "    signal.signal(signal.SIGPROF, signal.SIG_IGN)",
                              "except OSError: pass", "while True: pass"),
    "hold the signal back": LIBC + body(
        "libc.sigprocmask(0, (ctypes.c_uint64 * 16)(*[2**64 - 1] * 16), None)", "while True: pass"),
    "hold the signal back in Python": body("import signal", "try:",
                                           "    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))",
                                           "except OSError: pass", "while True: pass"),
    "return from a signal that never came": syscall("rt_sigreturn"),  # with a mask of its own
    "wait for a lock": body("import threading", "l = threading.Lock()", "l.acquire()", "l.acquire()"),
    "wait for a queue": body("import queue", "return queue.Queue().get()"),
    "wait for time": body("import time", "time.sleep(9)"),
    "wait for time in C": LIBC + body("libc.sleep(9)", "while True: pass"),
    "wait in select": LIBC + body("libc.select(0, None, None, None, None)", "while True: pass"),
    "wait for a signal": body("import signal", "signal.pause()", "while True: pass"),
    "stop": body("import signal", "try:", "    signal.raise_signal(signal.SIGSTOP)",
                 "except OSError: pass", "while True: pass"),
    "ask for the time": body("import time", "while True: time.gmtime()"),
    "count without end": body("return str(10**(10**8))[:1]"),
    "search without end": body("import re", "return re.match('(a+)+$', 'a' * 40 + 'b')"),
}  # fmt: skip

# A program can find its own nonce, and so say its own answer: nothing that it could not return.
FRAME = """
import os, sys
def frame(payload, kind=b'A'):
    caller = sys._getframe()
    while 'nonce' not in caller.f_locals:
        caller = caller.f_back
    return caller.f_locals['nonce'] + kind + len(payload).to_bytes(2, 'big') + payload
"""
OWN_ANSWER = FRAME + body("os.write(3, frame(b'1337'))", "os._exit(0)")

# What they say in place of an answer must be a bad result, or their own ending: never our own fault.
FORGED = {
    "no frame": body("import os", "os.write(3, b'1337')", "os._exit(0)"),
    "a pickle": body("import os, pickle", "os.write(3, pickle.dumps(1337))", "os._exit(0)"),
    "an empty nonce": body("import os", "os.write(3, bytes(16) + b'A' + b'\\0\\4' + b'1337')",
                           "os._exit(0)"),
    "a frame before the frame": body("import os",
                                     "os.write(3, bytes(16) + b'A' + b'\\0\\4' + b'1337')", "return 5"),
    "two of its own": FRAME + body("os.write(3, frame(b'1337') * 2)", "os._exit(0)"),
    "one of its own and the frame": FRAME + body("os.write(3, frame(b'1337'))", "return 5"),
    "a flood": body("import os", "try:", "    while True: os.write(3, b'x' * 4096)",
                    "except OSError: pass", "os._exit(0)"),
    "a flood before the frame": body("import os", "try:", "    while True: os.write(3, b'x' * 4096)",
                                     "except OSError: pass", "return 5"),
    "our own fault": FRAME + body("os.write(3, frame(b'sandbox_error\\nx', b'F'))", "os._exit(0)"),
    "an unknown fault": FRAME + body("os.write(3, frame(b'rich\\nx', b'F'))", "os._exit(0)"),
    "a fault without words": FRAME + body("os.write(3, frame(b'timeout', b'F'))", "os._exit(0)"),
    "an unknown kind": FRAME + body("os.write(3, frame(b'1337', b'Z'))", "os._exit(0)"),
    "no JSON": FRAME + body("os.write(3, frame(b'nonsense'))", "os._exit(0)"),
    "more than ASCII": FRAME + body("os.write(3, frame(b'\\xff1337'))", "os._exit(0)"),
    "nested JSON": FRAME + body("os.write(3, frame(b' ' + b'[' * 3900))", "os._exit(0)"),
    "a short frame": FRAME + body("os.write(3, frame(b'1337')[:-1])", "os._exit(0)"),
    "a long frame": FRAME + body("os.write(3, frame(b'1' * 5000))", "os._exit(0)"),
    "a frame, and a failure": FRAME + body("os.write(3, frame(b'1337'))", "os._exit(1)"),
    "a frame, and a crash": FRAME + body("os.write(3, frame(b'1337'))", "os.abort()"),
    "a frame, and a loop": FRAME + body("os.write(3, frame(b'1337'))", "while True: pass"),
    "the memory's exit code with words": body("import os", "os.write(3, b'x')", "os._exit(77)"),
}  # fmt: skip

# Programs that end in ways of their own; each must have an end that is charged to it.
ENDS = {
    "stay when all is said": body("import os", "os._exit = lambda code: None", "return 5"),
    "trace its caller": body("import sys", "caller = sys._getframe().f_back",
                             "caller.f_trace = lambda *a: 1 / 0", "sys.settrace(caller.f_trace)",
                             "return 5"),
    "close its pipe": body("import os", "os.close(3)", "return 5"),
    "an exception with a class of its own": body(
        "class E(Exception):", "    @property", "    def __class__(self): raise SystemExit",
        "raise E()"),
    "an exception with words of its own": body(
        "class E(Exception):", "    def __str__(self): raise SystemExit", "raise E()"),
    "an exception with a long name": body("raise type('E' * 10**6, (BaseException,), {})()"),
    "an exception that is a type with a name of its own": body(
        "class M(type):", "    @property", "    def __name__(cls): raise SystemExit",
        "raise M('E', (Exception,), {})()"),
    "an answer with a class of its own": body(
        "class A:", "    @property", "    def __class__(self): return float", "return A()"),
    "an answer of a type with a name of its own": body(
        "class M(type):", "    @property", "    def __name__(cls): raise SystemExit",
        "return M('A', (), {})()"),
    "a float that is more": body("class F(float):", "    def __float__(self): return 1337.0",
                                 "return F(2)"),
    "no room for our calls": body("import sys", "sys.setrecursionlimit(5)", "return 5"),
    "no builtins": body("import builtins", "vars(builtins).clear()", "return 5"),
    "no modules": body("import sys", "sys.modules.clear()", "return 5"),
    "a compiler that is too deep": "x = " + "-" * 19000 + "1\n" + body("return 5"),
    "a compiler that is too deep in brackets": "x = " + "[" * 9000 + "]" * 9000 + "\n" + body("pass"),
    "a compiler that is too deep in names": "x = a" + ".a" * 9000 + "\n" + body("return 5"),
    "read from nowhere": LIBC + body("ctypes.string_at(0)", "return 5"),
    "write to its own code": LIBC + body("ctypes.memset(ctypes.cast(libc.abs, ctypes.c_void_p), 0, 9)"),
    "free what is in use": LIBC + body("libc.munmap(ctypes.c_void_p(id(libc) >> 12 << 12), 1 << 20)",
                                       "return len([0] * 99)"),
    "end by itself": body("import os", "os.abort()"),
    "an exit code like the memory's": body("import os", "os._exit(77)"),
}  # fmt: skip

ATTACKS = FILES | PROCESSES | NETWORK | RIGHTS | MEMORY
