"""The user's own reward: one function or several with weights, called under a time limit.

What it says of a completion is a number with named parts. Where it fails on one, that one alone is lost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reftune.config import Reward
from reftune.config.data import GYM_COLUMN, GYM_REWARD
from reftune.grading.reward_calls import Outcome, RewardSample
from reftune.grading.reward_lines import Ended, ProcessLine, RewardLine, ThreadLine
from reftune.problem import Problem, Status, UserError, shown

GRACE = 5.0  # seconds beyond the limit of async calls, which are timed where they run
GIVEN = "<given>:"  # begins the name of a function that a Python program gave; no module is called so
RewardSpec = str | Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a reward says of one completion.

    Attributes:
        value: what it is worth.
        correct: whether it counts as right.
        parts: what the value is made of, by name.
        failure: "reward_error" or "reward_timeout" where there is no value, and `reason` says more.
    """

    value: float = 0.0
    correct: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
    failure: Status | None = None
    reason: str = ""


class OwnReward:
    """A user's reward functions, added up with their weights.

    Args:
        functions: each a function, or its place as `path.py:function` or `package.module:function`; it
            then runs in a process of its own. Their code is trusted.
        weights: one per function; default: 1 each.
        seconds: that a call may take.
        max_failed: share of the completions of one batch that they may fail on.
        column: judge only problems that have kept this column; others are left to the built-in check.

    Raises UserError for a function that cannot be loaded, or a number of weights that is another one.
    """

    def __init__(
        self,
        functions: Sequence[RewardSpec],
        weights: Sequence[float] = (),
        *,
        seconds: float = Reward().seconds,
        max_failed: float = Reward().max_failed,
        column: str | None = None,
    ) -> None:
        if weights and len(weights) != len(functions):
            raise UserError(
                f"reward.weights: {len(weights)} for {len(functions)} functions; give one for each"
            )
        self.names = [_name(function) for function in functions]
        self.weights = list(weights) or [1.0] * len(functions)
        self.seconds, self.max_failed, self.column = seconds, max_failed, column
        self._lines = [
            ProcessLine(function) if isinstance(function, str) else ThreadLine(function)
            for function in functions
        ]
        for line in self._lines:
            line.start()

    @property
    def wants_truncated(self) -> bool:
        """Tell whether any function asks for completions that were cut off, too."""
        return any(line.wants_truncated for line in self._lines)

    def judges(self, problem: Problem) -> bool:
        """Tell whether it says what answers to a problem are worth."""
        return self.column is None or self.column in problem.columns

    def __call__(self, samples: Sequence[RewardSample], ids: Sequence[str]) -> list[Scored]:
        """Score completions; raise UserError where too many cannot be.

        Args:
            ids: of the problems, for that error.
        """
        columns = [
            self._outcomes(line, name, samples)
            for line, name in zip(self._lines, self.names, strict=True)
        ]
        scored = [self._scored(outcomes) for outcomes in zip(*columns, strict=True)]
        failed = [i for i, one in enumerate(scored) if one.failure]
        if len(failed) > self.max_failed * len(samples):
            first = failed[0]
            raise UserError(
                f"{scored[first].reason}, first on problem {ids[first]}, and on {len(failed)} of"
                f" {len(samples)} completions; mend it, or raise reward.max_failed"
            )
        return scored

    def _outcomes(self, line: RewardLine, name: str, samples: Sequence[RewardSample]) -> list[Outcome]:
        """Ask one function; begin anew behind a sample on which it hangs or ends."""
        found: list[Outcome] = []
        while len(found) < len(samples):
            line.start()
            line.ask(samples[len(found) :], self.seconds)
            try:
                self._receive(line, found, len(samples))
            except TimeoutError:
                lost = len(samples) - len(found) if line.batched else 1
                found += [{"error": f"took more than {self.seconds:g} s", "timeout": True}] * lost
                line.leave()
            except Ended as ended:
                found.append({"error": str(ended)})
                line.leave()
            except BaseException:
                line.leave()  # what it still says must not be taken for an answer to the next question
                raise
            if refusal := next((x["refusal"] for x in found if "refusal" in x), None):
                raise UserError(
                    f"{name} asks for {refusal!r}, which the data do not have; correct the name of the"
                    " parameter, or name that column in data.keep_columns"
                )
        return found

    def _receive(self, line: RewardLine, found: list[Outcome], count: int) -> None:
        while len(found) < count:
            outcome = line.next(self.seconds + GRACE)
            if not outcome.get("alive"):
                found.append(outcome)
            if "refusal" in outcome:
                return

    def _scored(self, outcomes: Sequence[Outcome]) -> Scored:
        """Add up what the functions say of one completion."""
        named = list(zip(self.names, self.weights, outcomes, strict=True))
        for name, _, outcome in named:
            if "error" in outcome:
                status: Status = "reward_timeout" if outcome.get("timeout") else "reward_error"
                return Scored(failure=status, reason=f"{name} failed ({outcome['error']})")
        value = sum(weight * outcome["value"] for _, weight, outcome in named)
        said = [outcome["correct"] for outcome in outcomes if "correct" in outcome]
        parts: dict[str, float] = {}
        for name, _, outcome in named:
            inner = outcome["parts"]
            if len(named) > 1:
                short = name.rpartition(":")[2].removeprefix("reward ")
                parts[short] = outcome["value"]
                inner = {f"{short}/{part}": x for part, x in inner.items()}
            parts |= inner
        return Scored(value, all(said) if said else value >= 1, parts)


def own_reward(section: Reward, given: Sequence[RewardSpec] = ()) -> OwnReward | None:
    """Return what a configuration's section names; None where it names none.

    Args:
        section: of the configuration.
        given: what stands behind these names, where a Python program has said so.

    Raises UserError as `OwnReward` does, and where only such a program knows the function.
    """
    named = section.function
    if named is None:
        return None
    functions = list(given) or ([named] if isinstance(named, str) else named)
    for function in functions:
        if isinstance(function, str) and function.startswith(GIVEN):
            raise UserError(
                f"reward.function = {function!r} was given by a Python program, and is written nowhere;"
                " go on from there, with reward= in reftune.run"
            )
    return OwnReward(
        functions, section.weights, seconds=section.seconds, max_failed=section.max_failed,
        column=GYM_COLUMN if named == GYM_REWARD else None,
    )  # fmt: skip


def _name(function: RewardSpec) -> str:
    called = function if isinstance(function, str) else getattr(function, "__name__", shown(function))
    return f"reward {called}"
