"""What must stand before a model can work: processes and devices, the judge, prompts that fit."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, parse_flag_from_env
from transformers import PreTrainedModel

from reftune.config import Config
from reftune.grading.judge import Judge, make_judge, make_sandbox
from reftune.grading.rewards import OwnReward
from reftune.heap import keep_freed_memory
from reftune.launcher import available_cores, check_launcher, tell_once
from reftune.model.loading import load_tokenizer
from reftune.model.packing import position_limit
from reftune.model.prompts import Prompter, make_prompter
from reftune.model.wording import answer_style, resolved
from reftune.problem import Problem, UserError
from reftune.runs.together import SLOWEST


def make_accelerator(config: Config) -> Accelerator:
    """Return accelerate's handle on devices and processes, and set the CPU threads of this one.

    Raises UserError for a tracker that accelerate does not know or that is not installed.
    """
    _check_trackers(config.compute.trackers)
    check_launcher()
    _check_engine()
    keep_freed_memory()
    AcceleratorState._reset_state()  # it would hold this process to the precision of its first run
    # What accelerate itself begins with.
    device = PartialState(parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=SLOWEST).device.type
    accelerator = Accelerator(
        mixed_precision=mixed_precision(config.model.dtype, device),
        log_with=config.compute.trackers or None,
        project_dir=str(config.run_dir),
        step_scheduler_with_optimizer=False,
    )
    cores = len(available_cores())
    torch.set_num_threads(config.compute.threads or max(1, cores // accelerator.num_processes))
    return accelerator


def sharding(config: Config, accelerator: Accelerator) -> str:
    """Return how a run's model is cut over its processes; one process has all of it."""
    return config.compute.sharding if accelerator.num_processes > 1 else "none"


def mixed_precision(dtype: str, device: str) -> str:
    """Return accelerate's name of the precision in which float32 weights compute.

    In float16 small gradients vanish unless the loss is scaled up, and its scaler wants weights in
    float32. A CPU gains nothing by float16: there such a model is trained in float32. In bfloat16 the
    weights themselves are, and there is nothing to mix (`loading.training_dtype`).
    """
    return "fp16" if dtype == "float16" and device != "cpu" else "no"


def with_prompt(config: Config, trained: Path | None = None) -> Config:
    """Return the settings with a prompt that leaves nothing open, and say what was found out.

    Args:
        trained: directory of a model that was trained with these settings, if it is there by now;
            default: the model that they name.

    Raises UserError as `load_tokenizer` and `make_prompter` do.
    """
    model, prompt, cot = config.model, config.prompt, config.data.cot
    if prompt.style != "auto" or model.name is None:
        return config.model_copy(update={"prompt": resolved(prompt, cot)})
    place = trained if trained is not None and trained.exists() else model.name
    tokenizer = load_tokenizer(place, model.eos_token if place == model.name else None)
    asked = make_prompter(tokenizer, prompt, cot, model.eos_token).settings
    how = "by its chat template" if asked.style == "chat" else "in plain text"
    tell_once(
        f'{place}: is asked {how}, and answers in the style "{asked.answer_style}"'
        " (prompt.style, prompt.answer_style)"
    )
    return config.model_copy(update={"prompt": asked})


def judge_of(config: Config, problems: Sequence[Problem], reward: OwnReward | None) -> Judge:
    """Return the judge of answers to `problems`; `reward` is the user's own."""
    text = any(problem.choices for problem in problems)
    return make_judge(
        config.data.cot,
        trigger=config.prompt.trigger,
        answer_style=answer_style(config.prompt, config.data.cot),
        partial_reward=config.reward.partial_reward,
        sandbox=make_sandbox(config.reward, config.compute.sandbox_workers, text=text),
        reward=reward,
    )


def check_prompts(prompter: Prompter, problems: Sequence[Problem], model: PreTrainedModel) -> None:
    """Refuse a prompt beyond the limit, and one that leaves the model no positions for the response."""
    settings = prompter.settings
    positions = position_limit(model.config)
    for problem in problems:
        length = len(prompter.encode_prompt(problem))
        if length > settings.max_prompt_tokens:
            raise UserError(
                f"problem {problem.id}: its prompt has {length} tokens, the limit is"
                f" {settings.max_prompt_tokens}; raise prompt.max_prompt_tokens, or"
                " leave the problem out or ask shorter ones"
            )
        if length + settings.max_new_tokens > positions:
            raise UserError(
                f"problem {problem.id}: its prompt of {length} tokens and prompt.max_new_tokens ="
                f" {settings.max_new_tokens} exceed the model's {positions} positions;"
                " lower prompt.max_new_tokens, or leave the problem out or ask shorter ones"
            )


def check_examples(prompter: Prompter, problems: Sequence[Problem], model: PreTrainedModel) -> None:
    """Refuse an annotated chain that is longer than the model has positions, prompt included.

    Say where a chat template would write such a chain differently.
    """
    if found := next(filter(None, map(prompter.rewriting, problems[:8])), None):
        tell_once(found)
    positions = position_limit(model.config)
    for problem in problems:
        length = sum(map(len, prompter.encode_example(problem)))
        if length > positions:
            raise UserError(
                f"problem {problem.id}: its prompt and chain of {length} tokens exceed the model's"
                f" {positions} positions; leave the chain out or take shorter ones"
            )


def _check_engine() -> None:
    """Refuse what a launcher would have accelerate do with the model: reftune cuts it by itself."""
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{engine}"):
            raise UserError(
                f"the launcher asks accelerate for {engine.replace('_', '-')}; leave that out of its"
                ' configuration, and set compute.sharding = "fsdp2", which cuts the model in every stage'
            )


def _check_trackers(names: Sequence[str]) -> None:
    known, installed = LoggerType.list(), {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(f"compute.trackers: unknown tracker {name}; known: {', '.join(known)}")
        if name not in installed:
            raise UserError(
                f"compute.trackers: {name} is not installed; `pip install {name}` or leave it out"
            )
