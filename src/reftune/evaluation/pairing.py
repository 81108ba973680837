"""Answers of several models brought together question by question."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from reftune.evaluation.aggregation import judged_by_all, right_answers
from reftune.evaluation.answer_files import AnswerFile, read_answers
from reftune.evaluation.answer_formats import JudgedAnswer
from reftune.evaluation.statistics import Array
from reftune.methods import METHODS, label_of
from reftune.problem import AnsweredQuestion, UserError, shown
from reftune.runs.run_dir import model_of_run

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".gguf")
ACCURACY = "accuracy"  # of all samples of a question; other aggregations make one answer of them

Asked = dict[str, list[JudgedAnswer]]  # the answers to each question, by what identifies it


@dataclass(frozen=True)
class Contender:
    """A model whose answers are compared with others'.

    Attributes:
        label: what it is called.
        seeds: names of the runs or files that are pooled.
        right: by aggregation, shape (seeds, questions): was it right, or how often.
        answers: by seed, question and sample; empty where nobody shows them.
        group: of runs that it belongs to.
    """

    label: str
    seeds: list[object]
    right: dict[str, Array]
    answers: list[list[list[JudgedAnswer]]] = field(default_factory=list)
    group: str = ""


@dataclass(frozen=True)
class Paired:
    """Contenders on the questions that all of them answer.

    `by` is what identifies a question; `left_out` counts the questions that some file lacks, `unjudged`
    those on which somebody could not be judged.
    """

    contenders: list[Contender]
    by: str
    left_out: int
    unjudged: int
    notes: list[str]


def of_rows(rows: Mapping[str, Sequence[AnsweredQuestion]]) -> Paired:
    """Return what models have answered to the same questions, by label, as contenders.

    Raises UserError where none of the questions could be judged with all of them.
    """
    judged = judged_by_all(rows)
    contenders = []
    for label, mine in judged.items():
        right = {name: np.array([one]) for name, one in right_answers(mine).items()}
        answers = [JudgedAnswer("", row["id"], row["question"], row["correct"], row["completion"])
                   for row in mine]  # fmt: skip
        contenders.append(Contender(label, [label], right, [[[one] for one in answers]]))
    asked, left = (len(next(iter(found.values()))) for found in (rows, judged))
    return Paired(contenders, "id", 0, asked - left, [])


def split_label(argument: str) -> tuple[str, Path]:
    """Take `label=path` apart; the label is empty where there is none."""
    label, equals, path = argument.partition("=")
    if not equals or Path(argument).exists():
        return "", Path(os.path.expanduser(argument))
    return label.strip(), Path(os.path.expanduser(path))


def has_files(sources: Sequence[str]) -> bool:
    """Tell whether files of answers, or anything with a label, are among sources; else all are runs."""
    given = [split_label(source) for source in sources]
    return any(label or path.is_file() or path.suffix in SUFFIXES for label, path in given)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Name files or models by what is left of their paths without the folders that all share."""
    stems = [path.with_suffix("") if path.suffix in SUFFIXES else path for path in paths]
    parts = [list(path.absolute().parts) for path in stems]
    while all(len(one) > 1 and one[0] == parts[0][0] for one in parts):
        parts = [one[1:] for one in parts]
    while all(len(one) > 1 and one[-1] == parts[0][-1] for one in parts):
        parts = [one[:-1] for one in parts]
    return ["/".join(one) for one in parts]


def model_names(models: Sequence[str]) -> list[str]:
    """Name models as `names_of` does; one of a run by the run and its label: "my-run ReFT"."""
    found = [model_of_run(model) for model in models]
    places = [one[0] if one else Path(model) for one, model in zip(found, models, strict=True)]
    labels = [f" {label_of(one[1])}" if one else "" for one in found]
    return [name + label for name, label in zip(names_of(places), labels, strict=True)]


def read_pooled(
    arguments: Sequence[str], kind: str | None = None, metric: str | None = None
) -> dict[str, list[AnswerFile]]:
    """Read files of answers, and those of finished runs, by label.

    Args:
        arguments: paths, or `label=path`; files of one label are seeds of one model. Of a run's
            directory every model is one of its own.
        kind, metric: as for `read_answers`.

    Raises UserError for what cannot be read, and for a file that is given twice.
    """
    given = [split_label(argument) for argument in arguments]
    if len({path.resolve() for _, path in given}) < len(given):
        raise UserError("a file is given twice; give each path once")
    names = names_of([path for _, path in given])
    taken = [label or name for (label, _), name in zip(given, names, strict=True)]
    found: dict[str, list[AnswerFile]] = {}
    for (label, path), name in zip(given, names, strict=True):
        alone = name if taken.count(name) == 1 else str(path)  # only a label pools
        for model, file in _models(path).items():
            called = " ".join(part for part in (label or alone, model) if part)
            found.setdefault(called, []).append(read_answers(file, None if model else kind, metric))
    return found


def _models(path: Path) -> dict[str, Path]:
    """Return the files behind a path by model: a file is one without a name."""
    if not path.is_dir():
        return {"": path}
    files = {label_of(name): path / f"evaluation/{name}.jsonl" for name in METHODS}
    there = {name: file for name, file in files.items() if file.exists()}
    if not there:
        raise UserError(f"{path}: is a directory, and of no evaluated run; give files of answers")
    return there


def pair(files: Mapping[str, Sequence[AnswerFile]]) -> Paired:
    """Bring answers together question by question, by id or by text, whichever fits more of them.

    Ids are the same question only if the texts, where both files have them, agree: one is the other, or
    ends in it, as a prompt does. Several answers of a file to a question are its samples.

    Raises UserError where no question is in all files.
    """
    everything = [file for pooled in files.values() for file in pooled]
    by_id, by_text = (_grouped(everything, key) for key in (_id, _text))
    common_ids = [key for key in _common(by_id) if _agree(group[key] for group in by_id)]
    common_texts = _common(by_text)
    by = "id" if len(common_ids) >= len(common_texts) else "text"
    groups, common = (by_id, common_ids) if by == "id" else (by_text, common_texts)
    if not common:
        raise UserError(_nothing_in_common(everything))
    judged = [key for key in common if all(_judged(group[key]) for group in groups)]
    if not judged:
        raise UserError("on every question some answer could not be judged; nothing is left to compare")
    contenders = []
    rest = iter(groups)
    for label, pooled in files.items():
        mine = islice(rest, len(pooled))
        answers = [[_judged(group[key]) for key in judged] for group in mine]
        contenders.append(contender(label, [str(file.path) for file in pooled], answers))
    left_out = len({key for group in groups for key in group}) - len(common)
    notes = [note for file in everything for note in file.notes]
    return Paired(contenders, by, left_out, len(common) - len(judged), notes)


def contender(label: str, seeds: Sequence[str], answers: list[list[list[JudgedAnswer]]]) -> Contender:
    """Return what answers, by seed, question and sample, are as a contender: right on average."""
    right = [[np.mean([bool(one.correct) for one in drawn]) for drawn in asked] for asked in answers]
    return Contender(label, list(seeds), {ACCURACY: np.array(right)}, answers)


def _id(answer: JudgedAnswer) -> str:
    return answer.id


def _text(answer: JudgedAnswer) -> str:
    return " ".join(answer.question.casefold().split())


def _grouped(files: Sequence[AnswerFile], key: Callable[[JudgedAnswer], str]) -> list[Asked]:
    """Return the answers of each file by question, those without a key aside."""
    groups: list[Asked] = []
    for file in files:
        asked: Asked = {}
        for answer in file.answers:
            if name := key(answer):
                asked.setdefault(name, []).append(answer)
        groups.append(asked)
    return groups


def _common(groups: Sequence[Asked]) -> list[str]:
    return [key for key in groups[0] if all(key in group for group in groups)]


def _agree(groups: Iterable[Sequence[JudgedAnswer]]) -> bool:
    """Tell whether answers that share an id are to one question."""
    texts = {_text(answer) for group in groups for answer in group} - {""}
    shortest = min(texts, key=len, default="")
    return all(shortest in text for text in texts)


def _judged(answers: Sequence[JudgedAnswer]) -> list[JudgedAnswer]:
    return [answer for answer in answers if answer.correct is not None]


def _nothing_in_common(files: Sequence[AnswerFile]) -> str:
    def keys(file: AnswerFile) -> set[tuple[str, str]]:
        return {(kind, key(one)) for one in file.answers for kind, key in named if key(one)}

    named = (("id", _id), ("text", _text))
    first = files[0]
    other = next((file for file in files if not keys(file) & keys(first)), files[-1])
    examples = " and ".join(
        shown(file.answers[0].question or file.answers[0].id) for file in (first, other)
    )
    return (
        f"{first.path} and {other.path} have no question in common, by id or by text ({examples}, for"
        " example); compare answers to the same questions"
    )
