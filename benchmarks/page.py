"""How large a run's page is, and how soon a browser shows it: python -m benchmarks.page.

A run is made up of built-in questions: every model has a chain and several samples of each, which differ
in a tenth of their words. Chromium has to be installed, and playwright (pip install 'reftune[dev]').
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reftune.config import Synthetic
from reftune.data.synthetic.generator import generate
from reftune.problem import Problem
from reftune.reporting.run.report import write_report

MODELS = ("warmup", "sft", "reft")
SHARE = {"accuracy": 0.5, "interval": [0.47, 0.53]}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]


def main() -> None:
    """Write a run, measure its page, and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300, help="of PPO")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="where the run is left")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.keep or Path(folder) / "run"
        write_run(run, options.questions, options.samples, options.steps)
        started = time.perf_counter()
        page = write_report(run)
        seconds = time.perf_counter() - started
        print(f"{options.questions} questions x {options.samples} samples x {len(MODELS)} models")
        print(f"answers on disk: {sum(map(size, run.glob('evaluation/*.jsonl'))) / 1e6:.1f} MB")
        print(f"page: {size(page) / 1e6:.2f} MB, written in {seconds:.1f} s")
        print_times(page, options.rounds)


def write_run(run: Path, questions: int, samples: int, steps: int) -> None:
    """Write the files that a page is made of."""
    rng = random.Random(0)
    problems = generate(Synthetic(), questions, 1, "natural")
    words = sorted({word for problem in problems for word in str(problem.chain).split()})
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.toml").write_text('name = "large"\n[data]\ncot = "natural"\n')
    for model in MODELS:
        put(run / f"evaluation/{model}.jsonl", (answer(p, samples, words, rng) for p in problems))
    models = {model: {"greedy": SHARE, "vote": SHARE | {"k": samples}} for model in MODELS}
    result = {"n": questions, "models": models, "comparisons": []}
    (run / "evaluation/result.json").write_text(json.dumps(result))
    put(run / "ppo/metrics.jsonl", (metrics(step, rng) for step in range(1, steps + 1)))
    logged = (
        traced(step, problems[step % questions], words, rng) for step in range(steps) for _ in range(8)
    )
    put(run / "ppo/samples.jsonl", logged)


def answer(problem: Problem, samples: int, words: list[str], rng: random.Random) -> dict[str, Any]:
    """Return a model's answer to a question with its samples."""
    return {
        **chain(problem, words, rng),
        "id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "prompt": f"Question:\n{problem.question}\nAnswer reasoning:\n",
        "samples": [chain(problem, words, rng) for _ in range(samples)],
    }


def chain(problem: Problem, words: list[str], rng: random.Random) -> dict[str, Any]:
    """Return a chain of which a tenth of the words are others, right or wrong."""
    said = [rng.choice(words) if rng.random() < 0.1 else word for word in str(problem.chain).split()]
    value = float(problem.answer) + rng.choice((0, 0, 0, 1, 5))
    text = f"{' '.join(said)}\nTherefore, the answer is: {value:g}"
    return {
        "completion": text,
        "status": "ok",
        "value": value,
        "correct": value == float(problem.answer),
    }


def metrics(step: int, rng: random.Random) -> dict[str, Any]:
    """Return what PPO logs of a step."""
    names = ("reward", "accuracy", "kl", "entropy", "loss", "response_length", "explained_variance")
    names += (
        "grad_norm",
        "logprob_gap",
        "clip_fraction",
        "tokens_per_second",
        "memory_gib",
        "learning_rate",
    )
    names += ("seconds_sampling", "seconds_judging", "seconds_reading", "seconds_update", "seconds")
    statuses = {"ok": 50, "no_result": rng.randrange(9), "truncated": rng.randrange(9)}
    return {"step": step, "statuses": statuses, **{name: rng.random() for name in names}}


def traced(step: int, problem: Problem, words: list[str], rng: random.Random) -> dict[str, Any]:
    """Return a sample that PPO logs, with what it made of each token."""
    row = answer(problem, 0, words, rng)
    tokens = [f"{word} " for word in row["completion"].split(" ")]
    numbers = ("logprobs", "log_ratios", "values", "advantages")
    made = {name: [round(rng.gauss(0, 1), 4) for _ in tokens] for name in numbers}
    return {**row, "step": step + 1, "reward": 1.0, "tokens": tokens, **made}


def put(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def size(path: Path) -> int:
    """Return a file's size in bytes."""
    return path.stat().st_size


def print_times(page: Path, rounds: int) -> None:
    """Print the medians over fresh pages: when something is seen, when the questions are there."""
    from playwright.sync_api import sync_playwright

    paints, readies = [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for _ in range(rounds):
            tab = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            tab.goto(f"file://{page.resolve()}")
            tab.wait_for_selector("body[data-ready]")
            readies.append(tab.evaluate("performance.now()"))
            name = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            paints.append(tab.evaluate(name))
            tab.context.close()
        browser.close()
    for what, found in (("first paint", paints), ("questions there", readies)):
        middle, low, high = statistics.median(found), min(found), max(found)
        print(f"{what}: {middle:.0f} ms ({low:.0f} to {high:.0f} in {rounds} rounds)")


if __name__ == "__main__":
    main()
