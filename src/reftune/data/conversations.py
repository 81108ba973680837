"""Rows that are chats, or a prompt with its completion, taken apart into our columns.

`{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}`, or
`{"prompt": ..., "completion": ...}` whose values are texts or lists of messages. What the user says is
the question, what the assistant says the chain with the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from reftune.config import Prompt
from reftune.files import PlacedRow
from reftune.grading.cells import as_text
from reftune.grading.extraction import extract_natural, without_answer
from reftune.grading.fenced import extract_program, has_program
from reftune.launcher import tell_once
from reftune.problem import UserError, shortened

_QUESTIONS = ("question", "Question", "Problem")  # of the other formats, which come first
_EXAMPLE = '{"role": "user", "content": "..."}'


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is a chat, or a prompt with a completion or an answer, and has no question."""
    if any(name in row for name in _QUESTIONS):
        return False
    return "messages" in row or ("prompt" in row and ("completion" in row or "answer" in row))


def tell_of_systems(source: str, rows: Sequence[PlacedRow]) -> None:
    """Say that system messages are left out, where rows have any, and how to ask with one."""
    chats = [(where, row) for where, row in rows if is_conversation(row)]
    found = [
        (where, text) for where, row in chats for role, text in _turns(where, row) if role == "system"
    ]
    if found:
        tell_once(
            f"{source}: {len(found)} rows have system messages, which are left out; prompt.system is"
            f" what every question is asked with (the first, {found[0][0]}: {shortened(found[0][1])!r})"
        )


def as_columns(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a chat as a row with the columns question, answer and chain; any other row as it is.

    The answer is the column `answer` where there is one, else what the assistant's text says, and the
    chain that text without the sentence with the answer, or the program in its fenced block.

    Raises UserError that names the place of a chat with other turns than one question and one answer,
    and of one without a final answer.
    """
    if not is_conversation(row):
        return row
    said = [(role, text) for role, text in _turns(where, row) if role != "system"]
    roles = [role for role, _ in said]
    if roles not in (["user"], ["user", "assistant"]):
        raise UserError(
            f"{where}: has the turns {', '.join(roles) or 'none'}; give one question of the user and one"
            " answer of the assistant per row"
        )
    text = said[1][1] if len(said) == 2 else ""
    has_code = has_program(text)
    answer = row.get("answer")
    if answer is None or answer == "":
        answer = extract_natural(text, Prompt().trigger)
    if answer is None:
        raise UserError(f"{where}: no final answer in what the assistant says; add a column 'answer'")
    chain = extract_program(text) if has_code else without_answer(text)
    return {**row, "question": said[0][1], "answer": answer, "chain": chain}


def _turns(where: str, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the role and the text of each message."""
    if "messages" in row:
        return _messages(where, "messages", row["messages"], "user")
    asked = _messages(where, "prompt", row["prompt"], "user")
    given = row.get("completion")
    return asked if given is None else asked + _messages(where, "completion", given, "assistant")


def _messages(where: str, name: str, value: object, role: str) -> list[tuple[str, str]]:
    """Return a field's messages; a text is the only one, of `role`."""
    if isinstance(value, str) and name != "messages":
        return [(role, as_text(where, name, value))]
    if not isinstance(value, list | tuple) or not all(map(_is_message, value)):
        raise UserError(f"{where}: {name!r} must be a list of messages such as {_EXAMPLE}")
    return [(message["role"], as_text(where, name, message["content"])) for message in value]


def _is_message(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )
