"""What a field of a data file says: its text, and the option that its number names.

Every command that reads questions and answers reads their fields here, and so judges a file alike.
"""

import re
from decimal import Decimal
from numbers import Real
from string import ascii_lowercase

from reftune.grading.choices import extract_choice
from reftune.problem import UserError

_OPTION = re.compile(r"(?:^|'?\s*,\s*'?)([a-z]) \) ")
LONGEST = 400  # digits that are written out; 1e999999999 keeps its exponent


def as_text(where: str, name: str | None, value: object) -> str:
    """Return a field as text, a number with all of its digits; nothing where there is none.

    Raises UserError that names the place (`where`) and the field for what is neither, and for characters
    that no tokenizer or program can take.
    """
    if value is None or (isinstance(value, float | Decimal) and value != value):  # an empty cell, or NaN
        return ""
    if isinstance(value, bool):
        raise UserError(
            f"{where}: {name!r} is {str(value).lower()} without quotes, a truth value; it must be a text"
            ' or a number, such as "yes"'
        )
    if not isinstance(value, str | Real | Decimal):
        raise UserError(f"{where}: {name!r} is a {type(value).__name__}; it must be a text or a number")
    if isinstance(value, int) and value.bit_length() > 10_000:
        raise UserError(f"{where}: {name!r} is a number of thousands of digits; shorten it")
    if isinstance(value, float):
        value = Decimal(repr(float(value)))
    if isinstance(value, Decimal) and abs(value.adjusted()) < LONGEST:
        return f"{value:f}"
    text = str(value)
    if "\0" in text:
        raise UserError(f"{where}: {name!r} holds U+0000, which is no text; remove it")
    if cut := next((character for character in text if "\ud800" <= character <= "\udfff"), None):
        raise UserError(
            f"{where}: {name!r} holds \\u{ord(cut):x}, half of a character (an emoji that was cut?);"
            " remove it"
        )
    return text


def as_choices(where: str, value: object) -> tuple[str, ...] | None:
    """Return the texts of a field that lists options, None if it is empty.

    Raises UserError that names the place of one that is neither a list nor in MathQA's notation.
    """
    if value is None or value == "":
        return None
    choices = read_options(value) if isinstance(value, str) else None
    if isinstance(value, list | tuple):
        choices = tuple(as_text(where, "choices", choice).strip() for choice in value)
    if not choices:
        raise UserError(f"{where}: cannot read the choices; give a list of texts, or 'a ) 38 , b ) 27'")
    return choices


def indexed(where: str, answer: object, choices: object) -> object:
    """Return the letter of the choice of which a number is the index, from 0; any other answer as it is.

    MMLU has its answers so. Beside choices that are numbers themselves the answer may be one of these.
    Raises UserError for an index beyond the choices, and where both could be meant.
    """
    if isinstance(answer, bool) or not isinstance(answer, Real | Decimal):
        return answer
    texts = as_choices(where, choices)
    if texts is None:
        return answer
    letters = ascii_lowercase[: len(texts)]
    named = letters[round(answer)] if answer in range(len(letters)) else None
    if isinstance(choices, list | tuple) and not any(isinstance(choice, str) for choice in choices):
        equal = extract_choice(str(answer), texts)
        if named and equal and named != equal:
            raise UserError(
                f"{where}: answer {answer} may be the index of a choice, counted from 0, or a choice"
                " itself; give its letter"
            )
        return named or equal or answer
    if named is None:
        raise UserError(
            f"{where}: answer {answer} is a number, and so the index of one of {len(texts)} choices,"
            " counted from 0; give the letter, or the text of the choice in quotes"
        )
    return named


def read_options(line: str) -> tuple[str, ...] | None:
    """Read `a ) 38 , b ) 27.675` or `['a ) 38', 'b ) 27.675']`; None if the line is no such list."""
    before, *pieces = _OPTION.split(line.strip().removeprefix("['").removesuffix("']"))
    letters, texts = "".join(pieces[::2]), tuple(pieces[1::2])
    return texts if not before and len(texts) > 1 and ascii_lowercase.startswith(letters) else None
