"""How a user's reward is called: by the names of its parameters, for one completion or for all at once.

Runs where the reward runs: in a process of its own, or in a thread (`reward_lines.py`).
"""

import asyncio
import inspect
import math
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

from reftune.problem import UserError, shortened, shown

ONE = ("question", "completion", "answer")  # what a function of one completion gets by position
PLURAL = {
    "questions": "question", "prompts": "question", "completions": "completion", "answers": "answer",
    "question": "question", "answer": "answer",  # as TRL passes columns on
    "token_counts": "tokens", "truncated": "truncated", "stated_answers": "stated_answer",
}  # fmt: skip


class RewardSample(TypedDict):
    """What a reward may ask for of one completion."""

    question: str
    completion: str
    answer: str
    tokens: int | None  # of the response; None where nobody has counted
    truncated: bool  # whether the token limit cut it off
    stated_answer: str | None  # what the completion states as its final answer, by the built-in reading
    columns: dict[str, Any]  # the problem's other columns


class Outcome(TypedDict, total=False):
    """What a reward said of one completion: its value, or what went wrong."""

    value: float
    parts: dict[str, float]  # of which the value is the sum
    correct: bool
    error: str
    timeout: bool
    refusal: str  # why it can be called with none of the samples
    alive: bool  # says that it is still at work; an outcome will follow


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class MissingColumn(Exception):
    """Name what a reward asks for and the data do not have."""


def check_place(spec: str) -> tuple[str, bool, str]:
    """Return the file or module of a function's place, whether it is a file, and the function's name.

    Raises UserError where it is neither `path.py:function` nor `package.module:function`.
    """
    place, colon, name = spec.rpartition(":")
    if not (colon and place and name):
        raise UserError(f"reward {spec}: write path.py:function, or package.module:function")
    is_file = place.endswith(".py") or "/" in place
    if is_file and not Path(place).is_file():
        raise UserError(f"reward {spec}: no such file {place}")
    return place, is_file, name


def load_function(spec: str) -> Callable[..., Any]:
    """Return a function by its place (see `check_place`); its code is trusted.

    Raises UserError with the reason if it cannot be imported.
    """
    place, is_file, name = check_place(spec)
    try:
        found = _names_of_file(place) if is_file else vars(import_module(place))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit included
        told = f"reward {spec}: {place} cannot be imported ({reason_of(error)}); mend it"
        raise UserError(told) from error
    function: Callable[..., Any] | None = found.get(name)
    if not callable(function):
        raise UserError(f"reward {spec}: {place} defines no function {name}; correct the name")
    return function


class RewardCall:
    """A reward function, and how it is called.

    A function with a parameter `completions` gets lists by name (questions, completions, answers,
    token_counts, truncated, stated_answers, and the problems' other columns) and returns a list; any
    other gets one question, completion and answer, by name or by position, and more by name (tokens,
    truncated, stated_answer, columns). It returns a finite number, a bool, or a dictionary of named
    parts that are added up, of which "correct" says whether the answer is right. Both kinds may be
    `async`.

    Args:
        function: the user's; its code is trusted.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        parameters = _parameters(function)
        kinds = {name: parameter.kind for name, parameter in parameters.items()}
        named = [name for name, kind in kinds.items() if kind in _BY_NAME]
        self.batched = "completions" in named
        self.by_position = not self.batched and "completion" not in named
        if self.by_position:
            first = [name for name, kind in kinds.items() if kind in _BY_POSITION][: len(ONE)]
            named = [name for name in named if name not in first]
        self.takes_all = inspect.Parameter.VAR_KEYWORD in kinds.values()
        self.asked = {name: parameters[name].default is inspect.Parameter.empty for name in named}
        self.is_async = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
        self.wants_truncated = "truncated" in named

    def outcomes(self, samples: Sequence[RewardSample], seconds: float) -> Iterator[Outcome]:
        """Call the function; yield what it says of each sample, as soon as that is known.

        Args:
            seconds: that an async call for one completion may take; others are watched from outside.
        """
        try:
            if self.batched:
                yield from self._of_batch(samples)
            elif self.is_async:
                yield from asyncio.run(self._of_each_at_once(samples, seconds))
            else:
                for sample in samples:
                    yield _outcome(partial(self._call_one, sample))
        except MissingColumn as missing:
            yield {"refusal": str(missing)}

    def _of_batch(self, samples: Sequence[RewardSample]) -> Iterator[Outcome]:
        """Give all samples at once; if that fails, one at a time, so that the one at fault is found."""
        arguments = self._columns(samples)
        try:
            yield from _each(self._finished(self.function(**arguments)), len(samples))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if len(samples) == 1:
                yield {"error": reason_of(error)}
                return
            for sample in samples:
                yield {"alive": True}
                yield from self._of_batch([sample])

    async def _of_each_at_once(self, samples: Sequence[RewardSample], seconds: float) -> list[Outcome]:
        async def one(sample: RewardSample) -> Outcome:
            try:
                return result(await asyncio.wait_for(self._call_one(sample), seconds))
            except TimeoutError:
                return {"error": f"took more than {seconds:g} s", "timeout": True}
            except MissingColumn:
                raise
            except Exception as error:
                return {"error": reason_of(error)}

        return list(await asyncio.gather(*map(one, samples)))

    def _finished(self, value: Any) -> Any:
        async def wait() -> Any:
            return await value

        return asyncio.run(wait()) if self.is_async else value

    def _call_one(self, sample: RewardSample) -> Any:
        everything = {**sample["columns"], **sample}
        del everything["columns"]
        arguments = self._chosen(everything, ONE if self.by_position else ())
        places = [everything[name] for name in ONE] if self.by_position else []
        return self.function(*places, **arguments)

    def _columns(self, samples: Sequence[RewardSample]) -> dict[str, Any]:
        rows: list[Any] = list(samples)
        everything = {name: [row[key] for row in rows] for name, key in PLURAL.items()}
        for name in {name: None for sample in samples for name in sample["columns"]}:
            everything.setdefault(name, [sample["columns"].get(name) for sample in samples])
        return self._chosen(everything, ())

    def _chosen(self, everything: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
        missing = [name for name, needed in self.asked.items() if needed and name not in everything]
        if missing:
            raise MissingColumn(missing[0])
        names = everything if self.takes_all else self.asked
        return {name: everything[name] for name in names if name in everything and name not in left_out}


def result(value: Any) -> Outcome:
    """Return what a reward returned for one completion as an outcome."""
    if not isinstance(value, Mapping):
        number = _number(value)
        if number is None:
            return {"error": f"returned {shown(value)}; return a finite number"}
        return {"value": number, "parts": {}}
    parts = {str(name): _number(part) for name, part in value.items() if name != "correct"}
    for name, part in parts.items():
        if part is None:
            return {"error": f"returned {shown(value[name])} as {name!r}; return finite numbers"}
    whole: dict[str, float] = {name: part for name, part in parts.items() if part is not None}
    found: Outcome = {"value": sum(whole.values()), "parts": whole}
    if "correct" in value:
        found["correct"] = bool(value["correct"])
    return found


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some of those written in C do not tell
        return {}


def reason_of(error: BaseException) -> str:
    """Return an error as a few words, even if it cannot be written."""
    try:
        return shortened(f"{type(error).__name__}: {error}")
    except Exception:  # its __str__ fails, too
        return type(error).__name__


def _outcome(call: Callable[[], Any]) -> Outcome:
    try:
        return result(call())
    except (KeyboardInterrupt, MissingColumn):
        raise
    except BaseException as error:  # sys.exit included
        return {"error": reason_of(error)}


def _each(values: Any, count: int) -> list[Outcome]:
    """Take apart what a function of a batch returned: a list, or a dictionary of lists."""
    if isinstance(values, Mapping):
        columns = {name: list(column) for name, column in values.items()}
        values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    found = list(values)
    if len(found) != count:
        raise ValueError(f"returned {len(found)} rewards for {count} completions")
    return [result(value) for value in found]


def _number(value: Any) -> float | None:
    """Return a finite number, also of numpy or torch; None for anything else."""
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _names_of_file(path: str) -> dict[str, Any]:
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:  # for what stands beside it
        sys.path.append(folder)
    return runpy.run_path(path)
