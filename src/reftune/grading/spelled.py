"""Numbers in words: `twelve`, `a hundred and five`, `twenty-five dollars`."""

import re
from contextlib import suppress

from text_to_num import text2num

_WORD = (
    "(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen"
    "|sixteen|seventeen|eighteen|nineteen|twenty|thirty|fou?rty|fifty|sixty|seventy|eighty|ninety"
    r"|hundred|thousand|million|billion|trillion)\b"
)
_SPELLED = re.compile(
    rf"\s*((?:negative|minus)\s+)?(?:an?\s+(?=hundred|thousand|million|billion|trillion))?"
    rf"({_WORD}(?:(?:\s+and\s+|\s*-\s*|\s+){_WORD})*)",
    re.IGNORECASE,
)
_ANOTHER = re.compile(rf"\b{_WORD}", re.IGNORECASE)


def in_digits(text: str) -> str:
    """Write the number that a text begins with in digits, where it has words alone and one number."""
    spelled = _SPELLED.match(text)
    if not spelled or any(map(str.isdigit, text)) or _ANOTHER.search(text, spelled.end()):
        return text
    with suppress(ValueError):  # words that are no one number, such as "five six"
        words = " ".join(re.split(r"[\s-]+", spelled[2].lower()))
        return f"{'-' if spelled[1] else ''}{text2num(words, 'en')}{text[spelled.end() :]}"
    return text
