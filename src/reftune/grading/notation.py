r"""Bring what people and models write, Unicode and LaTeX, to one plain notation.

Digits and letters of any width or script are ASCII, every dash is `-`, every space a blank; characters
of mathematics become the LaTeX command of the same meaning, and commands that only lay out are gone.
"""

# ruff: noqa: RUF001  # the look-alikes are meant

import functools
import re
import unicodedata
from typing import NamedTuple

_SYMBOLS = (
    dict.fromkeys("\u2212\u02d7\u2796\u2043\u00ad", "-")
    | dict.fromkeys("×⋅·∙✕✖＊", "*")
    | dict.fromkeys("⁄∕", "/")
    | dict.fromkeys("“”„«»", '"')
    | dict.fromkeys("‘’´", "'")
    | dict.fromkeys("°º˚", " degrees ")
    | {
        "√": r"\sqrt", "∛": r"\sqrt[3]", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ",
        "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": "=", "≅": "=", "±": r"\pm ", "∓": r"\mp ",
        "÷": r"\div ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∶": ":",
        "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ",
        "φ": r"\phi ", "、": ",", "。": ".", "∠": r"\angle ",
    }
)  # fmt: skip

_CATEGORIES = {"Pd": "-", "Zs": " ", "Cf": ""}  # dashes, spaces, marks that are not seen


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    plain: str


def _rules(**rules: tuple[str, str]) -> list[_Rule]:
    return [_Rule(re.compile(pattern), plain) for pattern, plain in rules.values()]


# In this order. The lookbehinds leave `\\`, the end of a matrix row, alone.
_LATEX = _rules(
    nothing=(r"(?<!\\)\\(?:!|(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle)(?![A-Za-z]))", ""),
    maths=(r"(?<!\\)\\[()\[\]]", ""),
    space=(r"(?<!\\)\\(?:[,;:> ]|(?:q?quad|thinspace|enspace|medspace)(?![A-Za-z]))|(?<!\\)~", " "),
    fraction=(r"\\[cdt]frac(?![A-Za-z])", r"\\frac"),
    times=(r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
    at_most=(r"\\(?:leqslant|leq?)(?![A-Za-z])", r"\\le "),
    at_least=(r"\\(?:geqslant|geq?)(?![A-Za-z])", r"\\ge "),
    less=(r"\\lt(?![A-Za-z])", "<"),
    more=(r"\\gt(?![A-Za-z])", ">"),
    unequal=(r"\\neq?(?![A-Za-z])", r"\\ne "),
    about=(r"\\(?:approx|simeq|cong)(?![A-Za-z])", "="),
    degrees=(r"\s*\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z])", " degrees "),
    bar=(r"\\[lr]?vert(?![A-Za-z])", "|"),
    colon=(r"\\colon(?![A-Za-z])", ":"),
    braces=(r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
    braces_end=(r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
    empty=(r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
    dots=(r"\\[lc]?dots(?![A-Za-z])", "..."),
    escaped=(r"\\([$%#&])", r"\1"),
    comma=(r"\{,\}", ","),
)  # fmt: skip
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|boldsymbol|bm|emph"
    r"|operatorname|underline|boxed|fbox)\s*\{([^{}]*)\}"
)
_PLAIN = _rules(
    bold=(r"(?<!\w)\*\*([^*]+)\*\*", r"\1"),
    python_power=(r"(?<=[0-9A-Za-z)])\s*\*\*\s*(?=[-0-9A-Za-z(])", "^"),
    equals=(r"==", "="),
    at_most=(r"<=|=<", r"\\le "),
    at_least=(r">=", r"\\ge "),
    unequal=(r"!=|/=", r"\\ne "),
    pi=(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
    powers=(r"\}\^\{", ""),  # x²³ came as one power for each character
    indices=(r"\}_\{", ""),
    ten_to_the=(r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)", " * "),
    root=(r"(?:\\sqrt|(?<![\\A-Za-z])sqrt)\s*(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?))", r"\\sqrt{\1\2}"),
    cube_root=(r"\\sqrt\[3\]\s*(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?))", r"\\sqrt[3]{\1\2}"),
)
_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]*)\.([0-9]*)(?:\\(?:overline|bar|dot)\s*\{?([0-9]+)\}?|\(([0-9]{1,12})\)(?!\s*[0-9(])"
    r"|((?:[0-9]\u0305)+))"
)


@functools.lru_cache(maxsize=8192)
def plain(text: str) -> str:
    """Return a text in the plain notation; its meaning stays, in so far as it has one."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_characters)
    if "\\" in text or "~" in text:
        text = _apply(_LATEX, text)
        for _ in range(3):  # wrappers within wrappers
            text = _WRAPPER.sub(r"\1", text)
    text = _apply(_PLAIN, text.replace("{,}", ","))
    if text.count("$") % 2 == 0:  # around mathematics; a single one is money
        text = text.replace("$", " ")
    return _REPEATING.sub(_repeat, text).strip()


def _apply(rules: list[_Rule], text: str) -> str:
    for pattern, plain_form in rules:
        text = pattern.sub(plain_form, text)
    return text


def _repeat(match: re.Match[str]) -> str:
    """Write the period of a repeating decimal often enough for any comparison."""
    period = (match[3] or match[4] or match[5]).replace("\u0305", "")
    return f"{match[1] or 0}.{match[2]}{(period * 16)[:16]}"


class _Characters(dict[int, str]):
    """The plain form of each character, worked out when it is first met."""

    def __missing__(self, code: int) -> str:
        self[code] = _plain_character(chr(code))
        return self[code]


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    category = unicodedata.category(character)
    if category in _CATEGORIES:
        return _CATEGORIES[category]
    if category == "Nd":
        return str(unicodedata.digit(character))
    form = unicodedata.normalize("NFKC", character)
    form = "".join("-" if part == "\u2212" else "/" if part == "\u2044" else part for part in form)
    match unicodedata.decomposition(character).partition(" ")[0]:
        case "<fraction>" | "<circle>":
            return f" {form} "  # so that 1⅜ is a mixed number, and neither 13/8 nor 1
        case "<super>" if len(form) == 1:
            return f"^{{{form}}}"
        case "<sub>" if len(form) == 1:
            return f"_{{{form}}}"
    return form


_characters = _Characters()
