"""(d) Judgements per second: programs in reftune's sandbox against a pebble process pool, and answers.

    python -m benchmarks.programs

Both run the different programs among the demo's annotations, with one worker per core (or --threads
workers), which are warm before the clock, and a limit of two seconds per program. The pool calls `exec`
in its workers, as the paper's code does (which also starts a new pool for each batch; this one is kept).
It protects nothing: a program there can read files, use the network and kill its worker. Memory is that
of the process that waits, without its workers. "CPython" is what `reward.full_python` runs, a locked-in
process for each program, where numpy or sympy is loaded or neither.

Answers in natural language are judged in one process, from the text to the verdict: solutions that end
as models end them, `#### 72`, `\\boxed{72}`, a sentence, the trigger, and one in six wrong.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

from benchmarks.contest import Contestant, Options, Turns, compete, parse_options, table

SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Hold the contest and print its table."""
    options = parse_options(__doc__ or "", arguments)
    options.programs = gold_programs(options)
    print(f"{len(options.programs)} programs, {workers(options)} workers:\n", flush=True)
    contestants = [Contestant("reftune", reftune), Contestant("pebble", pebble)]
    contestants += [Contestant(f"CPython, {kind}", run) for kind, run in JAILED.items()]
    print(table(compete(contestants, options), "programs") + "\n", flush=True)
    print(f"{len(options.programs)} answers, one process:\n", flush=True)
    print(table(compete([Contestant("reftune", answers)], options), "answers") + "\n", flush=True)


def gold_programs(options: Options) -> list[str]:
    """Return the different programs among the demo's training problems."""
    from benchmarks.workload import demo_config
    from reftune.data.problems import load_splits

    config = demo_config(options)
    problems = load_splits(config.data, config.seed).train
    programs = [problem.chain for problem in problems if problem.chain is not None]
    return list(dict.fromkeys(programs))[: 50 if options.quick else None]


def workers(options: Options) -> int:
    """Return how many processes run programs."""
    from reftune.launcher import available_cores

    cores = len(available_cores())
    return int(options.threads or cores)


def reftune(turns: Turns, options: Options) -> None:
    """Run the programs in the sandbox."""
    from reftune.grading.sandbox import Sandbox

    with Sandbox(workers=workers(options), seconds=SECONDS) as sandbox:
        run = sandbox.run
        turns.serve(lambda _: _right(run(options.programs), lambda result: result.value is not None))


def jailed(kind: str, turns: Turns, options: Options) -> None:
    """Run the programs in locked-in processes, which are forked from one of a kind."""
    from reftune.grading.sandbox import WALL_FACTOR, cpython
    from reftune.grading.worker_pool import WorkerPool

    limits = (str(SECONDS), "256", "False")
    pool = WorkerPool(cpython(limits, WALL_FACTOR * SECONDS, kind), workers(options))

    def run(_: int) -> float:
        results = pool.run(options.programs)
        return _right(list(results.values()), lambda result: result.value is not None)

    turns.serve(run)


JAILED = {kind: functools.partial(jailed, kind) for kind in ("plain", "numpy", "sympy")}

ENDS = (  # {0} is the answer, {1} another
    "\n#### {0}",
    "\nTherefore, the answer is: {0}",
    "\nSo we get $\\boxed{{{0}}}$.",
    "\nThe answer is ${0} in all.",
    "\n**Final Answer**: {0}",
    "\nThe final answer is {1}.",
)


def answers(turns: Turns, options: Options) -> None:
    """Judge solutions in natural language."""
    from reftune.config import Prompt
    from reftune.grading.judge import make_judge
    from reftune.problem import Problem

    ends, problems, texts = itertools.cycle(ENDS), [], []
    for number, program in enumerate(options.programs):
        steps = program.replace("    ", "She has ").replace("\n", " dollars.\n")
        problems.append(Problem(str(number), "", str(number), None, None))
        texts.append(steps + next(ends).format(number, number + 1))
    judge = make_judge("natural", trigger=Prompt().trigger, partial_reward=0.1)

    def run(_: int) -> float:
        verdicts = judge(problems, texts, [True] * len(texts))
        return _right(verdicts, lambda verdict: verdict.answer is not None)

    turns.serve(run)


def pebble(turns: Turns, options: Options) -> None:
    """Run the programs by `exec` in a pool of processes."""
    from pebble import ProcessPool

    with ProcessPool(max_workers=workers(options)) as pool:

        def run(_: int) -> float:
            futures = [pool.schedule(_execute, [text], timeout=SECONDS) for text in options.programs]
            return _right([future.result() for future in futures], lambda value: value is not None)

        turns.serve(run)


def _execute(program: str) -> object:
    namespace: dict[str, Callable[[], object]] = {}
    exec(program, namespace)
    return namespace["solution"]()


def _right(results: Sequence[object], is_right: Callable[[object], bool]) -> float:
    """Return the number of results, all of which have to be there: these programs are correct."""
    if not all(map(is_right, results)):
        raise RuntimeError("a program gave no value")
    return len(results)


if __name__ == "__main__":
    main()
