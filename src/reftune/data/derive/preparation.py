"""Prepare the paper's data sets: chains of either kind, checked, in our own format.

docs/data.md says where each chain comes from.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from string import ascii_lowercase

from reftune.config import Columns
from reftune.data.checking import judge_chains
from reftune.data.derive.derivations import (
    chain_from_equation,
    program_from_equation,
    program_from_solution,
)
from reftune.data.derive.formulas import program_from_formula
from reftune.data.derive.programs import UnderivableError
from reftune.data.formats import (
    EQUATION,
    FORMULA,
    Fields,
    listed,
    read_fields,
    require_columns,
    require_new_id,
    to_problem,
)
from reftune.data.problems import write_problems
from reftune.data.sources import load_rows
from reftune.files import PlacedRow, atomic_file, check_writable, writing_to
from reftune.grading.answers import check_answer
from reftune.grading.quantities import parse_number
from reftune.problem import Cot, Problem, UserError, Verdict


@dataclass(frozen=True, slots=True)
class DataSet:
    """One of the paper's data sets as it is published."""

    source: str
    columns: tuple[str, ...]
    subset: str | None = None
    options: bool | None = None  # True: the question shows them; False: it must not; None: has none


_MATHQA = ("Problem", "Rationale", "options", "correct", FORMULA)
DATA_SETS = {
    "gsm8k": DataSet("openai/gsm8k", ("question", "answer"), subset="main"),
    "svamp": DataSet("ChilleD/SVAMP", ("Body", "Question", EQUATION, "Answer")),
    "mathqa_mcq": DataSet("allenai/math_qa", _MATHQA, options=True),
    "mathqa_numeric": DataSet("allenai/math_qa", _MATHQA, options=False),
}
_OFFICIAL = ("item_id", "question", "answer_cot", "answer_value")
_OWN = ("question", "answer", "chain")

# "answer : c" and the like, with which MathQA's rationales end; without options the letter says nothing.
_LETTER = re.compile(
    r"\W*\b(?:(?:the|correct|so|hence) )*(?:answer|ans|option|choice)"
    r"(?:\W+(?:is|be|will|must|option|choice)\b)*\W+[a-e]\W*\Z"
    r"|(?<=[\d%.)]) [a-e]\W*\Z"
)
_ENDLESS = re.compile(r"[\d,.]{201}")


@dataclass(frozen=True, slots=True)
class Preparation:
    """What became of the rows of a source."""

    source: str
    out: Path
    read: int
    written: int
    dropped: dict[str, list[str]]  # reason -> ids, the commonest reason first


def prepare(
    name: str,
    cot: Cot,
    *,
    source: str | None = None,
    split: str = "train",
    columns: Columns | None = None,
    most: int | None = None,
    out: Path | None = None,
) -> Preparation:
    """Write the problems of a data set whose chains give their answers, as JSONL.

    Args:
        name: gsm8k, svamp, mathqa_mcq or mathqa_numeric.
        cot: the kind of chain wanted.
        source: a file, directory or hub data set, as published, in the official ReFT format or in ours;
            default: as published on the hub.
        split: of a directory or hub data set.
        columns: names of the source's columns; default: those of the formats above.
        most: read only so many rows, the first.
        out: default: NAME_COT_SPLIT.jsonl; of a file, its name stands for the split.

    Raises UserError for an unknown name, a source that cannot be read or has other columns, multiple
    choice without options, ids that come twice, and if no problem is left.
    """
    if name not in DATA_SETS:
        raise UserError(f"{name}: unknown data set; choose {', '.join(DATA_SETS)}")
    source = source or DATA_SETS[name].source
    local = Path(os.path.expanduser(source))
    origin = local.stem if local.is_file() else split
    out = out or Path(f"{name}_{cot}_{origin}.jsonl")
    if local.exists() and out.resolve() == local.resolve():
        raise UserError(f"{out}: is the source; give another --out")
    check_writable(out)
    rows = _rows(name, source, None if local.exists() else DATA_SETS[name].subset, split, columns, most)
    dropped: defaultdict[str, list[str]] = defaultdict(list)
    problems = _correct(_read(rows, columns, name, f"{name}-{origin}", cot, dropped), cot, dropped)
    reasons = dict(sorted(dropped.items(), key=lambda item: -len(item[1])))
    if not problems:
        reason, ids = next(iter(reasons.items()))
        raise UserError(
            f"{source}: no {cot} chain of its {len(rows):,} problems can be used; {len(ids):,} times"
            f" because {reason}, first in {ids[0]}"
        )
    with writing_to(out), atomic_file(out) as partial:
        write_problems(partial, problems)
    return Preparation(source, out, len(rows), len(problems), reasons)


def describe(preparation: Preparation) -> list[str]:
    """Return the summary of a preparation, line by line."""
    share = preparation.written / preparation.read
    lines = [
        f"read     {preparation.read:,} rows of {preparation.source}",
        f"written  {preparation.written:,} ({share:.2%}) to {preparation.out}",
    ]
    for reason, ids in preparation.dropped.items():
        lines.append(f"dropped  {len(ids):,}: {reason} (first: {ids[0]})")
    return lines


def _rows(
    name: str, source: str, subset: str | None, split: str, columns: Columns | None, most: int | None
) -> list[PlacedRow]:
    """Return the rows of a source in which the data set can be."""
    rows = list(islice(load_rows(source, split, subset), most))
    if columns or not rows:
        require_columns(source, rows, columns)
    else:
        _require_columns(name, rows[0])
    return rows


def _require_columns(name: str, row: PlacedRow) -> None:
    """Refuse a source in which the data set cannot be."""
    formats = (DATA_SETS[name].columns, _OFFICIAL, _OWN)
    if not any(set(columns) <= row[1].keys() for columns in formats):
        raise UserError(
            f"{row[0]}: has {listed(row[1])}; {name} has {', '.join(formats[0])} as published, or"
            f" {', '.join(_OFFICIAL)} in the official ReFT files"
        )


def _read(
    rows: Sequence[PlacedRow],
    columns: Columns | None,
    name: str,
    prefix: str,
    cot: Cot,
    dropped: defaultdict[str, list[str]],
) -> list[Problem]:
    """Return the problems that have a chain, or for which one can be derived."""
    options, problems = DATA_SETS[name].options, []
    places: dict[str, str] = {}
    for number, (where, row) in enumerate(rows, start=1):
        new_id = f"{prefix}-{number}"
        try:
            fields = read_fields(where, row, columns)
            problem = to_problem(where, fields, new_id, cot)
        except UserError as error:
            dropped[str(error).removeprefix(f"{where}: ")].append(new_id)
            continue
        if options and problem.choices is None:
            raise UserError(f"{where}: a question without options; take {name} from a source with them")
        require_new_id(where, problem, places)
        try:
            problems.append(_complete(problem, fields, row, cot, options))
        except UnderivableError as error:
            dropped[str(error)].append(problem.id)
    return problems


def _complete(
    problem: Problem, fields: Fields, row: dict[str, object], cot: Cot, options: bool | None
) -> Problem:
    """Return the problem with its chain. Raises UnderivableError if it cannot have one."""
    if check_answer(problem, cot):
        raise UnderivableError("its answer cannot be graded")
    chain = problem.chain or _derive(problem, fields, row, cot)
    if options is False and problem.choices is not None:
        question, number = problem.question.rpartition("\n")[0], _number(problem)
        answer = str(number) if isinstance(number, int) else f"{number:.15g}"
        problem = replace(problem, question=question, answer=answer, choices=None)
        chain = _LETTER.sub("", chain) if cot == "natural" else chain
    if not chain:
        raise UnderivableError(f"it has no {cot} chain")
    return replace(problem, chain=chain)


def _derive(problem: Problem, fields: Fields, row: dict[str, object], cot: Cot) -> str:
    formula, equation = row.get(FORMULA), row.get(EQUATION)
    if _ENDLESS.search(f"{fields.question} {fields.chain} {formula} {equation}"):
        raise UnderivableError("it has a number of hundreds of digits")
    if equation and cot == "natural":
        return chain_from_equation(str(equation), _number(problem))
    if cot == "natural":
        return ""
    if formula:
        return program_from_formula(str(formula), fields.question)
    if equation:
        return program_from_equation(str(equation))
    return program_from_solution(fields.question, fields.chain, _number(problem)) if fields.chain else ""


def _number(problem: Problem) -> float:
    """Return the number of the answer, or of the option that it names."""
    text = problem.answer
    if problem.choices is not None:
        text = problem.choices[ascii_lowercase.index(problem.answer)]
    number = parse_number(text)
    if number is None:
        raise UnderivableError("its right option is not one number")
    return number


def _correct(
    problems: Sequence[Problem], cot: Cot, dropped: defaultdict[str, list[str]]
) -> list[Problem]:
    """Return the problems whose chains are judged correct."""
    kept = []
    for problem, verdict in zip(problems, judge_chains(problems, cot), strict=True):
        if verdict.correct:
            kept.append(problem)
        else:
            dropped[_reason(problem, verdict, cot)].append(problem.id)
    return kept


def _reason(problem: Problem, verdict: Verdict, cot: Cot) -> str:
    """Say why a chain is not correct."""
    subject = "its program" if cot == "program" else "its chain"
    if verdict.answer is not None:
        return f"{subject} gives another answer"
    if problem.choices is not None and verdict.status == "no_result":
        return f"{subject} names none of the options"
    return f"{subject} gives no answer ({verdict.status})"
