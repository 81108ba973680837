"""The jail's parts by themselves: filters as the kernel reads them, frames, what an end stands for."""

from __future__ import annotations

import os
import re
import signal
import struct
from pathlib import Path

import pytest

from reftune.grading.jail import filters, frames, layers, program, supervisor, zygote
from reftune.grading.jail.calls import AARCH64, MACHINES, X86_64
from reftune.grading.jail.filters import ALLOW, KILL, PROGRAM, WORKER, Rule, Where, assemble, refuse
from reftune.grading.sandbox_answers import decode

NONCE = b"0123456789abcdef"
EPERM, EBADF, EACCES, ENOSYS = 1, 9, 13, 38


# Filters


def verdict_of(code: bytes, machine: int, number: int, *arguments: int) -> int:
    """Run a filter as the kernel does: an interpreter of the four instructions that are used."""
    data = struct.pack("<IIQ6Q", number, machine, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    place, accumulator = 0, 0
    while True:
        operation, if_true, if_false, constant = struct.unpack_from("<HBBI", code, 8 * place)
        place += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x54:
                accumulator &= constant
            case 0x15:
                place += if_true if accumulator == constant else if_false
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(f"no instruction {operation:#x}")


def test_a_small_filter_is_what_one_writes_by_hand() -> None:
    rules = [Rule("write", ALLOW, [Where(0, [1, 2])], refuse(EBADF))]
    by_hand = [
        (0x20, 0, 0, 4), (0x15, 1, 0, 0xC000003E), (0x06, 0, 0, 0x80000000),  # the machine, or kill
        (0x20, 0, 0, 0), (0x15, 0, 5, 1),  # call 1? else leave five out
        (0x20, 0, 0, 16), (0x15, 2, 0, 1), (0x15, 1, 0, 2), (0x06, 0, 0, 0x00050009),  # fd 1 or 2?
        (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x80000000),
    ]  # fmt: skip
    code = assemble(rules, KILL, 0xC000003E, {"write": 1})
    assert code == b"".join(struct.pack("<HBBI", *one) for one in by_hand)


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_a_program_may_write_where_it_is_heard_and_nothing_else(name: str) -> None:
    machine, calls = MACHINES[name]
    code = assemble(PROGRAM, KILL, machine, calls)

    def of(call: str, *arguments: int) -> int:
        return verdict_of(code, machine, calls[call], *arguments)

    assert [of("write", fd) for fd in range(5)] == [refuse(EBADF), ALLOW, ALLOW, ALLOW, refuse(EBADF)]
    assert of("write", 1 << 32 | 4) == refuse(EBADF)
    assert of("mmap", 0, 4096, 3, 0x22) == ALLOW
    assert of("mmap", 0, 4096, 7, 0x22) == refuse(EPERM)  # code
    assert of("mmap", 0, 4096, 3, 0x02) == refuse(EPERM)  # a file
    assert of("mmap", 0, 4096, 3, 0x21) == refuse(EPERM)  # what a fork would share
    assert of("mmap", 5 << 30, 4096, 3, 0x22) == refuse(EPERM)  # at a place of its own choice
    assert of("mmap", 0, 4096, 3, 0x32) == of("mmap", 0, 1 << 21, 3, 0x40022) == refuse(EPERM)
    assert of("mprotect", 0, 4096, 5) == refuse(EPERM)
    assert of("madvise", 0, 4096, 4) == of("mremap", 0, 4096, 8192, 1) == ALLOW
    assert of("madvise", 0, 4, 14) == of("mremap", 0, 4096, 4096, 3, 5 << 30) == refuse(EPERM)
    assert of("rt_sigreturn") == KILL
    assert of("futex", 0, 1 | 128) == ALLOW  # wake, of this process
    assert of("futex", 0, 0 | 128) == KILL  # wait
    assert of("openat") == refuse(EACCES)
    assert of("clone", 17) == refuse(EPERM)
    assert of("clone3") == refuse(ENOSYS)
    for call in ("unshare", "setns", "seccomp", "mount", "capset", "landlock_restrict_self"):
        if call in calls:
            assert of(call) == KILL, call
    assert verdict_of(code, machine, calls["exit_group"]) == ALLOW
    assert verdict_of(code, machine ^ 1, calls["exit_group"]) == KILL  # another machine's calls
    assert verdict_of(code, machine, 0x40000000 | calls["write"], 1) == KILL  # x32


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_the_worker_forks_and_starts_neither_threads_nor_namespaces(name: str) -> None:
    machine, calls = MACHINES[name]
    code = assemble(WORKER, refuse(EPERM), machine, calls)
    assert verdict_of(code, machine, calls["clone"], 0x01200011) == ALLOW  # glibc's fork
    assert verdict_of(code, machine, calls["clone"], 0x3D0F00) == refuse(EPERM)  # its threads
    assert verdict_of(code, machine, calls["clone"], 0x01200011 | 0x10000000) == refuse(EPERM)
    for call in ("execve", "openat", "socket", "kill", "unshare", "mount", "prctl"):
        assert verdict_of(code, machine, calls[call]) == refuse(EPERM), call


def test_a_program_may_make_no_call_that_the_worker_may_not() -> None:
    worker = {rule.call for rule in WORKER if rule.action == ALLOW}
    assert {rule.call for rule in PROGRAM if rule.action == ALLOW} <= worker


def test_every_rule_names_a_call_that_some_machine_has() -> None:
    assert {rule.call for rule in [*WORKER, *PROGRAM]} <= X86_64.keys() | AARCH64.keys()
    assert len(filters.PROGRAM) == len({rule.call for rule in filters.PROGRAM})  # the first rule counts


@pytest.mark.parametrize(
    ("header", "calls"),
    [("x86_64-linux-gnu/asm/unistd_64.h", X86_64), ("asm-generic/unistd.h", AARCH64)],
)
def test_the_numbers_are_the_kernels(header: str, calls: dict[str, int]) -> None:
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip("needs the kernel's headers")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
    known = {name: int(number) for name, number in found}
    known["newfstatat"] = known.get("newfstatat", known.get("fstatat", -1))  # newer headers' name
    assert {name: known.get(name) for name in calls} == calls


# Frames


def test_a_frame_is_read_back() -> None:
    frame = frames.pack(NONCE, frames.ANSWER, "1337")
    assert frame == NONCE + b"A\x00\x041337"
    assert frames.parse(frame, NONCE) == (b"A", "1337")
    assert frames.parse(frames.pack(NONCE, frames.FAULT, "x" * 9999), NONCE) == (b"F", "x" * 4000)
    assert frames.parse(frames.pack(NONCE, frames.FAULT, "é\ud800"), NONCE) == (b"F", "\\xe9\\ud800")


@pytest.mark.parametrize(
    "data",
    [
        b"", NONCE, NONCE + b"A\x00", NONCE + b"A\x00\x05" + b"1337", NONCE + b"A\x00\x03" + b"1337",
        b"1" + NONCE[1:] + b"A\x00\x041337", NONCE + b"B\x00\x041337", NONCE + b"A\x00\x04" + b"133\xff",
        NONCE + b"A\x10\x00" + b"1" * 4096, 2 * (NONCE + b"A\x00\x041337"),
        b"\n" + NONCE + b"A\x00\x041337",
    ],
)  # fmt: skip
def test_anything_else_is_no_frame(data: bytes) -> None:
    assert frames.parse(data, NONCE) is None


def test_a_program_cannot_claim_our_own_fault() -> None:
    assert frames.fault("timeout\nx\ny") == ("timeout", "x\ny")
    assert frames.fault("timeout") is None
    assert frames.fault("sandbox_error\nx") is None
    assert frames.fault("ok\nx") is None
    assert not {"sandbox_error", "ok", "ok_text", "truncated"} & set(frames.FAULTS)


# What an end stands for


def test_what_a_killed_process_has_not_read_is_no_part_of_the_next_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def serve(ends: zygote.Ends, _: layers.Limits) -> None:
        os.read(ends.go, 1)
        os.write(ends.ended, zygote.ENDED.pack(signal.SIGKILL, 0.0))  # as if killed before it read
        os.read(ends.go, 1)
        nonce, size = zygote.ASKED.unpack(zygote.read_exactly(ends.programs, zygote.ASKED.size))
        said = zygote.read_exactly(ends.programs, size).decode()
        os.write(ends.results, frames.pack(nonce, frames.ANSWER, said))
        os.write(ends.ended, zygote.ENDED.pack(0, 0.0))

    monkeypatch.setattr(zygote, "serve", serve)
    children = supervisor.Zygote()
    channel = os.open(os.devnull, os.O_RDONLY)
    children.start(channel, layers.Limits(1.0, 5.0, 0))
    os.close(channel)
    unread = "1" * 100_000  # more than a pipe holds
    assert children.run(unread, text=False, seconds=1.0) == ("crash", None, "killed by SIGKILL")
    assert children.run("7", text=False, seconds=1.0) == ("ok", 7.0, "")
    os.wait()


@pytest.mark.parametrize(
    ("status", "share", "said", "expected"),
    [
        (0, 0.0, "A\x00\x011", "ok"),
        (0, 0.0, "", "exited"),
        (0, 0.0, "A", "bad_result"),
        (3 << 8, 0.0, "", "exited"),
        (3 << 8, 0.0, "A\x00\x011", "bad_result"),
        (program.EXIT_MEMORY << 8, 0.0, "", "memory"),
        (program.EXIT_MEMORY << 8, 0.0, "A\x00\x011", "bad_result"),
        (signal.SIGPROF, 1.0, "", "timeout"),
        (signal.SIGXCPU, 1.0, "", "timeout"),
        (signal.SIGALRM, 0.9, "", "timeout"),
        (signal.SIGALRM, 0.7, "", "sandbox_error"),
        (signal.SIGSYS, 0.0, "", "blocked"),
        (signal.SIGSEGV, 0.0, "A\x00\x011", "crash"),
        (signal.SIGKILL, 0.0, "", "crash"),
        (signal.SIGKILL, 1.1, "", "timeout"),
    ],
)
def test_every_end_has_a_name(status: int, share: float, said: str, expected: str) -> None:
    data = NONCE + said.encode() if said else b""
    assert supervisor.verdict(status, share, data, NONCE, text=False)[0] == expected


@pytest.mark.parametrize("text", [" [1]", " " + "[" * 3000, ' {"a": 1}', "1 2", "nonsense", "", '"'])
def test_no_text_of_a_program_breaks_the_reading(text: str) -> None:
    assert decode(text, text=True)[0] in ("bad_result", "not_a_number")


def test_half_a_character_is_no_answer_that_a_file_cannot_hold() -> None:
    assert decode(r'"B\ud800"', text=True) == ("ok_text", "B?", "")
    assert decode(r' "B"', text=False)[0] == "not_a_number"
