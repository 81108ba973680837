"""Programs as data sets carry them: named steps, one per line, in a `solution()` without docstring."""

import ast
import builtins
import keyword
import re
from collections.abc import Container

from reftune.data.derive.arithmetic import names_in

_TAKEN = frozenset((*keyword.kwlist, *dir(builtins), "math", "result", "solution"))

MAX_NAME_WORDS = 4
_CLAUSE_END = re.compile(r"[^\w\s'-]")
_NUMBER = re.compile(r"[-\d(]")
_LABEL = re.compile(r"[^A-Za-z' -]")
# A name ends before a word of the first kind, and neither begins nor ends with one of either kind.
_END_WORDS = """
and are as because but can had has have if is since so than that then this thus was were when where which
while who will would
"""
_WEAK_WORDS = """
a about all also an another at be by each every find first for from gets he her his how i in into it its
left make many means more much my now of on only or our out per she the their them there therefore these
they those to up we with x you your
"""
_ENDS = frozenset(_END_WORDS.split())
_WEAK = frozenset(_WEAK_WORDS.split()) | _ENDS


class UnderivableError(Exception):
    """Say in a few words why no program can be derived; equal causes have equal words."""


def variable_name(before: str, after: str) -> str | None:
    """Return a name for a number by the words beside it, None if they give none.

    Those that follow name it: 24 `clips in May`. A single one gets the last two of the clause before it.
    """
    words = _words(_LABEL.split(after.strip())[0])
    end = next((n for n, word in enumerate(words) if word in _ENDS), len(words))
    name = _trim(_trim(words[:end])[:MAX_NAME_WORDS])
    if len(name) < 2:
        clauses = (_trim(_words(_NUMBER.split(clause)[0])) for clause in _CLAUSE_END.split(before))
        context = [clause for clause in clauses if clause]
        near = [word for word in context[-1] if word not in name] if context else []
        name = _trim(near[-2:]) + name if name else _trim(near[-MAX_NAME_WORDS:])
    return "_".join(name) or None


def free_name(name: str, taken: Container[str]) -> str:
    """Return the name, changed as little as possible to be a new and harmless variable."""
    if name in _TAKEN:
        name += "_value"
    number, new = 1, name
    while new in taken:
        number += 1
        new = f"{name}_{number}"
    return new


def write_program(steps: dict[str, str]) -> str:
    """Return the program whose result is that of the last step, without the steps it does not need.

    Args:
        steps: names in order, each with an expression in the names before it.
    """
    result = [*steps][-1]
    wanted, lines = {result}, [f"result = {result}", "return result"]
    for name, expression in reversed(steps.items()):
        if name in wanted:
            lines.insert(0, f"{name} = {expression}")
            wanted |= names_in(ast.parse(expression))
    if "math" in wanted:
        lines.insert(0, "import math")
    return "\n    ".join(["def solution():", *lines])


def _words(text: str) -> list[str]:
    return [word for word in re.findall("[a-z]+", text.lower()) if word != "s"]


def _trim(words: list[str]) -> list[str]:
    """Leave out what a name neither begins nor ends with."""
    strong = [n for n, word in enumerate(words) if word not in _WEAK]
    return words[strong[0] : strong[-1] + 1] if strong else []
