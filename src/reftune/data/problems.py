"""Problems from files, hubs and the generator, and their split into train, validation and test."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path

from reftune.config import Columns, Data
from reftune.config.data import GYM
from reftune.data.advice import ReadRow, advice
from reftune.data.conversations import tell_of_systems
from reftune.data.formats import (
    kept_columns,
    read_fields,
    require_columns,
    require_new_id,
    to_problem,
    ungradable,
)
from reftune.data.sources import Source, load_rows
from reftune.data.synthetic.generator import generate
from reftune.files import make_directory, reading_from, write_json, writing_to
from reftune.launcher import tell_once
from reftune.problem import Cot, Problem, UserError

MOST_VALIDATION, VALIDATION_SHARE = 200, 0.1


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


def load_splits(data: Data, seed: int, *, check_answers: bool = True) -> Splits:
    """Load train and test, drop repeated and leaked questions from train, carve out validation.

    Validation and subsets are the first questions by a seeded hash of their text: they do not depend
    on the order of the file, and a larger subset contains the smaller one, chains that are kept
    (`data.max_chains`) included. Raises UserError where
    nothing is left to train on, and as `load_problems` does.
    """
    found = _load_all(data, data.trained_on, "train", seed, check_answers)
    test = _load_all(data, data.tested_on, "test", seed, check_answers)
    names = f"data.train = {data.training_data}", f"data.test = {' and '.join(data.tested_on)}"
    unseen = unseen_questions(found, test, *names)
    first: dict[str, Problem] = {}
    for problem in unseen:
        first.setdefault(question_key(problem.question), problem)
    unique = list(first.values())
    _require_rest(data, len(unique))
    train = _ranked(unique, seed, data.validation_size, data.max_train)
    if data.max_chains is not None:
        annotated = [problem for problem in train if problem.chain]
        kept = {problem.id for problem in _ranked(annotated, seed, 0, data.max_chains)}
        train = [p if p.id in kept else replace(p, chain=None) for p in train]
    report = SplitReport(
        duplicates=len(unseen) - len(unique),
        overlaps=len(found) - len(unseen),
        test_duplicates=len(test) - len({question_key(problem.question) for problem in test}),
        without_chain=sum(problem.chain is None for problem in train),
    )
    validation = _ranked(unique, seed, 0, data.validation_size)
    return Splits(train, validation, _ranked(test, seed, 0, data.max_test), report)


def unseen_questions(
    train: Sequence[Problem], test: Sequence[Problem], train_name: str, test_name: str
) -> list[Problem]:
    """Return what of `train` is not asked in `test`; raise UserError where that is nothing."""
    asked = {question_key(problem.question) for problem in test}
    unseen = [problem for problem in train if question_key(problem.question) not in asked]
    if train and not unseen:
        raise UserError(
            f"{train_name}: every question is among those of {test_name}, and what is tested on must not"
            " be trained on; name another split or file, or divide this one with `reftune data split`"
        )
    return unseen


def fitting_validation(questions: int) -> int:
    """Return how many of so many questions to hold back for validation: a tenth, at most 200."""
    return max(1, min(MOST_VALIDATION, round(VALIDATION_SHARE * questions)))


def _require_rest(data: Data, questions: int) -> None:
    """Refuse a validation that leaves nothing to train on; tell of one that takes more than the half."""
    size, fitting = data.validation_size, fitting_validation(questions)
    if questions < 2:
        told = f"{data.training_data}: has {questions} questions that are not in the test set"
        raise UserError(f"{told}; give more")
    if size >= questions:
        raise UserError(
            f"data.validation_size = {size} leaves nothing to train on: {data.training_data} has"
            f" {questions} different questions that are not in the test set; set"
            f" data.validation_size = {fitting}"
        )
    if 2 * size > questions:
        tell_once(
            f"data.validation_size = {size} holds back more than half of the {questions} questions of"
            f" {data.training_data}; {fitting} would do"
        )


def load_test(
    data: Data, seed: int, *, check_answers: bool = True, rows: Source | None = None
) -> list[Problem]:
    """Load the test problems alone, the same ones as `load_splits` gives; or those in `rows`."""
    if rows is None:
        found = _load_all(data, data.tested_on, "test", seed, check_answers)
    else:
        found = _load(data, rows, "data", seed, check_answers)
    return _ranked(found, seed, 0, data.max_test)


def load_problems(
    source: Source,
    *,
    cot: Cot,
    split: str = "train",
    subset: str | None = None,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
    check_answers: bool = True,
    new_ids: str | None = None,
) -> list[Problem]:
    """Read the problems of a JSON, JSONL, CSV or Parquet file, of a Hugging Face data set, or of rows.

    Formats known by their columns: ours, the official ReFT files, GSM8K, MathQA, SVAMP; `columns` names
    those of any other. A chain of the other kind than `cot` is left out. Raises UserError that names
    file and line, or row, of what cannot be used, an id that came before included.

    Args:
        source: a file, a directory, a data set's name on the hub, or the rows themselves.
        split, subset: of a directory or hub data set only.
        keep: names of other columns that problems keep; at least one row must have each.
        check_answers: refuse answers that the built-in judge cannot grade (your own reward may).
        new_ids: what the ids of problems without one start with; default: the file's name.
    """
    place = prefix = new_ids or "data"
    if isinstance(source, str | Path):
        place, prefix = str(source), new_ids or Path(source).stem
    if place.startswith(GYM):  # whose rows have columns of their own
        columns, keep = None, ()
    rows = list(load_rows(source, split, subset, place))
    require_columns(place, rows, columns, keep)
    if columns is None:
        tell_of_systems(place, rows)
    places: dict[str, str] = {}
    read: list[ReadRow] = []
    for number, (where, row) in enumerate(rows, start=1):
        fields = read_fields(where, row, columns)
        kept = kept_columns(row, keep)
        problem = to_problem(where, fields, f"{prefix}-{number}", cot, kept)
        if check_answers and (complaint := ungradable(problem, cot)):
            raise UserError(f"{where}: {complaint}")
        require_new_id(where, problem, places)
        read.append((where, fields, problem))
    for sentence in advice(place, read, graded=check_answers):
        tell_once(sentence)
    return [problem for _, _, problem in read]


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write problems as JSONL that `load_problems` reads back."""
    with writing_to(path):
        path.write_text("".join(_lines(problems)), encoding="utf-8")


def _lines(problems: Iterable[Problem]) -> list[str]:
    rows = [dict(p.columns) | {k: v for k, v in asdict(p).items() if v is not None} for p in problems]
    for row in rows:
        del row["columns"]
    return [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]


def require_same(directory: Path, splits: Splits, names: Sequence[str]) -> None:
    """Raise UserError where problems are not those that `write_splits` wrote into a directory before."""
    for name in names:
        path = directory / f"{name}.jsonl"
        if not path.exists():
            continue
        with reading_from(path, "restore it, or choose another --name"):
            before, now = (
                path.read_text(encoding="utf-8").split("\n")[:-1],
                _lines(getattr(splits, name)),
            )
        pairs = zip_longest(before, (line.rstrip("\n") for line in now))
        changed = [number for number, (old, new) in enumerate(pairs, start=1) if old != new]
        if changed:
            raise UserError(
                f"the {name} problems are not those with which the run began, which are in {path}"
                f" (lines that differ: {len(changed)}, first {changed[0]}); restore your data, or choose"
                " another --name"
            )


def write_splits(directory: Path, splits: Splits) -> None:
    """Write the problems of a run and what was dropped on the way to them."""
    make_directory(directory)
    sets = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, problems in sets.items():
        write_problems(directory / f"{name}.jsonl", problems)
    sizes = {name: len(problems) for name, problems in sets.items()}
    write_json(directory / "report.json", sizes | asdict(splits.report))


def _load_all(data: Data, sources: Sequence[str], role: str, seed: int, check: bool) -> list[Problem]:
    """Load one source, or several, whose problems then say which one they come from."""
    if len(sources) == 1:
        return _load(data, sources[0], role, seed, check)
    return [
        replace(problem, id=f"{number}:{problem.id}", source=source)
        for number, source in enumerate(sources, start=1)
        for problem in _load(data, source, role, seed, check)
    ]


def _load(data: Data, source: Source, role: str, seed: int, check: bool) -> list[Problem]:
    for_test, synthetic = role != "train", data.synthetic
    if source == "synthetic":
        # 2s draws the problems to train on, 2s + 1 those to test on: none is in both for any s.
        stream = 2 * (seed if synthetic.seed is None else synthetic.seed) + for_test
        size = synthetic.test_size if for_test else synthetic.train_size
        return generate(synthetic, size, stream, data.cot)
    return load_problems(
        source,
        cot=data.cot,
        split=data.test_split if for_test else data.train_split,
        subset=data.subset,
        columns=data.columns,
        keep=data.keep_columns,
        check_answers=check,
        new_ids=role,  # train and test are often files, or splits, of one name
    )


def question_key(question: str) -> str:
    """Return what two problems share that ask the same question: its text but for case and spaces."""
    return " ".join(question.casefold().split())


def _ranked(problems: Sequence[Problem], seed: int, start: int, size: int | None) -> list[Problem]:
    """Return those from rank `start` on, at most `size`, by a seeded hash of the question; in order."""

    def rank(position: int) -> str:
        return sha256(f"{seed}:{question_key(problems[position].question)}".encode()).hexdigest()

    ranking = sorted(range(len(problems)), key=rank)
    return [problems[position] for position in sorted(ranking[start:][:size])]
