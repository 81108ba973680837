"""The options that commands share: one name and one meaning each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from reftune.problem import UserError

if TYPE_CHECKING:
    from reftune.config import Columns

ConfigFile = Annotated[Path, typer.Argument(help="TOML file; configs/demo.toml is one to start from")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="change one setting, e.g. --set ppo.kl_coef=0.05 (repeatable)"),
]
Name = Annotated[str | None, typer.Option(help="name of the run directory; default: the file's")]
Sharding = Annotated[
    Literal["none", "fsdp2"] | None,
    typer.Option(help="how the model is cut; default: as the file says, or what is needed"),
]
ColumnNames = Annotated[
    list[str] | None,
    typer.Option("--column", help="name of a column, e.g. --column question=problem (repeatable)"),
]
Split = Annotated[str, typer.Option(help="split of a directory or Hugging Face data set")]
Subset = Annotated[str | None, typer.Option(help="configuration of a Hugging Face data set")]
Most = Annotated[
    int | None, typer.Option("--max", min=1, help="use only this many rows; default: all of them")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object with all that was found")]
RewardPlace = Annotated[
    str | None,
    typer.Option("--reward", help="your own path.py:function in place of the built-in check"),
]
FullPython = Annotated[
    bool, typer.Option("--full-python", help="run what the sandbox calls unsupported in a CPython")
]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", help="a column that the reward asks for (repeatable)")
]


def named_columns(pairs: list[str] | None) -> Columns | None:
    """Return the column names that `--column` gives, None without any."""
    from reftune.config import Columns

    names = column_names(pairs, Columns.model_fields)
    return Columns(**names) if names else None


def column_names(pairs: list[str] | None, keys: Collection[str]) -> dict[str, str]:
    """Return what `--column KEY=NAME` gives; raise UserError where a key is none of `keys`."""
    names = dict(pair.partition("=")[::2] for pair in pairs or [])
    for key, name in names.items():
        if key not in keys or not name:
            raise UserError(f"--column {key}={name}: write KEY=NAME with one of {', '.join(keys)}")
    return names


def as_overrides(
    columns: list[str] | None, most: int | None, reward: str | None, keep: list[str] | None
) -> list[str]:
    """Return what these options say of test questions as settings, "section.key=value" each."""
    found = {f"data.columns.{key}": name for key, name in named_columns(columns) or () if name}
    settings: dict[str, Any] = {
        **found, "data.max_test": most, "reward.function": reward, "data.keep_columns": keep
    }  # fmt: skip
    return [f"{key}={json.dumps(value)}" for key, value in settings.items() if value]


def fill_help(app: typer.Typer) -> None:
    """Let the terminal's width break the lines of the commands' help, not that of our docstrings."""
    for command in app.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def print_json(found: Any) -> None:
    """Print a machine's answer on standard output; what is said to people goes elsewhere."""
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False, default=str))
