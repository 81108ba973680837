"""Rewrite programs in words that the sandbox's interpreter knows; its worker loads this folder by path.

Monty leaves parts of Python out. What can be said otherwise is said otherwise here: imports of modules
that it lacks become the namespaces of `prelude/`, `del d[k]` becomes a call of `prelude/language.py`,
and so on. All of it runs inside monty, with the rights of any program. docs/grading.md lists what
programs can use. Only text goes in and comes out, and CPython parses but never runs it.
"""

import ast
import builtins
import collections
import datetime
import decimal
import re

from .expressions import Rewriter
from .library import LANGUAGE, namespace

# A Decimal or a Fraction as an answer; its text stands for `_answer` in the worker's last line.
PLAIN_ANSWER = f"{LANGUAGE}.plain(_answer)"

# What monty runs without an error but otherwise than Python; the rest is rewritten when it has failed.
# Of the words one is there in every such program; they are sought first as that is ten times as fast.
_SUBTLE_WORDS: tuple[str, ...] = (
    "next(",
    "round(",
    "__",
    "strptime(",
    "fractions",
    "= (",
    "= map(",
    "= filter(",
    "= zip(",
)
_SUBTLE_WORDS += ("= enumerate(", "= reversed(")
_SUBTLE = re.compile(
    r"\bnext\(|\bround\([^\n]*,|__(?:bool|len)__|\bstrptime\(|\bfractions\b|= \([^\n]*\bfor\b"
    r"|= (?:map|filter|zip|enumerate|reversed)\("
)


def is_subtle(program: str) -> bool:
    """Tell whether monty might run a program to another end than Python, without an error."""
    for word in _SUBTLE_WORDS:  # any() would take twice as long, for every program
        if word in program:
            return _SUBTLE.search(program) is not None
    return False


def rewrite(program: str) -> str | None:
    """Return the program in words that monty knows, or None where there is nothing to rewrite."""
    try:
        tree = ast.parse(program)
        rewriter = Rewriter(tree)
        text = ast.unparse(ast.fix_missing_locations(rewriter.visit(tree)))
    except Exception:  # the text is a model's: it may be no Python, or too deep for the parser
        return None
    if not rewriter.changed:
        return None
    return "".join(namespace(name) for name in sorted(rewriter.needed)) + text


def is_gap(detail: str) -> bool:
    """Tell whether a message misses a name or a method that Python has: input or int.to_bytes."""
    if missing := re.fullmatch(r"name '(\w+)' is not defined", detail):
        return hasattr(builtins, missing[1])
    missing = re.match(
        r"(?:type object )?'(?:\w+\.)?(\w+)'(?: object)? has no attribute '(\w+)'", detail
    )
    name = {"dict": "OrderedDict"}.get(missing[1], missing[1]) if missing else ""
    owners = [getattr(home, name, None) for home in (builtins, collections, datetime, decimal, re)]
    return missing is not None and any(hasattr(owner, missing[2]) for owner in owners if owner)
