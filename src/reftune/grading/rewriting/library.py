"""The modules of `prelude/`, written in what monty knows, as text to put before a program."""

import ast
import builtins
import functools
import textwrap
from pathlib import Path

PRELUDE = Path(__file__).with_name("prelude")
MODULES = {path.stem for path in PRELUDE.glob("*.py")} - {"language", "dates"}
LANGUAGE = "_reftune_language"
# What modules have that monty has but in part; it stands in prelude/language.py.
ADDED = {("functools", "cmp_to_key"), ("functools", "wraps"), ("collections", "OrderedDict")}


@functools.cache
def exports(name: str) -> tuple[str, ...]:
    """Return the public names of a module of the prelude."""
    found: list[str] = []
    for statement in ast.parse(_source(name)).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found.append(statement.name)
        elif isinstance(statement, ast.Assign):
            found += [n.id for t in statement.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return tuple(dict.fromkeys(name for name in found if name[0] != "_"))


@functools.cache
def namespace(name: str) -> str:
    """Return the program that makes a module of the prelude; it does not see what others redefine."""
    source = _source(name)
    read = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    kept = ", ".join(f"{word}={word}" for word in sorted(read) if hasattr(builtins, word))
    body = [source, f"class reftune_{name}:\n    pass", f"module = reftune_{name}()"]
    body += [f"module.{export} = {export}" for export in exports(name)]
    maker = textwrap.indent("\n".join([*body, "return module"]), "    ")
    return f"def _reftune_make({kept}):\n{maker}\n_reftune_{name} = _reftune_make()\n"


@functools.cache
def _source(name: str) -> str:
    return (PRELUDE / f"{name}.py").read_text(encoding="utf-8")
