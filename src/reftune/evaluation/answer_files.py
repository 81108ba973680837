"""Files of judged answers, as reftune and other systems write them; a format is known by its keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reftune.data.sources import load_rows
from reftune.evaluation.answer_formats import FORMATS, JudgedAnswer
from reftune.files import reading_from
from reftune.problem import Row, UserError, shortened

GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """A file of judged answers; `notes` say what was chosen in reading it."""

    path: Path
    kind: str
    answers: list[JudgedAnswer]
    notes: list[str]


def read_answers(path: Path, kind: str | None = None, metric: str | None = None) -> AnswerFile:
    """Read a JSON, JSONL, CSV or Parquet file of judged answers.

    Args:
        path: the file.
        kind: its format, one of FORMATS; default: the first whose keys its first row has.
        metric: the key that says whether an answer is right, of which a number of 1 or more does. Of
            lm-eval also `metric,filter`, which concerns no other format. Default: as the format has it.

    Raises UserError that names file and line of what cannot be read.
    """
    _require_readable(path)
    rows = list(load_rows(path, "train", None))
    if not rows:
        raise UserError(f'{path}: holds no answers; write one {{"id": ..., "correct": ...}} per line')
    kind = _kind_of(*rows[0], metric) if kind is None else _checked(kind, *rows[0])
    if kind != "lm-eval" and "," in (metric or ""):
        metric = None
    notes: list[str] = []
    answers = list(FORMATS[kind][1](rows, metric, notes))
    asked: dict[str, JudgedAnswer] = {}
    for answer in answers:
        if not (answer.id or answer.question):
            raise UserError(
                f"{answer.place}: has neither an id nor a question; add one of both, so that answers to"
                " the same question are known"
            )
        first = asked.setdefault(answer.id, answer)
        if answer.id and first.question != answer.question:
            raise UserError(
                f"{answer.place}: id {answer.id} is that of another question in {first.place}; make ids"
                " unique"
            )
    return AnswerFile(path, kind, answers, [f"{path}: {note}" for note in notes])


def _require_readable(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading_from(path, "correct the path"), path.open("rb") as file:
        if file.read(2) == GZIP:
            raise UserError(f"{path}: is compressed; unpack it with gunzip first")


def _checked(kind: str, place: str, row: Row) -> str:
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: choose {', '.join(FORMATS)}")
    keys = FORMATS[kind][0]
    if kind != "plain" and not keys <= row.keys():
        raise UserError(
            f"{place}: has {shortened(', '.join(row))}, but a file of the format {kind} has"
            f" {', '.join(sorted(keys))}; give another --format"
        )
    return kind


def _kind_of(place: str, row: Row, metric: str | None) -> str:
    for kind, (keys, _) in FORMATS.items():
        if keys <= row.keys():
            return kind
    if metric is not None:
        if metric in row:
            return "plain"
        raise UserError(
            f"--metric {metric}: {place} has no such key; it has {shortened(', '.join(row)) or 'none'}"
        )
    known = "; ".join(f"{kind}: {', '.join(sorted(keys))}" for kind, (keys, _) in FORMATS.items())
    raise UserError(
        f"{place}: has {shortened(', '.join(row)) or 'no keys'}, which no known format has ({known});"
        ' write {"id": ..., "correct": ...}, or name with --metric the key that says what is right'
    )
