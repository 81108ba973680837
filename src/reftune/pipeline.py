"""The stages in order, in a run directory that can be interrupted and resumed at any moment."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence

from accelerate.utils import set_seed

from reftune.config import Config
from reftune.evaluation.evaluate import answer_questions, read_result, write_result
from reftune.files import read_jsonl, write_jsonl
from reftune.grading.judge import make_judge
from reftune.methods import METHODS, planned_models, planned_stages
from reftune.model.loading import build_model, load_model
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter, Wording
from reftune.problem import Row, UserError
from reftune.runs.run_dir import open_run_dir, take_over
from reftune.runs.run_log import RunLog
from reftune.runs.setup import check_prompts, make_accelerator
from reftune.stages.ppo import run_ppo
from reftune.stages.reranker import Reranker, rank, run_reranker
from reftune.stages.run import Run
from reftune.stages.self_training import run_offline_st, run_online_st
from reftune.stages.sft import run_sft
from reftune.stages.warmup_samples import read_warmup_samples, run_warmup_samples
from reftune.training.advantages import ADVANTAGES
from reftune.training.rollouts import make_generator

SHARED = ("sft", "warmup_samples")  # stages that `start_from` can take over


def stages_of(config: Config) -> list[str]:
    """Return the stages of a run in order; a stage's name is its directory in the run's."""
    return planned_stages(config.methods, config.evaluation.rerank)


def models_of(config: Config) -> list[str]:
    """Return the models that a run compares, in order."""
    return planned_models(config.methods)


def run_stages(
    config: Config, stages: Sequence[str] | None = None, command: Sequence[str] = ()
) -> list[str]:
    """Run the stages that are not finished yet, all by default; return the names of those that ran.

    Raises UserError if the run directory holds a run of another configuration, or a stage lacks
    what an earlier one writes.
    """
    accelerator = make_accelerator(config)
    _check(config)
    if accelerator.is_main_process:
        open_run_dir(config, command, accelerator.num_processes)
    accelerator.wait_for_everyone()
    run = Run(config, accelerator)
    ran = []
    for stage in stages_of(config) if stages is None else stages:
        if accelerator.is_main_process and stage in SHARED:
            take_over(config, stage)
        accelerator.wait_for_everyone()
        if _is_finished(config, stage):
            continue
        set_seed(config.seed)
        name, _, model = stage.partition("/")
        _reranker(run, model) if model else STAGES[name](run)
        accelerator.free_memory()  # or the next stage's checkpoints would hold this one's model, too
        ran.append(stage)
    accelerator.end_training()
    return ran


def _is_finished(config: Config, stage: str) -> bool:
    path = config.run_dir / stage / "result.json"
    if stage == "evaluation" and path.exists():  # `methods` may have grown since
        return list(read_result(path.parent)["models"]) == models_of(config)
    return path.exists()


def _sft(run: Run) -> None:
    if not run.annotated:
        raise UserError(
            f"{run.config.data.train}: no problem has a {run.config.data.cot} chain; SFT needs annotated"
            " chains: `reftune data prepare` derives programs from some data sets"
        )
    _check_chains(run)
    policy, prompter = _base_model(run)
    run_sft(run.stage("sft", prompter, run.annotated), policy)


def _base_model(run: Run) -> tuple[PolicyWithValue, Prompter]:
    """Load, or create, the model that SFT and offline self-training start from."""
    config = run.config
    wording = Wording(config.prompt, config.data.cot)
    texts = [text for problem in run.annotated for text in wording.pieces(problem)]
    model, tokenizer = build_model(config.model, texts, config.seed)
    prompter = Prompter(tokenizer, config.prompt, config.data.cot)
    check_prompts(prompter, run.problems, model)
    return PolicyWithValue(model), prompter


def _check_chains(run: Run) -> None:
    """Refuse programs of which none gives its answer; count those that do not."""
    config, problems = run.config, run.annotated
    if config.data.cot == "natural" or config.reward.function is not None:
        return
    verdicts = run.judge(problems, [p.chain or "" for p in problems], [True] * len(problems))
    wrong = [i for i, verdict in enumerate(verdicts) if not verdict.correct]
    if not wrong:
        return
    first, status = problems[wrong[0]].id, Counter(verdicts[i].status for i in wrong).most_common(1)
    told = f"{len(wrong)} of {len(problems)} annotated programs do not give their answer"
    told = f"{config.data.train}: {told} (first: {first}; most often: {status[0][0]})"
    if len(wrong) == len(problems):
        raise UserError(f"{told}; `reftune data check` lists them")
    if run.accelerator.is_main_process:
        print(told, file=sys.stderr)


def _warmup_samples(run: Run) -> None:
    _require_stage(run.config, "sft")
    warmup = run.directory("warmup")
    run_warmup_samples(run.stage("warmup_samples", run.prompter(warmup)), run.frozen(warmup))


def _offline_st(run: Run) -> None:
    _require_stage(run.config, "warmup_samples")
    policy, prompter = _base_model(run)
    run_offline_st(run.stage("offline_st", prompter), policy, read_warmup_samples(run.config.run_dir))


def _online_st(run: Run) -> None:
    _require_stage(run.config, "sft")
    warmup = run.directory("warmup")
    run_online_st(run.stage("online_st", run.prompter(warmup)), PolicyWithValue(load_model(warmup)))


def _ppo(run: Run) -> None:
    config, warmup = run.config, run.directory("warmup")
    _require_stage(config, "sft")
    critic = config.model.value_model if ADVANTAGES[config.ppo.advantage].critic else "none"
    policy = PolicyWithValue(load_model(warmup), critic)
    run_ppo(run.stage("ppo", run.prompter(warmup)), policy, run.frozen(warmup))


def _reranker(run: Run, model: str) -> None:
    for needed in ("warmup_samples", METHODS[model].stage):
        _require_stage(run.config, needed)
    directory = run.directory(model)
    stage = run.stage(f"reranker/{model}", run.prompter(directory))
    run_reranker(stage, Reranker(load_model(directory)), read_warmup_samples(run.config.run_dir))


def _evaluate(run: Run) -> None:
    config, directory = run.config, run.config.run_dir / "evaluation"
    models = models_of(config)
    for name in models[1:]:
        _require_stage(config, METHODS[name].stage)
    answers = {}
    with RunLog(directory, run.accelerator, "evaluation", len(models)) as log:
        for done, name in enumerate(models, start=1):
            path = directory / f"{name}.jsonl"
            if not path.exists():
                found = _answer(run, name)
                if run.accelerator.is_main_process:
                    write_jsonl(path, found)
            run.accelerator.wait_for_everyone()
            answers[name] = read_jsonl(path)
            accuracy = sum(row["correct"] for row in answers[name]) / len(answers[name])
            log.metrics(done, {"model": name, "accuracy": accuracy})
    if run.accelerator.is_main_process:
        trigger = config.prompt.trigger
        write_result(directory, answers, config.evaluation.bootstrap, config.seed, trigger)
    run.accelerator.wait_for_everyone()


def _answer(run: Run, name: str) -> list[Row]:
    """Answer the test questions with one of the run's models; rank the samples if it has a reranker."""
    config, accelerator, directory = run.config, run.accelerator, run.directory(name)
    policy = PolicyWithValue(load_model(directory).to(accelerator.device).eval())
    prompter = run.prompter(directory)
    generator = make_generator(policy, prompter, run.judge, accelerator, config.compute.sampler_rows)
    rows = answer_questions(generator, run.splits.test, config.evaluation, config.seed)
    if config.evaluation.rerank and name != "warmup":
        reranker = Reranker(load_model(directory))
        reranker.load(config.run_dir / "reranker" / name / "model")
        reranker.to(accelerator.device).eval()
        rank(
            reranker, prompter, run.splits.test, rows, accelerator, config.compute.tokens_per_microbatch
        )
    return rows


def _check(config: Config) -> None:
    """Refuse early what a later stage could not work with."""
    if config.ppo.advantage not in ADVANTAGES:
        raise UserError(
            f"ppo.advantage: unknown estimator {config.ppo.advantage}; choose {' or '.join(ADVANTAGES)}"
        )
    if config.reward.function is not None:
        make_judge("natural", trigger="", partial_reward=0.0, reward=config.reward.function)


def _require_stage(config: Config, stage: str) -> None:
    if not (config.run_dir / stage / "result.json").exists():
        raise UserError(
            f"{config.run_dir}: stage {stage} must be finished first; `reftune run` runs all in order"
        )


STAGES: dict[str, Callable[[Run], None]] = {
    "sft": _sft,
    "warmup_samples": _warmup_samples,
    "offline_st": _offline_st,
    "online_st": _online_st,
    "ppo": _ppo,
    "evaluation": _evaluate,
}
