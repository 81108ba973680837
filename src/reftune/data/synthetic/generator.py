"""The built-in problems: seeded stories with a chain of either kind in several styles, and options."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import compress
from random import Random
from string import ascii_lowercase

from reftune.config import Synthetic
from reftune.data.formats import write_options
from reftune.data.synthetic.stories import NAMES, Equation, Step, Story, equations, tell
from reftune.problem import Cot, Problem, UserError

MOST_DRAWS = 1000  # of one problem, before we say that the settings allow no more different ones
REVERSED = {"+": "-", "-": "+", "*": "//", "//": "*"}


def generate(settings: Synthetic, size: int, seed: int, cot: Cot) -> list[Problem]:
    """Write `size` different problems, each with one chain of kind `cot` in one of several styles.

    Problem i depends on the settings, the seed and the problems before it alone, so a larger set
    starts with the smaller one, and a story is the same for both kinds of chain, with options and
    without. Raises UserError where the settings do not allow `size` different questions.
    """
    _check(settings)
    problems: dict[str, Problem] = {}
    for index in range(size):
        rng = Random(f"{seed}/{index}")
        stories = (tell(settings, rng) for _ in range(MOST_DRAWS))
        story = next((story for story in stories if story.text not in problems), None)
        if story is None:
            raise UserError(
                f"data.synthetic: these settings give about {index} different questions, not {size};"
                " raise max_events, max_number or people"
            )
        chain = _program(story, rng) if cot == "program" else _sentences(story, rng, settings.retold)
        problem = Problem(f"synthetic-{seed}-{index}", story.text, str(story.answer), chain)
        problems[story.text] = _with_options(problem, story, settings.choices)
    return list(problems.values())


def _check(settings: Synthetic) -> None:
    if settings.people > len(NAMES):
        raise UserError(f"data.synthetic.people: at most {len(NAMES)}, not {settings.people}")
    if settings.min_events > settings.max_events:
        raise UserError("data.synthetic: min_events is larger than max_events; lower it")
    if settings.choices == 1:
        raise UserError("data.synthetic.choices: 2 to 5, or 0 for a number as the answer, not 1")


def _with_options(problem: Problem, story: Story, count: int) -> Problem:
    """Make a problem multiple choice with `count` options, in random order; leave it open if 0."""
    if not count:
        return problem
    # Seeded by the story: one that comes up again has the same options, so its copies can be dropped.
    rng = Random(story.text)
    numbers = [story.answer, *rng.sample(_wrong_answers(story), count - 1)]
    rng.shuffle(numbers)
    choices = tuple(map(str, numbers))
    letter = ascii_lowercase[numbers.index(story.answer)]
    question = f"{story.text}\n{write_options(choices)}"
    return replace(problem, question=question, answer=letter, choices=choices)


def _wrong_answers(story: Story) -> list[int]:
    """List what slips lead to: another amount, all together, a step skipped or reversed, near misses."""
    steps = story.steps
    found = {equation.value for equation in equations(steps)}
    found |= {sum(story.amounts.values()), story.answer}
    for place in range(len(story.amounts), len(steps)):
        before, step, after = steps[:place], steps[place], steps[place + 1 :]
        for slip in ([], [replace(step, op=REVERSED[step.op])]):
            slipped = equations([*before, *slip, *after])
            found.add(story.total({equation.person: equation.value for equation in slipped}))
    # Near misses of every number: those of the answer alone would give it away. The first amount is 2
    # or more, so it has five neighbours that are not negative, and there are always four wrong ones.
    near = {number + miss for number in found for miss in range(-2, 3)}
    return sorted(number for number in near if number >= 0 and number != story.answer)


def _relevant(story: Story) -> list[Step]:
    return list(compress(story.steps, story.needed()))


def _program(story: Story, rng: Random) -> str:
    """Write a P-CoT: everybody or only who matters, assigned or updated in place."""
    steps = rng.choice((story.steps, _relevant(story)))
    in_place = rng.choice((False, True))
    body = [_line(step, in_place) for step in steps]
    total = f" {story.op} ".join(story.asked)
    end = rng.choice(((f"result = {total}", "return result"), (f"return {total}",)))
    return "\n    ".join(("def solution():", *body, *end)).lower()  # the people become variables


def _line(step: Step, in_place: bool) -> str:
    if not step.op:
        return f"{step.target} = {step.left}"
    if in_place and step.left == step.target:
        return f"{step.target} {step.op}= {step.right}"
    return f"{step.target} = {step.left} {step.op} {step.right}"


def _sentences(story: Story, rng: Random, retold: bool) -> str:
    """Write an N-CoT: everybody or only who matters; in sentences, line by line, or bare equations.

    Where it is to be `retold` it is always in sentences that say again what a calculation is made of.
    """
    steps = rng.choice((story.steps, _relevant(story)))
    total = f" {story.op} ".join(str(story.amounts[person]) for person in story.asked)
    if story.op:
        end = f"{rng.choice(('The answer is', 'So it is'))} {total} = {story.answer}."
    else:
        end = f"So {story.asked[0]} has {total} {story.things} now."
    if retold:
        return " ".join((*_retold(story, steps), end))
    worked = equations(steps)
    sentences = [f"{equation.person} has {_written(equation)}." for equation in worked]
    lines = [f"{equation.person}: {_written(equation)}" for equation in worked]
    bare = [f"{_written(equation)}." for equation in worked if equation.op]
    separator, body = rng.choice(((" ", sentences), ("\n", lines), (" ", bare)))
    return separator.join((*body, end))


def _retold(story: Story, steps: Sequence[Step]) -> Iterator[str]:
    """Write what happens, who of it has how many, the equation and who has how many then; so every
    amount that is needed stands in the last sentence that begins with its person."""
    for step, equation in zip(steps, equations(steps), strict=True):
        if step.op:
            yield step.told
            yield from _amounts(((step.left, equation.left), (step.right, equation.right)))
            yield f"{_written(equation)}."
        yield f"{equation.person} has {equation.value}."
    if story.op:
        yield from _amounts((person, story.amounts[person]) for person in story.asked)


def _amounts(operands: Iterable[tuple[str | int, int]]) -> Iterator[str]:
    return (f"{who} has {amount}." for who, amount in operands if isinstance(who, str))


def _written(equation: Equation) -> str:
    """Write an equation as `7 + 3 = 10`, and as `7` where nothing was worked out."""
    if not equation.op:
        return f"{equation.value}"
    sign = "/" if equation.op == "//" else equation.op
    return f"{equation.left} {sign} {equation.right} = {equation.value}"
