"""Rewrite programs in words that the sandbox's interpreter knows; its worker loads this folder by path.

Monty leaves parts of Python out. What can be said otherwise is said otherwise here: imports of modules
that it lacks become the namespaces of `prelude/`, `del d[k]` becomes a call of `prelude/language.py`,
and so on. All of it runs inside monty, with the rights of any program. docs/programs.md lists
what programs can use. Only text goes in and comes out, and CPython parses but never runs it.
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

# What monty may run without an error but otherwise than Python; the rest is rewritten when it failed.
# Of the words one is there in every such program; they are sought first as that is ten times as fast.
# No pattern may look far from where it begins, as a text of 20,000 characters must not take seconds.
_SUBTLE_WORDS = (
    "next", "round", "__", "strptime(", "fractions", "for", "map(", "filter(", "zip(", "enumerate(",
    "reversed(", "itertools",
)  # fmt: skip
_USED_UP_AT_ONCE = (
    "in ", "list(", "tuple(", "set(", "dict(", "sorted(", "sum(", "min(", "max(", "join(",
)  # fmt: skip
_IGNORED = {"format", "getattr", "setattr", "getattribute", "ne", "new", "reversed", "class_getitem"}
_IGNORED |= {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"}
_SUBTLE = re.compile(
    r"\bnext\b|\bround\b(?!\([^\n,()]{0,99}\))|\bstrptime\(|\bfractions\b"
    rf"|__(?:bool|len|{'|'.join(sorted(_IGNORED))})__"
    r"|\bitertools\b|\S[ \t]{0,9}\bfor\b[^\n:]{1,99}\bin\b|\n[ \t]*for\b[^\n]*[^\n:]\n"  # generators
    r"|\b(?=[mfzer])"
    + "".join(f"(?<!{re.escape(word)})" for word in _USED_UP_AT_ONCE)
    + r"(?:map|filter|zip|enumerate|reversed)\("
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
        if ignored := {f"__{name}__" for name in _IGNORED} & rewriter.own:
            return f"raise NotImplementedError('monty does not call {min(ignored)}')\n"
        tree = rewriter.visit(tree)
        if not rewriter.changed:
            return None
        text = ast.unparse(ast.fix_missing_locations(tree))
    except Exception:  # the text is a model's: it may be no Python, or too deep for the parser
        return None
    return "".join(namespace(name) for name in sorted(rewriter.needed)) + text


# What Python never says, of what it can compare and compute.
_NEVER_PYTHONS = re.compile(
    r"not supported between instances of '(tuple|list|Fraction)' and '\1'"
    r"|'datetime.timedelta' and 'float'|must be real number, not Fraction|'Fraction' and 'complex'"
)


def is_gap(detail: str) -> bool:
    """Tell whether a message misses what Python has: input, int.to_bytes, the order of tuples."""
    if _NEVER_PYTHONS.search(detail):
        return True
    if missing := re.fullmatch(r"name '(\w+)' is not defined", detail):
        return hasattr(builtins, missing[1])
    missing = re.match(
        r"(?:type object )?'(?:\w+\.)?(\w+)'(?: object)? has no attribute '(\w+)'", detail
    )
    name = {"dict": "OrderedDict"}.get(missing[1], missing[1]) if missing else ""
    owners = [getattr(home, name, None) for home in (builtins, collections, datetime, decimal, re)]
    return missing is not None and any(hasattr(owner, missing[2]) for owner in owners if owner)
