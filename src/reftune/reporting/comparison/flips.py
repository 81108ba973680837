"""The questions that one of two models answers right and the other does not, to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reftune.evaluation.answer_formats import JudgedAnswer
from reftune.evaluation.pairing import Contender

Drawn = Sequence[Sequence[JudgedAnswer]]  # by seed and sample


@dataclass(frozen=True)
class Flip:
    """A question that one answers and the other does not, with an answer of each.

    `before` and `after` are shares of the samples of all seeds that are right.
    """

    question: str
    gold: str
    before: float
    after: float
    base_answer: str
    answer: str

    @property
    def gained(self) -> bool:
        """Tell whether it is the base that does not answer it."""
        return self.after > self.before


@dataclass(frozen=True)
class Flips:
    """The questions on which a model and its base differ, those that are gained first."""

    group: str
    method: str
    base_group: str
    base_method: str
    questions: list[Flip]

    @property
    def gained(self) -> int:
        """Count the questions that the base does not answer."""
        return sum(flip.gained for flip in self.questions)


def find_flips(base: Contender, other: Contender) -> Flips:
    """Find the questions of which one of two models answers at least half of its samples right, and the
    other fewer."""
    found = []
    columns = zip(zip(*base.answers, strict=True), zip(*other.answers, strict=True), strict=True)
    for ours, theirs in columns:
        before, after = _share(ours), _share(theirs)
        if (before >= 0.5) != (after >= 0.5):
            one, two = _typical(ours, before), _typical(theirs, after)
            question, gold = one.question or two.question or one.id, one.gold or two.gold
            found.append(Flip(question, gold, before, after, one.completion, two.completion))
    found.sort(key=lambda flip: not flip.gained)
    return Flips(other.group, other.label, base.group, base.label, found)


def _share(drawn: Drawn) -> float:
    answers = [bool(answer.correct) for seed in drawn for answer in seed]
    return sum(answers) / len(answers)


def _typical(drawn: Drawn, share: float) -> JudgedAnswer:
    """Return the first answer that is judged as most are."""
    answers = [answer for seed in drawn for answer in seed]
    return next(answer for answer in answers if answer.correct == (share >= 0.5))
