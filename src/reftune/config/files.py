"""Read a run's configuration from TOML files and the command line, and write it out again."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from reftune.config import Config
from reftune.config.checks import Layer, flat, idle_settings, last_layer
from reftune.config.data import PAPERS_TEMPLATE
from reftune.config.ranges import Section
from reftune.config.reference import all_keys
from reftune.config.synonyms import advice
from reftune.files import TOO_DEEP, parse_toml, reading_from
from reftune.problem import UserError, shown

# Begins the file that a run writes. It holds every setting, those that do nothing included.
_RECORD = "# All settings of a run, defaults included."
_MODEL_SOURCES = {"name", "scratch"}
# Keys of earlier versions, with what they are called now.
_RENAMED = {
    "ppo.reward": "reward.function",
    "ppo.partial_reward": "reward.partial_reward",
    "ppo.updates_per_batch": "ppo.ppo_epochs",
    "online_st.updates_per_batch": "online_st.update_epochs",
    "ppo.group_scale": "ppo.scale_rewards",
    "compute.sandbox_seconds": "reward.sandbox_seconds",
    "compute.sandbox_memory_mb": "reward.sandbox_memory_mb",
    "ppo.critic_warmup_steps": "ppo.value_pretraining_steps",
    "ppo.sampler_correction": "ppo.importance_sampling_cap",
}
# What a Python program hands over beside the configuration.
_GIVEN_TO_RUN = {"data.train": "train", "data.test": "test", "reward.function": "reward"}


def load_config(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    name: str | None = None,
    *,
    reward_follows: bool = False,
) -> Config:
    """Read a TOML file, what it `extends` first (a file or several), then apply `section.key=value`.

    What comes later wins; model.name and model.scratch replace each other. The run is called `name`,
    or what the file itself says (not its parents), or else the file's stem. The override
    `extends=FILE` lays that file, such as one of configs/recipes, over the others.

    Args:
        source: the file; or what would be in it, as nested mappings.
        overrides: have the last word.
        name: of the run.
        reward_follows: whether a Python program may still hand over a reward of its own: what only such
            a reward goes by is then no setting without effect.

    Raises UserError, in one sentence with the file and the key, for anything that is wrong, a setting
    that would do nothing included.
    """
    if isinstance(source, Mapping):
        place = "config"
        layers, own = _with_parents(place, _as_tables(source), Path(), seen=()), {}
    else:
        place = str(source)
        layers, own = _read_with_parents(Path(source), seen=()), {"name": Path(source).stem}
    own = own | layers[-1].values
    if name is not None:
        own["name"] = name
    layers[-1] = layers[-1]._replace(values=own)
    try:
        config = _parse(layers, overrides, reward_follows)
        dump_config(config).encode()
    except RecursionError:
        raise UserError(f"{place}: {TOO_DEEP}") from None
    except UnicodeEncodeError as error:
        name = shown(error.object[error.start - 10 : error.end + 10])
        raise UserError(f"{place}: around {name} is no UTF-8; choose another name") from None
    return config


def parse_config(values: dict[str, Any], overrides: Sequence[str], source: str) -> Config:
    """Check settings, with overrides applied on top; `source` names their place in error messages.

    Of settings that would do nothing only overrides are refused.
    """
    return _parse([Layer(source, values, judged=False)], overrides)


def dump_config(config: Config) -> str:
    """Return the complete configuration as TOML (keys that are unset are left out)."""
    return f"{_RECORD}\n{tomli_w.dumps(config.model_dump(exclude_none=True))}"


def flat_settings(config: Config) -> dict[str, Any]:
    """Return all settings by their full keys, such as "ppo.kl_coef"."""
    return flat(config.model_dump())


def changed_settings(old: Config, new: Config) -> dict[str, Any]:
    """Return what the second says, by full key, where it differs from the first."""
    before, after = flat_settings(old), flat_settings(new)
    keys = dict.fromkeys([*after, *before])
    return {key: after.get(key) for key in keys if before.get(key) != after.get(key)}


def _parse(files: Sequence[Layer], overrides: Sequence[str], reward_follows: bool = False) -> Config:
    said: dict[str, Any] = {}
    for override in overrides:
        said = _merge(said, _parse_override(override))
    layers = [*files, *_with_parents("--set", said, Path(), seen=())]
    try:
        config = Config.model_validate(reduce(_merge, (layer.values for layer in layers)))
    except ValidationError as error:
        raise UserError("\n".join(_complaints(error, layers, files[-1].source))) from None
    idle = idle_settings(config, layers)
    if idle and reward_follows and config.reward.function is None:
        own = config.reward.model_copy(update={"function": "any"})
        idle = idle_settings(config.model_copy(update={"reward": own}), layers)
    if idle:
        raise UserError("\n".join(idle))
    return config


def _read_with_parents(path: Path, seen: tuple[str, ...]) -> list[Layer]:
    """Return what a file says, after what the files say that it extends."""
    record = path / "config.toml"  # of a run
    with reading_from(path, f"give {record}" if record.is_file() else "give a TOML file"):
        place = os.path.realpath(path)
        if place in seen:
            raise UserError(f"{path}: extends itself; remove the circle")
        if not os.path.lexists(path):
            raise UserError(f"{path}: no such config file")
        text = path.read_text(encoding="utf-8-sig")
    values = parse_toml(text, str(path))
    layers = _with_parents(str(path), values, path.parent, (*seen, place))
    if text.startswith(_RECORD):
        _complete_old_record(values)
        layers[-1] = layers[-1]._replace(judged=False)
    return layers


def _with_parents(
    source: str, values: dict[str, Any], folder: Path, seen: tuple[str, ...]
) -> list[Layer]:
    """Return what settings say, after what the files say that they extend; these lie below `folder`."""
    parents = values.pop("extends", [])
    names = [parents] if isinstance(parents, str) else parents
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f'{source}: extends names files, as in extends = "base.toml", not {shown(parents)}'
        )
    layers = []
    for name in names:
        layers += _read_with_parents(folder / name, seen)
    for layer in layers:
        layer.values.pop("name", None)  # two configs with one run directory would be in each other's way
    return [*layers, Layer(source, values)]


def _as_tables(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return mappings as the tables of a TOML file, where "ppo.steps" is a key of the table "ppo"."""
    tables: dict[str, Any] = {}
    for key, value in values.items():
        full = f"{above}.{key}".lstrip(".")
        inner: Any = _as_tables(value, full) if isinstance(value, Mapping) else value
        inner = str(inner) if isinstance(inner, Path) else inner
        for part in [key] if "." in str(key) and _is_free(above) else reversed(str(key).split(".")):
            inner = {part: inner}
        tables = _merge(tables, inner)
    return tables


def _is_free(name: str) -> bool:
    """Tell whether a table's keys are the user's own, such as the files of data.mixture."""
    return any(key.name == name and key.kind == "table" for key in all_keys())


def _complete_old_record(values: dict[str, Any]) -> None:
    """Say what a version meant that knew no styles: every model was asked in plain text.

    Nor did it leave a template open, which the paper's was unless the user gave another.
    """
    prompt, model = values.get("prompt"), values.get("model")
    if not isinstance(prompt, dict) or not isinstance(model, dict) or "style" in prompt:
        return
    if prompt.get("template") == PAPERS_TEMPLATE:
        del prompt["template"]
    if "name" in model:
        prompt["style"] = "plain"


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `top` laid over it, table by table."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if key == "model" and _MODEL_SOURCES & value.keys():  # a model has one source
                old = {name: kept for name, kept in old.items() if name not in _MODEL_SOURCES}
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _parse_override(override: str) -> dict[str, Any]:
    """Return `section.key=value` as the nested table that it stands for."""
    key, equals, text = override.partition("=")
    bare_word = json.dumps(text.strip(), ensure_ascii=False)  # --set data.cot=natural
    for value in (text, bare_word) if equals else ():
        with suppress(UserError):
            return parse_toml(f"{key.strip()} = {value}", "--set")
    raise UserError(f"--set {override}: write section.key=value, for example ppo.kl_coef=0.05")


def _complaints(error: ValidationError, layers: Sequence[Layer], otherwise: str) -> list[str]:
    """Return a sentence on each key that is wrong, with the place that set it, or else `otherwise`."""
    keys = {key.name for key in all_keys()}
    found: dict[str, str] = {}
    for problem in error.errors():
        parts = [part for part in map(str, problem["loc"]) if "[" not in part]  # that is a type
        *_, key = path = ["", *accumulate(parts, "{}.{}".format)]
        whole = next((one for one in path if one in keys), key)
        if whole not in found:  # else it may be of several types, and is of none of them
            place = last_layer(layers, whole)
            source = layers[place].source if place >= 0 else otherwise
            found[whole] = f"{source}: {_complaint(problem, key)}"
    return list(found.values())


def _complaint(problem: ErrorDetails, key: str) -> str:
    """Return a sentence on a key that is wrong, or on a section of keys that do not fit."""
    message = problem["msg"].removeprefix("Value error, ")
    if key in _RENAMED:
        message = f"{key} is called {_RENAMED[key]} now; rename it"
    elif problem["type"] == "extra_forbidden":
        everywhere = [known.name for known in all_keys()]
        message = f"unknown key {key}; {advice(key, _keys_beside(problem['loc']), everywhere)}"
    elif problem["type"] == "missing":
        message = f"the section [{key}] is missing"
    elif problem["type"] == "model_type":
        message = f"{key}: is a section with keys of its own, not {shown(problem['input'])}"
    elif problem["type"] != "value_error":
        message = f"{key}: {message[:1].lower()}{message[1:]}, not {shown(problem['input'])}"
        for known, argument in _GIVEN_TO_RUN.items():
            if key.startswith(known) and not isinstance(problem["input"], str | int | float):
                message = f"{known} is a name; give what it names to reftune.run as {argument}="
    return message


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the section around `location` knows."""
    section: Any = Config
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        options = getattr(annotation, "__args__", (annotation,))  # `Columns | None` holds two
        section = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return list(section.model_fields)
