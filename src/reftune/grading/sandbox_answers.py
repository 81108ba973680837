"""What an answer means, whichever interpreter gave it; part of the workers, which import no reftune."""

import json
import math

EXACT = 2**50  # integers from here on are sent as they are: a float may not tell one from the next
Answer = tuple[str, float | str | None, str]  # status (a reftune.problem.Status), value, message

MAX_ANSWER_CHARS = 2000
MAX_MESSAGE_CHARS = 200


def decode(encoded: str, text: bool) -> Answer:
    """Return the answer that the head of a JSON text stands for; `text` accepts strings as answers."""
    if encoded[:1] in ("[", "{") or (encoded[:1] == '"' and not text):
        return "not_a_number", None, clean(f"solution() returned {encoded}")
    try:
        value = json.loads(encoded)
    except (ValueError, RecursionError):
        return "bad_result", None, "the answer is too long"
    if value is None:
        return "no_result", None, "solution() returned None"
    if type(value) is str:
        # Half a character of UTF-16 could be written to no file.
        return ("ok_text", value.encode(errors="replace").decode(), "") if text else _no_number(value)
    return _number(value) if type(value) in (int, float) else _no_number(value)


def _no_number(value: object) -> Answer:
    return "not_a_number", None, clean(f"solution() returned {value}")


def _number(value: int | float) -> Answer:
    try:
        number = float(value)
    except OverflowError:
        return "non_finite", None, "an integer beyond the range of floats"
    if type(value) is int and abs(value) >= EXACT:
        return "ok", value, ""
    return ("ok", number, "") if math.isfinite(number) else ("non_finite", None, str(number))


def clean(message: str) -> str:
    """Return the head of a message without the control characters that could play with a terminal."""
    head = message[:MAX_MESSAGE_CHARS]
    return "".join(character if character.isprintable() else " " for character in head)
