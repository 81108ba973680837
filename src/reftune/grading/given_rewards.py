"""A reward that a Python program hands over: where it runs, and what a run records of it."""

import math
import sys
from collections.abc import Callable
from typing import Any

from reftune.config import Config
from reftune.config.checks import Layer, idle_settings
from reftune.grading.rewards import GIVEN, RewardSpec
from reftune.problem import GivenReward, UserError, shown

_OF_OWN = {"reward": ("weights", "seconds", "max_failed"), "data": ("keep_columns",)}


def with_reward(config: Config, reward: GivenReward | None) -> tuple[Config, list[RewardSpec]]:
    """Return the settings of a run with this reward in place of theirs, and the functions to call.

    A function that another process can import is known to the run as `module:name`, and called in a
    process of its own like any that a file names; another one, such as a lambda or one of a notebook,
    as `<given>:name`, and called in a thread of this process.

    Raises UserError for what is no function, and for settings that only a reward of one's own goes by
    where there is none.
    """
    if reward is None:
        _refuse_idle(config)
        return config, []
    given = reward if isinstance(reward, list) else [reward]
    pairs = [one if isinstance(one, tuple) else (one, 1.0) for one in given]
    functions: list[RewardSpec] = [_placed(function) for function, _ in pairs]
    weights = config.reward.weights
    if any(isinstance(one, tuple) for one in given):
        weights = [_weight(weight) for _, weight in pairs]
    named = [f if isinstance(f, str) else f"{GIVEN}{_name(f)}" for f in functions]
    told = {"function": named if len(named) > 1 else named[0], "weights": weights}
    return config.model_copy(update={"reward": config.reward.model_copy(update=told)}), functions


def place_of(function: Callable[..., Any]) -> str | None:
    """Return `module:name`, by which another process imports this function; None where it cannot."""
    name, module = _name(function), sys.modules.get(getattr(function, "__module__", None) or "")
    spec = getattr(module, "__spec__", None)  # that of a script or notebook is none, or says nothing
    if module is None or module.__name__ == "__main__" or not getattr(spec, "has_location", False):
        return None
    return f"{module.__name__}:{name}" if vars(module).get(name) is function else None


def _placed(function: object) -> RewardSpec:
    if isinstance(function, str):
        return function
    if not callable(function):
        raise UserError(
            f"reward: {shown(function)} is no function; give one, its place as module:function, or a"
            " list of them, each perhaps as (function, weight)"
        )
    return place_of(function) or function


def _name(function: Callable[..., Any]) -> str:
    """Return what a function is called, or the class of what can be called, too."""
    return str(getattr(function, "__name__", type(function).__name__))


def _weight(weight: object) -> float:
    if isinstance(weight, int | float) and math.isfinite(weight):
        return float(weight)
    raise UserError(f"reward: {shown(weight)} is no weight; give (function, weight) with a number")


def _refuse_idle(config: Config) -> None:
    """Raise UserError for what `load_config` has let pass, as a reward might have followed."""
    said = config.model_dump(exclude_defaults=True)
    values = {
        section: {key: said[section][key] for key in keys if key in said.get(section, {})}
        for section, keys in _OF_OWN.items()
    }
    if idle := idle_settings(config, [Layer("config", values)]):
        raise UserError(f"{idle[0]}, or give reward=")
