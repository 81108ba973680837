from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from reftune.config import Config
from reftune.config.files import parse_config
from reftune.problem import Problem, UserError
from reftune.runs.setup import judge_of, make_accelerator, mixed_precision

# A tensor of 30 MiB: glibc gives the first one back by itself, and may be told to keep up to 32.
PROGRAM = """
import os, torch
from reftune.heap import give_back_freed_memory, keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

nothing = lambda: None
CASES = (keep_freed_memory, nothing), (keep_freed_memory, give_back_freed_memory), (nothing, nothing)
for prepare, end in CASES:
    if os.fork() == 0:  # each starts with an allocator that has seen no large tensor
        prepare()
        before = resident()
        tensor = torch.ones(30 * 2**18)
        del tensor
        end()
        print(resident() - before, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not the GNU C library")
def test_freed_memory_is_kept_for_the_next_tensor_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    kept, given_back, left = map(int, done.stdout.split())
    assert kept >= 29 * 2**20
    assert given_back < 8 * 2**20  # torch itself takes some when it makes its first tensor
    assert left < 8 * 2**20  # else this test shows nothing


@pytest.mark.parametrize(
    ("setting", "status"),
    [
        ("compute.sandbox_workers=1", "ok"),
        ("reward.sandbox_memory_mb=32", "memory"),  # the program's list takes 80 MB
        ("reward.sandbox_seconds=0.001", "timeout"),
    ],
)
def test_programs_have_what_the_settings_give_them(setting: str, status: str) -> None:
    config = parse_config({"data": {"cot": "program"}, "model": {"scratch": "tiny"}}, [setting], "test")
    problem = Problem("a", "How many?", "5000000")
    program = "def solution():\n    return len([0] * 5000000)\n"
    [verdict] = judge_of(config, [problem], None)([problem], [program], [True])
    assert verdict.status == status


@pytest.mark.parametrize(
    ("dtype", "device", "name"),
    [
        ("float32", "cuda", "no"), ("bfloat16", "cuda", "no"), ("float16", "cuda", "fp16"),
        ("float32", "cpu", "no"), ("bfloat16", "cpu", "no"),
        ("float16", "cpu", "no"),  # accelerate scales no loss on a CPU: it would compute in float32, too
    ],
)  # fmt: skip
def test_float16_alone_is_mixed_with_float32(dtype: str, device: str, name: str) -> None:
    assert mixed_precision(dtype, device) == name


@pytest.mark.parametrize(("engine", "told"), [("FSDP", "FSDP"), ("MEGATRON_LM", "MEGATRON-LM")])
def test_what_would_cut_the_model_beside_us_is_refused(
    monkeypatch: pytest.MonkeyPatch, engine: str, told: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    config = Config.model_validate({"model": {"scratch": "tiny"}})
    with pytest.raises(UserError, match=f"accelerate for {told}; .* compute.sharding"):
        make_accelerator(config)
