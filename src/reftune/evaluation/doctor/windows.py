"""What rows of metrics say of a few steps, and how sure that is: means, shares, changes."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeGuard

from reftune.config.checks import flat
from reftune.evaluation.statistics import wilson_interval
from reftune.problem import Row, is_judged

Rows = Sequence[Row]  # of metrics.jsonl, the oldest first
Settings = Mapping[str, Any]  # by their dotted keys; empty where nobody knows them

STEPS = 5  # fewest that anything is said of: one batch may be unlucky
PART = 5  # in a long run a fifth of its steps is looked at, or compared with another fifth
SURE = 3.0  # standard errors that accuse: a run is looked at hundreds of times
CONFIDENCE = 0.9973  # the same of a share
LIKELY = 2.0  # standard errors that acquit
LARGEST = 1e30  # beyond, sums would overflow
NAMES: dict[str, type] = {  # settings that are no numbers, and that what is said depends on
    "ppo.policy_loss": str,
    "ppo.kl_penalty": str,
    "ppo.importance_sampling": str,
    "ppo.value_features": list,
}
FEWEST_QUESTIONS = 8  # of a step, where nobody says how many there are


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Return what is on in a configuration by dotted keys: numbers above 0, and some names."""
    values = flat(dict(config)).items()
    return {
        key: value
        for key, value in values
        if (_is_number(value) and value > 0) or (isinstance(value, NAMES.get(key, ())) and value)
    }


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Merge the rows of one step, in the order of steps; rows without a step are left out."""
    merged: dict[float, Row] = defaultdict(dict)
    for row in rows:
        if _is_number(step := row.get("step")):
            merged[step] |= row
    return [merged[step] for step in sorted(merged)]


def as_drawn(row: Row) -> Row:
    """Return a step's row with the accuracy of all that was drawn: dynamic sampling keeps what is mixed.

    Of the kept questions none is all right, or all wrong, whatever the policy can do.
    """
    if not _is_number(row.get("accuracy_drawn")):
        return row
    kept = {key: value for key, value in row.items() if not key.startswith("groups_all_")}
    return kept | {"accuracy": row["accuracy_drawn"]}


def size(rows: Rows) -> int:
    """Return how many steps are looked at together."""
    return max(STEPS, len(rows) // PART)


def first(rows: Rows) -> Rows:
    """Return the first steps."""
    return rows[: size(rows)]


def recent(rows: Rows) -> Rows:
    """Return the last steps."""
    return rows[-size(rows) :]


def steps_of(rows: Rows) -> str:
    """Say which steps these are."""
    a, b = rows[0]["step"], rows[-1]["step"]
    return f"in step {a:g}" if a == b else f"in steps {a:g}-{b:g}"


def having(rows: Rows, *keys: str) -> Rows:
    """Return the steps in which all of some metrics are known, and are numbers to reckon with."""
    return [row for row in rows if all(_is_number(row.get(key)) for key in keys)]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < LARGEST  # NaN is never less


def numbers(rows: Rows, key: str) -> list[float]:
    """Return the values of a metric."""
    return [value for row in rows if _is_number(value := row.get(key))]


def mean(rows: Rows, key: str) -> float:
    """Return the mean of a metric, NaN where no row has it."""
    found = numbers(rows, key)
    return fmean(found) if found else math.nan


def statuses(rows: Rows) -> Counter[str]:
    """Count what became of the samples."""
    return sum((Counter[str](row.get("statuses", {})) for row in rows), Counter[str]())


def judged(row: Row) -> int:
    """Return how many samples of a step say something of the policy."""
    return sum(count for status, count in row.get("statuses", {}).items() if is_judged(status))


def questions(rows: Rows, settings: Settings) -> int:
    """Return how many questions were asked: their samples are no independent evidence."""
    asked = statuses(rows).total() / settings.get("ppo.samples_per_question", 1)
    return int(asked) or FEWEST_QUESTIONS * len(rows)


def at_least(share: float, n: int) -> float:
    """Return what a share of `n` questions or samples is at least, by chance alone."""
    if math.isnan(share) or n < 1:
        return 0.0
    return wilson_interval(min(max(share, 0.0), 1.0) * n, n, CONFIDENCE)[0]


def error(found: Sequence[float], count: int) -> float:
    """Return the standard error of the difference between two means of `count` steps each.

    The scatter is that between successive steps (von Neumann 1941), which a slow trend hardly enlarges,
    and which holds whatever has made it: other questions in each step, too.
    """
    jumps = [(b - a) * (b - a) for a, b in itertools.pairwise(found)]
    return math.sqrt(fmean(jumps) / count) if jumps else math.inf


def risen(rows: Rows, key: str, sure: float = LIKELY, sign: int = 1) -> bool:
    """Tell whether a metric is higher in the last steps than in the first, beyond chance; -1: lower."""
    found, count = numbers(rows, key), size(rows)
    if len(found) < 2 * STEPS:
        return False
    gained = fmean(found[-count:]) - fmean(found[:count])
    return sign * gained > sure * error(found, count)


def now(settings: Settings, key: str, factor: float) -> str:
    """Name a key with what it is and what it should be, `factor` times as much."""
    value = settings.get(key)
    return f"{key} from {value:.2g} to {value * factor:.1g}" if value else key
