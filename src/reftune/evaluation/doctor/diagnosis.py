"""The table of all symptoms, and what the metrics of a run say by it: while it runs, and afterwards."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from reftune.evaluation.doctor import rewards, updates
from reftune.evaluation.doctor.windows import STEPS, Rows, Settings, as_drawn
from reftune.problem import Row

EVERY = 5  # steps between two looks at a run that goes on; beyond MANY a twentieth of those so far
MANY = 100
Level = Literal["warning", "note"]


class Symptom(NamedTuple):
    """One thing that can be wrong.

    Args:
        find: gets rows and settings; says what is seen, what it means and what to change, or None.
        needs: metrics and settings without which it is not looked for; `a|b`: either.
        causes: symptoms that explain this one; where one of them is found it is not told.
        level: a warning asks for a change, a note is worth knowing.
        unless: a setting that makes it healthy.
    """

    find: Callable[[Rows, Settings], str | None]
    needs: str
    causes: str = ""
    level: Level = "warning"
    unless: str = ""

    def is_measured(self, known: set[str]) -> bool:
        """Tell whether these metrics and settings are what it is seen by."""
        return self.unless not in known and all(
            {*either.split("|")} & known for either in self.needs.split()
        )


_UPDATE = "not_finite hacking kl_runaway clipped_everywhere collapsed"
_ANY = f"{_UPDATE} faults cut_off all_right all_wrong format_only"

SYMPTOMS: dict[str, Symptom] = {
    "not_finite": Symptom(updates.not_finite, "loss|grad_norm|reward"),
    "faults": Symptom(rewards.faults, "statuses"),
    "hacking": Symptom(rewards.hacking, "reward accuracy statuses|data.validation_size"),
    "kl_runaway": Symptom(
        updates.kl_runaway, "kl_per_token|kl kl_per_token|response_length accuracy", "not_finite hacking"
    ),
    "clipped_everywhere": Symptom(
        updates.clipped_everywhere, "clip_fraction", "not_finite hacking kl_runaway"
    ),
    "clipped_nowhere": Symptom(
        updates.clipped_nowhere, "clip_fraction approx_kl accuracy ppo.ppo_epochs", "all_right all_wrong"
    ),
    "collapsed": Symptom(
        updates.collapsed, "accuracy", "not_finite hacking kl_runaway clipped_everywhere"
    ),
    "cut_off": Symptom(rewards.cut_off, "truncated", _UPDATE),
    "format_only": Symptom(rewards.format_only, "statuses accuracy", _UPDATE),
    "all_right": Symptom(rewards.all_right, "accuracy"),
    "all_wrong": Symptom(rewards.all_wrong, "accuracy", f"{_UPDATE} faults cut_off format_only"),
    "entropy_collapsed": Symptom(updates.entropy_collapsed, "entropy accuracy", f"{_UPDATE} all_wrong"),
    "samples_alike": Symptom(
        rewards.samples_alike, "groups_alike|groups_all_right", f"{_ANY} entropy_collapsed solved"
    ),
    "sampler_apart": Symptom(
        updates.sampler_apart,
        "logprob_gap|probability_gap|sampler_weight|sampler_masked",
        "not_finite",
        unless="ppo.async_rollouts",
    ),
    "critic_blind": Symptom(updates.critic_blind, "explained_variance accuracy", _ANY, "note"),
    "sharpened": Symptom(
        rewards.sharpened, "accuracy validation_accuracy", f"{_ANY} samples_alike", "note"
    ),
    "solved": Symptom(rewards.solved, "accuracy", f"{_UPDATE} faults", "note"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A symptom that a run has.

    Attributes:
        name: its key in `SYMPTOMS`.
        level: "warning" or "note".
        sentence: what is seen, what it means, which key to change.
        step: at which it was first seen.
        gone: whether it is not seen any more.
    """

    name: str
    level: Level
    sentence: str
    step: float
    gone: bool = False

    def __str__(self) -> str:
        until = ", gone since" if self.gone else ""
        return f"{self.level}, {self.name} (from step {self.step:g} on{until}): {self.sentence}"


def diagnose(rows: Rows, settings: Settings, told: Collection[str] = ()) -> list[Finding]:
    """Return what is wrong with a run as it is now, in the order of the table.

    Args:
        rows: of metrics.jsonl, the oldest first.
        settings: by their dotted keys; empty for a run of other software.
        told: symptoms that were seen before: what follows from one of them is not told.
    """
    found = _seen(rows, settings)
    return [
        Finding(name, SYMPTOMS[name].level, sentence, rows[-1]["step"])
        for name, sentence in found.items()
        if not {*SYMPTOMS[name].causes.split()} & {*found} and not _lasting(name) & {*told}
    ]


def _seen(rows: Rows, settings: Settings) -> dict[str, str]:
    """Return the sentences of all symptoms that are seen, by name."""
    rows = [as_drawn(row) for row in rows]
    if len(rows) < STEPS and updates.not_finite(rows, settings) is None:
        return {}
    known = _known(rows, settings)
    return {
        name: sentence
        for name, symptom in SYMPTOMS.items()
        if symptom.is_measured(known) and (sentence := symptom.find(rows, settings))
    }


def _known(rows: Rows, settings: Settings) -> set[str]:
    """Return the names of all metrics and settings that a run has."""
    return {*settings}.union(*rows)


def _lasting(name: str) -> set[str]:
    """Return the causes of a warning that may be over: what they did to the policy stays."""
    symptom = SYMPTOMS[name]
    return {*symptom.causes.split()} & {*_UPDATE.split()} if symptom.level == "warning" else set()


class Watch:
    """Looks at a run step by step, and tells of each symptom once.

    Args:
        rows: what was logged before an interruption, steps that will be taken again included: what was
            told of them is not told again.
        settings: by their dotted keys.
    """

    def __init__(self, rows: Iterable[Row], settings: Settings) -> None:
        self.settings = settings
        self.rows: list[Row] = []
        self.told: dict[str, Finding] = {}
        for row in rows:
            self.hear(row)

    def hear(self, row: Row) -> list[Finding]:
        """Take the row of a step; return what is seen for the first time."""
        while self.rows and self.rows[-1]["step"] >= row["step"]:
            self.rows.pop()
        self.rows.append(row)
        count = len(self.rows)
        if count % (EVERY * max(1, count // MANY)):
            return []
        found = diagnose(self.rows, self.settings, self.told)
        new = [finding for finding in found if finding.name not in self.told]
        self.told |= {finding.name: finding for finding in new}
        return new


def history(rows: Rows, settings: Settings) -> list[Finding]:
    """Return what is wrong with a run at its end, and after that what was wrong and is no more.

    A symptom that is not seen any more still holds where one is seen that follows from it.
    """
    told = Watch(rows, settings).told
    now = {finding.name: finding for finding in diagnose(rows, settings, told)}
    holding = {*now}.union(*map(_lasting, _seen(rows, settings)))
    found = [
        replace(now.get(name, first), step=first.step, gone=name not in holding)
        for name, first in (now | told).items()
    ]
    return sorted(found, key=lambda finding: (finding.gone, [*SYMPTOMS].index(finding.name)))


def not_checked(rows: Rows, settings: Settings) -> dict[str, str]:
    """Return the symptoms that nothing can be said of, each with the metrics and settings it needs."""
    known = _known(rows, settings)
    return {
        name: f"no {symptom.unless}" if symptom.unless in known else symptom.needs
        for name, symptom in SYMPTOMS.items()
        if not symptom.is_measured(known)
    }
