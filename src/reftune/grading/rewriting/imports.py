"""The imports of a program, and what every rewriting needs to know about its names."""

import ast
import builtins
import sys
from collections.abc import Iterable

from .library import ADDED, LANGUAGE, MODULES, exports

# What monty has itself, and what a program may import without need: no import of it is missed.
_KNOWN_TO_MONTY = frozenset(
    [
        "asyncio",
        "base64",
        "bisect",
        "collections",
        "copy",
        "csv",
        "dataclasses",
        "datetime",
        "decimal",
        "functools",
        "hashlib",
        "itertools",
        "json",
        "math",
        "os",
        "pathlib",
        "random",
        "re",
        "sys",
        "time",
        "typing",
        "unicodedata",
    ]
)
_INSTALLED_ELSEWHERE = frozenset(
    {"numpy", "pandas", "sympy", "scipy", "matplotlib", "networkx", *sys.stdlib_module_names}
) - {"antigravity", "this"}  # which do something when they are imported


class Imports(ast.NodeTransformer):
    """Replace imports, and collect which modules of the prelude the new program needs."""

    def __init__(self, tree: ast.Module) -> None:
        self.changed = False
        self.needed = {"language"}
        self.own = set(bound_names(tree))  # not the builtins of these names
        self._read = set(read_names(tree))

    def need(self, module: str) -> None:
        """Put a module of the prelude before the program."""
        self.changed = True
        self.needed.add(module)

    def call(self, name: str, *arguments: ast.expr, keywords: Iterable[ast.keyword] = ()) -> ast.Call:
        """Return a call of a function of prelude/language.py or prelude/dates.py."""
        return ast.Call(self.known(name), list(arguments), list(keywords))

    def known(self, name: str) -> ast.Attribute:
        """Return the name of a function of prelude/language.py or prelude/dates.py."""
        module = "dates" if name in exports("dates") else "language"
        self.need(module)
        return attribute(f"_reftune_{module}", name)

    def is_builtin(self, node: ast.expr, names: Iterable[str]) -> bool:
        """Tell whether an expression is one of these builtins, which the program has not redefined."""
        return isinstance(node, ast.Name) and node.id in names and node.id not in self.own

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        kept, made = [], list[ast.stmt]()
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            if alias.name in MODULES:
                made.append(self._bind(name, ast.Name(f"_reftune_{alias.name}"), alias.name))
            elif not self._is_idle(alias.name, name):
                kept.append(alias)
        return self._imports(ast.Import(kept) if kept else None, made)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> list[ast.stmt]:
        kept, made, module = [], list[ast.stmt](), node.module or ""
        for alias in node.names:
            names = exports(module) if module in MODULES and alias.name == "*" else [alias.name]
            for name in names:
                bound = alias.asname or name
                if module in MODULES and name in exports(module):
                    made.append(self._bind(bound, attribute(f"_reftune_{module}", name), module))
                elif (module, name) in ADDED:
                    made.append(self._bind(bound, attribute(LANGUAGE, name), "language"))
                elif module != "__future__" and not self._is_idle(module, bound):
                    kept.append(alias)
        return self._imports(ast.ImportFrom(module, kept, node.level) if kept else None, made)

    def _imports(self, kept: ast.stmt | None, made: list[ast.stmt]) -> list[ast.stmt]:
        statements = [*([kept] if kept else []), *made]
        self.changed |= kept is None
        return statements or [ast.Pass()]

    def _bind(self, name: str, value: ast.expr, module: str) -> ast.stmt:
        self.need(module)
        return ast.Assign([ast.Name(name, ast.Store())], value)

    def _is_idle(self, module: str, bound: str) -> bool:
        """Tell whether an import that monty would refuse does nothing here."""
        unknown = module not in _KNOWN_TO_MONTY and module.partition(".")[0] in _INSTALLED_ELSEWHERE
        if bound == "*":  # whatever is read and not made here may come from there
            idle = unknown and self._read <= self.own | vars(builtins).keys()
        else:
            idle = unknown and bound not in self._read
        self.changed |= idle
        return idle


def attribute(owner: str, name: str) -> ast.Attribute:
    """Return the expression `owner.name`."""
    return ast.Attribute(ast.Name(owner), name, ast.Load())


def bound_names(tree: ast.AST) -> Iterable[str]:
    """Yield what a program names itself, its methods and imports too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield from (node.name, node.asname or "")


def read_names(tree: ast.AST) -> Iterable[str]:
    """Yield the names that are read anywhere but in annotations, which monty leaves alone."""
    if isinstance(tree, ast.Name):
        yield tree.id
    for field, value in ast.iter_fields(tree):
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST) and field not in ("annotation", "returns"):
                yield from read_names(node)
