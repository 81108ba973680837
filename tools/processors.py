"""Do the tests that compare numbers hold on other processors? Run them with narrower vectors, too.

torch, and the two libraries that multiply matrices for it, choose their code by what the processor can
do: with AVX-512, with AVX2 alone, or with neither. They can be told to do as on a lesser one.

    python tools/processors.py     # or: make test-cpus
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1] / "tests"
NUMERIC = re.compile(r"^(import|from) (torch|precision|tiny_run)\b", re.MULTILINE)
VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
LEVELS = {
    "DEFAULT": ("default", "SSE4_2", "SSE41"),
    "AVX2": ("avx2", "AVX2", "AVX2"),
    "AVX512": ("avx512", "AVX512", "AVX512_CORE"),
}


def main() -> None:
    """Run the tests at every level up to this processor's own; stop at the first that fails."""
    files = [str(path) for path in TESTS.glob("test_*.py") if NUMERIC.search(path.read_text("utf-8"))]
    levels = list(LEVELS)
    own = torch.backends.cpu.get_cpu_capability()
    if own not in LEVELS:
        sys.exit(f"this processor has {own}; only {', '.join(LEVELS)} are known")
    for level in levels[: levels.index(own) + 1]:
        print(f"\n{level}: {len(files)} files", flush=True)
        environment = {**os.environ, **dict(zip(VARIABLES, LEVELS[level], strict=True))}
        command = [
            sys.executable,
            "-m",
            "pytest",
            *sys.argv[1:],
            "-m",
            "not slow and not gpu and not vllm",
            *files,
        ]
        if subprocess.run(command, cwd=TESTS.parent, env=environment).returncode:
            sys.exit(f"failed with {level}")


if __name__ == "__main__":
    main()
