"""Reinforced fine-tuning (ReFT): better reasoning from questions whose answers can be checked.

These functions do in Python what the commands do. What costs seconds to import, such as torch, is
imported by the function that needs it: `load_config`, `grade`, `run_program` and `compare` do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from reftune.launcher import rank
from reftune.problem import (
    AnswerStyle,
    Cot,
    EvaluationResult,
    Execution,
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
    from reftune.training.types import GradedSample

__all__ = [  # noqa: RUF022 -- in the order in which they are read
    "load_config", "run", "evaluate", "sample", "export", "compare", "grade", "run_program",
    "Problem", "Verdict", "Execution", "RunResult", "EvaluationResult", "RewardFunction", "UserError",
]  # fmt: skip


def load_config(path: str | Path, overrides: Sequence[str] = (), name: str | None = None) -> Config:
    """Read the configuration of a run from a TOML file.

    Args:
        path: the file; what it `extends` is read first.
        overrides: settings that win over the file's, as "section.key=value".
        name: of the run; default: as the file says, or its own name without the suffix.

    Raises:
        UserError: the file cannot be read, or a setting is unknown, wrong or without any effect.
    """
    from reftune.config.files import load_config

    return load_config(path, overrides, name)


def run(
    config: Config | str | Path, *, train: Source | None = None, test: Source | None = None
) -> RunResult:
    """Train, improve, compare and report, as `reftune run` does; finished stages are skipped.

    Args:
        config: from `load_config`, or a TOML file's path.
        train: problems to train on, in place of the configuration's: a file, a data set's name, a
            `datasets.Dataset`, or mappings with the keys "question", "answer" and "chain". Rows are
            kept in the run's directory, so that the same command can go on with them.
        test: problems to compare the models on, likewise.

    Raises:
        UserError: a problem cannot be used, the run's directory holds another run, or the machine
            gives out (a full disk, a loss that is not finite).
    """
    from reftune.config.files import load_config
    from reftune.pipeline import run_stages
    from reftune.reporting.run.report import write_report
    from reftune.runs.given_rows import with_problems
    from reftune.runs.records import read_result

    settings = load_config(config) if isinstance(config, str | Path) else config
    settings = with_problems(settings, train=train, test=test)
    ran = run_stages(settings)
    report = settings.run_dir / "report.html"
    if rank() == 0:  # under a launcher one process reports
        report = write_report(settings.run_dir)
    found = read_result(settings.run_dir, "evaluation")
    return RunResult(settings.run_dir, report, ran, found["n"], found["models"], found["comparisons"])


def evaluate(
    model: str | Path,
    data: Source,
    *,
    cot: Cot | None = None,
    samples: int = 0,
    split: str | None = None,
    subset: str | None = None,
    overrides: Sequence[str] = (),
) -> EvaluationResult:
    """Measure how many questions a model answers.

    Args:
        model: directory, GGUF file or Hugging Face name of a causal language model.
        data: a file, a data set's name, "synthetic", a `datasets.Dataset`, or mappings with the keys
            "question" and "answer".
        cot: kind of chain that the model writes, "program" (executed) or "natural" (text); default: as
            it was trained by reftune.
        samples: per question, for voting and pass@k; 0 answers greedily only.
        split: of a data set on the hub; default: "test".
        subset: its configuration.
        overrides: other settings, as "section.key=value", such as "prompt.max_new_tokens=200".

    Raises:
        UserError: the model cannot be loaded, a question cannot be used, or nothing says which kind of
            chain the model writes.
    """
    from reftune.evaluation.inference import evaluate_on

    return EvaluationResult(*evaluate_on(model, data, cot, samples, split, subset, overrides))


def sample(
    model: str | Path,
    questions: str | Sequence[str],
    *,
    cot: Cot | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> list[GradedSample]:
    """Ask a model questions whose answer nobody knows; return what it wrote, one sample per question.

    Each has the `completion` and, in `verdict`, the `status` and the extracted `answer`.

    Args:
        model: directory, GGUF file or Hugging Face name of a causal language model.
        questions: plain texts; one that is given twice is answered twice.
        cot: kind of chain that the model writes; default: as it was trained by reftune.
        temperature: 0 takes the most likely token each time.
        seed: another one gives other samples.
        overrides: other settings, as "section.key=value".

    Raises:
        UserError: the model cannot be loaded, a question is too long, or nothing says which kind of
            chain the model writes.
    """
    from reftune.evaluation.inference import ask, model_config

    config = model_config(str(model), overrides, cot=cot)
    return ask(config, [questions] if isinstance(questions, str) else questions, temperature, seed)


def export(
    source: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    license: str | None = None,
    origin: str | None = None,
    push: str | None = None,
    public: bool = False,
) -> Path | str:
    """Write a model as a directory for anybody: weights, tokenizer, chat template, model card.

    Returns the directory or, with `push`, the address on the hub.

    Args:
        source: directory of a run or of a model, GGUF file or Hugging Face name.
        out: the new directory, which is there as a whole or not at all.
        model: which one of a run, such as "reft" or "sft"; default: the last finished one.
        dtype: precision of the weights; default: as it is.
        license: for the model card, as the hub calls it; default: left to you.
        origin: for the model card, where the model comes from.
        push: name on the Hugging Face hub, "owner/name", where it is uploaded, too.
        public: whether everybody may see what is pushed.

    Raises:
        UserError: there is no such model, `out` holds something, or the hub refuses.
    """
    from reftune.hand_over import export, upload

    if public and push is None:
        raise UserError("--public: has no effect without --push")
    card = {"license": license, "origin": origin, "name": push}
    directory = export(str(source), Path(out), model=model, dtype=dtype, **card)
    return directory if push is None else upload(directory, push, public=public)


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

    Raises:
        UserError: an answer cannot be graded, your reward fails, or the lists differ in length.
    """
    from reftune.config import Reward
    from reftune.grading.grade_file import as_rows, grade_rows

    columns: dict[str, Sequence[Any] | None] = {
        "completion": completions, "answer": answers, "choices": choices, "question": questions,
    }  # fmt: skip
    rows = as_rows(columns)
    _check_limits(seconds, memory_mb)
    limits = Reward(sandbox_seconds=seconds, sandbox_memory_mb=memory_mb)
    _, verdicts = grade_rows(
        rows,
        cot,
        partial_reward=partial_reward,
        reward=reward,
        trigger=trigger,
        answer_style=answer_style,
        limits=limits,
    )
    return verdicts


@overload
def run_program(program: str, *, seconds: float = 2.0, memory_mb: int = 256) -> Execution: ...
@overload
def run_program(
    program: list[str] | tuple[str, ...], *, seconds: float = 2.0, memory_mb: int = 256
) -> list[Execution]: ...
def run_program(
    program: str | list[str] | tuple[str, ...], *, seconds: float = 2.0, memory_mb: int = 256
) -> Execution | list[Execution]:
    """Run programs that define `solution()` in the sandbox, and name what came of each.

    Nothing that a program does raises here: the `status` says what happened, and `value` is what
    `solution()` returned, a number or a text.

    Args:
        program: the text, or several, which run side by side.
        seconds: of CPU time that each has.
        memory_mb: megabytes of memory that each has, 16 or more.

    Raises:
        UserError: the limits are none, or the sandbox cannot start.
    """
    from reftune.grading.sandbox import Sandbox

    _check_limits(seconds, memory_mb)
    with Sandbox(seconds=seconds, memory_mb=memory_mb, text=True) as sandbox:
        found = sandbox.run([program] if isinstance(program, str) else program)
    return found[0] if isinstance(program, str) else found


def compare(run_dirs: Sequence[str | Path], *, samples: int | None = None) -> Comparison:
    """Put finished runs side by side: accuracies, paired differences, corrected p-values.

    Args:
        run_dirs: directories of runs that were tested on the same questions. Those that differ in
            their seed only are pooled, and other groups are compared with the first one's.
        samples: per question to use, the first ones drawn; default: as many as all runs have.

    Raises:
        UserError: a run is not finished or given twice, the runs were tested on different questions,
            or have fewer samples.
    """
    from reftune.reporting.comparison.compare import compare_runs

    if not run_dirs:
        raise UserError("run_dirs: is empty; give the directories of finished runs")
    return compare_runs([Path(directory) for directory in run_dirs], samples)


def _check_limits(seconds: float, memory_mb: int) -> None:
    if not (0 < seconds <= 3600 and 16 <= memory_mb <= 2**20):
        raise UserError(
            f"seconds = {seconds}, memory_mb = {memory_mb}: give up to 3600 seconds and 16 to 1048576"
            " megabytes"
        )
