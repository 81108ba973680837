"""Problems from files, hubs and the generator, and their split into train, validation and test.

Whatever the format, a problem comes out the same: a plain number as answer where it is one, and a
chain without what the prompts put around it (a program's docstring, the sentence with the answer).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from reftune.answers import check_answer, extract_choice
from reftune.config import Columns, Data
from reftune.synthetic import generate
from reftune.types import Cot, Problem, UserError

KNOWN_FORMATS = (
    Columns(id="item_id", answer="answer_value", chain="answer_cot"),  # the official ReFT files
    Columns(id="id", question="Problem", answer="correct", chain="Rationale", choices="options"),
    Columns(id="id", chain="chain", choices="choices"),  # ours; GSM8K too, whose answer holds the chain
)
JSON_SUFFIXES = (".json", ".jsonl")
TABLE_BUILDERS = {".csv": "csv", ".parquet": "parquet"}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

_PROGRAM = re.compile(r"^def \w+\(", re.MULTILINE)
_DOCSTRING = re.compile(r"\A(def solution\(\):)\s*(\"{3}|'{3}).*?\2[ \t]*\n", re.DOTALL)
_ANSWER_SENTENCE = re.compile(r"\s*\b(Therefore, the answer is\b[^\n]*|The answer is <[^<>\n]*>\.?)\Z")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_OPTION = re.compile(r"(?:^|'?\s*,\s*'?)([a-z]) \) ")

Row = tuple[str, dict[str, Any]]  # where it stands (file and line), and its fields


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What was found and dropped on the way to the splits, in problems."""

    duplicates: int  # dropped from train: the same question came before
    overlaps: int  # dropped from train: the question is in the test set
    test_duplicates: int  # kept, so that accuracies compare with those of others
    without_chain: int  # kept for PPO; SFT cannot use them


@dataclass(frozen=True, slots=True)
class Splits:
    """The three sets of problems, each in the order of its source."""

    train: list[Problem]
    validation: list[Problem]
    test: list[Problem]
    report: SplitReport


def load_splits(data: Data, seed: int) -> Splits:
    """Load train and test, drop repeated and leaked questions from train, carve out validation.

    Validation and subsets are the first questions by a seeded hash of their text: they do not depend
    on the order of the file, and a larger subset contains the smaller one. Raises UserError where
    nothing is left to train on.
    """
    # Streams 2s and 2s + 1: no seed's test problems are another seed's training problems.
    found = _load(data, data.train, data.train_split, data.synthetic.train_size, 2 * seed)
    test = _load(data, data.test, data.test_split, data.synthetic.test_size, 2 * seed + 1)
    test_questions = {_normal(problem) for problem in test}
    unseen = [problem for problem in found if _normal(problem) not in test_questions]
    first: dict[str, Problem] = {}
    for problem in unseen:
        first.setdefault(_normal(problem), problem)
    unique = list(first.values())
    if len(unique) <= data.validation_size:
        raise UserError(
            f"data.validation_size = {data.validation_size} leaves nothing to train on: {data.train} has"
            f" {len(unique)} different questions that are not in the test set; lower it"
        )
    ranking = _ranking(unique, seed)
    train = _pick(unique, ranking[data.validation_size :][: data.max_train])
    report = SplitReport(
        duplicates=len(unseen) - len(unique),
        overlaps=len(found) - len(unseen),
        test_duplicates=len(test) - len(test_questions),
        without_chain=sum(problem.chain is None for problem in train),
    )
    validation = _pick(unique, ranking[: data.validation_size])
    return Splits(train, validation, _pick(test, _ranking(test, seed)[: data.max_test]), report)


def load_problems(
    source: str,
    *,
    cot: Cot,
    split: str = "train",
    subset: str | None = None,
    columns: Columns | None = None,
) -> list[Problem]:
    """Read the problems of a JSON, JSONL, CSV or Parquet file, or of a Hugging Face data set.

    Formats known by their columns: ours, the official ReFT files, GSM8K, MathQA; `columns` names those
    of any other. A chain of the other kind than `cot` is left out. Raises UserError that names file
    and line of what cannot be used.

    Args:
        source: a file, a directory, or a data set's name on the hub.
        split, subset: of a directory or hub data set only.
    """
    rows = list(_rows(source, split, subset))
    if not rows:
        raise UserError(f"{source}: no problems in it; each needs a question and an answer")
    if columns:
        _check_columns(source, rows, columns)
    name = Path(source).stem
    return [_problem(row, f"{name}-{number}", columns, cot) for number, row in enumerate(rows, start=1)]


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write problems as JSONL that `load_problems` reads back."""
    with path.open("w", encoding="utf-8") as file:
        for problem in problems:
            fields = {key: value for key, value in asdict(problem).items() if value is not None}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def _load(data: Data, source: str, split: str, size: int, stream: int) -> list[Problem]:
    if source == "synthetic":
        return generate(data.synthetic, size, stream, data.cot)
    return load_problems(source, cot=data.cot, split=split, subset=data.subset, columns=data.columns)


def _normal(problem: Problem) -> str:
    return " ".join(problem.question.casefold().split())


def _ranking(problems: Sequence[Problem], seed: int) -> list[int]:
    """Return the problems' positions, ordered by a seeded hash of the question."""

    def rank(position: int) -> str:
        return sha256(f"{seed}:{_normal(problems[position])}".encode()).hexdigest()

    return sorted(range(len(problems)), key=rank)


def _pick(problems: Sequence[Problem], positions: Iterable[int]) -> list[Problem]:
    return [problems[position] for position in sorted(positions)]


def _rows(source: str, split: str, subset: str | None) -> Iterator[Row]:
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if not path.exists() and (
        suffix in (*JSON_SUFFIXES, *TABLE_BUILDERS) or not _HUB_NAME.fullmatch(source)
    ):
        raise UserError(f"{source}: no such file")
    if not path.is_file():
        return _dataset_rows(source, str(path) if path.is_dir() else source, name=subset, split=split)
    if suffix in JSON_SUFFIXES:
        return _json_rows(path)
    if suffix in TABLE_BUILDERS:
        return _dataset_rows(source, TABLE_BUILDERS[suffix], data_files=str(path), split="train")
    raise UserError(f"{source}: unknown kind of file; use .json, .jsonl, .csv or .parquet")


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if text.lstrip().startswith("["):
        located = [(f"{path}: item {n}", row) for n, row in enumerate(_parse(text, path, 1), start=1)]
    else:
        lines = enumerate(text.split("\n"), start=1)  # splitlines() would cut at U+2028
        located = [(f"{path}:{n}", _parse(line, path, n)) for n, line in lines if line.strip()]
    for where, row in located:
        if not isinstance(row, dict):
            raise UserError(f'{where}: not an object; write {{"question": ..., "answer": ...}}')
        yield where, row


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{first_line + error.lineno - 1}"
        reason = f"{error.msg}, column {error.colno}"
        raise UserError(f"{where}: not JSON ({reason}); write one object per line") from error


def _dataset_rows(source: str, builder: str, **options: Any) -> Iterator[Row]:
    # Imported here: it takes a second, which JSON files need not wait for.
    from datasets import load_dataset

    try:
        dataset = load_dataset(builder, **options)
    except Exception as error:  # of many libraries: network, hub, parsers
        reason = f"{error}".partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"cannot load {source}: {reason}; check name, subset, split and connection"
        ) from error
    for number, row in enumerate(dataset, start=1):
        yield f"{source}: row {number}", row


def _problem(located: Row, new_id: str, columns: Columns | None, cot: Cot) -> Problem:
    where, row = located
    names = columns or _known_columns(where, row)
    own_id, question, answer, chain = (
        _text(where, name, row.get(name or ""))
        for name in (names.id, names.question, names.answer, names.chain)
    )
    if not question or not answer:
        empty = names.answer if question else names.question
        raise UserError(f"{where}: {empty!r} is empty; each problem needs a question and an answer")
    if not chain and "####" in answer:  # GSM8K
        chain, _, answer = answer.rpartition("####")
    question, choices = _with_options(where, question, row.get(names.choices or ""))
    answer = _plain_answer(answer.strip(), choices)
    problem = Problem(own_id or new_id, question, answer, _clean_chain(chain, cot), choices)
    if complaint := check_answer(problem, cot):
        raise UserError(f"{where}: {complaint}")
    return problem


def _check_columns(source: str, rows: Sequence[Row], columns: Columns) -> None:
    """Refuse a column that no row has; a test set may lack the chains of its training set."""
    for key, name in columns:
        if key != "chain" and name is not None and not any(name in row for _, row in rows):
            raise UserError(
                f"{source}: no {name!r} among {_listed(rows[0][1])}; correct data.columns.{key}"
            )


def _known_columns(where: str, row: dict[str, Any]) -> Columns:
    for columns in KNOWN_FORMATS:
        if columns.question in row and columns.answer in row:
            return columns
    raise UserError(f"{where}: has {_listed(row)}, not 'question' and 'answer'; set data.columns")


def _listed(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "no fields"


def _text(where: str, name: str | None, value: object) -> str:
    if value is None or value != value:  # an empty cell of a table is None or NaN
        return ""
    if not isinstance(value, str | int | float):
        raise UserError(f"{where}: {name!r} is a {type(value).__name__}; it must be text or a number")
    return f"{value}".strip()


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
    if bool(_PROGRAM.search(chain)) != (cot == "program"):
        return None
    if cot == "program":
        return _DOCSTRING.sub(r"\1\n", chain)
    chain = _ANSWER_SENTENCE.sub("", _CALCULATOR.sub("", chain))
    if len(chain) > 1 and chain[0] == chain[-1] == '"':  # MathQA
        chain = chain[1:-1]
    return chain.strip() or None


def _with_options(where: str, question: str, options: object) -> tuple[str, tuple[str, ...] | None]:
    """Return the question with its options in MathQA's notation as last line, and their texts."""
    carried = _split_options(question.rpartition("\n")[2])
    if options is None or options == "":
        return question, carried
    if isinstance(options, str):
        choices, listing = _split_options(options), options
    elif isinstance(options, list | tuple):
        choices = tuple(_text(where, "choices", option) for option in options)
        listing = " , ".join(f"{a} ) {text}" for a, text in zip(ascii_lowercase, choices, strict=False))
    else:
        choices = None
    if not choices:
        raise UserError(f"{where}: cannot read the choices; give a list of texts, or 'a ) 38 , b ) 27'")
    return question if carried else f"{question}\n{listing}", choices


def _split_options(text: str) -> tuple[str, ...] | None:
    """Read `a ) 38 , b ) 27.675` or `['a ) 38', 'b ) 27.675']`; None if the text is no such list."""
    before, *pieces = _OPTION.split(text.strip().removeprefix("['").removesuffix("']"))
    letters, texts = "".join(pieces[::2]), tuple(pieces[1::2])
    return texts if not before and len(texts) > 1 and ascii_lowercase.startswith(letters) else None
