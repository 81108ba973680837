"""What README, docs and the help texts promise, as far as it can be checked without a run."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import typer

import reftune
from reftune import cli
from reftune.config.files import load_config
from reftune.grading.reward_calls import load_function

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / f"docs/{name}.md" for name in ("guide", "commands", "library"))]
PROMISED = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
COMMANDS = typer.main.get_command(cli.app)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PROMISED, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_blocks_are_configurations(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    model = [] if "model" in tomllib.loads(text) else ["model.scratch=tiny"]
    config = load_config(path, model)
    tables = {k: v for k, v in tomllib.loads(text).items() if isinstance(v, dict)}
    for section, values in tables.items():
        for key, value in values.items():
            read = getattr(getattr(config, section), key)
            assert (read.model_dump(exclude_defaults=True) if key == "columns" else read) == value


def test_the_keys_in_the_text_exist() -> None:
    config = load_config(ROOT / "configs/demo.toml")
    keys = re.findall(r"`(?:--set )?(data|prompt|model|sft|ppo|compute)\.(\w+)", PROMISED)
    assert len(keys) >= 3
    for section, key in keys:
        assert hasattr(getattr(config, section), key), f"{section}.{key}"


def test_the_python_example_calls_what_there_is() -> None:
    example = ast.parse(blocks("python")[1])
    calls = [
        node for node in ast.walk(example)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("reftune.")
    ]  # fmt: skip
    shown = {ast.unparse(call.func).removeprefix("reftune.") for call in calls}
    assert shown == {name for name in reftune.__all__ if name.islower()}
    for call in calls:
        signature = inspect.signature(getattr(reftune, ast.unparse(call.func).partition(".")[2]))
        signature.bind(*call.args, **{str(keyword.arg): None for keyword in call.keywords})


def test_the_python_example_grades_and_runs_a_program() -> None:
    *_, grades, runs = ast.parse(blocks("python")[1]).body
    assert isinstance(grades, ast.Expr)
    assert isinstance(runs, ast.Expr)
    [verdict] = eval(ast.unparse(grades), {"reftune": reftune})
    assert (verdict.correct, verdict.answer) == (True, 7.0)
    assert eval(ast.unparse(runs), {"reftune": reftune}) == reftune.Execution("ok", 7.0)


def test_the_reward_in_the_text_is_one(tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text(blocks("python")[0], encoding="utf-8")
    reward = load_function(f"{tmp_path / 'my_reward.py'}:reward")
    assert [reward("?", text, "7") for text in ("so 7 \n", "so 8")] == [1.0, 0.0]


def test_the_commands_and_their_options_exist() -> None:
    assert isinstance(COMMANDS, typer.core.TyperGroup)
    shown = re.findall(r"^\| `reftune (\w+)([^`]*)`", PROMISED, re.MULTILINE)
    assert {name for name, _ in shown} == set(COMMANDS.commands)
    for name, rest in shown:
        command = COMMANDS.commands[name]
        if isinstance(command, typer.core.TyperGroup):
            command = command.commands[rest.split()[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= options


def test_the_table_of_rooms_has_every_folder() -> None:
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("## Rooms\n")[2]
    rooms = re.findall(r"^\| \d+ \| (.*?) \|", table.partition("\n## ")[0], re.MULTILINE)
    listed = [name for room in rooms for name in re.findall(r"`(\w+)/`", room)]
    folders = {path.parent.name for path in (ROOT / "src/reftune").glob("*/__init__.py")}
    assert len(listed) == len(set(listed))
    assert set(listed) == folders


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda p: p.name
)
def test_what_a_page_links_to_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        place = (page.parent / path) if path else page
        assert place.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads
            }, target


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z0-9-]+)", PROMISED, re.MULTILINE)) <= targets


def test_the_pages_of_make_docs_are_modules() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    [listed] = re.findall(r"^PAGES := reftune '.*' \$\(addprefix reftune\., (.*)\)$", makefile, re.M)
    assert {"training.advantages", "sampling.sampler"} < set(listed.split())
    for name in listed.split():
        assert importlib.import_module(f"reftune.{name}").__doc__


def test_help_says_what_a_command_needs() -> None:
    assert isinstance(COMMANDS, typer.core.TyperGroup)
    assert "`reftune sft`, with the same config file, runs first" in (
        COMMANDS.commands["ppo"].help or ""
    )
    for name in ("evaluate", "sample"):
        [changes] = [p for p in COMMANDS.commands[name].params if "--set" in p.opts]
        assert "prompt.max_new_tokens=200" in (getattr(changes, "help", None) or "")
