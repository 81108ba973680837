"""Runs of other software: their metrics under our names, and our keys under theirs."""

import re
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean

from reftune.config.synonyms import SYNONYMS
from reftune.evaluation.doctor.windows import in_order, numbers
from reftune.files import read_object, read_rows, require_object
from reftune.problem import Row, UserError

STATE = "trainer_state.json"  # of TRL, with all that it has logged
GIVE = "give a run directory, TRL's trainer_state.json, or a JSONL file with a row of metrics per step"
_SAME = {name: name for name in ("step", "reward", "loss", "grad_norm", "learning_rate", "entropy")}

# By software: their name of a metric -> ours. `*` stands for anything; what several match is averaged.
METRICS: dict[str, dict[str, str]] = {
    "TRL": _SAME | {
        "kl": "kl_per_token",
        "completions/mean_length": "response_length",
        "completion_length": "response_length",
        "completions/clipped_ratio": "truncated",
        "clip_ratio/region_mean": "clip_fraction",
        "clip_ratio": "clip_fraction",
        "frac_reward_zero_std": "groups_alike",
        "sampling/sampling_logp_difference/mean": "logprob_gap",
        "eval_reward": "validation_accuracy",
        "objective/scores": "reward",
        "policy/entropy_avg": "entropy",
        "policy/approxkl_avg": "approx_kl",
        "policy/clipfrac_avg": "clip_fraction",
    },
    "verl": {
        "step": "step",
        "critic/score/mean": "reward",
        "critic/vf_explained_var": "explained_variance",
        "response_length/mean": "response_length",
        "response_length/clip_ratio": "truncated",
        "actor/pg_loss": "loss",
        "actor/grad_norm": "grad_norm",
        "actor/lr": "learning_rate",
        "actor/entropy": "entropy",
        "actor/entropy_loss": "entropy",
        "actor/kl_loss": "kl_per_token",
        "actor/reward_kl_penalty": "kl_per_token",
        "actor/ppo_kl": "approx_kl",
        "actor/pg_clipfrac": "clip_fraction",
        "training/rollout_probs_diff_mean": "probability_gap",
        "val-core/*/mean@*": "validation_accuracy",
        "val/test_score/*": "validation_accuracy",
    },
}  # fmt: skip
OURS = "reftune"


def read_foreign(path: Path) -> tuple[str, list[Row]]:
    """Read the metrics of a run; return whose names they had, and its steps under ours.

    A reward that stays between 0 and 1 is taken for the share of right answers.

    Args:
        path: a file, or a directory in which TRL has left its state. JSONL is verl's, of its logger
            "file", or any rows with a `step` each.

    Raises UserError where there is no such file, or nothing in it is known.
    """
    rows = _read(_state_in(path) if path.is_dir() else path)
    keys = {key for row in rows for key in row}
    known = {name: _known(keys, table) for name, table in METRICS.items()}
    software = max(known, key=lambda name: len(known[name]))
    if {"accuracy", "statuses"} & keys:
        return OURS, in_order(rows)
    if not {*known[software].values()} - {"step"}:
        raise UserError(f"{path}: no metrics of {' or '.join(METRICS)} are in it; {GIVE}")
    return software, _derived(in_order([_renamed(row, known[software]) for row in rows]))


def in_their_words(sentence: str) -> str:
    """Add what other libraries call the keys that a sentence names."""
    theirs = defaultdict(list)
    for name, ours in SYNONYMS.items():
        theirs[ours].append(name)
    return re.sub(
        r"\b[a-z]+\.[a-z_]+\b",
        lambda key: f"{key[0]} ({' or '.join(theirs[key[0]])})" if key[0] in theirs else key[0],
        sentence,
    )


def _state_in(directory: Path) -> Path:
    places = (directory / STATE, *directory.glob(f"checkpoint-*/{STATE}"))
    states = [path for path in places if path.is_file()]
    if not states:
        raise UserError(f"{directory}: holds neither config.toml nor {STATE}; {GIVE}")
    return max(states, key=lambda path: path.stat().st_mtime)


def _read(path: Path) -> list[Row]:
    if path.suffix == ".json":
        history = read_object(path, GIVE).get("log_history")
        if not isinstance(history, list):
            raise UserError(f"{path}: has no log_history; {GIVE}")
        return [require_object(row, f"{path}: log_history", GIVE) for row in history]
    rows = [row for _, row in read_rows(path, GIVE)]
    return [{**row, **data} if isinstance(data := row.get("data"), dict) else row for row in rows]


def _known(keys: set[str], table: dict[str, str]) -> dict[str, str]:
    """Return our names of those keys that a table knows."""
    return {key: ours for key in keys for theirs, ours in table.items() if fnmatchcase(key, theirs)}


def _renamed(row: Row, names: dict[str, str]) -> Row:
    found = defaultdict(list)
    for key, value in row.items():
        if key in names and isinstance(value, int | float):
            found[names[key]].append(value)
    return {name: values[0] if len(values) == 1 else fmean(values) for name, values in found.items()}


def _derived(rows: list[Row]) -> list[Row]:
    """Add what follows from rewards between 0 and 1, and from how many questions have no contrast."""
    if not all(0 <= reward <= 1 for reward in numbers(rows, "reward")):
        return rows
    for row in rows:
        if not numbers([row], "reward"):
            continue
        right = row.setdefault("accuracy", row["reward"])
        if numbers([row], "groups_alike"):  # of the others at most all are right, at least none
            row["groups_all_right"] = max(0.0, right - (1 - row["groups_alike"]))
            row["groups_all_wrong"] = max(0.0, row["groups_alike"] - right)
    return rows
