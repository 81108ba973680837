"""Tell whether a chain in natural language is a right solution of a built-in question.

The story is read back from the question, so that every amount is known at every moment, and the chain
is followed through it sentence by sentence. Chains are written by models: their length is bounded, and
each sentence costs one pass over the story.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from reftune.data.synthetic.stories import NAMES, THINGS, Story, equations, is_told, read_story
from reftune.grading.quantities import same_number

MAX_CHAIN_CHARS = 10_000

_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_NAME = "|".join(NAMES)
_SENTENCE = re.compile(
    rf"(?:(?:So )?(?P<person>{_NAME}) has |(?P<line>{_NAME}): |(?P<end>The answer is|So it is) )?"
    rf"(?:(?P<work>{_NUMBER}(?: [-+*/] {_NUMBER})+) = )?(?P<value>{_NUMBER})"
    rf"(?: (?P<things>{'|'.join(THINGS)}))?(?: now)?\.?"
)
_TOTAL = "total"  # who has it, where the question is on several people


@dataclass(frozen=True, slots=True)
class _Statement:
    """A sentence of a chain, or what the story makes true at one moment: `who` has `value`.

    It is worked out from `terms`, or said outright.
    """

    who: str | None  # None: a sentence that names nobody
    terms: Sequence[float]
    value: float
    needed: bool = False  # a calculation of the story that the answer depends on


_SAID_AGAIN = _Statement("", (), math.nan)  # a sentence of the story: it moves nothing on
_MISQUOTED = _Statement(None, (), math.nan)  # one that this story does not have


def chain_is_right(question: str, chain: str) -> bool | None:
    """Tell whether a chain, less the sentence that gives the answer, solves a built-in question.

    It does if all its equations are true, each is one of the story's, in the story's order, none that
    the answer depends on is left out, and the last gives the answer as a number. Another way to the
    same number is called wrong, and so is an empty chain. What the story says may be said again
    anywhere but at the end; to say what it does not say is wrong.

    None where that cannot be told: the question is not a built-in one, the chain has more than
    MAX_CHAIN_CHARS characters, or a sentence is in none of the forms of `synthetic` and the chain would
    be right if that sentence told the calculations whose results it mentions.
    """
    story = read_story(question.partition("\n")[0])
    if story is None or len(chain) > MAX_CHAIN_CHARS:
        return None
    facts = _facts(story)
    goal = _TOTAL if story.op else story.asked[0]
    reached, unknown, last = {0}, False, None
    for sentence in filter(None, map(str.strip, re.split(r"\n|(?<=\.) ", chain))):
        last = _read(sentence, goal, story)
        unknown = unknown or last is None
        reached = _follow(facts, reached, last) if last else _guess(facts, reached, sentence)
    needed = max((place for place, fact in enumerate(facts, start=1) if fact.needed), default=0)
    if max(reached, default=-1) < needed:
        return False
    if unknown:
        return None
    return last is not None and last.who in (None, goal) and same_number(last.value, story.answer)


def _facts(story: Story) -> list[_Statement]:
    """List what becomes true in the story, and the total that is asked for, if it is one."""
    facts = []
    for step, needed in zip(equations(story.steps), story.needed(), strict=True):
        terms = [step.left, step.right] if step.op else []
        facts.append(_Statement(step.person, terms, step.value, needed and bool(terms)))
    if story.op:
        amounts = [story.amounts[person] for person in story.asked]
        facts.append(_Statement(_TOTAL, amounts, story.answer, needed=True))
    return facts


def _read(sentence: str, goal: str, story: Story) -> _Statement | None:
    """Return what a sentence claims, None if it has no known form; NaN is the value of what is false."""
    found = _SENTENCE.fullmatch(sentence)
    if found is None:
        quoted = _SAID_AGAIN if sentence in story.sentences else _MISQUOTED
        return quoted if is_told(sentence) else None
    who = found["person"] or found["line"] or (goal if found["end"] else None)
    tokens = (found["work"] or "").split()
    terms, value = [float(number) for number in tokens[::2]], float(found["value"])
    miscalculated = terms and not same_number(_calculate(terms, tokens[1::2]), value)
    if miscalculated or found["things"] not in (None, story.things):
        return _Statement(who, terms, math.nan)
    several_steps = len(terms) > 2 and who != _TOTAL
    return None if several_steps or not (who or terms) else _Statement(who, terms, value)


def _calculate(terms: Sequence[float], signs: Sequence[str]) -> float:
    total, product = 0.0, terms[0]
    for sign, term in zip(signs, terms[1:], strict=True):
        if sign == "*":
            product *= term
        elif sign == "/":
            product = product / term if term else math.nan
        else:
            total, product = total + product, term if sign == "+" else -term
    return total + product


def _follow(facts: Sequence[_Statement], reached: set[int], claim: _Statement) -> set[int]:
    """Return where in the story a chain can be after `claim`, given where it could be before.

    A place is a number of facts that are over. From there a claim may tell the next fact, or a later
    one if no needed one lies between, or say again what somebody has. Else the claim is wrong, and
    there is no place any more.
    """
    if claim is _SAID_AGAIN:
        return reached
    places = set()
    latest: dict[str | None, _Statement] = {}
    within_reach = 0 in reached
    for place, fact in enumerate(facts, start=1):
        latest[fact.who] = fact
        if within_reach and _tells(claim, fact):
            places.add(place)
        if place in reached and any(_repeats(claim, old) for old in latest.values()):
            places.add(place)
        within_reach = place in reached or (within_reach and not fact.needed)
    return places


def _guess(facts: Sequence[_Statement], reached: set[int], sentence: str) -> set[int]:
    """Return where a chain can be after a sentence of unknown form: past every result in it."""
    numbers = {float(number) for number in re.findall(r"[0-9]+(?:\.[0-9]+)?", sentence)}
    places = set(reached)
    for place, fact in enumerate(facts):
        if place in places and (fact.value in numbers or not fact.needed):
            places.add(place + 1)
    return places


def _tells(claim: _Statement, fact: _Statement) -> bool:
    """Compare a claim with a fact; a calculation must be shown."""
    if claim.who not in (None, fact.who) or not same_number(claim.value, fact.value):
        return False
    if fact.who == _TOTAL or not fact.terms:
        return sorted(claim.terms) == sorted(fact.terms)
    # The order does not matter, and twice 7 is also 7 + 7, half of 14 also 14 - 7.
    return len(claim.terms) == 2 and {*claim.terms} <= {*fact.terms, fact.value}


def _repeats(claim: _Statement, fact: _Statement) -> bool:
    said = not claim.terms and claim.who == fact.who and same_number(claim.value, fact.value)
    return said or _tells(claim, fact)
