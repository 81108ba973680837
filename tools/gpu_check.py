"""Check reftune on one GPU, in at most nine minutes: tests, benchmarks, the plan, and a whole run.

    make gpu-check                                # or, where reftune is not installed:
    PYTHONPATH=src python3 tools/gpu_check.py [--model DIR --gsm8k DIR --out DIR]

Each part is a process of its own with a budget; one that fails or takes too long is told and stops no
other. After each part the table and all figures so far are written to gpu-check.md and gpu-check.json,
and what the parts printed to gpu-check.log. --dry-run goes through all parts with tiny sizes on the CPU.

The whole run is configs/gpu_gsm8k.toml: it needs SmolLM2-135M-Instruct (--model, or GPU_CHECK_MODEL;
without it a model of that shape with random weights takes its place in the benchmarks, and the run is
left out) and the files train.jsonl and test.jsonl of GSM8K (--gsm8k, or GPU_CHECK_GSM8K).
tools/gpu_carry.sh brings what a machine without a network lacks.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpu_figures import (
    Figures,
    Result,
    named_lines,
    no_figures,
    read_plan,
    read_run,
    read_tables,
    read_tests,
    summary,
)

ROOT = Path(__file__).parents[1]
SMOLLM2 = Path("models/SmolLM2-135M-Instruct")
LAST_SECONDS = 10  # kept for writing what was found


@dataclass(frozen=True)
class Part:
    """A command, what it may take, and what is read from what it printed."""

    name: str
    seconds: float
    command: list[str]
    read: Callable[[str], Figures]
    missing: str = ""  # why it cannot run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts and print the table; the exit code is 1 unless all went well."""
    options = parse(arguments)
    if options.measured:
        return measured(options.measured)
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.work, ignore_errors=True)  # else a run would go on, or be over
    (options.out / "gpu-check.log").write_text("", encoding="utf-8")
    end = time.monotonic() + 60 * options.minutes - LAST_SECONDS
    results: list[Result] = []
    for part in parts(options):
        if not options.only or part.name in options.only:
            print(f"{part.name} ...", flush=True)
            results.append(run(part, end - time.monotonic(), options.out / "gpu-check.log"))
            print(f"{part.name}: {results[-1].outcome}, {results[-1].seconds:.0f} s", flush=True)
            write(results, options.out)
    print("\n" + summary(results))
    sys.exit(any(result.outcome != "ok" for result in results))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    given = os.environ.get
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--only", nargs="+", metavar="PART", help="of all parts only these")
    parser.add_argument("--model", type=Path, default=Path(given("GPU_CHECK_MODEL") or SMOLLM2))
    parser.add_argument("--gsm8k", type=Path, default=Path(given("GPU_CHECK_GSM8K") or "data/gsm8k"))
    parser.add_argument("--out", type=Path, default=Path(given("GPU_CHECK_OUT") or "."))
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/gpu-check", help="it is emptied first"
    )
    parser.add_argument("--measured", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def parts(options: argparse.Namespace) -> list[Part]:
    """Return all parts, the most telling first."""
    python = [sys.executable]
    train, test = options.work / "train.jsonl", options.gsm8k / "test.jsonl"
    data = [] if test.exists() else [f"no GSM8K at {options.gsm8k} (--gsm8k)"]
    lacking = "; ".join(data + ([] if options.model.exists() else [f"no model at {options.model}"]))
    changes = [f"data.train={train}", f"data.test={test}", f"model.name={options.model}"]
    config = "configs/gpu_gsm8k.toml"
    if options.dry_run:
        config, changes, lacking, data = "configs/demo.toml", TINY, "", []
    changes = [*changes, "name=gpu_gsm8k", f"output_dir={options.work}"]
    settings = [config, *(x for change in changes for x in ("--set", change))]
    short = ["ppo", *settings, *(x for change in SHORT for x in ("--set", change))]
    tests = [*python, "-m", "pytest", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider"]
    prepare = ["-m", "reftune", "data", "prepare", "gsm8k", "--cot", "program"]
    prepare += ["--source", str(options.gsm8k / "train.jsonl"), "--out", str(train)]
    if options.dry_run:
        prepare = ["-m", "reftune", "--help"]
        short = ["sft", *settings, "--set", "name=profile"]
        tests += ["-k", "random_numbers or adapter or checkpoint"]
    measured = [*python, str(Path(__file__)), "--measured"]
    read = partial(read_run, options.work / "gpu_gsm8k/evaluation/result.json")
    return [
        Part("machine", 30, [*measured, "machine"], named_lines),
        Part("tests", 90, [*tests, "tests/test_gpu.py"], read_tests),
        Part("data", 40, [*python, *prepare], no_figures, "; ".join(data)),
        Part("plan", 60, [*python, "-m", "reftune", "plan", *settings], read_plan, lacking),
        Part("profile", 80, [*measured, "profile", *short], no_figures, lacking),
        Part("run", 270, [*measured, "run", *settings], read, lacking),
        *(benchmark(*which, options) for which in (BENCHMARKS[-3:] if options.dry_run else BENCHMARKS)),
    ]


# What makes the demo a run of seconds.
TINY = [
    "model.scratch_overrides={hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2}",
    "methods=['reft']", "data.synthetic.train_size=60", "data.validation_size=8",
    "data.synthetic.test_size=8", "prompt.max_new_tokens=16", "sft.epochs=1", "sft.warmup_epochs=1",
    "sft.validate_every_epochs=1", "ppo.steps=2", "ppo.value_pretraining_steps=0",
    "ppo.questions_per_step=2", "ppo.samples_per_question=2", "evaluation.samples=0",
    "evaluation.bootstrap=100", "compute.threads=1",
]  # fmt: skip

# What of a run is profiled: a few steps of PPO from the given model.
SHORT = [
    "name=profile", "methods=['reft']", "sft.epochs=0", "sft.warmup_epochs=0", "ppo.steps=3",
    "ppo.validate_every_steps=3", "data.validation_size=16",
]  # fmt: skip
PROFILED = 60  # lines

# Module, size of the model, and seconds: the goals first, then whatever there is time for.
BENCHMARKS = (
    ("rollouts", "135m", 110), ("roofline", "1.5b", 70), ("rollouts", "1.5b", 110),
    ("rl_step", "135m", 130), ("roofline", "135m", 60),
)  # fmt: skip


def benchmark(module: str, size: str, seconds: float, options: argparse.Namespace) -> Part:
    """Return a benchmark as a part; a few rounds must do."""
    command = [sys.executable, "-m", f"benchmarks.{module}"]
    if options.dry_run:
        command += ["--quick", "--threads", "1"]
    else:
        command += ["--device", "cuda", "--dtype", "bfloat16", "--model-size", size]
        command += ["--questions", "64", "--rounds", "2", "--smollm2", str(options.model)]
    return Part(f"{module} {size}", seconds, command, read_tables)


def run(part: Part, left: float, log: Path) -> Result:
    """Run a part as long as it may and time is left; whatever it printed by then is read."""
    if part.missing or left < 1:
        return Result(part.name, f"left out: {part.missing or 'no time was left'}")
    begin = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    paths = [str(ROOT / "src"), str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with log.open("a+", encoding="utf-8", errors="replace") as file:
        file.write(f"\n=== {part.name}: {' '.join(part.command)}\n")
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        outcome = wait(process, min(part.seconds, left))
        file.seek(start)
        text = file.read()
    result = Result(part.name, outcome, time.monotonic() - begin)
    result.tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    try:
        result.figures = part.read(text)
    except Exception as error:  # figures that are not as expected are no reason to lose the others
        result.figures = {"unreadable": repr(error)}
    return result


def wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process; end it and its children where it takes longer."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = None
    if code != 0:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return "ok" if code == 0 else "too long" if code is None else f"failed ({code})"


def measured(command: list[str]) -> None:
    """Name the machine, or run reftune's command line and say what memory or which functions it took."""
    import torch

    cuda = torch.cuda.is_available()
    if command == ["machine"]:
        from importlib.metadata import version

        name = torch.cuda.get_device_name() if cuda else "no GPU"
        print(f"device: {name}\ncores: {os.cpu_count()}")
        for package in ("torch", "transformers", "accelerate"):
            print(f"{package}: {version(package)}")
        return
    from reftune.cli import main as reftune

    if command[0] == "profile":
        sys.argv = ["reftune", *command[1:]]
        profiled(reftune)
        return
    sys.argv = ["reftune", *command]
    begin = time.monotonic()
    try:
        reftune()
    finally:
        if cuda:
            for what in ("allocated", "reserved"):
                peak = getattr(torch.cuda, f"max_memory_{what}")()
                print(f"\npeak {what} GiB: {peak / 2**30:.2f}")
        else:
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(f"\npeak resident GiB: {peak / 2**30:.2f}")
        print(f"seconds: {time.monotonic() - begin:.0f}", flush=True)


def profiled(work: Callable[[], None]) -> None:
    """Do something and print in which functions the host was; waiting for the GPU counts, too."""
    profile = cProfile.Profile()
    try:
        profile.runcall(work)
    finally:
        for order in ("cumulative", "tottime"):
            pstats.Stats(profile).sort_stats(order).print_stats(PROFILED)


def write(results: Sequence[Result], out: Path) -> None:
    """Write what is known so far."""
    text = ["# reftune on a GPU", summary(results)]
    text += [f"## {result.name}\n\n{result.tables}" for result in results if result.tables]
    (out / "gpu-check.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    everything = [vars(result) for result in results]
    (out / "gpu-check.json").write_text(json.dumps(everything, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
