"""The built-in problems: seeded stories about people who gain, lose, share and multiply things.

A story is a list of sentences and, in step with them, a list of state updates. The updates are both
the simulation that gives the answer and what the annotated chains are written from.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from random import Random

from reftune.config import Synthetic
from reftune.types import Cot, Problem, UserError

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

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "": lambda left, _: left,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
}
MOST_DRAWS = 1000  # of one problem, before we say that the settings allow no more different ones


def generate(settings: Synthetic, size: int, seed: int, cot: Cot) -> list[Problem]:
    """Write `size` different problems, each with one chain of kind `cot` in one of several styles.

    Problem i depends on the settings, the seed and the problems before it alone, so a larger set
    starts with the smaller one, and a question is the same for both kinds of chain. Raises UserError
    where the settings do not allow `size` different questions.
    """
    _check(settings)
    problems: dict[str, Problem] = {}
    for index in range(size):
        rng = Random(f"{seed}/{index}")
        stories = (_tell(settings, rng) for _ in range(MOST_DRAWS))
        story = next((story for story in stories if story.text not in problems), None)
        if story is None:
            raise UserError(
                f"data.synthetic: these settings give about {index} different questions, not {size};"
                " raise max_events, max_number or people"
            )
        chain = _program(story, rng) if cot == "program" else _sentences(story, rng)
        problems[story.text] = Problem(f"synthetic-{seed}-{index}", story.text, str(story.answer), chain)
    return list(problems.values())


@dataclass(frozen=True, slots=True)
class _Step:
    """One update, `target = left op right`; `target = left` where `op` is empty."""

    target: str
    left: str | int
    op: str = ""
    right: str | int = 0


@dataclass(slots=True)
class _Story:
    people: list[str]
    things: str
    sentences: list[str] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)
    amounts: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    op: str = ""  # what the question does with the amounts of the asked

    @property
    def text(self) -> str:
        return " ".join(self.sentences)

    @property
    def answer(self) -> int:
        first, *others = (self.amounts[person] for person in self.asked)
        return first - sum(others) if self.op == "-" else first + sum(others)


def _check(settings: Synthetic) -> None:
    if settings.people > len(NAMES):
        raise UserError(f"data.synthetic.people: at most {len(NAMES)}, not {settings.people}")
    if settings.min_events > settings.max_events:
        raise UserError("data.synthetic: min_events is larger than max_events; lower it")


def _tell(settings: Synthetic, rng: Random) -> _Story:
    names = NAMES[: max(FEWEST_NAMES, settings.people)]
    people = rng.sample(names, rng.randint(2, settings.people))
    story = _Story(people, rng.choice(THINGS))
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


def _happen(
    story: _Story,
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
        steps = [_step(update, {"a": a, "b": b, "n": n}) for update in updates.split("; ")]
        amounts = dict(story.amounts)
        if all(_apply(step, amounts, ceiling) for step in steps):
            story.amounts = amounts
            story.steps += steps
            story.sentences.append(sentence.format(a=a, b=b, n=n, things=story.things))
            return


def _step(update: str, values: dict[str, str | int]) -> _Step:
    target, _, left, *rest = update.split()
    op, right = rest or ("", "0")
    number = int(right) if right.isdigit() else values[right]
    return _Step(str(values[target]), values[left], op, number)


def _apply(step: _Step, amounts: dict[str, int], ceiling: int) -> bool:
    """Update `amounts`; say whether the step was possible: whole, in bounds, and a change."""
    left, right = _operands(step, amounts)
    value = OPERATORS[step.op](left, right)
    possible = 0 <= value < ceiling and value != amounts.get(step.target)
    amounts[step.target] = value
    return possible and not (step.op == "//" and left % right)


def _operands(step: _Step, amounts: dict[str, int]) -> tuple[int, int]:
    left, right = (amounts[x] if isinstance(x, str) else x for x in (step.left, step.right))
    return left, right


def _ask(story: _Story, rng: Random) -> None:
    """Draw the question: on one person (whose amount changed, if any did), two people, or everybody."""
    changed = {step.target for step in story.steps[len(story.people) :]} or set(story.people)
    a = rng.choice(sorted(changed))
    b = rng.choice([person for person in story.people if person != a])
    more, fewer = sorted((a, b), key=story.amounts.__getitem__, reverse=True)
    things = story.things
    question, story.asked, story.op = rng.choice(
        (
            (f"How many {things} does {a} have now?", [a], ""),
            (f"How many {things} do {a} and {b} have together?", [a, b], "+"),
            (f"How many more {things} does {more} have than {fewer}?", [more, fewer], "-"),
            (f"How many {things} do they all have together?", story.people, "+"),
        )
    )
    story.sentences.append(question)


def _relevant(story: _Story) -> list[_Step]:
    """Keep the steps that the asked amounts depend on, looking backwards from the question."""
    needed: set[str | int] = set(story.asked)
    kept = []
    for step in reversed(story.steps):
        if step.target in needed:
            kept.append(step)
            needed |= {step.left, step.right}
    return kept[::-1]


def _program(story: _Story, rng: Random) -> str:
    """Write a P-CoT: everybody or only who matters, assigned or updated in place."""
    steps = rng.choice((story.steps, _relevant(story)))
    body = rng.choice((_assigned, _augmented))(steps)
    total = f" {story.op} ".join(story.asked)
    end = rng.choice(((f"result = {total}", "return result"), (f"return {total}",)))
    return "\n    ".join(("def solution():", *body, *end)).lower()  # the people become variables


def _assigned(steps: Sequence[_Step]) -> list[str]:
    return [
        f"{s.target} = {s.left} {s.op} {s.right}" if s.op else f"{s.target} = {s.left}" for s in steps
    ]


def _augmented(steps: Sequence[_Step]) -> list[str]:
    return [
        f"{step.target} {step.op}= {step.right}" if step.left == step.target else line
        for step, line in zip(steps, _assigned(steps), strict=True)
    ]


def _sentences(story: _Story, rng: Random) -> str:
    """Write an N-CoT: everybody or only who matters; in sentences, line by line, or bare equations."""
    equations = _equations(rng.choice((story.steps, _relevant(story))))
    total = f" {story.op} ".join(str(story.amounts[person]) for person in story.asked)
    if story.op:
        end = f"{rng.choice(('The answer is', 'So it is'))} {total} = {story.answer}."
    else:
        end = f"So {story.asked[0]} has {total} {story.things} now."
    sentences = [f"{person} has {equation}." for person, equation in equations]
    lines = [f"{person}: {equation}" for person, equation in equations]
    bare = [f"{equation}." for _, equation in equations if "=" in equation]
    separator, body = rng.choice(((" ", sentences), ("\n", lines), (" ", bare)))
    return separator.join((*body, end))


def _equations(steps: Sequence[_Step]) -> list[tuple[str, str]]:
    """Work the steps out: each person with `7` or `7 + 3 = 10`, in order."""
    amounts: dict[str, int] = {}
    equations = []
    for step in steps:
        left, right = _operands(step, amounts)
        value = amounts[step.target] = OPERATORS[step.op](left, right)
        sign = {"//": "/"}.get(step.op, step.op)
        equations.append((step.target, f"{left} {sign} {right} = {value}" if sign else f"{value}"))
    return equations
