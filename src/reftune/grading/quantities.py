r"""Read a text as one number with its unit, or as none.

Words beside the number are units unless they change its value: some multiply (`million`), some give the
sign (`negative`), and those that make another number of it (`half of`, `at least`) make it none.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, replace

from reftune.grading.expressions import expression_value
from reftune.grading.extraction import MAX_ANSWER_CHARS
from reftune.grading.notation import plain
from reftune.grading.spelled import in_digits
from reftune.grading.units import contradict, units_of

TOLERANCE = 1e-2  # numbers at most this far apart are equal (paper, section 4.1)

_PLAIN = re.compile(r"[-+]?[0-9]{1,15}(?:\.[0-9]{1,15})?")
_NUMBER = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_VALUE = re.compile(
    r"(?P<sign>(?:^\s*[-+]\s*|(?<![\w)\]%])[-+])?(?:[$€£¥₹]\s*-?)?)"
    r"(?<![A-Za-z0-9_])(?:(?P<whole>[0-9]+)\s+(?:and\s+)?(?=[0-9]+\s*/\s*[0-9]))?"
    rf"(?P<top>{_NUMBER})(?:\s*/\s*(?P<bottom>{_NUMBER}))?"
)
_INTEGER = re.compile(r"[0-9]+")

_EXACT = 2**50  # integers from here on stay int: near 2**53 a float cannot tell one from the next

# Groups of thousands: `12 500` (SI, French), `12'500` (Swiss), `1,25,000` (Indian).
_GROUPED = re.compile(
    r"(?<![0-9.,/'])(?<![0-9] )[0-9]{1,3}(?:([ '])[0-9]{3})(?:\1[0-9]{3})*(?![0-9/'])(?! ?[0-9/])"
)
_INDIAN = re.compile(r"(?<![0-9.,])[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9]|,[0-9])")
_DOTTED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:\.[0-9]{3}){2,}(?![0-9]|[.,][0-9])")  # 1.234.567
_UNIT_POWER = re.compile(  # "25 cm^2", "25 m²", and "25 cm 2" as MathQA writes it
    r"\b(?:(mm|cm|dm|m|km|in|inch|inches|ft|feet|yd|yards|mi|miles|units?|s|sec)\s?\^\s?\{?[23]\}?"
    r"|([mcdk]?m) [23](?=\W*$))"
)
# What makes a text with one number in it an expression or a condition instead of that number.
_ALGEBRA = re.compile(
    r"[+*^\\{}_|<>!]|(?<![A-Za-z])[xyz](?![A-Za-z])|\bpi\b|0\s?[ni]\b|0[abefjoqruvw]\b|/\s*0|-\s*0"
)
_EXPRESSION = re.compile(r"[\\^{}|]")

_MAGNITUDES = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "k": 10**3, "lakh": 10**5, "million": 10**6,
    "m": 10**6, "mn": 10**6, "mil": 10**6, "crore": 10**7, "billion": 10**9, "b": 10**9, "bn": 10**9,
    "trillion": 10**12, "tn": 10**12,
}  # fmt: skip
_MAGNITUDE = re.compile(
    r"\s*-?(?:(dozen|hundred|thousand|lakh|million|crore|billion|trillion)s?(?![A-Za-z])"
    r"|([kK]|M|B|[bmtB]n|mil)(?![A-Za-z/]))"
)
_MONEY_MAGNITUDE = re.compile(r"\s?([mb])(?![A-Za-z/])")  # $5m, where 5m alone are metres
_ANY_MAGNITUDE = re.compile(
    r"\b(?:dozen|hundred|thousand|lakh|million|crore|billion|trillion)s?\b", re.I
)

_REWRITTEN = [
    (re.compile(pattern, re.IGNORECASE), form)
    for pattern, form in (
        (r"\bhalf an? (?=(?:dozen|hundred|thousand|million|billion|trillion)\b)", "0.5 "),
        (r"\b(?:an?|one) (?=(?:dozen|hundred|thousand|million|billion|trillion)\b)", "1 "),
        (r"(?<=[0-9]) and (?:a|one)[ -]half\b", " 1/2"),
        (r"(?<=[0-9]) and (?:a|one)[ -](?:quarter|fourth)\b", " 1/4"),
        (r"(?<=[0-9]) and three[ -](?:quarters|fourths)\b", " 3/4"),
        (r"(?<![-\w])(?:negative|minus)\s+(?=[$€£¥₹(]?\s?[0-9.\\])", "-"),
        (r"\babove (?:zero|0)\b", " "),
    )
]
_BELOW_ZERO = re.compile(r"\b(?:below|under) (?:zero|0(?![0-9.])|freezing)\b", re.IGNORECASE)

# Words, with the number written as 0, that make another number or none of it. `25 cm squared` is a unit.
_CHANGES = re.compile(
    r"\b(?:half|halves|thirds?|fourths|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?"
    r"|thousandths?|twice|doubled?|tripled?|thrice|quadrupled?|minus|negative|plus|factorial|reciprocal"
    r"|inverse|opposite|sqrt|cbrt|roots?|log|ln|exp|sin|cos|tan|abs|floor|ceil|mod|modulo|gcd|lcm"
    r"|not|never|neither|nor|cannot|non|except|between|at (?:least|most)|up to|multiples?"
    r"|divisible|unless)\b"
    r"|n't\b|\b(?:quarter|square|cube|power|product|percent|minimum|maximum|logarithm) of\b"
    r"|\b(?:more|less|greater|fewer|larger|smaller|bigger|higher|lower) than\s+\W*0"
    r"|\b(?:over|under|above|below|beyond|exceed(?:s|ing)?)\s+\W*0"
    r"|0\s+and\s+(?:one|two|three|four|five|six|seven|eight|nine|ten|[a-z]+teen|eleven|twelve|[a-z]+ty)\b"
    r"|0\s*(?:squared|cubed)\b|\bor (?:more|less|fewer|greater|higher|lower|above|below|over|under)\b"
    r"|\b(?:divided|multiplied|raised|to the|in base|base|choose)\b",
    re.IGNORECASE,
)
# From here on a sentence gives its reason; "5 as well as 6" and "5, so 6" go on with another answer.
_REASON = re.compile(
    r"(?:[,;]\s*|\s+|\s*\()(?:since|because|when|where|given|due to|whose|instead of|rather than"
    r"|(?<!well )(?<!much )(?<!many )as(?! (?:well|much|many)\b)|for the reason|considering"
    r"|(?<=, )not|(?<=\()not|(?<=, )which|i\.e\.)\s",
    re.IGNORECASE,
)


_NO_EQUATION = re.compile(r"[<>]|\\(?:ne|le|ge|in|equiv|pm|mp)(?![A-Za-z])")
_SEVERAL = re.compile(r"[,;]\s|\b(?:and|or)\b", re.IGNORECASE)
_LABEL = re.compile(  # the words, unknowns and functions that name what is asked; atomic, to be quick
    r"(?>(?<!\w)[A-Za-z]\w*'?(?>_\{\w+\})?(?>\([^()]*\))?|\\(?:alpha|beta|gamma|theta|lambda|phi|angle)"
    r"|(?<=[A-Za-z]{2})-(?=[A-Za-z]{2})|[:(),.?$\s])*+"
)
_LONE_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_INNER_WORDS = re.compile(r"[0-9})]\s*(?:[A-Za-z]{2,}[\s,]*)+[\s,]*[-(\\0-9]")
_CONJUNCTION = re.compile(r"\b(?:and|or|to|versus|vs|then|between)\b|,(?![0-9]{3})|;", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with the units that stand beside it, and the unknown that it is the value of."""

    value: float
    units: frozenset[str] = frozenset()
    unknown: str = ""

    def contradicts(self, other: Quantity) -> bool:
        """Tell whether two quantities cannot be the same, whatever their numbers are."""
        if self.unknown and other.unknown and self.unknown != other.unknown:
            return True
        return contradict(self.units, other.units)


def plain_number(text: str) -> float | None:
    """Return the number of a text that is nothing else, up to 15 digits, as most answers are."""
    return float(text) if _PLAIN.fullmatch(text) else None


def parse_number(text: str) -> float | None:
    r"""Return the one number that a text states, or None if it states none, several, or an expression.

    Understood: `1,000`, `$5`, `-2`, `1/2`, `3 1/2`, `1e3`, `\frac{1}{2}`, `2 million`, words and units
    around the number, and one equation with an unknown or arithmetic at one side. `50%` is 50, as data
    sets write percentages as plain numbers. Not numbers: `between 3 and 5`, `10:30`, `3x`, `inf`,
    anything longer than MAX_ANSWER_CHARS. Integers from 2**50 on come as int, which is exact.
    """
    if _PLAIN.fullmatch(text):
        return float(text)
    quantity = read_quantity(text)
    return None if quantity is None else quantity.value


@functools.lru_cache(maxsize=8192)
def read_quantity(text: str) -> Quantity | None:
    """Return the one number that a text states, with its unit, or None; see `parse_number`."""
    text = before_reason(text)
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = _rewrite(in_digits(plain(text)))
    return _from_equation(text) if "=" in text else _stated(text) or _evaluated(text)


def before_reason(text: str) -> str:
    """Return what a sentence answers, without the reason that it goes on with."""
    for reason in _REASON.finditer(text[: 2 * MAX_ANSWER_CHARS]):
        if re.search(r"\w", text[: reason.start()]):
            return text[: reason.start()]
    return text


def same_number(a: float, b: float) -> bool:
    """Tell whether two numbers are equal: integers exactly, others within TOLERANCE."""
    if isinstance(a, int) or isinstance(b, int):
        a, b = _as_integer(a), _as_integer(b)
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        a, b = float(a), float(b)
    if a == b:
        return True
    if not math.isfinite(a - b):
        return False
    # One unit in the last place keeps 1.01 equal to 1.00 although the binary difference exceeds 0.01.
    return abs(a - b) <= TOLERANCE + math.ulp(max(abs(a), abs(b)))


def _as_integer(number: float) -> float:
    """Return a float below 2**53 that is an integer as int."""
    exact = isinstance(number, int) or (abs(number) < 2**53 and number.is_integer())
    return int(number) if exact else number


def _rewrite(text: str) -> str:
    for pattern, form in _REWRITTEN:
        text = pattern.sub(form, text)
    text = _UNIT_POWER.sub(r"\1\2", text)
    text = _INDIAN.sub(lambda found: found[0].replace(",", ""), text)
    text = _DOTTED.sub(lambda found: found[0].replace(".", ""), text)
    return _GROUPED.sub(lambda found: found[0].replace(" ", "").replace("'", ""), text)


def _stated(text: str) -> Quantity | None:
    """Return the number of a text that has one, words, and nothing else."""
    text, below = _BELOW_ZERO.subn(" ", text)
    found = list(_VALUE.finditer(text))
    if len(found) != 1:
        return None
    factor, end = _magnitude(text, found[0])
    rest = f"{text[: found[0].start()]}0{text[end:]}"
    value = _value(found[0], factor)
    if (
        value is None
        or (below and value < 0)
        or _ALGEBRA.search(rest.strip(" !"))
        or _CHANGES.search(rest)
    ):
        return None
    return Quantity(-value if below else value, units_of(found[0]["sign"] + rest))


def _magnitude(text: str, number: re.Match[str]) -> tuple[int, int]:
    """Return what the words behind a number multiply it by, and where they end."""
    factor, end = 1, number.end()
    if "$" in number["sign"] and (money := _MONEY_MAGNITUDE.match(text, end)):
        return _MAGNITUDES[money[1]], money.end()
    while word := _MAGNITUDE.match(text, end):
        factor *= _MAGNITUDES[(word[1] or word[2]).lower()]
        end = word.end()
    return factor, end


def _value(match: re.Match[str], factor: int = 1) -> float | None:
    digits = match["top"].replace(",", "")
    if not match["bottom"] and len(digits) < 400 and _INTEGER.fullmatch(digits):
        value: float = int(digits) * factor
        value = value if value >= _EXACT else float(value)
    else:
        bottom = float(match["bottom"].replace(",", "")) if match["bottom"] else 1.0
        top = float(digits) / bottom if bottom else math.nan
        value = (float(match["whole"] or 0) + top) * factor
    try:
        finite = math.isfinite(value)
    except OverflowError:
        return None
    return (-value if "-" in match["sign"] else value) if finite else None


def _evaluated(text: str) -> Quantity | None:
    r"""Return the value of a LaTeX expression such as `\frac{1}{2}`, with words before or behind it."""
    words = _COMMAND.sub(r"\\", text)
    if not _EXPRESSION.search(text) or _CHANGES.search(words) or _ANY_MAGNITUDE.search(words):
        return None
    if _CONJUNCTION.search(words) or _INNER_WORDS.search(words):
        return None
    value = expression_value(text)
    return None if value is None else Quantity(value)


def _from_equation(text: str) -> Quantity | None:
    """Return the number of `x = 5`, `5 = x`, `3 + 4 = 7` or `7 = 3 + 4`, or None."""
    sides = [side for side in map(str.strip, text.split("=")) if side]
    if _NO_EQUATION.search(text) or (text.count("=") > 1 and _SEVERAL.search(text)):
        return None
    labels = [side for side in sides if _is_label(side)]
    values = [side for side in sides if side not in labels]
    stated = [quantity for side in values if "/" not in side and (quantity := _stated(side))]
    if not stated:
        stated = [quantity for side in values if (quantity := _stated(side) or _evaluated(side))]
        if len(stated) != len(values):
            return None
    if not stated or not all(map(_is_arithmetic, values)):
        return None
    if any(not same_number(stated[0].value, other.value) for other in stated):
        return None
    unknown = next((label for label in labels if len(label) == 1), "")
    return replace(stated[-1], unknown=unknown)


def _is_label(side: str) -> bool:
    """Tell whether a side is a lone unknown or the words that name it, and no product such as `xy`."""
    if not _LABEL.fullmatch(side) or _CHANGES.search(side) or _ANY_MAGNITUDE.search(side):
        return False
    names = re.findall(r"[A-Za-z]+", re.sub(r"\([^()]*\)|_\w+", "", side))
    if len(names) == 1:
        return len(names[0]) != 2 or not names[0].islower()
    return any(len(name) > 2 for name in names)


def _is_arithmetic(side: str) -> bool:
    if _stated(side) is not None:
        return True
    side = re.sub(r"(?<=[0-9])\s*[xX]\s*(?=[0-9])", "*", side)
    return bool(re.search("[0-9]", side)) and not (_LONE_LETTER.search(side) or _CHANGES.search(side))
