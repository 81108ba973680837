"""Ask a model outside of a run: problems, or questions whose answer nobody knows."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from reftune.config import Config
from reftune.config.files import parse_config
from reftune.data.problems import load_test
from reftune.data.sources import Source
from reftune.evaluation.aggregation import judged_by_all
from reftune.evaluation.evaluate import answer_questions, summarise
from reftune.evaluation.shots import find_shots
from reftune.grading.cells import as_text
from reftune.grading.judge import Judge, make_extractor, make_sandbox
from reftune.grading.rewards import own_reward
from reftune.model.loading import load_both, make_policy, refuse_run
from reftune.model.prompts import SHOT_END, Prompter, make_prompter, saved_settings
from reftune.model.wording import answer_style
from reftune.problem import AnsweredQuestion, Cot, Problem, UserError
from reftune.runs.display import Display
from reftune.runs.setup import check_prompts, judge_of, make_accelerator, with_prompt
from reftune.training.first_prompts import check_first_prompts
from reftune.training.rollouts import Generator, make_generator
from reftune.training.types import GradedSample

# Beginnings of the settings that matter to a model outside of a run.
ASKED = (
    "compute.", "data.", "evaluation.", "model.dtype", "model.eos_token", "prompt.", "reward.", "seed"
)  # fmt: skip


def model_config(model: str, overrides: Sequence[str] = (), **data: Any) -> Config:
    """Return the settings to ask a model with: those it was trained with, the paper's for any other.

    Args:
        model: model directory, GGUF file or Hugging Face name.
        overrides: `section.key=value` of the sections ASKED; they have the last word.
        data: keys of the section [data], in place of those saved with the model; None leaves one out.

    Raises UserError for wrong settings, and where nothing says which kind of chain the model writes.
    """
    for override in overrides:
        if not override.strip().startswith(ASKED):
            raise UserError(
                f"--set {override}: has no effect when a model is asked; what begins with"
                f" {', '.join(ASKED)} has"
            )
    model = os.path.expanduser(model)
    refuse_run(model)
    saved = saved_settings(model, _named_cot(overrides) or data.get("cot"))
    given = {key: value for key, value in data.items() if value is not None}
    own = saved.get("model", {}) | {"name": model}
    values = saved | {"model": own, "data": saved.get("data", {}) | given}
    config = parse_config(values, overrides, source="--set")
    if "cot" not in config.data.model_fields_set:
        known = "" if os.path.exists(model) else "; no such path is here, so it may be one of the hub's"
        raise UserError(
            f"{model}: say with --cot, in Python with cot=, whether it writes natural or program"
            f" chains{known}"
        )
    return config


def _named_cot(overrides: Sequence[str]) -> str | None:
    """Return the kind of chain that the last override of it says."""
    pairs = [override.partition("=") for override in overrides]
    found = [value.strip(" \"'") for key, _, value in pairs if key.strip() == "data.cot"]
    return found[-1] if found else None


def evaluate_on(
    model: str | Path,
    data: Source,
    cot: Cot | None,
    samples: int,
    split: str | None,
    subset: str | None,
    overrides: Sequence[str],
    *,
    shots: int = 0,
    shots_from: Source | None = None,
    stop: Sequence[str] = (),
) -> tuple[dict[str, Any], list[AnsweredQuestion]]:
    """Return a model's accuracies on questions, and its answers; for the arguments see `evaluate`.

    The accuracies leave out, and count as `unjudged`, questions that the sandbox failed on. `statuses`
    counts what became of the greedy answers, `limit` is the number of tokens that an answer may have.

    Args:
        shots: solved examples before each question, see `find_shots`.
        shots_from: where they are.
        stop: texts at which an answer is cut before it is judged. Behind examples in plain text it is
            what the next question would begin with, if nothing else is said.
    """
    if not all(stop):
        raise UserError("stop: an empty text ends every answer at once; name one behind an answer")
    named = isinstance(data, str | Path)
    changes = [f"evaluation.samples={samples}", *overrides]
    changes += [f"data.test_split={json.dumps(split)}"] if split else []
    changes += [f"data.subset={json.dumps(subset)}"] if subset else []
    test = str(data) if named else "rows.jsonl"
    config = model_config(str(model), changes, test=test, test_sources=[], cot=cot)
    check = config.reward.grades_answers
    rows = None if named else data
    problems = load_test(config.data, config.seed, check_answers=check, rows=rows)
    config = with_prompt(config)
    shown = find_shots(config, shots, shots_from, problems) if shots else []
    judge = judge_of(config, problems, own_reward(config.reward))
    opened = open_model(config, judge, problems, shown, tuple(stop))
    with Display("evaluate", 1, shown=opened.generator.accelerator.is_main_process):
        at_once = config.compute.rows
        answers = answer_questions(opened.generator, problems, config.evaluation, config.seed, at_once)
    judged = judged_by_all({"": answers})[""]
    also = {
        "unjudged": len(answers) - len(judged),
        "statuses": dict(Counter(row["status"] for row in answers).most_common()),
        "limit": config.prompt.max_new_tokens,
    }
    return summarise(judged, config.prompt.trigger) | also, answers


@dataclass(frozen=True)
class OpenModel:
    """A model that is loaded once and may be asked many times."""

    config: Config
    model: PreTrainedModel
    generator: Generator

    def ask(self, questions: Sequence[str], temperature: float, seed: int) -> list[GradedSample]:
        """Ask questions; the verdicts have the answers, of whatever type.

        Raises UserError for a temperature that no sampler can work with, and for a question that is
        empty, no text or too long.
        """
        problems = as_problems(questions, temperature)
        check_prompts(self.generator.prompter, problems, self.model)
        return self.generator.generate(problems, 1, temperature, key=(seed, "sample"))


def ask(config: Config, questions: Sequence[str], temperature: float, seed: int) -> list[GradedSample]:
    """Load the model of `config`, and ask it questions; see `OpenModel.ask`."""
    as_problems(questions, temperature)  # before a model is loaded
    return open_model(config).ask(questions, temperature, seed)


def as_problems(questions: Sequence[str], temperature: float) -> list[Problem]:
    """Return questions as problems without answer; raises UserError as `OpenModel.ask` does."""
    check_temperature(temperature)
    several = len(questions) > 1
    numbered = {f"question {n}" if several else "question": x for n, x in enumerate(questions, start=1)}
    problems = [Problem(n, as_text(n, "question", text), "") for n, text in numbered.items()]
    for problem in problems:
        if not problem.question.strip():
            raise UserError(f"{problem.id}: is empty; write what the model shall answer")
    return problems


def check_temperature(temperature: float) -> None:
    """Raise UserError for a temperature that no sampler can work with."""
    if temperature != 0 and not 0.01 <= temperature <= 100:
        raise UserError(f"temperature: 0, or from 0.01 to 100, not {temperature}")


def open_model(
    config: Config,
    judge: Judge | None = None,
    problems: Sequence[Problem] = (),
    shots: Sequence[Problem] = (),
    stop: tuple[str, ...] = (),
) -> OpenModel:
    """Load the model of `config`.

    Args:
        config: see `model_config`.
        judge: of its answers; default: one that finds them, whatever they are.
        problems: that it will be asked; raises UserError where one of them is too long, or where the
            sampler does not say of the first what the model's own forward pass says.
        shots: solved examples before each; the limit of a prompt's length is without them.
        stop: texts at which an answer is cut.
    """
    name = config.model.name
    if name is None:
        raise UserError(f"model.scratch = {config.model.scratch} has no weights yet; set model.name")
    config = with_prompt(config)
    accelerator = make_accelerator(config)
    dtype = getattr(torch, config.model.dtype)
    model, tokenizer = load_both(name, config.model.eos_token, dtype)
    prompter = make_prompter(tokenizer, config.prompt, config.data.cot, config.model.eos_token)
    if shots:
        prompter, stop = _with_shots(prompter, shots, stop)
    check_prompts(prompter, problems, model)
    policy = make_policy(model, config.model, device=accelerator.device)
    judge = judge or _extractor(config)
    generator = make_generator(policy, prompter, judge, accelerator, config.compute, stop)
    check_first_prompts(generator, policy, problems)
    return OpenModel(config, policy.policy, generator)


def _with_shots(
    prompter: Prompter, shots: Sequence[Problem], stop: tuple[str, ...]
) -> tuple[Prompter, tuple[str, ...]]:
    """Return a prompter that shows examples, and where to cut the answers to its prompts."""
    shown = replace(prompter, shots=tuple(shots))
    longer = len(shown.encode_prompt(shots[0])) - len(prompter.encode_prompt(shots[0]))
    limit = prompter.settings.max_prompt_tokens + longer
    settings = prompter.settings.model_copy(update={"max_prompt_tokens": limit})
    return replace(shown, settings=settings), stop or _ends(prompter, shots)


def _ends(prompter: Prompter, shots: Sequence[Problem]) -> tuple[str, ...]:
    """Return where a model that has not learnt to end has said what the examples say, in plain text."""
    asked = prompter.wording.asked
    if asked.style != "plain":
        return ()
    begins = str(asked.template).partition("{question}")[0].strip()
    ends = [f"\n{begins}"] if begins else []
    if asked.answer_style == "function" and not any(SHOT_END in str(shot.chain) for shot in shots):
        ends.append(SHOT_END)
    return tuple(ends)


def _extractor(config: Config) -> Judge:
    sandbox = make_sandbox(config.reward, config.compute.sandbox_workers, text=True)
    style = answer_style(config.prompt, config.data.cot)
    return make_extractor(
        config.data.cot, trigger=config.prompt.trigger, answer_style=style, sandbox=sandbox
    )
