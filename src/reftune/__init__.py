"""Reinforced fine-tuning (ReFT): better reasoning from questions whose answers can be checked.

These functions do in Python what the commands do. What costs seconds to import, such as torch, is
imported by the function that needs it: `load_config`, `grade`, `run_program` and `compare` do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from reftune.models import evaluate, export, generate, sample
from reftune.problem import (
    AnswerStyle,
    Completion,
    Cot,
    EvaluationResult,
    Execution,
    GivenReward,
    Problem,
    RewardFunction,
    RunResult,
    UserError,
    Verdict,
)

if TYPE_CHECKING:
    from reftune.config import Config
    from reftune.data.sources import Source
    from reftune.reporting.comparison.compare import Comparison

__all__ = [  # noqa: RUF022 -- in the order in which they are read
    "load_config", "run", "evaluate", "sample", "generate", "export", "compare", "grade", "run_program",
    "Problem", "Verdict", "Execution", "Completion", "RunResult", "EvaluationResult", "RewardFunction",
    "UserError",
]  # fmt: skip


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), name: str | None = None
) -> Config:
    """Make the configuration of a run from a TOML file, or from a mapping of what would be in one.

    Args:
        source: the file, or a mapping such as `{"extends": "base.toml", "ppo": {"steps": 20}}`; what it
            `extends` is read first.
        overrides: settings that win over these, as "section.key=value".
        name: of the run; default: as the source says, or the file's own name without the suffix.

    Raises:
        UserError: the file cannot be read, or a setting is unknown, wrong or without any effect.
    """
    from reftune.config.files import load_config

    return load_config(source, overrides, name, reward_follows=True)


def run(
    config: Config | str | Path | Mapping[str, Any],
    *,
    train: Source | None = None,
    test: Source | None = None,
    reward: GivenReward | None = None,
    on_step: Callable[[str, int, dict[str, Any]], object] | None = None,
) -> RunResult:
    """Train, improve, compare and report, as `reftune run` does; finished stages are skipped.

    Args:
        config: from `load_config`, or what that takes.
        train: problems to train on, in place of the configuration's: a file, a data set's name, a
            `datasets.Dataset`, or mappings with the keys "question", "answer" and "chain". Rows are
            kept in the run's directory, so that the same command can go on with them.
        test: problems to compare the models on, likewise.
        reward: your own in place of the configuration's: a function (see `RewardFunction`), its place
            as "module:function", `(function, weight)`, or a list of these. A function that can be
            imported runs in a process of its own, which imports its module anew. A lambda, or one of a
            notebook or script, runs in a thread of this process: one that hangs costs its sample, but
            stays at work. The run knows it by its name, and goes on only with one of the same name.
        on_step: called after every step of every stage with the stage ("sft", "ppo", ...), the number
            of the step, and its metrics. Where it raises, the run keeps what it has learnt, ends with
            that exception, and can be started again.

    Raises:
        UserError: a problem cannot be used, the run's directory holds another run, or the machine
            gives out (a full disk, a loss that is not finite).
    """
    from reftune.config import Config
    from reftune.pipeline import run

    settings = config if isinstance(config, Config) else load_config(config)
    return run(settings, train=train, test=test, reward=reward, on_step=on_step)


def grade(
    completions: Sequence[str],
    answers: Sequence[str | float],
    *,
    cot: Cot,
    choices: Sequence[Sequence[str | float] | None] | None = None,
    questions: Sequence[str] | None = None,
    reward: str | RewardFunction | None = None,
    partial_reward: float = 0.1,
    trigger: str | None = None,
    answer_style: AnswerStyle | None = None,
    seconds: float = 2.0,
    memory_mb: int = 256,
    full_python: bool = False,
) -> list[Verdict]:
    """Judge the outputs of any system: find each final answer, and compare it with the right one.

    Args:
        completions: what was written; of a program in a fenced block only the block is executed.
        answers: the right ones, a text or a number each.
        cot: "program" executes the completions, "natural" reads their final answer.
        choices: per completion the options of a multiple-choice question, or None.
        questions: per completion, for a reward of your own.
        reward: your own function, or "path.py:function", in place of the built-in comparison.
        partial_reward: reward of a wrong number.
        trigger: the words before the answer of a natural chain; default: the paper's.
        answer_style: how the answers are written; of natural chains "trigger", "boxed", "hashes" or
            "answer_is", whose mark is then looked for first; of programs "function" (the completion is
            the program) or "fenced" (it is in a fenced block). Default: as they come.
        seconds: of CPU time that a program has.
        memory_mb: megabytes of memory that a program has, 16 or more.
        full_python: run in CPython what the sandbox calls `unsupported`, see docs/programs.md.

    Raises:
        UserError: an answer cannot be graded, your reward fails, or the lists differ in length.
    """
    from reftune.grading.grade_file import grade_columns

    return grade_columns(
        {"completion": completions, "answer": answers, "choices": choices, "question": questions},
        cot,
        reward=reward,
        partial_reward=partial_reward,
        trigger=trigger,
        answer_style=answer_style,
        seconds=seconds,
        memory_mb=memory_mb,
        full_python=full_python,
    )


@overload
def run_program(
    program: str, *, seconds: float = 2.0, memory_mb: int = 256, full_python: bool = False
) -> Execution: ...
@overload
def run_program(
    program: list[str] | tuple[str, ...],
    *,
    seconds: float = 2.0,
    memory_mb: int = 256,
    full_python: bool = False,
) -> list[Execution]: ...
def run_program(
    program: str | list[str] | tuple[str, ...],
    *,
    seconds: float = 2.0,
    memory_mb: int = 256,
    full_python: bool = False,
) -> Execution | list[Execution]:
    """Run programs that define `solution()` in the sandbox, and name what came of each.

    Nothing that a program does raises here: the `status` says what happened, and `value` is what
    `solution()` returned, a number or a text.

    Args:
        program: the text, or several, which run side by side.
        seconds: of CPU time that each has.
        memory_mb: megabytes of memory that each has, 16 or more.
        full_python: run in CPython what the sandbox calls `unsupported`, see docs/programs.md.

    Raises:
        UserError: the limits are none, or the sandbox cannot start.
    """
    from reftune.grading.grade_file import limits_of
    from reftune.grading.judge import make_sandbox

    with make_sandbox(limits_of(seconds, memory_mb, full_python), text=True) as sandbox:
        found = sandbox.run([program] if isinstance(program, str) else program)
    return found[0] if isinstance(program, str) else found


def compare(sources: Sequence[str | Path], *, samples: int | None = None) -> Comparison:
    """Put runs, or answers that any system has judged, side by side: accuracies and paired differences.

    Args:
        sources: directories of runs that were tested on the same questions; those that differ in their
            seed only are pooled, and other groups are compared with the first one's. Or files of
            answers (see docs/comparing.md), with or without a "label=" before the path.
        samples: of runs, per question to use, the first ones drawn; default: as many as all have.

    Raises:
        UserError: a run is not finished, the runs were tested on different questions or have fewer
            samples, a file cannot be read, or something is given twice.
    """
    from reftune.evaluation.pairing import has_files, pair, read_pooled
    from reftune.reporting.comparison.compare import compare_answers, compare_runs

    given = [str(source) for source in sources]
    if not given:
        raise UserError("sources: is empty; give directories of finished runs, or files of answers")
    if not has_files(given):
        return compare_runs([Path(directory) for directory in given], samples)
    if samples is not None:
        raise UserError("samples: has no effect where files are compared; leave it out")
    return compare_answers(pair(read_pooled(given)))
