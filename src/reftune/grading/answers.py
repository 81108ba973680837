"""Find the final answer in a text and compare it with the ground truth.

Everything here is a pure function of its arguments. Model-written text reaches it unchecked, so its
length is bounded before anything slower than a linear scan looks at it.
"""

import functools
import math
import re
from collections.abc import Sequence
from string import ascii_lowercase

from reftune.grading.expressions import expression_value, same_expression
from reftune.problem import Answer, Cot, Problem

TOLERANCE = 1e-2  # numbers at most this far apart are equal (paper, section 4.1)
MAX_ANSWER_CHARS = 200  # a longer "final answer" is prose
LETTERS = tuple("abcde")  # as answers they name options, rather than unknowns

_UNICODE = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u00b7": "*"}
    | dict.fromkeys("\u00a0\u2009\u202f", " ")
    | {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3"}
)
_LATEX_SPACE = re.compile(r"\\(?:[,;:! ]|quad\b|qquad\b)")
_LATEX_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_LATEX_BRACKET = re.compile(r"\\[\[\]()]|\\left(?![a-z])|\\right(?![a-z])")
_BOLD = re.compile(r"(?<!\w)\*\*([^*]+)\*\*")

_PLAIN = re.compile(r"[-+]?[0-9]{1,15}(?:\.[0-9]{1,15})?")
_NUMBER = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_VALUE = re.compile(
    r"(?P<sign>(?:^\s*[-+]\s*|(?<![\w)\]%])[-+])?(?:[$€£¥₹]\s*-?)?)"
    r"(?<![A-Za-z0-9_])(?:(?P<whole>[0-9]+)\s+(?:and\s+)?(?=[0-9]+\s*/\s*[0-9]))?"
    rf"(?P<top>{_NUMBER})(?:\s*/\s*(?P<bottom>{_NUMBER}))?"
)
_UNIT_POWER = re.compile(  # "25 cm^2", "25 m²", and "25 cm 2" as MathQA writes it
    r"\b(?:(mm|cm|dm|m|km|in|inch|inches|ft|feet|yd|yards|mi|miles|units?|s|sec)(?:\s?\^\s?\{?[23]\}?|[²³])"
    r"|([mcdk]?m) [23](?=\W*$))"
)
# What makes a text with one number in it an expression or a condition instead of that number.
_ALGEBRA = re.compile(r"[+*^\\{}_|√π²³<>≤≥]|(?<![A-Za-z])[xyz](?![A-Za-z])|\bpi\b|[0-9][ni]\b|/\s*[0-9]")

_EXPRESSION = re.compile(r"[\\^{}]")

_ANSWER_IS = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*[:=])", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z])")
_MARKED_LETTER = re.compile(r"[(\[]?([a-z]) ?([)\].:])")


def extract_natural(text: str, trigger: str) -> str | None:
    r"""Return the final answer of a chain in natural language, or None where there is none.

    It is the line after the last `trigger`, whose whitespace may differ. A text without the trigger,
    as other systems write them, is read by the first of these marks that it has, each at its last
    place: `#### 72`, `\boxed{72}`, `answer is 72` / `answer: 72` up to the end of the sentence.
    Surrounding `<>`, `**`, `$$`, quotes and a trailing full stop are taken off.
    """
    after_trigger = _last(_trigger_pattern(trigger), text)
    tail = text[after_trigger.end() :] if after_trigger else _other_marks(text)
    boxed = _last_boxed(tail)
    line = (tail if boxed is None else boxed).strip().partition("\n")[0]
    return _unwrap(line) or None


def reasoning(text: str, trigger: str) -> str:
    """Return what a chain in natural language says before the last `trigger`; all of it without one."""
    found = _last(_trigger_pattern(trigger), text)
    return text[: found.start()] if found else text


def parse_number(text: str) -> float | None:
    r"""Return the one number that a text states, or None if it states none, several, or an expression.

    Understood: `1,000`, `$5`, `-2` (also with the Unicode minus), `1/2`, `3 1/2`, `1e3`, words and
    units around the number, and what follows the last `=`. `50%` is 50, as data sets write
    percentages as plain numbers. LaTeX (`\frac{1}{2}`) is left to math-verify. Not numbers:
    `between 3 and 5`, `10:30`, `3x`, `inf`, anything longer than MAX_ANSWER_CHARS.
    """
    if _PLAIN.fullmatch(text):
        return float(text)
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = _UNIT_POWER.sub(r"\1\2", _clean(text).replace("==", "="))
    if "=" in text and not re.search("[<>!]=", text):
        text = text.rpartition("=")[2].strip()
    found = list(_VALUE.finditer(text))
    if len(found) == 1 and not _ALGEBRA.search(_VALUE.sub("0", text)):
        return _value(found[0])
    return expression_value(text) if _EXPRESSION.search(text) else None


def extract_choice(answer: Answer, choices: Sequence[str]) -> str | None:
    """Return the lower-case letter of the option that an answer names, or None.

    Taken in this order: a bare letter (`b`, `(B)`), the text of exactly one option, a letter with its
    option (`b ) 27`; a list of several options names none), a number that is the same as its nearest
    option (none if two options tie).
    """
    letters = ascii_lowercase[: len(choices)]
    if not isinstance(answer, str):
        return _nearest_option(answer, choices)
    text = " ".join(answer.lower().split()).strip(" \"'`*.,;")
    text = text.removeprefix("option ").removeprefix("choice ")
    bare = text.strip("()[]<>: ")
    if len(bare) == 1 and bare in letters:
        return bare
    normal = normalise(text)
    same = [
        letter for letter, choice in zip(letters, choices, strict=False) if normalise(choice) == normal
    ]
    if len(same) == 1:
        return same[0]
    marked = _MARKED_LETTER.match(text)
    if marked and marked[1] in letters:
        others = re.findall(rf"(?<!\w)([{letters}]) ?{re.escape(marked[2])}", text)
        return marked[1] if set(others) == {marked[1]} else None
    number = parse_number(text)
    return None if number is None else _nearest_option(number, choices)


def answers_equal(answer: Answer, truth: str, choices: Sequence[str] | None = None) -> bool:
    """Tell whether an extracted answer equals the ground truth.

    With `choices` both must name the same option. Numbers are equal as `same_number` says; any other
    truth is compared as text without case, spaces and final punctuation, then as an expression.
    """
    if choices is not None:
        letter = extract_choice(answer, choices)
        return letter is not None and letter == extract_choice(truth, choices)
    true_number = parse_number(truth)
    if true_number is not None:
        number = parse_number(answer) if isinstance(answer, str) else answer
        return number is not None and same_number(number, true_number)
    return isinstance(answer, str) and (
        normalise(answer) == normalise(truth) != "" or same_expression(_clean(answer), _clean(truth))
    )


def same_number(a: float, b: float) -> bool:
    """Tell whether two numbers are equal within TOLERANCE; grading and voting both ask here."""
    if not math.isfinite(a - b):
        return a == b
    # One unit in the last place keeps 1.01 equal to 1.00 although the binary difference exceeds 0.01.
    return abs(a - b) <= TOLERANCE + math.ulp(max(abs(a), abs(b)))


def check_answer(problem: Problem, cot: Cot = "natural") -> str | None:
    """Return a sentence on what is wrong with a problem's ground truth, or None if it can be graded.

    Programs return numbers, so there (cot "program") a text is no answer unless it names an option.
    """
    where = f"problem {problem.id}: answer {problem.answer[:50]!r}"
    if problem.choices is not None:
        if not 2 <= len(problem.choices) <= len(ascii_lowercase):
            return f"problem {problem.id}: has {len(problem.choices)} choices; give 2 to 26"
        if extract_choice(problem.answer, problem.choices) is None:
            last = ascii_lowercase[len(problem.choices) - 1]
            return f"{where} names none of its choices; give a letter from a to {last}"
    elif len(problem.answer) > MAX_ANSWER_CHARS:
        return f"{where}... is longer than {MAX_ANSWER_CHARS} characters; give the final answer alone"
    elif not normalise(problem.answer):
        return f"{where} is empty; give the final answer"
    elif parse_number(problem.answer) is None:
        if normalise(problem.answer).lstrip("+-") in ("nan", "inf", "infinity"):
            return f"{where} is not a finite number; correct it or drop the problem"
        if normalise(problem.answer) in LETTERS:
            return f"{where} is a letter, but the question has no choices; add them to the problem"
        if cot == "program":
            return f'{where} is not a number, which programs must return; use cot = "natural" or choices'
    return None


def normalise(text: str) -> str:
    """Return a text without case, spaces, wrapping LaTeX and punctuation at its ends."""
    return "".join(_clean(text).casefold().split()).strip("\"'`*$.,;:!?")


@functools.lru_cache(maxsize=8)
def _trigger_pattern(trigger: str) -> re.Pattern[str]:
    return re.compile(r"\s+".join(re.escape(word) for word in trigger.split()) or r"\Z.")


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return max(pattern.finditer(text), key=lambda found: found.start(), default=None)


def _other_marks(text: str) -> str:
    if "####" in text:
        return text.rpartition("####")[2]
    if (boxed := _last_boxed(text)) is not None:
        return boxed
    mark = _last(_ANSWER_IS, text)
    return _SENTENCE_END.split(text[mark.end() :], maxsplit=1)[0] if mark else ""


def _last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` whose braces close."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len(r"\boxed{")
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None


def _unwrap(line: str) -> str:
    previous = None
    while line != previous and len(line) <= MAX_ANSWER_CHARS:
        previous, line = line, line.strip(" \t\"'`*").removesuffix(".")
        if line[:1] + line[-1:] in ("<>", "$$") and len(line) > 1:
            line = line[1:-1]
    return line


def _clean(text: str) -> str:
    if not text.isascii():
        text = text.translate(_UNICODE)
    if "\\" in text:
        text = _LATEX_SPACE.sub(" ", text.replace(r"\!", "").replace(r"\,", ""))
        text = _LATEX_BRACKET.sub("", _LATEX_WRAPPER.sub(r"\1", text))
        text = text.replace(r"\$", "$").replace(r"\%", "%")
    return _BOLD.sub(r"\1", text.replace("{,}", ",")).strip()


def _value(match: re.Match[str]) -> float | None:
    top, bottom = (
        float(match[name].replace(",", "")) if match[name] else 1.0 for name in ("top", "bottom")
    )
    value = float(match["whole"] or 0) + top / bottom if bottom else math.nan
    if not math.isfinite(value):
        return None
    return -value if "-" in match["sign"] else value


def _nearest_option(number: float, choices: Sequence[str]) -> str | None:
    gaps = sorted(
        (abs(value - number), letter)
        for letter, text in zip(ascii_lowercase, choices, strict=False)
        if (value := parse_number(text)) is not None and same_number(number, value)
    )
    if not gaps or (len(gaps) > 1 and gaps[0][0] == gaps[1][0]):
        return None
    return gaps[0][1]
