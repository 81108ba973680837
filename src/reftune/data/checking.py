"""Check a data set: can its answers be graded, and does each chain lead to its answer?"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from reftune.config import Columns, Prompt, Reward
from reftune.data.advice import ReadRow, advice
from reftune.data.formats import (
    is_program,
    kept_columns,
    read_fields,
    require_columns,
    require_new_id,
    to_problem,
    ungradable,
)
from reftune.data.problems import question_key
from reftune.data.sources import load_rows
from reftune.files import PlacedRow
from reftune.grading.judge import make_judge, make_sandbox
from reftune.grading.rewards import OwnReward
from reftune.model.prompts import make_prompter
from reftune.model.wording import PROGRAM_HEAD, Wording
from reftune.problem import Cot, Problem, UserError, Verdict


@dataclass(slots=True)
class Check:
    """What was found in a data set; `faults` are sentences that begin with the place."""

    source: str
    cot: Cot
    rows: int
    unit: str  # of the lengths: tokens or characters
    problems: list[tuple[str, Problem]] = field(default_factory=list)  # with their places
    faults: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)  # sentences, too: how answers were read
    correct: int = 0  # chains that give their answers
    prompt_lengths: list[int] = field(default_factory=list)
    response_lengths: list[int] = field(default_factory=list)  # of the problems that have a chain

    @property
    def chains(self) -> int:
        """Return how many problems have a chain."""
        return sum(problem.chain is not None for _, problem in self.problems)

    @property
    def repeated_questions(self) -> int:
        """Return how many problems ask what one before them asks; training drops them."""
        return len(self.problems) - len({question_key(problem.question) for _, problem in self.problems})


def check_source(
    source: str,
    *,
    cot: Cot | None = None,
    split: str = "train",
    subset: str | None = None,
    columns: Columns | None = None,
    most: int | None = None,
    reward: str | None = None,
    keep: Sequence[str] = (),
    tokenizer: str | None = None,
    full_python: bool = False,
) -> Check:
    """Check every problem of a file or data set, as training would use it.

    Args:
        cot: the kind of chain; default: program if there is one among the chains.
        split, subset, columns, keep: as for `problems.load_problems`.
        most: check only so many rows, the first.
        reward: your own, which then judges the chains; the answers may be whatever it can use.
        tokenizer: name or directory of the tokenizer that measures lengths; default: characters.
        full_python: run in CPython the programs that the sandbox calls `unsupported`.

    Raises UserError if the source cannot be read at all, or is in no known format.
    """
    rows = list(islice(load_rows(source, split, subset), most))
    require_columns(source, rows, columns, keep)
    check = Check(
        source, cot or _kind(rows, columns), len(rows), "characters" if tokenizer is None else "tokens"
    )
    own = None if reward is None else OwnReward([reward])
    _read(check, rows, columns, keep, graded=own is None)
    _measure(check, tokenizer)
    _judge(check, own, Reward(full_python=full_python))
    return check


def judge_chains(
    problems: Sequence[Problem],
    cot: Cot,
    reward: OwnReward | None = None,
    limits: Reward | None = None,
) -> list[Verdict]:
    """Judge annotated chains as if a model had written them: the texts that SFT trains on.

    Every problem needs a chain and, without a `reward` of the user's own, an answer that can be graded;
    `limits` say what a program may use.
    """
    wording = Wording(Prompt(), cot)
    # A program's docstring, the question, computes nothing: only the chain is run.
    texts = [str(p.chain) if cot == "program" else wording.rest(p) for p in problems]
    with make_sandbox(limits or Reward(), text=True) as sandbox:
        judge = make_judge(
            cot, trigger=Prompt().trigger, partial_reward=0.0, sandbox=sandbox, reward=reward
        )
        return judge(problems, texts, [True] * len(texts))


def describe(check: Check) -> list[str]:
    """Return the report of a check, line by line."""
    problems, chains = len(check.problems), check.chains
    lines = [
        f"problems   {problems:,} of {check.rows:,} rows can be read",
        f"chains     {chains:,} ({check.cot}), {check.correct:,} give their answers;"
        f" {problems - chains:,} problems have none",
        f"questions  {check.repeated_questions:,} repeat an earlier one; training drops them",
        f"{check.unit:<10} {'min':>7} {'median':>7} {'95%':>7} {'max':>7}",
    ]
    for name, shown in _quantiles(check).items():
        lines.append(f"  {name:<8} " + " ".join(f"{length:>7,}" for length in shown.values()))
    return lines + [
        f"answers    {sentence.removeprefix(f'{check.source}: ')}" for sentence in check.advice
    ]


def as_object(check: Check) -> dict[str, Any]:
    """Return the report of a check for machines, with every fault."""
    return {
        "source": check.source, "rows": check.rows, "problems": len(check.problems), "cot": check.cot,
        "chains": check.chains, "correct_chains": check.correct,
        "repeated_questions": check.repeated_questions, "unit": check.unit,
        "lengths": _quantiles(check), "advice": check.advice, "faults": check.faults,
    }  # fmt: skip


def _quantiles(check: Check) -> dict[str, dict[str, int]]:
    found = {}
    for name, lengths in (("prompt", check.prompt_lengths), ("response", check.response_lengths)):
        if ranked := sorted(lengths):
            found[name] = {
                label: ranked[-(-percent * (len(ranked) - 1) // 100)]
                for label, percent in (("min", 0), ("median", 50), ("95%", 95), ("max", 100))
            }
    return found


def _kind(rows: Sequence[PlacedRow], columns: Columns | None) -> Cot:
    for where, row in rows:
        with suppress(UserError):  # told later, with its place
            if is_program(read_fields(where, row, columns).chain):
                return "program"
    return "natural"


def _read(
    check: Check,
    rows: Sequence[PlacedRow],
    columns: Columns | None,
    keep: Sequence[str],
    *,
    graded: bool,
) -> None:
    """Keep the problems that training could use, and say what is wrong with the others."""
    places: dict[str, str] = {}
    read: list[ReadRow] = []
    for number, (where, row) in enumerate(rows, start=1):
        try:
            fields = read_fields(where, row, columns)
            problem = to_problem(where, fields, f"new-{number}", check.cot, kept_columns(row, keep))
            require_new_id(where, problem, places)
        except UserError as error:
            check.faults.append(str(error))
            continue
        if graded and (complaint := ungradable(problem, check.cot)):
            check.faults.append(f"{where}: {complaint}")
        elif check.cot == "program" and not (problem.chain or PROGRAM_HEAD).startswith(PROGRAM_HEAD):
            check.faults.append(f'{where}: a program chain must start with "def solution():"')
        else:
            check.problems.append((where, problem))
            read.append((where, fields, problem))
    check.advice = advice(check.source, read, graded=graded)


def _judge(check: Check, reward: OwnReward | None, limits: Reward) -> None:
    annotated = [(where, problem) for where, problem in check.problems if problem.chain is not None]
    verdicts = judge_chains([problem for _, problem in annotated], check.cot, reward, limits)
    for (where, problem), verdict in zip(annotated, verdicts, strict=True):
        if verdict.correct:
            check.correct += 1
        else:
            found = verdict.status if verdict.answer is None else verdict.answer
            check.faults.append(f"{where}: the chain gives {found}, the answer is {problem.answer}")


def _measure(check: Check, tokenizer: str | None) -> None:
    """Collect the lengths that `prompt.max_prompt_tokens` and `prompt.max_new_tokens` bound.

    A program's opening belongs to the prompt.
    """
    wording, prompter = Wording(Prompt(), check.cot), None
    if tokenizer is not None:
        from reftune.model.loading import load_tokenizer  # here: lengths in characters need no torch

        loaded = load_tokenizer(tokenizer, ends=False)
        if loaded.eos_token_id is None:
            loaded.eos_token = next(iter(loaded.get_vocab()))  # whatever ends a text, it is one token
        prompter = make_prompter(loaded, Prompt(), check.cot)
    for _, problem in check.problems:
        if prompter:
            prompt = len(prompter.encode_prompt(problem))
        else:
            prompt = len(wording.question(problem)) + len(wording.opening(problem))
        check.prompt_lengths.append(prompt)
        if problem.chain is not None:
            example = prompter.encode_example(problem) if prompter else wording.pieces(problem)
            check.response_lengths.append(sum(map(len, example)) - prompt)
