"""The formats that questions come in: which columns they have, and a row of any of them as a problem.

Whatever the format, a problem comes out the same: a plain number as answer where it is one, and a
chain without what the prompts put around it (a program's docstring, the sentence with the answer).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from reftune.config import Columns, Prompt
from reftune.config.data import GYM_COLUMN
from reftune.data.conversations import as_columns, is_conversation
from reftune.files import PlacedRow
from reftune.grading.answers import check_answer
from reftune.grading.cells import as_choices, as_text, indexed, read_options
from reftune.grading.choices import extract_choice
from reftune.grading.extraction import (
    MAX_ANSWER_CHARS,
    extract_natural,
    marked_answer,
    without_answer,
)
from reftune.problem import Cot, Problem, UserError

# GSM8K too, whose answer holds the chain, and conversations once they are taken apart.
OURS = Columns(id="id", chain="chain", choices="choices")
KNOWN_FORMATS = (
    Columns(id="item_id", answer="answer_value", chain="answer_cot"),  # the official ReFT files
    # MathQA
    Columns(id="id", question="Problem", answer="correct", chain="Rationale", choices="options"),
    Columns(id="ID", question="Question", answer="Answer"),  # SVAMP; `Body` stands before the question
    OURS,
    Columns(id="unique_id", question="problem", chain="solution"),  # MATH, whose answer is in a box
    Columns(id="id", chain="solution", choices="choices"),
)
# What chains can be derived from, in formats that have it beside the columns above.
FORMULA = "linear_formula"  # MathQA
EQUATION = "Equation"  # SVAMP

_PROGRAM = re.compile(r"^def[ \t]+\w+[ \t]*\(", re.MULTILINE)
_HEAD = re.compile(r"\Adef[ \t]+solution[ \t]*\([ \t]*\)[ \t]*:[ \t]*\n")
_DOCSTRING = re.compile(r"\A(def solution\(\):)\s*(\"{3}|'{3}).*?\2[ \t]*\n", re.DOTALL)
_ANSWER_SENTENCE = re.compile(r"\s*\b(Therefore, the answer is\b[^\n]*|The answer is <[^<>\n]*>\.?)\Z")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Fields:
    """The texts of one row, by our names; empty where the row has none."""

    id: str
    question: str
    answer: str
    chain: str  # as it stands there, with annotations, docstring and answer sentence
    options: object
    taken_from: str = ""  # where the column of answers has more than the answer, or none: what it is in


def read_fields(where: str, row: dict[str, Any], columns: Columns | None) -> Fields:
    """Return the texts of a row.

    Args:
        where: the place of the row, for errors.
        columns: the names of the columns; default: those of the format it is in.

    Raises UserError that names the place of a row that cannot be read, as `to_problem` does.
    """
    if GYM_COLUMN in row:
        return Fields(row["id"], row["question"], row["answer"], "", None)
    row = row if columns else as_columns(where, row)
    names = columns or known_columns(where, row)
    options = row.get(names.choices or "")
    row = row | {names.answer: indexed(where, row.get(names.answer), options)}
    own_id, question, answer, chain, body = (
        _text(where, name, row.get(name or ""))
        for name in (names.id, names.question, names.answer, names.chain, "Body")
    )
    alone, chain, taken_from = _answer_alone(answer, chain)
    if not question or not alone:
        _refuse_empty(where, names, question, "" if answer else chain)
    if columns is None and body:  # SVAMP: many bodies end without a full stop
        question = f"{body}{'' if body[-1] in '.,!?' else ','} {question}"
    return Fields(own_id, question, alone, chain, options, taken_from)


def _answer_alone(answer: str, chain: str) -> tuple[str, str, str]:
    r"""Return an answer without what is beside it, the chain, and which text the answer was in.

    A row without an answer is answered by what its chain states. An answer that is a worked solution, up
    to `#### 72` as in GSM8K or with a `\boxed{72}`, is taken apart into chain and answer.
    """
    if not answer and not is_program(chain):
        return extract_natural(chain, Prompt().trigger) or "", without_answer(chain), chain
    if "####" in answer:  # GSM8K
        solution, _, behind = answer.rpartition("####")
        return marked_answer(behind) or behind.strip(), chain or solution, answer
    alone = marked_answer(answer)
    if alone is None or (len(answer) <= MAX_ANSWER_CHARS and answer.count("\\boxed") > 1):
        return answer, chain, ""  # of several boxes none is the answer for certain
    return alone, chain or without_answer(answer), answer


def _refuse_empty(where: str, names: Columns, question: str, chain: str) -> None:
    if question and chain:
        raise UserError(
            f"{where}: no {names.answer!r}, and no final answer in {names.chain!r}, such as"
            " \\boxed{72}, #### 72 or The answer is 72; name the column with the answers in"
            " data.columns.answer, or with --column answer=NAME"
        )
    empty = names.answer if question else names.question
    raise UserError(f"{where}: {empty!r} is empty; each problem needs a question and an answer")


def to_problem(
    where: str, fields: Fields, new_id: str, cot: Cot, columns: Mapping[str, Any] | None = None
) -> Problem:
    """Return the texts of a row as a problem, without the chain if that is not of the kind `cot`.

    `new_id` is for a row that has none; `columns` are others that are kept.
    """
    question, choices = _with_options(where, fields.question, fields.options)
    answer = _plain_answer(fields.answer, choices)
    chain = _clean_chain(fields.chain, cot)
    return Problem(fields.id or new_id, question, answer, chain, choices, columns or {})


def kept_columns(row: Mapping[str, Any], keep: Sequence[str]) -> dict[str, Any]:
    """Return what a problem keeps of its row: the columns `keep`, and what its verifier needs."""
    return {name: row[name] for name in (*keep, GYM_COLUMN) if name in row}


def ungradable(problem: Problem, cot: Cot) -> str | None:
    """Return a sentence on an answer that nobody can grade; a verifier needs none."""
    return None if GYM_COLUMN in problem.columns else check_answer(problem, cot)


def require_new_id(where: str, problem: Problem, places: dict[str, str]) -> None:
    """Raise UserError if another row has the problem's id; `places` collects where each id stands."""
    if (first := places.setdefault(problem.id, where)) != where:
        raise UserError(f"{where}: id {problem.id!r} is already that of {first}; make ids unique")


def known_columns(where: str, row: dict[str, Any]) -> Columns:
    """Return the columns of the format that a row is in. Raises UserError if it is in none."""
    fitting = [columns for columns in KNOWN_FORMATS if columns.question in row]
    for needed in ({"answer", "chain"}, {"answer"}, {"chain"}):  # the most complete reading
        for columns in fitting:
            if all(getattr(columns, name) in row for name in needed):
                return columns
    if is_conversation(row):
        return OURS
    raise UserError(
        f"{where}: has {listed(row)}, not 'question' and 'answer'; set data.columns,"
        " or --column question=NAME --column answer=NAME"
    )


def require_columns(
    source: str, rows: Sequence[PlacedRow], columns: Columns | None, keep: Sequence[str] = ()
) -> None:
    """Raise UserError if there are no rows, the first is in no known format, or no row has a column.

    A test set may lack the chains of its training set.
    """
    if not rows:
        raise UserError(f"{source}: no problems in it; each needs a question and an answer")
    if columns is None:
        known_columns(*rows[0])
    left_out = {"chain"}
    if columns and columns.chain and columns.answer == Columns().answer:  # the chains may state them
        left_out.add("answer")
    wanted = [(f"columns.{key}", name) for key, name in columns or () if key not in left_out]
    for key, name in (*wanted, *(("keep_columns", name) for name in keep)):
        if name and not any(name in row for _, row in rows):
            raise UserError(f"{source}: no {name!r} among {listed(rows[0][1])}; correct data.{key}")


def listed(row: dict[str, Any]) -> str:
    """Return the names of a row's columns, for errors."""
    return ", ".join(map(repr, row)) or "no fields"


def is_program(chain: str) -> bool:
    """Tell whether a chain is a program."""
    return bool(_PROGRAM.search(chain))


def write_options(choices: Sequence[str]) -> str:
    """Return `a ) 38 , b ) 27.675`, as MathQA writes options; at most 26 options have a letter."""
    return " , ".join(f"{a} ) {text}" for a, text in zip(ascii_lowercase, choices, strict=False))


def _text(where: str, name: str | None, value: object) -> str:
    return as_text(where, name, value).strip()


def _plain_answer(answer: str, choices: tuple[str, ...] | None) -> str:
    """Write `1,000.0` as `1000`, and the text of an option as its letter."""
    if choices is not None:
        return extract_choice(answer, choices) or answer
    if _THOUSANDS.fullmatch(answer):
        answer = answer.replace(",", "")
    return re.sub(r"^([-+]?\d+)\.0+$", r"\1", answer)


def _clean_chain(chain: str, cot: Cot) -> str | None:
    """Take off what the prompts put around a chain; None if it is empty or of the other kind."""
    chain = chain.strip()
    if is_program(chain) != (cot == "program"):
        return None
    if cot == "program":
        return _DOCSTRING.sub(r"\1\n", _HEAD.sub("def solution():\n", re.sub("\r\n?", "\n", chain)))
    chain = _ANSWER_SENTENCE.sub("", _CALCULATOR.sub("", chain))
    if marked_answer(chain):
        chain = without_answer(chain)
    if len(chain) > 1 and chain[0] == chain[-1] == '"':  # MathQA
        chain = chain[1:-1]
    return chain.strip() or None


def _with_options(where: str, question: str, options: object) -> tuple[str, tuple[str, ...] | None]:
    """Return the question with its options in MathQA's notation as last line, and their texts."""
    carried, choices = read_options(question.rpartition("\n")[2]), as_choices(where, options)
    if choices is None or carried:
        return question, choices or carried
    listing = options if isinstance(options, str) else write_options(choices)
    return f"{question}\n{listing}", choices
