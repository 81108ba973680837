"""What a run was made of, and how far each of its stages has come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reftune.methods import METHODS
from reftune.reporting.run.run_files import Run, model_label, setting

# Where each fact lies: config keys, or a file of the run directory before the colon.
FACTS = {
    "Data": {
        "training questions": "data:train",
        "validation questions": "data:validation",
        "test questions": "data:test",
        "duplicates dropped": "data:duplicates",
        "overlaps with test dropped": "data:overlaps",
        "train": "data.train",
        "test": "data.test",
        "chains": "data.cot",
    },
    "Model and SFT": {
        "model": "model.name",
        "from scratch": "model.scratch",
        "critic": "model.value_model",
        "epochs": "sft.epochs",
        "warm-up epochs": "sft.warmup_epochs",
        "batch size": "sft.batch_size",
        "learning rate": "sft.learning_rate",
        "weight decay": "sft.weight_decay",
        "seconds": "sft:seconds",
    },
    "Warm-up samples": {
        "samples per question": "warmup_samples.per_question",
        "temperature": "warmup_samples.temperature",
        "share of right ones": "warmup_samples:accuracy",
        "different": "warmup_samples:different",
        "different and right": "warmup_samples:different_correct",
        "questions solved once": "warmup_samples:solved_questions",
    },
    "Offline self-training": {
        "epochs": "offline_st.epochs",
        "annotated chains": "offline_st:annotated_examples",
        "sampled chains": "offline_st:sampled_examples",
        "sampled per question, at most": "offline_st.keep",
        "batch size": "offline_st.batch_size",
        "learning rate": "offline_st.learning_rate",
        "seconds": "offline_st:seconds",
    },
    "Online self-training": {
        "steps": "online_st.steps",
        "questions per step": "online_st.questions_per_step",
        "samples per question": "online_st.samples_per_question",
        "update epochs": "online_st.update_epochs",
        "learning rate": "online_st.learning_rate",
        "seconds": "online_st:seconds",
    },
    "PPO": {
        "steps": "ppo.steps",
        "questions per step": "ppo.questions_per_step",
        "samples per question": "ppo.samples_per_question",
        "PPO epochs": "ppo.ppo_epochs",
        "advantage": "ppo.advantage",
        "GAE lambda": "ppo.gae_lambda",
        "KL coefficient": "ppo.kl_coef",
        "learning rate": "ppo.learning_rate",
        "seconds": "ppo:seconds",
    },
    "Rerankers": {
        "epochs": "reranker.epochs",
        "batch size": "reranker.batch_size",
        "learning rate": "reranker.learning_rate",
        "examples": "reranker/sft:examples",
        "right ones": "reranker/sft:right_examples",
        **{f"AUC, {model_label(model)}": f"reranker/{model}:best_validation_auc" for model in METHODS},
    },
    "Run": {
        "seed": "info:seed",
        "started": "info:started",
        "git commit": "info:git_commit",
    },
}

# Groups that only a run with this stage has.
OF_STAGE = {
    "Warm-up samples": "warmup_samples",
    "Offline self-training": "offline_st",
    "Online self-training": "online_st",
    "PPO": "ppo",
    "Rerankers": "reranker/sft",
}

# Stages that train a model: their name, what they count in, and how far they count.
TRAINING = {
    "sft": ("SFT", "epoch", "sft.epochs"),
    "offline_st": ("Offline-ST", "epoch", "offline_st.epochs"),
    "online_st": ("Online-ST", "step", "online_st.steps"),
    "ppo": ("PPO", "step", "ppo.steps"),
}


def facts(run: Run) -> dict[str, list[tuple[str, str]]]:
    """Return what the run was made of, in groups of (name, value); what is unknown is left out."""
    titles = [title for title in FACTS if OF_STAGE.get(title, "sft") in run.stages]
    groups = {title: list(_group(run, FACTS[title])) for title in titles}
    groups["Run"] += [(name, str(version)) for name, version in run.info.get("versions", {}).items()]
    return {title: rows for title, rows in groups.items() if rows}


def stage_states(run: Run) -> list[dict[str, str]]:
    """Return name, state (done, unfinished, not started) and detail of all that the run asks for."""
    data = run.data
    sizes = f"{data.get('train')} training, {data.get('validation')} validation, {data.get('test')} test"
    states = [_state("Data", bool(data), False, f"{sizes} questions" if data else "")]
    states += [_training(run, stage) for stage in run.stages if stage in TRAINING]
    if "warmup_samples" in run.stages:
        states.insert(2, _warmup_samples(run))
    rerankers = [stage for stage in run.stages if stage.startswith("reranker/")]
    if rerankers:
        states.append(_rerankers(run, rerankers))
    return [*states, _evaluation(run)]


def _state(name: str, done: bool, begun: bool, detail: str) -> dict[str, str]:
    state = "done" if done else "unfinished" if begun else "not started"
    return {"name": name, "state": state, "detail": detail}


def _training(run: Run, stage: str) -> dict[str, str]:
    name, unit, total = TRAINING[stage]
    rows, result = run.metrics[stage], run.results[stage]
    detail = ""
    if result:
        accuracy = f"{result['best_validation_accuracy']:.1%} on validation"
        detail = f"best {unit} {result[f'best_{unit}']}: {accuracy}"
    elif rows:
        done = rows[-1].get(unit, "?")
        shown = f"{done:.1f}" if isinstance(done, float) else done  # epochs are counted in steps
        detail = f"{unit} {shown} of {setting(run, total)}"
    return _state(name, bool(result), bool(rows), detail)


def _warmup_samples(run: Run) -> dict[str, str]:
    result = run.results["warmup_samples"]
    detail = f"{result['accuracy']:.1%} of {result['samples']} right" if result else ""
    return _state("Warm-up samples", bool(result), bool(run.metrics["warmup_samples"]), detail)


def _rerankers(run: Run, stages: list[str]) -> dict[str, str]:
    done = sum(bool(run.results[stage]) for stage in stages)
    begun = any(run.metrics[stage] for stage in stages)
    return _state("Rerankers", done == len(stages), begun, f"{done} of {len(stages)}" if begun else "")


def _evaluation(run: Run) -> dict[str, str]:
    found = run.evaluation
    missing = [model_label(model) for model in run.models if model not in found.get("models", {})]
    detail = f"{found['n']} unseen questions" if found else ""
    if found and missing:  # methods were added since
        detail = f"without {', '.join(missing)}"
    return _state("Evaluation", not missing, bool(found), detail)


def _group(run: Run, places: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    files = {"data": run.data, "info": run.info} | run.results
    for name, place in places.items():
        file, colon, key = place.rpartition(":")
        value = files.get(file, {}).get(key) if colon else setting(run, key)
        if value is not None:
            yield name, f"{value:g}" if isinstance(value, float) else str(value)
