"""The stages in order, in a run directory that can be interrupted and resumed at any moment."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from reftune.advantages import ADVANTAGES
from reftune.checkpoints import atomic_file, write_json
from reftune.config import Config, dump_config, load_config
from reftune.evaluation import answer_questions, read_answers, write_answers, write_result
from reftune.models import PolicyWithValue, build_model, load_model, load_tokenizer
from reftune.ppo import run_ppo
from reftune.problems import Splits, load_splits, write_problems
from reftune.prompts import Prompter, Wording, load_prompter
from reftune.rewards import Judge, make_judge
from reftune.rollouts import Actor, make_actor
from reftune.sandbox import Sandbox
from reftune.sft import run_sft
from reftune.types import Cot, Problem, UserError

STAGES = ("sft", "ppo", "evaluation")


@dataclass
class Run:
    """A configuration with all that its stages share: data, judge, processes."""

    config: Config
    accelerator: Accelerator

    @cached_property
    def splits(self) -> Splits:
        """Load the problems once."""
        splits = load_splits(self.config.data, self.config.seed)
        if self.accelerator.is_main_process:
            _write_splits(self.config.run_dir / "data", splits)
        return splits

    @cached_property
    def judge(self) -> Judge:
        """Start the judge once; its sandbox ends with this process."""
        config = self.config
        choices = any(problem.choices for problem in self.splits.test)
        return _make_judge(config, config.data.cot, config.ppo.reward, accepts_text=choices)

    def prompter(self, model: Path) -> Prompter:
        """Return the prompter of a model directory that this run wrote."""
        return load_prompter(load_tokenizer(model), str(model), self.config.data.cot)


def run_stages(config: Config, stages: Sequence[str] = STAGES, command: Sequence[str] = ()) -> list[str]:
    """Run the stages that are not finished yet, in order; return the names of those that ran.

    Raises UserError if the run directory holds a run of another configuration, or a stage lacks
    what an earlier one writes.
    """
    accelerator = make_accelerator(config)
    _check(config)
    if accelerator.is_main_process:
        _open_run_dir(config, command)
    accelerator.wait_for_everyone()
    run = Run(config, accelerator)
    ran = []
    for stage in stages:
        if (config.run_dir / stage / "result.json").exists():
            continue
        set_seed(config.seed)
        {"sft": _sft, "ppo": _ppo, "evaluation": _evaluate}[stage](run)
        accelerator.free_memory()  # or the next stage's checkpoints would hold this one's model, too
        ran.append(stage)
    accelerator.end_training()
    return ran


def evaluate_model(
    config: Config, model: str, problems: Sequence[Problem], cot: Cot | None
) -> list[dict[str, Any]]:
    """Answer `problems` with one model; return a row per question (see `answer_questions`)."""
    actor = load_actor(config, model, cot, accepts_text=any(p.choices for p in problems))
    _check_prompts(actor.prompter, problems, actor_model_limit(actor))
    return answer_questions(actor, problems, config.evaluation, config.seed)


def load_actor(config: Config, model: str, cot: Cot | None, *, accepts_text: bool = False) -> Actor:
    """Load any model directory or hub name, ready to answer questions."""
    accelerator = make_accelerator(config)
    prompter = load_prompter(load_tokenizer(model), model, cot)
    policy = PolicyWithValue(load_model(model).to(accelerator.device).eval())
    judge = _make_judge(config, prompter.cot, None, accepts_text=accepts_text)
    return make_actor(policy, prompter, judge, accelerator, config.compute.sampler_rows)


def actor_model_limit(actor: Actor) -> int | None:
    """Return how many positions the actor's model has, if it is limited."""
    model = getattr(actor.sampler, "model", None)
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


def make_accelerator(config: Config) -> Accelerator:
    """Return accelerate's handle on devices and processes, and set the CPU threads of this one."""
    accelerator = Accelerator(
        mixed_precision="bf16" if config.model.dtype == "bfloat16" else "no",
        log_with=config.compute.trackers or None,
        project_dir=str(config.run_dir),
        step_scheduler_with_optimizer=False,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.compute.threads or max(1, cores // accelerator.num_processes))
    if config.compute.trackers:
        accelerator.init_trackers("reftune", config={"run": config.name})
    return accelerator


def _sft(run: Run) -> None:
    config, splits = run.config, run.splits
    if not any(problem.chain for problem in splits.train):
        raise UserError(f"{config.data.train}: no problem has a chain; SFT needs annotated chains")
    train = [problem for problem in splits.train if problem.chain]
    wording = Wording(config.prompt, config.data.cot)
    texts = [text for problem in train for text in wording.pieces(problem)]
    model, tokenizer = build_model(config.model, texts, config.seed)
    prompter = Prompter(tokenizer, config.prompt, config.data.cot)
    everyone = [*splits.train, *splits.validation, *splits.test]
    _check_prompts(prompter, everyone, getattr(model.config, "max_position_embeddings", None))
    policy = PolicyWithValue(model)
    run_sft(config, policy, prompter, run.judge, train, splits.validation, run.accelerator)


def _ppo(run: Run) -> None:
    config, warmup = run.config, run.config.run_dir / "warmup" / "model"
    _require_stage(config, "sft")
    critic = config.model.value_model if ADVANTAGES[config.ppo.advantage].critic else "none"
    policy = PolicyWithValue(load_model(warmup), critic)
    half = config.model.dtype == "bfloat16"
    frozen = load_model(warmup, torch.bfloat16 if half else torch.float32).to(run.accelerator.device)
    reference = PolicyWithValue(frozen.eval().requires_grad_(False))
    splits, prompter = run.splits, run.prompter(warmup)
    run_ppo(
        config, policy, reference, prompter, run.judge, splits.train, splits.validation, run.accelerator
    )


def _evaluate(run: Run) -> None:
    config, directory = run.config, run.config.run_dir / "evaluation"
    for stage in ("sft", "ppo"):
        _require_stage(config, stage)
    answers = {}
    for name, stage in {"warmup": "warmup", "sft": "sft", "reft": "ppo"}.items():
        path, model = directory / f"{name}.jsonl", config.run_dir / stage / "model"
        if not path.exists():
            policy = PolicyWithValue(load_model(model).to(run.accelerator.device).eval())
            rows = config.compute.sampler_rows
            actor = make_actor(policy, run.prompter(model), run.judge, run.accelerator, rows)
            found = answer_questions(actor, run.splits.test, config.evaluation, config.seed)
            if run.accelerator.is_main_process:
                write_answers(path, found)
        run.accelerator.wait_for_everyone()
        answers[name] = read_answers(path)
    if run.accelerator.is_main_process:
        write_result(directory, answers, config.evaluation.bootstrap, config.seed)
    run.accelerator.wait_for_everyone()


def _make_judge(config: Config, cot: Cot, reward: str | None, *, accepts_text: bool) -> Judge:
    compute = config.compute
    sandbox = None
    if cot == "program":
        sandbox = Sandbox(
            compute.sandbox_workers,
            compute.sandbox_seconds,
            compute.sandbox_memory_mb,
            text=accepts_text,
        )
    return make_judge(
        cot,
        trigger=config.prompt.trigger,
        partial_reward=config.ppo.partial_reward,
        sandbox=sandbox,
        reward=reward,
    )


def _check(config: Config) -> None:
    """Refuse early what a later stage could not work with."""
    if config.ppo.advantage not in ADVANTAGES:
        raise UserError(
            f"ppo.advantage: unknown estimator {config.ppo.advantage}; choose {' or '.join(ADVANTAGES)}"
        )
    if config.ppo.reward is not None:
        make_judge("natural", trigger="", partial_reward=0.0, reward=config.ppo.reward)


def _check_prompts(prompter: Prompter, problems: Sequence[Problem], positions: int | None) -> None:
    limit = prompter.settings.max_prompt_tokens
    for problem in problems:
        length = len(prompter.encode_prompt(problem))
        if length > limit:
            raise UserError(
                f"problem {problem.id}: its prompt has {length} tokens, the limit is {limit};"
                " raise prompt.max_prompt_tokens or remove the problem"
            )
    if positions is not None and limit + prompter.settings.max_new_tokens > positions:
        raise UserError(
            f"prompt.max_prompt_tokens + prompt.max_new_tokens exceed the model's {positions} positions;"
            " lower one of them"
        )


def _require_stage(config: Config, stage: str) -> None:
    if not (config.run_dir / stage / "result.json").exists():
        raise UserError(f"{config.run_dir}: stage {stage} is not finished; run `reftune {stage}` first")


def _open_run_dir(config: Config, command: Sequence[str]) -> None:
    """Create the run directory, or make sure that it belongs to this very configuration."""
    path = config.run_dir / "config.toml"
    if path.exists():
        _compare_configs(load_config(path), config)
        return
    config.run_dir.mkdir(parents=True, exist_ok=True)
    facts = {
        "versions": {name: version(name) for name in ("reftune", "torch", "transformers", "accelerate")},
        "python": platform.python_version(),
        "git_commit": _git_commit(),
        "seed": config.seed,
        "command": " ".join(command or sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(config.run_dir / "run.json", facts)
    with atomic_file(path) as temporary:
        temporary.write_text(dump_config(config), encoding="utf-8")


def _compare_configs(old: Config, new: Config) -> None:
    """Refuse a run directory of another configuration; budgets of the machine may differ."""
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    keys = sorted(
        key
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key) and not key.startswith(("compute.", "output_dir", "name"))
    )
    if keys:
        raise UserError(
            f"{new.run_dir} holds a run of another configuration (different: {', '.join(keys)});"
            " choose another --name, or delete that directory"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _write_splits(directory: Path, splits: Splits) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation", "test"):
        write_problems(directory / f"{name}.jsonl", getattr(splits, name))
    sizes = {name: len(getattr(splits, name)) for name in ("train", "validation", "test")}
    write_json(directory / "report.json", {**sizes, **asdict(splits.report)})


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
