"""The stages in order, in a run directory that can be interrupted and resumed at any moment."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path

from accelerate.utils import set_seed

from reftune.config import Config
from reftune.data.sources import Source
from reftune.files import RUN_AGAIN, read_object, require_object
from reftune.grading.given_rewards import with_reward
from reftune.grading.rewards import RewardSpec
from reftune.launcher import rank, tell_once
from reftune.methods import methods_by_stage
from reftune.planning.estimate import rough_seconds
from reftune.planning.fitting import fit
from reftune.planning.machine import device_name
from reftune.planning.outlook import outlook
from reftune.planning.shapes import Shape, given_shape
from reftune.problem import GivenReward, RunResult, UserError
from reftune.reporting.run.report import write_report
from reftune.runs.given_rows import with_problems
from reftune.runs.holding import only_start
from reftune.runs.listener import Listener, OnStep
from reftune.runs.processes import by_main
from reftune.runs.records import read_result
from reftune.runs.run_dir import goes_on, open_run_dir, take_over
from reftune.runs.setup import make_accelerator
from reftune.runs.together import ending_together
from reftune.runs.tracking import start_trackers, track_report, tracked
from reftune.stages.run import Run
from reftune.training.importance import IMPORTANCE_SAMPLING
from reftune.training.losses import POLICY_LOSSES
from reftune.training.samplers import check_sampler, engines_closed

SHARED = ("sft", "warmup_samples")  # stages that `start_from` can take over

# What runs the stages beside those of METHODS.
OTHER_STAGES = {
    "warmup_samples": "reftune.stages.warmup_samples:start",
    "reranker": "reftune.stages.reranker:start",
    "evaluation": "reftune.stages.evaluation:start",
}


def stages_of(config: Config) -> list[str]:
    """Return the stages of a run in order; a stage's name is its directory in the run's."""
    return config.lineup.stages


def models_of(config: Config) -> list[str]:
    """Return the models that a run compares, in order."""
    return config.lineup.models


def run(
    config: Config,
    *,
    train: Source | None = None,
    test: Source | None = None,
    reward: GivenReward | None = None,
    on_step: OnStep | None = None,
) -> RunResult:
    """Run all stages and write the report; see `reftune.run`."""
    config, rewards = with_reward(config, reward)
    config = with_problems(config, train=train, test=test)
    listener = None if on_step is None else Listener(on_step)
    with nullcontext() if listener is None else listener.listening():
        ran = run_stages(config, rewards=rewards, listener=listener)
    report = config.run_dir / "report.html"
    if rank() == 0:  # under a launcher one process reports
        report = write_report(config.run_dir)
    found = read_result(config.run_dir, "evaluation")
    return RunResult(config.run_dir, report, ran, found["n"], found["models"], found["comparisons"])


def run_stages(
    config: Config,
    stages: Sequence[str] | None = None,
    command: Sequence[str] = (),
    *,
    rewards: Sequence[RewardSpec] = (),
    listener: Listener | None = None,
) -> list[str]:
    """Run the stages that are not finished yet, all by default; return the names of those that ran.

    Args:
        config: of the run.
        stages: that are wanted.
        command: that started it, for the record.
        rewards: the functions that a Python program gave for `reward.function`.
        listener: hears of every step.

    Raises UserError if the run directory holds a run of another configuration, another process works
    on it, or a stage lacks what an earlier one writes.
    """
    accelerator = make_accelerator(config)
    with ending_together(accelerator, partial(goes_on, config)):
        stages = stages_of(config) if stages is None else stages
        run = Run(config, accelerator, rewards, listener)
        _check(run, stages)
        with only_start(config.run_dir) if accelerator.is_main_process else nullcontext():
            return _run_tracked(run, stages, command)


def _run_tracked(run: Run, stages: Sequence[str], command: Sequence[str]) -> list[str]:
    config, accelerator = run.config, run.accelerator
    if accelerator.is_main_process:
        open_run_dir(config, command, accelerator.num_processes, device_name(accelerator.device))
        start_trackers(accelerator, config)
    accelerator.wait_for_everyone()
    with tracked(accelerator), engines_closed():
        ran = _run_unfinished(run, stages)
        if accelerator.is_main_process:
            track_report(accelerator, config.run_dir, write_report)
    accelerator.end_training()
    return ran


def _run_unfinished(run: Run, stages: Sequence[str]) -> list[str]:
    accelerator, ran = run.accelerator, []
    left = by_main(accelerator, lambda: [one for one in stages if not _is_finished(run.config, one)])
    shape = given_shape(run.config) if left else None
    run.config = config = _fitted(run, left, shape)
    if left:
        check_sampler(config.compute)
    if left and accelerator.is_main_process:
        done = [stage for stage in stages_of(config) if _is_finished(config, stage)]
        seconds = rough_seconds(run, left, shape)
        for sentence in outlook(
            config, run.splits, accelerator.device, left, done, shape=shape, seconds=seconds
        ):
            tell_once(sentence)
    for stage in stages:
        if accelerator.is_main_process and stage in SHARED:
            take_over(config, stage)
        if by_main(accelerator, partial(_is_finished, config, stage)):
            continue
        set_seed(config.seed)
        _start(run, stage)
        accelerator.free_memory()  # or the next stage's checkpoints would hold this one's model, too
        ran.append(stage)
    if not ran:
        run.splits  # noqa: B018  # refuses data that have changed, whose results nobody has seen
    return ran


def _fitted(run: Run, left: Sequence[str], shape: Shape | None) -> Config:
    """Return the settings with the main process's choices: all must cut their batches alike."""
    return by_main(run.accelerator, lambda: fit(run.config, left, run.accelerator.device, shape))


def _start(run: Run, stage: str) -> None:
    """Run one stage, once the stages that it needs are finished."""
    name, _, model = stage.partition("/")
    place = OTHER_STAGES.get(name) or methods_by_stage()[name].run
    by_main(run.accelerator, lambda: run.require(run.config.lineup.needs(stage)))
    module, _, function = place.partition(":")
    start: Callable[..., None] = getattr(import_module(module), function)
    start(run, model) if model else start(run)


def _is_finished(config: Config, stage: str) -> bool:
    path = config.run_dir / stage / "result.json"
    if not path.exists():
        return False
    found = read_object(path)
    if stage == "evaluation":  # more models may be wanted since
        require_object(found.get("models"), f"{path}: models", RUN_AGAIN)
        answers = [path.with_name(f"{model}.jsonl") for model in models_of(config)]
        return list(found["models"]) == models_of(config) and all(map(Path.exists, answers))
    return True


def _check(run: Run, stages: Sequence[str]) -> None:
    """Refuse early what a later stage could not work with."""
    config = run.config
    if "sft" in stages and not config.sft.epochs:
        raise UserError("sft.epochs = 0: there is no SFT to do; raise it, or start `reftune run`")
    for key, table in (("policy_loss", POLICY_LOSSES), ("importance_sampling", IMPORTANCE_SAMPLING)):
        if (given := getattr(config.ppo, key)) not in table:
            raise UserError(f'ppo.{key}: there is no "{given}"; choose {", ".join(table)}')
    run.reward  # noqa: B018  # whether it can be loaded
