"""Numbers that others report, to stand beside those of runs of the same setting.

They come from a TOML file such as reproduction/paper.toml. What does not concern a number is left out:

    source = "Luong et al., ACL 2024"
    settings.reft = {"model.value_model" = "shared"}  # of all numbers of the method, if they say nothing
    numbers = [
      {model = "galactica-6.7b", data = "gsm8k", chains = "program", method = "reft", accuracy = 68.91},
    ]
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from reftune.config import Config, Model
from reftune.config.files import flat_settings
from reftune.config.ranges import Section
from reftune.evaluation.aggregation import AGGREGATIONS
from reftune.files import read_toml
from reftune.methods import METHODS
from reftune.problem import Cot, UserError


class Number(Section):
    """An accuracy, and what a run must be to stand beside it."""

    model: str = Field(description="last part of model.name, in any case")
    data: str = Field(description="occurs in the last part of data.test; only letters and digits count")
    chains: Cot
    method: str = Field(description="sft, reft, ...")
    aggregation: str = Field("greedy", description="greedy, vote, rerank, ...")
    samples: int = Field(1, ge=1, description="per question, behind the aggregation")
    settings: dict[str, Any] = Field({}, description="by key; one of several values: a list")
    accuracy: float = Field(ge=0, le=100, description="percent, with the digits reported")
    second_hand: bool = Field(False, description="read in somebody else's table")

    @property
    def share(self) -> float:
        """Return the accuracy as a share."""
        return round(self.accuracy / 100, 6)

    def __str__(self) -> str:
        """Return it with the digits reported, after a tilde if it is second-hand: ~67.85%."""
        return f"{'~' if self.second_hand else ''}{self.accuracy:g}%"


class ReportedNumbers(Section):
    """A file of reported numbers."""

    source: str = Field(description="who reports them")
    settings: dict[str, dict[str, Any]] = Field({}, description="by method: those of all its numbers")
    numbers: list[Number]

    @model_validator(mode="after")
    def _names_are_known(self) -> ReportedNumbers:
        settings = flat_settings(Config(model=Model(scratch="tiny")))
        known = {"method": {*METHODS}, "aggregation": {"greedy", *AGGREGATIONS}, "setting": {*settings}}
        for number in self.numbers:
            names = [("method", number.method), ("aggregation", number.aggregation)]
            for kind, name in names + [("setting", key) for key in self._settings_of(number)]:
                if name not in known[kind]:
                    raise ValueError(f"unknown {kind} {name}")
        return self

    def find(self, config: Config, method: str, aggregation: str, samples: int) -> Number | None:
        """Return what is reported for a model of a run of this configuration, None if nothing.

        Args:
            config: of the run; one with its data cut, or with a reward of its own, is like no other.
            method: "sft", "offline_st", ...
            aggregation: "greedy", "vote", ...
            samples: per question, behind the aggregation.
        """
        data = config.data
        if data.max_train is not None or data.max_test is not None or config.reward.function is not None:
            return None
        test = _letters(data.test)
        named = max((d for n in self.numbers if (d := _letters(n.data)) in test), key=len, default="")
        model = (config.model.name or "").rstrip("/").rpartition("/")[2].lower()
        run, settings = (model, named, data.cot, method, aggregation, samples), flat_settings(config)
        for n in self.numbers:
            of = (n.model.lower(), _letters(n.data), n.chains, n.method, n.aggregation, n.samples)
            wanted = self._settings_of(n).items()
            if of == run and all(_agrees(settings[key], value) for key, value in wanted):
                return n
        return None

    def _settings_of(self, number: Number) -> dict[str, Any]:
        return self.settings.get(number.method, {}) | number.settings


def read_reported(path: Path) -> ReportedNumbers:
    """Read a file of reported numbers.

    Raises UserError, with the file and the key, for anything that is wrong.
    """
    try:
        return ReportedNumbers.model_validate(read_toml(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {key}{': ' if key else ''}{first['msg']}") from None


def _agrees(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else bool(value == wanted)


def _letters(source: str) -> str:
    """Return the name of a file or hub data set as it is compared."""
    return re.sub(r"[^a-z0-9]", "", source.rpartition("/")[2].lower())
