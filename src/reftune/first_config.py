"""Write a first configuration: for the model and the data that one names, with comments."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reftune.config import Columns
from reftune.data.problems import fitting_validation, load_problems, unseen_questions
from reftune.files import check_writable, writing_to
from reftune.problem import Cot, UserError


@dataclass(frozen=True)
class Found:
    """What is in the training data."""

    problems: int
    chains: int  # that are of the kind `cot`
    cot: Cot


def write_first_config(
    path: Path,
    *,
    model: str,
    train: str,
    test: str,
    cot: Cot | None = None,
    subset: str | None = None,
    columns: Columns | None = None,
    most: int | None = None,
    reward: str | None = None,
    keep: Sequence[str] = (),
) -> Found:
    """Write a commented TOML file for a model and data, which are read once to see what is there.

    Args:
        path: of the new file.
        model: Hugging Face name, directory or GGUF file.
        train, test: files or Hugging Face data sets.
        cot: the kind of chain; default: program if there is one among the chains, else natural.
        subset, columns, keep: of the data, as for `problems.load_problems`.
        most: use only so many training problems.
        reward: your own, in place of the built-in check of answers.

    Raises UserError where the file is there already, or as `load_problems` does.
    """
    if path.exists():
        raise UserError(f"{path}: is there already; name another file")
    check_writable(path)
    read = partial(
        load_problems, subset=subset, columns=columns, keep=keep, check_answers=reward is None
    )
    problems = read(train, cot=cot or "program")
    if cot is None and not any(problem.chain for problem in problems):
        cot, problems = "natural", read(train, cot="natural")
    found = Found(
        len(problems), sum(problem.chain is not None for problem in problems), cot or "program"
    )
    asked = read(test, cot=found.cot, split="test")
    unseen_questions(problems, asked, f"--train {train}", f"--test {test}")
    with writing_to(path):
        given = {"max_train": most, "subset": subset, "keep_columns": list(keep)}
        text = _text(found, model, train, test, given, columns, reward)
        path.write_text(HEAD.format(path=path) + text, encoding="utf-8")
    return found


def _text(
    found: Found,
    model: str,
    train: str,
    test: str,
    given: Mapping[str, Any],
    columns: Columns | None,
    reward: str | None,
) -> str:
    quoted = json.dumps  # a string of JSON is one of TOML
    size = fitting_validation(found.problems)
    data = [
        f"train = {quoted(train)}  # {found.problems:,} problems, {found.chains:,} with a chain",
        f"test = {quoted(test)}  # asked once, at the end",
        f'cot = "{found.cot}"  # the kind of chain: natural (text), or program (Python that is run)',
        f"validation_size = {size}  # questions held back from train, by which the best model is chosen",
    ]
    data += [f"{key} = {quoted(value)}" for key, value in given.items() if value]
    if columns:
        names = columns.model_dump(exclude_unset=True).items()
        data += ["", "[data.columns]", *(f"{key} = {quoted(name)}" for key, name in names)]
    own = ["", "[reward]", f"function = {quoted(reward)}"] if reward else []
    return "\n".join(
        ["", "[data]", *data, *own, MODEL % quoted(model), SFT if found.chains else NO_SFT, REST]
    )


HEAD = """\
# Every key: `reftune config`. What a run of this file takes: `reftune plan {path}`.
# To start it, or to go on after an interruption: `reftune run {path}`.
"""
MODEL = """
[model]
name = %s
# dtype = "bfloat16"  # on a GPU: half of the memory

[prompt]
# Longer responses are cut off. `reftune data check FILE --tokenizer MODEL` measures your chains.
max_new_tokens = 400
# style = "plain"  # default: the model's chat template, where it has one

# [lora]  # train an adapter in place of all weights: far less memory; learning rates ten times as high
# rank = 16
"""
SFT = """\
[sft]
epochs = 10  # the SFT baseline is the best of these by validation
warmup_epochs = 2  # ReFT starts from the model after this epoch; "auto" draws samples to choose it
batch_size = 16
learning_rate = 2e-5
"""
NO_SFT = """\
[sft]
epochs = 0  # there are no chains: ReFT starts from the model as it is
"""
REST = """\
[ppo]
steps = 200  # batches of questions
questions_per_step = 32
samples_per_question = 8
learning_rate = 1e-6
kl_coef = 0.01  # how strongly the model is held near its start

[evaluation]
samples = 0  # samples of each test question that vote; 0: one greedy answer
"""
