"""All keys of the configuration, for people and for editors: made from the sections themselves."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reftune.config import Config
from reftune.config.synonyms import SYNONYMS, advice
from reftune.problem import UserError

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
OTHERS = "TRL, verl or peft"  # whose names people bring; TRL's contain those of transformers
_TELLING = 10**6  # a larger bound just keeps numbers from overflowing

_PREFACE = """\
Made by `reftune config --markdown`. In a terminal `reftune config` shows the same, and
`reftune config ppo` one section. A key stands in the table of its section, as `kl_coef = 0.05` below
`[ppo]`, or in the command line, as `--set ppo.kl_coef=0.05`.

For completion and checks in an editor write the schema to a file, and name it in the first line of yours
(for taplo, or Even Better TOML in VS Code):

    reftune config --schema > reftune.schema.json
    #:schema ./reftune.schema.json"""


@dataclass(frozen=True)
class Key:
    """One setting."""

    name: str  # in full, such as "ppo.kl_coef"
    kind: str  # what it may be
    default: str  # as in the file; empty: there is none
    line: str  # what it is
    elsewhere: str  # what other libraries call it


def all_keys(section: str = "") -> list[Key]:
    """Return every key in the order of the sections, or those that begin with `section`.

    Raises UserError where there is none.
    """
    found = list(_keys(Config.model_json_schema(), ""))
    chosen = [key for key in found if f"{key.name}.".startswith(f"{section}." if section else "")]
    if not chosen:
        names = [key.name for key in found]
        above = f"{section.rpartition('.')[0]}.".lstrip(".")
        known = {x.removeprefix(above).partition(".")[0] for x in names if x.startswith(above)}
        raise UserError(f"no key or section is called {section}; {advice(section, known, names)}")
    return chosen


def listing(section: str, width: int) -> str:
    """Return keys as a terminal of so many columns shows them."""
    parts = []
    for key in all_keys(section):
        told = key.line + (f" (in {OTHERS}: {key.elsewhere})" if key.elsewhere else "")
        lines = textwrap.wrap(told, width, initial_indent="    ", subsequent_indent="    ")
        head = f"{key.name} = {key.default}".rstrip(" =")
        heads = textwrap.wrap(f"{head}  [{key.kind}]", width, subsequent_indent="    ")
        parts.append("\n".join([*heads, *lines]))
    return "\n".join(parts)


def editors_schema() -> str:
    """Return the JSON schema by which an editor completes and checks a file."""
    schema = Config.model_json_schema()
    files = {"type": "array", "items": {"type": "string"}}
    schema["properties"]["extends"] = {
        "anyOf": [{"type": "string"}, files],
        "description": "another file, or several, whose settings hold where this one says nothing",
    }
    schema.pop("required", None)  # a file that extends another may leave the model to that
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema}, indent=1)


def markdown() -> str:
    """Return the keys as a page, a table for each section."""
    parts = ["# All settings", _PREFACE]
    sections: dict[str, list[Key]] = {}
    for key in all_keys():
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    for section, keys in sections.items():
        title = f"## `[{section}]`" if section else "## At the top of the file"
        rows = [f"| `{key.name.rpartition('.')[2]}` | {_cell(key)} |" for key in keys]
        head = [
            f"| key | type | default | what it is | in {OTHERS} |",
            "|---|---|---|---|---|",
        ]
        parts.append("\n".join([title, "", *head, *rows]))
    return "\n\n".join(parts) + "\n"


def _cell(key: Key) -> str:
    default = f"`{key.default}`" if key.default else ""
    cells = (key.kind, default, key.line, key.elsewhere)
    return " | ".join(cell.replace("|", "\\|") for cell in cells)


def _keys(schema: dict[str, Any], prefix: str) -> Iterator[Key]:
    """Yield the keys of a section, its own sections' behind them."""
    sections = []
    definitions = schema["$defs"]
    for name, said in schema["properties"].items():
        options = said.get("anyOf", [said])
        section = next((option["$ref"] for option in options if "$ref" in option), None)
        if section is not None:
            own = definitions[section.rpartition("/")[2]]
            sections.append((f"{prefix}{name}.", {**own, "$defs": definitions}))
            continue
        full = f"{prefix}{name}"
        default = said.get("default")
        yield Key(
            full,
            " or ".join(_kind(option) for option in options if option.get("type") != "null"),
            "" if default is None else json.dumps(default, ensure_ascii=False),
            said.get("description", ""),
            ", ".join(theirs for theirs, ours in SYNONYMS.items() if ours == full),
        )
    for inner, own in sections:
        yield from _keys(own, inner)


def _kind(said: dict[str, Any]) -> str:
    """Return in words what a schema says that a value may be."""
    if "const" in said:
        return f'"{said["const"]}"'
    if "enum" in said:
        return ", ".join(f'"{value}"' for value in said["enum"])
    if said["type"] == "array":
        return f"list of {_kind(said['items'])}"
    if said["type"] == "object":
        return "table"
    bounds = [
        f"{sign} {said[word]:g}"
        for word, sign in _BOUNDS.items()
        if word in said and said[word] <= _TELLING
    ]
    return ", ".join([said["type"], *bounds])
