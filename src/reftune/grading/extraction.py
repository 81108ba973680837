r"""Where in a text is its final answer?

Everything here scans a text a bounded number of times: model-written text reaches it unchecked.
"""

# ruff: noqa: RUF001  # the look-alikes are meant

import functools
import re
from collections.abc import Callable

from reftune.problem import AnswerStyle

MAX_ANSWER_CHARS = 200  # a longer "final answer" is prose

_END_TOKEN = re.compile(
    r"</s>|<\|[A-Za-z_]{0,30}(?:end|eot|eos|eom)[A-Za-z_]{0,30}\|>|<end_of_turn>|<eos>|<｜end▁of▁sentence｜>"
)
_TAGS = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|([0-9]+(?:\.[0-9]+)?|[A-Za-z]))")
_BEHIND_BOX = re.compile(  # words that belong to the number in the box; units do not matter
    r"[\s$]*(?:\\text\s*\{)?\s*(hundred|thousand|million|billion|trillion|dozen|squared|cubed|[ap]\.?m\b)"
)
_ANSWER_IS = re.compile(
    r"\banswers?\b[*_\"]*(?:\s+(?:to|for)\s[^.:=\n]{1,80}?)?[*_\s]*"
    r"(?:(?:\b(?:is|are)\b|\b(?:should|must|would|will)\s+be\b)[*_]*\s*:?|[:=])",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"^[#*_ \t]*(?:the[ \t]+)?(?:final[ \t]+)?answers?[*_ \t]*$", re.IGNORECASE | re.MULTILINE
)
_STEP = re.compile(
    r"[*_]*(?:[A-Za-z]|[0-9]{1,2}[.)][ \t]+[A-Za-z])"
)  # how a title begins, rather than an answer
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:st|mt|ft|mr|mrs|ms|dr|prof|jr|sr|vs|no|approx|gen|gov|rev|capt|sgt|lt|col|inc|ltd|co|corp"
    r"|ave|blvd|rd|rs|hon|pres)|\.[A-Za-z]|(?<=[A-Z]\. )[A-Z])\Z",
    re.IGNORECASE,
)
# The line with the answer in the styles that SFT writes, behind a chain.
_LAST_LINE = re.compile(r"(?<=\S)\n(?:The answer is (?:\\boxed\{[^\n]*\}|[^\n=]*)\.|####[^\n]*)\s*\Z")
_EMPTY_MATHS = re.compile(r"\\\[\s*\\\]|\$\$\s*\$\$")
_TITLE_AT_END = re.compile(rf"{_HEADING.pattern}\s*\Z", _HEADING.flags)
_WRAPPED = {"<>", "$$", "__", '""', "“”", "«»", "‘’", "„“"}


def extract_natural(text: str, trigger: str, style: AnswerStyle | None = None) -> str | None:
    r"""Return the final answer of a chain in natural language, or None where there is none.

    It is the line after the last `trigger`, whose whitespace may differ. A text without the trigger,
    as other systems write them, is read by the first of these marks that it has, each at its last
    place: `<answer>72</answer>`, `#### 72`, `\boxed{72}`, then `answer is 72` / `answer: 72` up to the
    end of the sentence, or what stands below a heading `Final Answer`. Thoughts that end with
    `</think>` do not count where anything follows, and one short line behind them needs no mark. What
    wraps the answer is taken off. The mark of a `style` other than "trigger" comes before all others.
    """
    written, text = text, _spoken(text)
    own = _MARK_OF[style](text) if style in _MARK_OF else ""
    after_trigger = None if own else _last_trigger(trigger, text)
    if own:
        tail = own
    elif after_trigger:
        tail = text[after_trigger.end() :]
    else:
        tail = next((found for mark in _MARKS if (found := mark(text))), "")
        tail = tail or _bare(written, text)
    return _stated_in(tail)


def marked_answer(text: str) -> str | None:
    r"""Return what the last `<answer>`, `####` or `\boxed` holds, None where there is none of them."""
    return _stated_in(next((found for mark in _OWN_MARKS if (found := mark(text))), ""))


def _stated_in(tail: str) -> str | None:
    boxed = _last_boxed(tail)
    line = (tail if boxed is None else boxed).strip().partition("\n")[0]
    return _unwrap(line) or None


def reasoning(text: str, trigger: str) -> str:
    """Return what a chain in natural language says before the last `trigger`; all of it without one.

    The line that another answer style ends with is left out, too.
    """
    found = _last_trigger(trigger, text)
    return text[: found.start()] if found else _LAST_LINE.sub("", text)


def without_answer(text: str) -> str:
    r"""Return a worked solution without the sentence that states its final answer.

    The marks are those of `extract_natural`. Of a box within a step, `48 + 24 = \boxed{72}`, what it
    holds is kept. Thoughts, up to `</think>`, stay as they are.
    """
    thoughts, close, said = text.rpartition("</think>")
    begin, end, kept = _answer_place(said)
    said = _EMPTY_MATHS.sub("", f"{said[:begin]}{kept}{said[end:]}").strip()
    return f"{thoughts}{close}\n\n{_TITLE_AT_END.sub('', said)}".strip()


def _answer_place(text: str) -> tuple[int, int, str]:
    """Return from where to where a text states its final answer, and what is to stay of that."""
    if tags := [tag for tag in _TAGS.finditer(text) if tag[1].strip()]:
        return *tags[-1].span(), ""
    if (start := _last_hashes(text)) is not None:
        return start, len(text), ""
    if box := _last_box(text):
        begin, end, content = box
        first, last = _sentence(text, begin, end)
        beside = text[first:begin] + text[end:last]
        if "answer" in beside.lower() or not re.search(r"\w", beside):
            return first, last, ""
        return begin, end, content
    if stated := _last_statement(text):
        behind = text[stated.end() :]
        return *_sentence(text, stated.start(), len(text) - len(behind.lstrip(" \t\r\n*:"))), ""
    return len(text), len(text), ""


def _sentence(text: str, begin: int, end: int) -> tuple[int, int]:
    """Return the bounds, a line's at most, of the sentence around a place."""
    line = text.rfind("\n", 0, begin) + 1
    first = max([line, *(m.end() for m in _SENTENCE_END.finditer(text, line) if m.end() <= begin)])
    rest = text[end:].partition("\n")[0]
    after = _SENTENCE_END.search(rest)
    return first, end + (after.start() + 1 if after else len(rest))


def _spoken(text: str) -> str:
    """Return a text without the thoughts before it and the tokens that end it."""
    if "</" not in text and "<|" not in text and "<e" not in text and "<｜" not in text:
        return text
    thoughts, _, said = text.rpartition("</think>")
    if thoughts and not said.strip():
        said = thoughts
    for end in _END_TOKEN.finditer(said):
        if said[: end.start()].strip():
            return said[: end.start()]
    return said


@functools.lru_cache(maxsize=8)
def _trigger_pattern(trigger: str) -> tuple[str, re.Pattern[str]]:
    """Return the last word of a trigger, which is fast to look for, and the pattern of all."""
    words = trigger.split()
    return (words or [""])[-1], re.compile(r"\s+".join(map(re.escape, words)) or r"\Z.")


def _last_trigger(trigger: str, text: str) -> re.Match[str] | None:
    word, pattern = _trigger_pattern(trigger)
    return _last(pattern, text) if word in text else None


def _last(pattern: re.Pattern[str], text: str, begin: int = 0) -> re.Match[str] | None:
    last = None
    for last in pattern.finditer(text, begin):  # noqa: B007
        pass
    return last


def _tagged(text: str) -> str:
    """Return what the last `<answer>` tags that hold anything hold."""
    if "<answer>" not in text:
        return ""
    return next((inner for inner in reversed(_TAGS.findall(text)) if inner.strip()), "")


def _hashed(text: str) -> str:
    """Return what follows the last `####` that is no title."""
    start = _last_hashes(text)
    if start is None:
        return ""
    content = text[start + 4 :].lstrip("# \t")
    return _after_answer_is(content) or content


def _last_hashes(text: str) -> int | None:
    """Return where the last `####` is that is no title: a word first, and more below."""
    end = len(text)
    for _ in range(50):  # no answer of a model has more titles
        start = text.rfind("####", 0, end)
        if start < 0:
            break
        content = text[start + 4 :].lstrip("# \t")
        if not (_STEP.match(content) and content.partition("\n")[2].strip()):
            return start
        end = start
    return None


def _bare(written: str, said: str) -> str:
    """Return what is said behind thoughts where that is one short line."""
    said = said.strip()
    thought = "</think>" in written and not said.endswith("</think>")
    return said if thought and "\n" not in said and len(said) <= MAX_ANSWER_CHARS else ""


def _boxed(text: str) -> str:
    return _last_boxed(text) or ""


def _after_answer_is(text: str) -> str:
    """Return what follows the last `answer is` or the like, or the title of an answer."""
    found = _last_statement(text)
    return _first_sentence(text[found.end() :].lstrip(" \t\r\n*:")) if found else ""


def _last_statement(text: str) -> re.Match[str] | None:
    """Return the last `answer is` or the like, or the title of an answer."""
    first = text.lower().find("answer")
    if first < 0:
        return None
    line = text.rfind("\n", 0, first) + 1 if text.isascii() else 0  # else lower() may move it
    marks = [found for mark in (_ANSWER_IS, _HEADING) if (found := _last(mark, text, line))]
    return max(marks, key=re.Match.end, default=None)


_OWN_MARKS: tuple[Callable[[str], str], ...] = (_tagged, _hashed, _boxed)  # used for nothing else
_MARKS = (*_OWN_MARKS, _after_answer_is)
_MARK_OF: dict[AnswerStyle | None, Callable[[str], str]] = {
    "boxed": _boxed,
    "hashes": _hashed,
    "answer_is": _after_answer_is,
}


def _first_sentence(text: str) -> str:
    text = text[: 50 * MAX_ANSWER_CHARS]
    for end in _SENTENCE_END.finditer(text):
        before = text[max(0, end.start() - 12) : end.start()]
        initials = re.match(r"\s+[A-Z]\.", text[end.start() + 1 :]) and re.search(r"\b[A-Z]\Z", before)
        if not initials and not (text[end.start()] == "." and _ABBREVIATION.search(before)):
            return text[: end.start()]
    return text


def _last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` that closes and is not empty.

    A sign directly before the box belongs to its content, and so do words behind it that change it.
    """
    found = _last_box(text)
    if found is None:
        return None
    begin, end, content = found
    sign = "-" if text[:begin].rstrip("$").endswith(("-", "−")) else ""
    behind = _BEHIND_BOX.match(text, end)
    return sign + _inner_box(content) + (f" {behind[1]}" if behind else "")


def _last_box(text: str) -> tuple[int, int, str] | None:
    """Return where the last box that closes and is not empty begins and ends, and what it holds."""
    if "\\" not in text:
        return None
    for box in list(_BOX.finditer(text))[:-20:-1]:
        end = _closing_brace(text, box.end()) if box[1] else box.end()
        content = text[box.end() : end] if box[1] else box[2]
        if end is not None and content.strip(" \\,;~\n"):
            return box.start(), end + bool(box[1]), content
    return None


def _inner_box(content: str) -> str:
    return _last_boxed(content) or content if _BOX.search(content) else content


def _closing_brace(text: str, begin: int) -> int | None:
    depth = 1
    for position in range(begin, min(len(text), begin + 10 * MAX_ANSWER_CHARS)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return None


def _unwrap(line: str) -> str:
    if line.isdigit():
        return line
    previous = None
    while line != previous and len(line) <= MAX_ANSWER_CHARS:
        previous, line = line, line.strip(" \t\r\"'`*").removesuffix(".")
        if line[:1] + line[-1:] in _WRAPPED and len(line) > 1:
            line = line[1:-1]
    return line
