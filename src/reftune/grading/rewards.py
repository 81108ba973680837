"""The user's own reward: loaded, called and watched, for it may fail in any way."""

import math
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path

from reftune.problem import Problem, RewardFunction, UserError, shortened, shown

PATIENCE = 30.0  # seconds after which a call that has not returned is named


def load_reward(reward: str | RewardFunction) -> Callable[[Problem, str], float]:
    """Return a user's reward function, from problem and completion, checked wherever it is called.

    Args:
        reward: the function, or its place as `path.py:function`. It is trusted code.

    Raises UserError if it cannot be loaded, and from the returned callable if it fails, calls sys.exit
    or returns anything but a finite number. What takes longer than PATIENCE is named on standard error.
    """
    function = _load_function(reward) if isinstance(reward, str) else reward
    name = f"reward {reward if isinstance(reward, str) else getattr(reward, '__name__', shown(reward))}"

    def checked(problem: Problem, completion: str) -> float:
        with _guarded(f"{name} failed on problem {problem.id}", f"{name}, on problem {problem.id},"):
            value = function(problem.question, completion, problem.answer)
            number = float(value) if isinstance(value, Real) else math.nan
        if not math.isfinite(number):
            told = f"{name} returned {shown(value)} on problem {problem.id}"
            raise UserError(f"{told}; return a finite number")
        return number

    return checked


def _load_function(spec: str) -> RewardFunction:
    path, colon, name = spec.rpartition(":")
    if not (colon and path and name):
        raise UserError(f"reward {spec}: write path.py:function")
    if not Path(path).is_file():
        raise UserError(f"reward {spec}: no such file {path}")
    with _guarded(f"reward {spec}: {path} cannot be imported", f"{path}, which is being imported,"):
        function: RewardFunction | None = runpy.run_path(path).get(name)
    if not callable(function):
        raise UserError(f"reward {spec}: {path} defines no function {name}; correct the name")
    return function


@contextmanager
def _guarded(failure: str, name: str) -> Iterator[None]:
    """Raise UserError for whatever the user's code in the block raises, sys.exit included."""
    _watch.begin(name)
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        try:
            reason = f"{type(error).__name__}: {error}"
        except Exception:  # its __str__ fails, too
            reason = type(error).__name__
        raise UserError(f"{failure} ({shortened(reason)}); mend it") from error
    finally:
        _watch.end()


class _Watch:
    """Says on standard error which of the user's code has not returned: nothing here can stop it."""

    def __init__(self) -> None:
        self._call: tuple[str, float] | None = None
        self._thread: threading.Thread | None = None

    def begin(self, name: str) -> None:
        """Note that a call begins, and its name."""
        self._call = (name, time.monotonic())
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Note that it has ended."""
        self._call = None

    def _look(self) -> None:
        named = None
        while True:
            time.sleep(min(1.0, PATIENCE))
            call = self._call
            if call is not None and call is not named and time.monotonic() - call[1] > PATIENCE:
                told = f"{call[0]} has not returned for {PATIENCE:.0f} s; Ctrl-C ends the run"
                print(f"reftune: {told}", file=sys.stderr, flush=True)
                named = call


_watch = _Watch()
