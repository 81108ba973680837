"""Print how many programs per second the sandbox judges on real ones.

    python benchmarks/sandbox_rate.py svamp_python_sdp.json [--workers 2] [--repeats 5]

The file is a JSON list of objects whose `answer_cot` is a program and `answer_value` its value, the
format of the official ReFT repository. Workers are started before the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from reftune.sandbox import Sandbox


def main() -> None:
    """Run the file's programs several times, and print the median rate and its spread."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("programs", type=Path)
    parser.add_argument("--workers", type=int, default=None, help="default: one per core")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    entries = json.loads(options.programs.read_text(encoding="utf-8"))
    programs = list(dict.fromkeys(entry["answer_cot"] for entry in entries))
    values = {entry["answer_cot"]: float(entry["answer_value"]) for entry in entries}

    with Sandbox(workers=options.workers) as sandbox:
        sandbox.run(programs[:100])
        rates = []
        for _ in range(options.repeats):
            begin = time.perf_counter()
            results = sandbox.run(programs)
            rates.append(len(programs) / (time.perf_counter() - begin))
    right = sum(
        result.outcome == "ok" and abs(float(result.value or 0.0) - values[program]) <= 1e-2
        for program, result in zip(programs, results, strict=True)
    )
    print(f"{len(programs)} different programs, {right} right")
    print(
        f"{statistics.median(rates):.0f} programs/s (median of {len(rates)}; "
        f"lowest {min(rates):.0f}, highest {max(rates):.0f})"
    )


if __name__ == "__main__":
    main()
