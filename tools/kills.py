"""Kill a run at random moments, start it again each time, and compare its end with an uninterrupted one.

    python tools/kills.py configs/demo.toml --kills 50
    python tools/kills.py configs/demo.toml --kills 10 --processes 2
    python tools/kills.py my.toml --kills 10 --processes 2 --set compute.sharding=fsdp2 --rounding 1e-4

SIGKILL comes at any time of the work, while a checkpoint, a model or a result is being written (the
disk is made slow, so that this takes a while), and while the program starts. Of several processes it
hits one, or the launcher; all must then be gone within a minute. A run that gets to its end is compared,
and another one takes the kills that are left. Compared are all files but those that speak of the start
(`run.json`), of times, and pages: byte for byte, checkpoints on the way included (an optimizer's state
value by value); with `--rounding` the numbers of `metrics.jsonl` within that tolerance alone.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

KINDS = {"working": 0.5, "saving": 0.25, "exporting": 0.15, "starting": 0.1}
PARTIAL = ("*/checkpoints/.*.partial", "*/*/checkpoints/.*.partial", "*/.*.partial", "*/*/.*.partial")
EXPORT = ("*/.model.partial", "*/*/.model.partial")
ANY_TIME = re.compile(rb',? ?\n? *"(seconds\w*|tokens_per_second|memory_gib)": [-.e\d]+')
LEFT_OUT = ("run.json", "config.toml", ".lock", ".holder.json", "report", "data/report.json")
DEATH, WHOLE_RUN = 60.0, 24 * 3600.0  # seconds: until all are gone, and for a run that nobody kills


@dataclass
class Trial:
    """How a run is started, and where it is.

    Args:
        out: directory of the runs and of the checkpoints that are kept for the comparison.
        arguments: of `reftune run`.
        processes: of one start.
        sync_seconds: what each sync to the disk takes longer.
    """

    out: Path
    arguments: list[str]
    processes: int
    sync_seconds: float

    def start(self, name: str, *changes: str) -> subprocess.Popen[bytes]:
        """Start a run of this name, or go on with it; what it says goes to a file."""
        reference = "" if name == "whole" else str(self.out / "kept/whole")
        child = [str(Path(__file__)), "--child", str(self.sync_seconds), str(self.kept(name)), reference]
        if self.processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
            child = [*launcher, str(self.processes), *child]
        sets = [x for change in (f"output_dir={self.out}", *changes) for x in ("--set", change)]
        with (self.out / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *child, "run", *self.arguments, "--name", name, *sets],
                stdout=log, stderr=log, env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            )  # fmt: skip

    def kept(self, name: str) -> Path:
        return self.out / "kept" / name

    def finish(self, name: str, *changes: str) -> float:
        """Let a run come to its end; return the seconds that it took."""
        began = time.monotonic()
        process = self.start(name, *changes)
        if code := process.wait(WHOLE_RUN):
            sys.exit(f"{name} ended with {code}; see {self.out / name}.log")
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounding", type=float, help="compare metrics within this tolerance alone")
    parser.add_argument("--sync-seconds", type=float, default=0.05, help="how slow the disk is")
    parser.add_argument("--every-seconds", type=float, default=2.0, help="between two checkpoints")
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    sets = [x for change in given.set for x in ("--set", change)]
    trial = Trial(given.out.resolve(), [given.config, *sets], given.processes, given.sync_seconds)
    whole = trial.finish("whole", "compute.checkpoint_every_minutes=0")
    print(f"the uninterrupted run took {whole:.0f} s", flush=True)
    told, faults = _kill_all(trial, given, whole)
    told |= {"config": given.config, "processes": given.processes, "seconds_whole": round(whole)}
    (given.out / "kills.json").write_text(json.dumps({**told, "faults": faults}, indent=2) + "\n")
    print(json.dumps(told, indent=2))
    print("\n".join(faults) or "every run ended as the uninterrupted one")
    sys.exit(bool(faults))


def _kill_all(trial: Trial, given: argparse.Namespace, whole: float) -> tuple[dict[str, Any], list[str]]:
    """Spend the kills on one run after the other; return figures on them, and what differed."""
    rng, begun, rounds, faults = random.Random(given.seed), time.monotonic(), 0, []
    counts: Counter[str] = Counter()
    gone: list[float] = []
    name, changes = "killed-1", (f"compute.checkpoint_every_minutes={given.every_seconds / 60:.4f}",)
    while len(gone) < given.kills:
        killed = _start_and_kill(trial, name, changes, rng, whole / given.kills, counts)
        if killed is not None:
            gone.append(killed)
            print(f"{len(gone)}/{given.kills} {name} {dict(counts)}", flush=True)
            continue
        rounds += 1
        faults += differences(trial, name, given.rounding)
        name = f"killed-{rounds + 1}"
    if (trial.out / name).exists():
        trial.finish(name, *changes)
        rounds += 1
        faults += differences(trial, name, given.rounding)
    told = {"kills": len(gone), "runs": rounds, **counts, "most_seconds_until_all_gone": max(gone)}
    return told | {"seconds": round(time.monotonic() - begun)}, faults


def _start_and_kill(
    trial: Trial,
    name: str,
    changes: tuple[str, ...],
    rng: random.Random,
    span: float,
    counts: Counter[str],
) -> float | None:
    """Start a run, and kill it; return the seconds until all of it was gone, None if it was done before.

    Args:
        span: seconds of work that one kill of an even distribution would have.
        counts: of kills, by kind and by what they hit; updated.
    """
    run, began = trial.out / name, time.time()
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    before, process = _size(run), trial.start(name, *changes)
    if kind != "starting":
        while _size(run) == before and process.poll() is None:
            time.sleep(0.02)
    _wait(process, rng.uniform(0, 6 if kind == "starting" else 2 * span))
    if kind in ("saving", "exporting"):
        until = time.monotonic() + 4 * span
        while (
            not _written(run, EXPORT if kind == "exporting" else PARTIAL, began)
            and process.poll() is None
        ):
            if time.monotonic() > until:
                break
            time.sleep(0.005)
        _wait(process, rng.uniform(0, 0.15))
    if process.poll() is not None:
        if process.returncode:
            sys.exit(f"{name} ended with {process.returncode}; see {trial.out / name}.log")
        return None
    everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    ours = [one for one in everybody if _is_ours(one)]
    victim = rng.choice(ours)
    victim.send_signal(signal.SIGKILL)
    hit = time.monotonic()
    counts |= {
        kind: counts[kind] + 1,
        "launcher": counts["launcher"] + (len(ours) > 1 and victim == ours[0]),
    }
    counts |= {f"in {_stage(run)}": counts[f"in {_stage(run)}"] + 1}
    counts["while writing"] += _written(run, PARTIAL, began)
    process.wait(DEATH)
    if left := psutil.wait_procs(everybody, DEATH)[1]:
        sys.exit(f"{name}: {left} are still there {DEATH:.0f} s after a kill")
    return round(time.monotonic() - hit, 1)


def _is_ours(process: psutil.Process) -> bool:
    """Tell whether a process is reftune's or the launcher's, and no sandbox worker or compiler."""
    try:
        return "--child" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _size(run: Path) -> int:
    """Return a number that changes when a run gets on."""
    logs = [path for pattern in ("*/*.jsonl", "*/*/*.jsonl") for path in run.glob(pattern)]
    return sum(_bytes(path) for path in (*logs, *run.glob("evaluation/pieces/*/*")))


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _written(run: Path, patterns: tuple[str, ...], since: float) -> bool:
    """Tell whether something is half written, by the start at that time rather than one before."""
    try:
        return any(path.stat().st_mtime > since for pattern in patterns for path in run.glob(pattern))
    except FileNotFoundError:  # a directory that is renamed meanwhile
        return True


def _stage(run: Path) -> str:
    """Return the stage that a run is at."""
    newest = max(run.glob("**/metrics.jsonl"), key=lambda path: path.stat().st_mtime, default=None)
    return "start" if newest is None else str(newest.parent.relative_to(run))


def differences(trial: Trial, name: str, rounding: float | None) -> list[str]:
    """Return what of a run is not as in the uninterrupted one, a line each."""
    found, same = [], 0
    for place in (Path(), Path("kept")):
        whole, other = trial.out / place / "whole", trial.out / place / name
        there = [sorted(_files(one)) for one in (whole, other)]
        if not place.name and there[0] != there[1]:
            found.append(f"{name}: other files: {sorted(set(there[0]) ^ set(there[1]))}")
        for file in set(there[0]) & set(there[1]):
            pair = [(one / file).read_bytes() for one in (whole, other)]
            equal = (
                _close(*pair, rounding)
                if rounding
                else _content(file, pair[0]) == _content(file, pair[1])
            )
            if rounding and not file.endswith("metrics.jsonl"):
                continue
            same += equal
            found += [] if equal else [f"{name}: {place / file} differs"]
    print(f"{name}: {same} files are equal, {len(found)} are not", flush=True)
    return found


def _files(run: Path) -> list[str]:
    names = (str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return [name for name in names if not name.startswith(LEFT_OUT) and "checksums" not in name]


def _settled(content: bytes) -> bytes:
    return ANY_TIME.sub(b"", content)


def _content(file: str, content: bytes) -> object:
    """Return what has to be equal: of a pickle its values, as it writes one string once or twice."""
    if not file.endswith("optimizer.bin"):
        return _settled(content)
    import torch

    return list(_leaves(torch.load(io.BytesIO(content), weights_only=True)))


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, object]]:
    """Yield places and values of nested containers, numbers of tensors as bytes."""
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from _leaves(part, f"{place}/{key}")
    elif hasattr(value, "numpy"):
        yield place, (str(value.dtype), tuple(value.shape), value.float().numpy().tobytes())
    else:
        yield place, value


def _close(whole: bytes, other: bytes, tolerance: float) -> bool:
    """Compare two logs, number by number."""
    try:
        logs = [
            [json.loads(line) for line in one.splitlines()] for one in (_settled(whole), _settled(other))
        ]
    except ValueError:
        return whole == other
    rows = [
        [(k, v) for row in log for k, v in sorted(row.items()) if isinstance(v, float)] for log in logs
    ]
    return len(logs[0]) == len(logs[1]) and len(rows[0]) == len(rows[1]) and all(
        a == c and math.isclose(b, d, rel_tol=tolerance, abs_tol=tolerance)
        for (a, b), (c, d) in zip(*rows, strict=True)
    )  # fmt: skip


def child(sync_seconds: str, kept: str, reference: str) -> None:
    """Be the command line on a slow disk, and keep checkpoints that the uninterrupted run has, too."""
    from reftune import cli
    from reftune.stages import steps

    sync, save = os.fsync, steps.save_checkpoint

    def slow(descriptor: int) -> None:
        time.sleep(float(sync_seconds))
        sync(descriptor)

    def keep(accelerator: Any, directory: Path, step: int, *rest: Any) -> None:
        save(accelerator, directory, step, *rest)
        place = Path(*directory.parts[-2 if directory.parent.name == "reranker" else -1 :]) / f"{step}"
        wanted = not reference or (Path(reference) / place).exists()
        if wanted and accelerator.is_main_process and not (target := Path(kept) / place).exists():
            shutil.copytree(directory / f"checkpoints/step-{step:08d}", target, copy_function=os.link)

    os.fsync, steps.save_checkpoint = slow, keep
    cli.main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        options, sys.argv[1:] = sys.argv[2:5], sys.argv[5:]
        child(*options)
    else:
        main()
