from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Three tensors of 4 MiB at a time: more than glibc keeps by itself.
PROGRAM = """
import resource, sys, torch
from reftune.workbench import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    tensors = [torch.ones(2**20) for _ in range(3)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_freed_memory_is_not_faulted_in_anew() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True)
        return int(done.stdout)

    pages = 20 * 3 * 2**22 // 4096
    assert faults("keep") < 0.1 * pages
    assert faults("leave") > 0.5 * pages  # else this test shows nothing
