"""Solved examples that a prompt shows before its question."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reftune.config import Config
from reftune.data.problems import load_problems, question_key
from reftune.data.sources import Source
from reftune.data.synthetic.generator import generate
from reftune.problem import Problem, UserError

CANDIDATES = 50  # built-in problems to choose among


def find_shots(
    config: Config, count: int, source: Source | None, tested: Sequence[Problem]
) -> list[Problem]:
    """Return the first examples that are not among the questions that are asked.

    Those with a chain are taken, where there are any; natural answers may go without.

    Args:
        config: what is asked, and the kind of chain.
        count: how many.
        source: where they are; default: the train split of what is asked.
        tested: the questions that are asked.

    Raises UserError where there is no such split, or not enough in it.
    """
    asked = {question_key(problem.question) for problem in tested}
    found = [p for p in _candidates(config, source) if question_key(p.question) not in asked]
    with_chain = [problem for problem in found if problem.chain]
    if config.data.cot == "natural" and not with_chain:
        with_chain = [replace(problem, chain="") for problem in found]
    if len(with_chain) < count:
        name = source if isinstance(source, str | Path) else "the examples"
        raise UserError(
            f"--shots {count}: {name if source is not None else config.data.test} has {len(with_chain)}"
            f" examples with a {config.data.cot} chain that are not asked; ask for fewer"
        )
    return with_chain[:count]


def _candidates(config: Config, source: Source | None) -> list[Problem]:
    data = config.data
    if source is None and data.test == "synthetic":
        seed = config.seed if data.synthetic.seed is None else data.synthetic.seed
        return generate(data.synthetic, CANDIDATES, 2 * seed, data.cot)  # those to train on
    if source is None and Path(os.path.expanduser(data.test)).is_file():
        raise UserError(f"--shots: {data.test} is a file without splits; name one with --shots-from")
    return load_problems(
        data.test if source is None else source,
        cot=data.cot,
        split=data.train_split,
        subset=data.subset,
        columns=data.columns if source is None else None,
        check_answers=False,
        new_ids="example",
    )
