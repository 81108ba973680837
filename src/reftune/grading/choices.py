"""Multiple choice: which option does an answer name?"""

import re
from collections.abc import Sequence
from string import ascii_lowercase

from reftune.grading.equality import compare
from reftune.grading.extraction import MAX_ANSWER_CHARS
from reftune.grading.notation import plain
from reftune.grading.quantities import before_reason, parse_number, same_number
from reftune.grading.wording import normalise
from reftune.problem import Answer

_NAMED_SO = re.compile(
    r"\A(?:(?:i think|it is|it's)\s+)?(?:the )?(?:(?:correct|right|best) )?"
    r"(?:(?:option|choice|answer)(?: is)?:?\s+)?",
    re.IGNORECASE,
)
_REFUSED = re.compile(r",?\s+(?:(?:and|but) )?not \(?[A-Za-z]\)?(?=\W*\Z)")  # "B, and not C"
_NAMED_LAST = re.compile(r"(.+?)\s*\(([A-Za-z])\)")
_LETTER = re.compile(r"([(\[]?)([A-Za-z])(?:( ?[)\].:,])|(?= ?\()| ?(-)(?=\s)|(?=\s)|\Z)")
_OWN_LETTER = re.compile(r"\A\s*\(?([A-Za-z])\s?[).:]\s*")


def extract_choice(answer: Answer, choices: Sequence[str]) -> str | None:
    """Return the lower-case letter of the option that an answer names, or None.

    Taken in this order: a bare letter (`b`, `(B)`), the text of exactly one option, a letter with its
    option or a reason (`b ) 27`, `B because`; an answer that names another option as well names none), a
    number that is the same as its nearest option (none if two options tie), and what is equal to one
    option as answers are.
    """
    options = _without_letters(choices)
    if not isinstance(answer, str):
        return _nearest_option(answer, options)
    text = _NAMED_SO.sub("", " ".join(plain(answer).split()).strip(" \"'`*.,;!"))
    text = _REFUSED.sub("", text)
    bare = text.strip("()[]<>: .*").lower()
    if len(bare) == 1 and bare in ascii_lowercase[: len(options)]:
        return bare
    last = _NAMED_LAST.fullmatch(text)
    if last and _of_text(last[1], options) == last[2].lower():  # "a goat (B)"
        return last[2].lower()
    named = _of_text(text, options) or _of_text(answer, options)
    if named or len(text) > MAX_ANSWER_CHARS:
        return named
    marked = _LETTER.match(text)
    if marked and marked[2].lower() in ascii_lowercase[: len(options)]:
        said = _of_letter(marked, text, options)
        if said is not None or marked[3] or marked[4]:
            return said
    number = parse_number(text)
    return _equal_option(text, options) if number is None else _nearest_option(number, options)


def _without_letters(choices: Sequence[str]) -> list[str]:
    """Return option texts without their own letters, where all of them have theirs (`A)-5`)."""
    found = [_OWN_LETTER.match(choice) for choice in choices]
    if all(
        own and own[1].lower() == letter for own, letter in zip(found, ascii_lowercase, strict=False)
    ):
        return [choice[own.end() :] for own, choice in zip(found, choices, strict=True) if own]
    return list(choices)


def _of_text(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the only option with this text."""
    normal = normalise(text).strip("()")
    same = [
        letter
        for letter, option in zip(ascii_lowercase, options, strict=False)
        if normalise(option).strip("()") == normal
    ]
    return same[0] if len(same) == 1 else None


def _of_letter(marked: re.Match[str], text: str, options: Sequence[str]) -> str | None:
    """Return the letter that a text begins with, unless what follows names another option."""
    letter, rest = marked[2].lower(), text[marked.end() :].strip(" -:.,")
    said = _of_text(rest, options)
    if said is not None:
        return letter if said == letter else None
    if not (
        marked[3] or marked[4] or rest.startswith("(") or before_reason(text).strip(" (") == marked[2]
    ):
        return None  # "a train" begins with an article
    rest = before_reason(f"{marked[2]} {rest}")[2:]
    mark = (marked[3] or "").strip()  # "A, B" names two
    return None if _other_letters(letter, f"{mark} {rest}", len(options)) else letter


def _other_letters(letter: str, rest: str, count: int) -> set[str]:
    letters = ascii_lowercase[:count]
    found = re.findall(rf"(?<!\w)([{letters.upper()}])(?![\w'])", rest)
    found += re.findall(rf"(?<!\w)([{letters}]) ?[)\]]", rest)
    found += re.findall(
        rf"(?:\b(?:or|and|nor)|[,/]) ?\(?([{letters}])(?:\W*\Z|\W*(?=,|\bor\b|\band\b))", rest
    )
    return {other.lower() for other in found} - {letter}


def _nearest_option(number: float, options: Sequence[str]) -> str | None:
    gaps = sorted(
        (abs(value - number), letter)
        for letter, text in zip(ascii_lowercase, options, strict=False)
        if (value := parse_number(text)) is not None and same_number(number, value)
    )
    if not gaps or (len(gaps) > 1 and gaps[0][0] == gaps[1][0]):
        return None
    return gaps[0][1]


def _equal_option(text: str, options: Sequence[str]) -> str | None:
    """Return the only option that is equal to a text as answers are."""
    same = [
        letter
        for letter, option in zip(ascii_lowercase, options, strict=False)
        if compare(text, option).equal
    ]
    return same[0] if len(same) == 1 else None
