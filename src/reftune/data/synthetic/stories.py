"""Seeded stories about people who gain, lose, share and multiply things: told, worked out, read back.

A story is a list of sentences and, in step with them, a list of state updates: the simulation that
gives the answer. The tables of sentences serve both ways: `tell` fills them in, `read_story` turns
them into patterns.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from random import Random

from reftune.config import Synthetic

NAMES = ("Ann", "Bob", "Cal", "Dan", "Eve", "Fay", "Gus", "Ida")
FEWEST_NAMES = 4  # in use; more only where a story may have more people
THINGS = ("apples", "coins", "shells")

# A sentence with the updates that it stands for. Sentences are drawn uniformly, so that a kind of
# event with more phrasings happens more often.
FIRST_START = (("{a} has {n} {things}.", "a = n"),)
STARTS = (
    ("{a} has {n}.", "a = n"),
    ("{a} has {n}.", "a = n"),
    ("{a} has {n} more than {b}.", "a = b + n"),
    ("{a} has 2 times as many as {b}.", "a = b * 2"),
)
EVENTS = (
    ("{a} gets {n} more.", "a = a + n"),
    ("{a} finds {n} {things}.", "a = a + n"),
    ("{a} loses {n}.", "a = a - n"),
    ("{a} gives {n} to {b}.", "a = a - n; b = b + n"),
    ("{a} doubles the {things}.", "a = a * 2"),
    ("{a} finds as many as {b} has.", "a = a + b"),
    ("{a} loses half the {things}.", "a = a // 2"),
)
DISTRACTORS = ("{a} is {n} years old.", "{a} sees {n} birds.")
QUESTIONS = (  # with whom they ask about (nobody named: everybody), and what they do with the amounts
    ("How many {things} does {a} have now?", "a", ""),
    ("How many {things} do {a} and {b} have together?", "ab", "+"),
    ("How many more {things} does {a} have than {b}?", "ab", "-"),
    ("How many {things} do they all have together?", "", "+"),
)

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "": lambda left, _: left,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
}

MAX_TEXT_CHARS = 2000  # of a story to read back; ours have a few hundred
MAX_AMOUNT = 10**15  # likewise, and a float is exact up to here


@dataclass(frozen=True, slots=True)
class Step:
    """One update, `target = left op right`; `target = left` where `op` is empty."""

    target: str
    left: str | int
    op: str = ""
    right: str | int = 0
    told: str = ""  # the sentence that stands for it


@dataclass(frozen=True, slots=True)
class Equation:
    """A step worked out: `person` now has `value`, which is `left op right`."""

    person: str
    left: int
    op: str
    right: int
    value: int


@dataclass(slots=True)
class Story:
    """What is told, what it does to the amounts, and whose amounts the question adds or subtracts."""

    things: str = ""
    sentences: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    amounts: dict[str, int] = field(default_factory=dict)  # of all people, as they are introduced
    asked: list[str] = field(default_factory=list)
    op: str = ""

    @property
    def text(self) -> str:
        """Return the sentences, the question last."""
        return " ".join(self.sentences)

    @property
    def answer(self) -> int:
        """Return what the question asks for."""
        return self.total(self.amounts)

    def total(self, amounts: Mapping[str, int]) -> int:
        """Return what the answer would be if these were the final amounts."""
        first, *others = (amounts[person] for person in self.asked)
        return first - sum(others) if self.op == "-" else first + sum(others)

    def needed(self) -> list[bool]:
        """Tell of each step whether the answer depends on it, looking backwards from the question."""
        wanted: set[str | int] = set(self.asked)
        flags = []
        for step in reversed(self.steps):
            flags.append(step.target in wanted)
            if flags[-1]:
                wanted |= {step.left, step.right}
        return flags[::-1]


def equations(steps: Iterable[Step]) -> list[Equation]:
    """Work steps out in order; a person whom a step refers to must have had one before."""
    amounts: dict[str, int] = {}
    worked = []
    for step in steps:
        left, right = _operands(step, amounts)
        value = amounts[step.target] = OPERATORS[step.op](left, right)
        worked.append(Equation(step.target, left, step.op, right, value))
    return worked


def tell(settings: Synthetic, rng: Random) -> Story:
    """Make a story up: who has what, what happens then, and a question about the end."""
    names = NAMES[: max(FEWEST_NAMES, settings.people)]
    people = rng.sample(names, rng.randint(2, settings.people))
    story = Story(rng.choice(THINGS))
    for count, person in enumerate(people):
        pairs = [(person, other) for other in people[:count]] or [(person, person)]
        _happen(
            story, rng, STARTS if count else FIRST_START, pairs, settings.max_number, settings.max_number
        )
    # Changes are smaller than starts, and no amount grows without bounds by doubling.
    change, ceiling = max(3, settings.max_number // 2), 10 * settings.max_number
    for _ in range(rng.randint(settings.min_events, settings.max_events)):
        _happen(story, rng, EVENTS, list(permutations(people, 2)), change, ceiling)
    if rng.random() < settings.distractors:
        fact = rng.choice(DISTRACTORS).format(
            a=rng.choice(people), n=rng.randint(2, settings.max_number)
        )
        story.sentences.insert(rng.randint(len(people), len(story.sentences)), fact)
    _ask(story, rng)
    return story


def read_story(text: str) -> Story | None:
    """Return the story that a text tells, None if a sentence is not one of ours or does not fit.

    It is the inverse of `tell`: `read_story(story.text) == story`.
    """
    if len(text) > MAX_TEXT_CHARS:
        return None
    story = Story()
    *told, question = text.replace(". ", ".\n").split("\n")
    heard = all(_hear(story, sentence) for sentence in told) and _hear_question(story, question)
    return story if heard else None


def is_told(text: str) -> bool:
    """Tell whether a text is a sentence of some story, other than its question."""
    return any(pattern.fullmatch(text) for pattern, *_ in _READERS)


def _happen(
    story: Story,
    rng: Random,
    events: Sequence[tuple[str, str]],
    pairs: Sequence[tuple[str, str]],
    largest: int,
    ceiling: int,
) -> None:
    """Draw events for `pairs` of people until one is possible, and let it happen."""
    while True:
        sentence, updates = rng.choice(events)
        a, b = rng.choice(pairs)
        n = rng.randint(2, largest)
        told = sentence.format(a=a, b=b, n=n, things=story.things)
        if _add(story, told, updates, {"a": a, "b": b, "n": n}, ceiling):
            return


def _add(
    story: Story, sentence: str, updates: str, values: Mapping[str, str | int], ceiling: int
) -> bool:
    """Let what a sentence stands for happen if that is possible: whole, in bounds, and a change."""
    steps, amounts = [], dict(story.amounts)
    for update in filter(None, updates.split("; ")):
        target, _, first, *rest = update.split()
        op, second = rest or ("", "0")
        number = int(second) if second.isdigit() else values[second]
        step = Step(str(values[target]), values[first], op, number, sentence)
        left, right = _operands(step, amounts)
        value = OPERATORS[op](left, right)
        if (
            not 0 <= value < ceiling
            or value == amounts.get(step.target)
            or (op == "//" and left % right)
        ):
            return False
        amounts[step.target] = value
        steps.append(step)
    story.amounts = amounts
    story.steps += steps
    story.sentences.append(sentence)
    return True


def _operands(step: Step, amounts: Mapping[str, int]) -> tuple[int, int]:
    left, right = (amounts[x] if isinstance(x, str) else x for x in (step.left, step.right))
    return left, right


def _ask(story: Story, rng: Random) -> None:
    """Draw the question: on one person (whose amount changed, if any did), two people, or everybody."""
    people = [*story.amounts]
    changed = {step.target for step in story.steps[len(people) :]} or people
    a = rng.choice(sorted(changed))
    b = rng.choice([person for person in people if person != a])
    sentence, asked, story.op = rng.choice(QUESTIONS)
    if story.op == "-":
        a, b = sorted((a, b), key=story.amounts.__getitem__, reverse=True)
    story.asked = [{"a": a, "b": b}[who] for who in asked] or people
    story.sentences.append(sentence.format(a=a, b=b, things=story.things))


def _pattern(sentence: str) -> re.Pattern[str]:
    """Turn `{a} has {n}.` into the pattern that reads it back."""
    name = "|".join(NAMES)
    return re.compile(
        re.sub(r"([.?])", r"\\\1", sentence).format(
            a=f"(?P<a>{name})", b=f"(?P<b>{name})", n="(?P<n>[0-9]{1,15})", things=_THINGS
        )
    )


_THINGS = f"(?P<things>{'|'.join(THINGS)})"
# The pattern of each sentence, its updates, and whether it is a person's first.
_READERS = [
    *((_pattern(sentence), updates, True) for sentence, updates in (*FIRST_START, *STARTS)),
    *((_pattern(sentence), updates, False) for sentence, updates in EVENTS),
    *((_pattern(sentence), "", False) for sentence in DISTRACTORS),
]
_QUESTION_READERS = [(_pattern(sentence), asked, op) for sentence, asked, op in QUESTIONS]


def _hear(story: Story, sentence: str) -> bool:
    """Read a sentence back and let it happen; say whether it is one of ours and possible."""
    for pattern, updates, starts in _READERS:
        if found := pattern.fullmatch(sentence):
            words = found.groupdict()
            if starts == (words["a"] in story.amounts) or words.get("b") not in {None, *story.amounts}:
                return False
            values = {key: int(word) if key == "n" else word for key, word in words.items()}
            return _add(story, sentence, updates, values, MAX_AMOUNT) and _same_things(story, words)
    return False


def _hear_question(story: Story, sentence: str) -> bool:
    for pattern, asked, op in _QUESTION_READERS:
        if found := pattern.fullmatch(sentence):
            words = found.groupdict()
            story.asked, story.op = [words[who] for who in asked] or [*story.amounts], op
            story.sentences.append(sentence)
            return set(story.asked) <= story.amounts.keys() != set() and _same_things(story, words)
    return False


def _same_things(story: Story, words: Mapping[str, str]) -> bool:
    """Say whether a sentence is about the story's things; the first one settles what they are."""
    things = words.get("things", story.things)
    story.things = story.things or things
    return things == story.things
