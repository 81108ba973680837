"""Judge the outputs of any system: a file of completions in, a file of verdicts and a summary out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from reftune.config import Prompt, Reward
from reftune.files import check_writable, read_rows, write_jsonl
from reftune.grading.answers import check_answer
from reftune.grading.cells import as_choices, as_text, indexed
from reftune.grading.fenced import extract_program
from reftune.grading.judge import make_judge, make_sandbox
from reftune.grading.rewards import OwnReward
from reftune.problem import (
    AnswerStyle,
    Cot,
    Problem,
    RewardFunction,
    Row,
    Status,
    UserError,
    Verdict,
    misfit,
)

KEYS = ("id", "completion", "answer", "choices", "question")
_EXAMPLE = '{"id": ..., "completion": ..., "answer": ...}'


@dataclass(frozen=True, slots=True)
class GradeSummary:
    """What `grade_file` found; `judged` leaves out the completions that our own sandbox failed on."""

    judged: int
    correct: int
    statuses: dict[Status, int]  # the commonest first
    out: Path

    @property
    def accuracy(self) -> float:
        """Return the share of correct completions among the judged ones."""
        return self.correct / self.judged if self.judged else 0.0


def grade_file(
    path: Path,
    cot: Cot,
    out: Path | None = None,
    *,
    reward: str | None = None,
    trigger: str | None = None,
    answer_style: AnswerStyle | None = None,
    limits: Reward | None = None,
    columns: Mapping[str, str] | None = None,
    most: int | None = None,
) -> GradeSummary:
    """Judge a JSONL file of completions and write one verdict per line, in the same order.

    Args:
        path: lines of {"id", "completion", "answer"[, "choices"]}; other keys are ignored.
        cot: "program" executes the completions, "natural" reads their final answer.
        out: takes lines of {"id", "status", "value", "correct", "reward", "reason"}; default: beside
            `path`, with the suffix `.graded.jsonl`.
        reward, trigger, answer_style, limits: as for `grade_rows`.
        columns: what the file calls some of KEYS.
        most: grade only so many lines, the first.

    Raises UserError that names file and line of what cannot be read.
    """
    out = out or path.with_name(path.name.removesuffix(".jsonl") + ".graded.jsonl")
    if out.resolve() == path.resolve():
        raise UserError(f"{out}: is the file to grade; give another --out")
    check_writable(out)
    rows = [
        (where, _renamed(where, row, columns or {}))
        for where, row in islice(read_rows(path, f"write {_EXAMPLE}", exact=True), most)
    ]
    if not rows:
        raise UserError(f"{path}: nothing to grade; write one {_EXAMPLE} per line")
    problems, verdicts = grade_rows(
        rows, cot, reward=reward, trigger=trigger, answer_style=answer_style, limits=limits
    )
    graded = [
        {"id": p.id, "status": v.status, "value": v.answer, "correct": v.correct, "reward": v.reward}
        | {"reason": v.reason}
        for p, v in zip(problems, verdicts, strict=True)
    ]
    write_jsonl(out, graded)
    return _summary(verdicts, out)


def as_rows(columns: Mapping[str, Sequence[Any] | None]) -> list[tuple[str, Row]]:
    """Return the rows of columns, each with its place for error messages, as `grade_rows` takes them.

    A column that is None is left out. Raises UserError where one is not as long as "completion".
    """
    given = {name: column for name, column in columns.items() if column is not None}
    completions = given["completion"]
    for name, column in given.items():
        if len(column) != len(completions):
            counts = f"{len(column)} for {len(completions)} completions"
            raise UserError(f"{name}: {counts}; give one for each")
    return [
        (f"completion {n}", {"id": n} | dict(zip(given, values, strict=True)))
        for n, values in enumerate(zip(*given.values(), strict=True), start=1)
    ]


def limits_of(seconds: float, memory_mb: int, full_python: bool = False) -> Reward:
    """Return what a program may use as settings; raise UserError where they are none."""
    if not (0 < seconds <= 3600 and 16 <= memory_mb <= 2**20):
        raise UserError(
            f"seconds = {seconds}, memory_mb = {memory_mb}: give up to 3600 seconds and 16 to 1048576"
            " megabytes"
        )
    return Reward(sandbox_seconds=seconds, sandbox_memory_mb=memory_mb, full_python=full_python)


def grade_columns(
    columns: Mapping[str, Sequence[Any] | None],
    cot: Cot,
    *,
    seconds: float,
    memory_mb: int,
    full_python: bool = False,
    **how: Any,
) -> list[Verdict]:
    """Judge completions that come as columns (see `as_rows`); `how` are arguments of `grade_rows`."""
    rows = as_rows(columns)
    return grade_rows(rows, cot, limits=limits_of(seconds, memory_mb, full_python), **how)[1]


def grade_rows(
    rows: Sequence[tuple[str, Row]],
    cot: Cot,
    *,
    partial_reward: float = 0.1,
    reward: str | RewardFunction | None = None,
    trigger: str | None = None,
    answer_style: AnswerStyle | None = None,
    limits: Reward | None = None,
) -> tuple[list[Problem], list[Verdict]]:
    """Judge completions; return the problem that each one answers, and its verdict.

    Args:
        rows: places, for errors, and objects as `grade_file` reads them.
        cot: "program" executes the completions, "natural" reads their final answer.
        partial_reward: reward of a wrong number.
        reward: your own instead, a function or its place, see `RewardFunction`; it may ask for the rows'
            other keys.
        trigger: the words before the answer of a natural chain; default: the paper's.
        answer_style: how the answers are written, see `docs/grading.md`; default: as they come.
        limits: what a program may use; the rest of the section says nothing here.

    Raises UserError that names the place of what cannot be graded.
    """
    if cot not in get_args(Cot):
        raise UserError(f"cot: choose natural or program, not {cot}")
    if trigger is not None and cot == "program":
        raise UserError("trigger: has no effect on programs, which return their answer; leave it out")
    if trigger is not None and answer_style not in (None, "trigger"):
        raise UserError(f'trigger: has no effect in the answer style "{answer_style}"; leave one out')
    if answer_style is not None and (wrong := misfit(answer_style, cot)):
        raise UserError(f"answer_style: {wrong} (cot)")
    problems = [_problem(where, row, cot, checked=reward is None) for where, row in rows]
    as_they_come = cot == "program" and answer_style is None
    completions = [_completion(where, row, as_they_come) for where, row in rows]
    with make_sandbox(limits or Reward(), text=True) as sandbox:
        judge = make_judge(
            cot,
            trigger=Prompt().trigger if trigger is None else trigger,
            partial_reward=partial_reward,
            sandbox=sandbox,
            reward=None if reward is None else OwnReward([reward]),
            answer_style=answer_style,
        )
        return problems, judge(problems, completions, [True] * len(problems))


def _summary(verdicts: Sequence[Verdict], out: Path) -> GradeSummary:
    statuses = Counter(verdict.status for verdict in verdicts)
    return GradeSummary(
        judged=sum(verdict.judged for verdict in verdicts),
        correct=sum(verdict.correct for verdict in verdicts),
        statuses=dict(statuses.most_common()),
        out=out,
    )


def _renamed(where: str, row: Row, columns: Mapping[str, str]) -> Row:
    for name in columns.values():
        if name not in row:
            raise UserError(f"{where}: no {name!r} among {', '.join(map(repr, row))}; correct --column")
    return row | {key: row[name] for key, name in columns.items()}


def _completion(where: str, row: Row, perhaps_fenced: bool) -> str:
    completion = row.get("completion")
    if not isinstance(completion, str):
        raise UserError(f"{where}: completion must be a text; write {_EXAMPLE}")
    return extract_program(completion) if perhaps_fenced else completion


def _problem(where: str, row: Row, cot: Cot, checked: bool) -> Problem:
    choices = as_choices(where, row.get("choices"))
    answer = indexed(where, row.get("answer"), row.get("choices"))
    id_, answer = _text(where, "id", row.get("id")), _text(where, "answer", answer).strip()
    question = _text(where, "question", row.get("question", ""))
    columns = {name: value for name, value in row.items() if name not in KEYS}
    problem = Problem(id_, question, answer, None, choices, columns)
    if checked and (complaint := check_answer(problem, cot)):
        raise UserError(f"{where}: {complaint}")
    return problem


def _text(where: str, key: str, value: object) -> str:
    if value is None:
        raise UserError(f"{where}: {key} must be a text or a number; write {_EXAMPLE}")
    return as_text(where, key, value)
