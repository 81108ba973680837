"""Compare answers as texts: spelling does not matter, but words that decide do."""

import re
from collections import Counter

from reftune.grading.notation import plain
from reftune.grading.quantities import before_reason

_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_MONTHS = [
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
    "november", "december",
]  # fmt: skip
_ORDINALS = [
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
]  # fmt: skip

_ABBREVIATED = {name[:3]: name for name in _DAYS + _MONTHS} | {
    "tues": "tuesday", "thur": "thursday", "thurs": "thursday", "sept": "september",
}  # fmt: skip

# What stands for each way to say the same; after plain(), in this order.
_CANONICAL = [
    (re.compile(pattern), form)
    for pattern, form in (
        (r"(?<![a-z\\])([ap])\.?\s?m(?:\.|(?![a-z]))", r" \1m "),
        (r"\b(?:at least|no (?:fewer|less) than|not (?:fewer|less) than|a minimum of)\b", " atleast "),
        (r"\b(?:at most|no more than|not more than|up to|a maximum of)\b", " atmost "),
        (r"([0-9]\S*(?:\s+[a-z]+)?)\s+or (?:more|greater|higher|above)\b", r" atleast \1"),
        (r"([0-9]\S*(?:\s+[a-z]+)?)\s+or (?:less|fewer|lower|below)\b", r" atmost \1"),
        (r"\b(?:(?:more|greater|larger|higher) than|over|above|exceeds)\b", " morethan "),
        (r"\b(?:(?:less|fewer|smaller|lower) than|under|below)\b", " lessthan "),
        (r"\b([ab])\.?\s?([dc])\.?(?=\W|$)(?<=[0-9] ..)", r" \1\2 "),
        (r"(?<=[0-9])(?:st|nd|rd|th)\b", " "),
    )
]
_TIME = re.compile(
    r"(?<![0-9:.])([0-9]{1,2})(?::([0-9]{2}))?\s*(am|pm)(?![a-z])|(?<![0-9:])([0-9]{1,2}):([0-9]{2})(?![0-9:])"
)
_RATIO = re.compile(r"[0-9.]+(?:\s*:\s*[0-9.]+)+")
_DECIDES = {
    "atleast",
    "atmost",
    "morethan",
    "lessthan",
    "am",
    "pm",
    "ad",
    "bc",
    "not",
    "never",
    "noon",
    "midnight",
    *_DAYS,
    *_MONTHS,
}
_TOKEN = re.compile(r"(?<![\\a-z])[a-z]+|(?<![\w)])-?[0-9]+(?:[.,:][0-9]+)*")
_ABBREVIATING = re.compile(r"(?<=[a-z])\.(?=\s|\Z|[a-z](?:\.|\Z))")
_VERDICTS = {"yes", "no", "true", "false"}


def normalise(text: str) -> str:
    """Return a text without case, wrappers, punctuation at its ends, and spaces but between words."""
    text = " ".join(plain(text).casefold().split()).strip("\"'`*$.,;:!? ")
    return _ABBREVIATING.sub("", re.sub(r"(?<!\w) | (?!\w)", "", _ABBREVIATING.sub("", text)))


def same_text(answer: str, truth: str) -> bool:
    """Tell whether two texts say the same, spelling aside; `yes` may go on after a comma."""
    ours, theirs = normalise(answer), normalise(truth)
    if ours == theirs != "":
        return True
    ours, theirs = _without_article(normalise(before_reason(answer))), _without_article(theirs)
    if theirs in _VERDICTS:
        return re.split(r"[,.;:]", ours, maxsplit=1)[0] == theirs
    return ours == theirs != ""


def decides(truth: str) -> bool:
    """Tell whether a text has words that no answer may leave out or change, such as AM or `at least`."""
    if not any(character.isdigit() for character in truth):
        return False
    return not _DECIDES.isdisjoint(_TOKEN.findall(_canonical(truth)) + _tokens(truth))


def same_words(answer: str, truth: str) -> bool:
    """Tell whether the words that decide are the same, and so are the numbers, in their order."""
    (ours, our_numbers), (theirs, their_numbers) = map(_deciding, (before_reason(answer), truth))
    return ours == theirs and our_numbers == their_numbers


def as_ratio(text: str) -> tuple[float, ...] | None:
    """Return the numbers of `2:3` or `2 to 3`, or hours and minutes of a time by 24 hours; else None."""
    text = re.sub(r"(?<=[0-9])\s+to\s+(?=[0-9])", ":", plain(text).casefold()).strip("$.,;() ")
    if (time := _TIME.fullmatch(_canonical(text).strip())) and time[3]:
        return tuple(map(float, _clock(time).split(":")))
    text = re.sub(r"(?<=[0-9]):\s*(?=[0-9])|(?<=[0-9])\s*:(?=\s*[0-9])", ":", text)
    if not _RATIO.fullmatch(text):
        return None
    try:
        return tuple(map(float, text.split(":")))
    except ValueError:
        return None


def _without_article(text: str) -> str:
    first, space, rest = text.partition(" ")
    return rest if space and first in ("the", "a", "an", "on", "in", "at") else text


def _deciding(text: str) -> tuple[Counter[str], list[str]]:
    tokens = _tokens(text)
    numbers = [_number(token) for token in tokens if token[-1].isdigit()]
    words = Counter(token for token in tokens if token in _DECIDES)
    return words, numbers


def _number(token: str) -> str:
    """Return one spelling of a number; times and versions keep theirs."""
    if ":" in token or token.count(".") > 1:
        return token
    return f"{float(token.replace(',', '').rstrip('.')):.12g}"


def _canonical(text: str) -> str:
    text = plain(text).casefold()
    for pattern, form in _CANONICAL:
        text = pattern.sub(form, text)
    return text


def _tokens(text: str) -> list[str]:
    """Return the words and numbers of a text; a time of day is one number."""
    text = _TIME.sub(lambda time: f" {_clock(time)} ", _canonical(text))
    tokens = [_ABBREVIATED.get(token, token) for token in _TOKEN.findall(text)]
    return [f"{_ORDINALS.index(t) + 1}" if t in _ORDINALS and t != "second" else t for t in tokens]


def _clock(time: re.Match[str]) -> str:
    """Return a time by 24 hours; where it may be either half of the day, in a form of its own."""
    if not time[3]:
        return f"{int(time[4]):02}:{time[5]}" + ("" if int(time[4]) > 12 else ":00")
    hour = int(time[1]) % 12 + (12 if time[3] == "pm" else 0)
    return f"{hour:02}:{time[2] or '00'}"
