"""What a run was made of, and how far each of its stages has come."""

import math
from collections.abc import Mapping
from pathlib import Path

from reftune.methods import BASE, METHODS, directory_of, label_of, methods_by_stage
from reftune.model.prompts import SETTINGS_FILE, saved_settings
from reftune.problem import Row
from reftune.reporting.run.run_files import Run

# What is told, if it is known: keys with their names.
COUNTS = {
    "train": "training questions",
    "validation": "validation questions",
    "test": "test questions",
    "duplicates": "duplicates dropped",
    "overlaps": "overlaps with test dropped",
    "without_chain": "training questions without a chain",
}
DATA = {"train": "train", "test": "test", "cot": "chains"}
PROMPT = {"style": "asked in style", "answer_style": "answers in style"}
MODEL = {"name": "model", "scratch": "from scratch", "dtype": "precision", "value_model": "critic"}
LORA = {"rank": "LoRA rank", "alpha": "LoRA alpha"}
RUN = {
    "seed": "seed",
    "device": "device",
    "processes": "processes",
    "started": "started",
    "git_commit": "git commit",
}
STAGE = {  # of its section in the configuration and of its result
    "epochs": "epochs",
    "warmup_epochs": "warm-up epochs",
    "steps": "steps",
    "questions_per_step": "questions per step",
    "samples_per_question": "samples per question",
    "per_question": "samples per question",
    "temperature": "temperature",
    "update_epochs": "update epochs",
    "ppo_epochs": "PPO epochs",
    "advantage": "advantage",
    "gae_lambda": "GAE lambda",
    "kl_coef": "KL coefficient",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "accuracy": "share of right ones",
    "different": "different",
    "different_correct": "different and right",
    "solved_questions": "questions solved once",
    "annotated_examples": "annotated chains",
    "sampled_examples": "sampled chains",
    "keep": "sampled per question, at most",
    "examples": "examples",
    "right_examples": "right ones",
    "seconds": "seconds",
}


def facts(run: Run) -> dict[str, list[tuple[str, str]]]:
    """Return what the run was made of, in groups of (name, value); what is unknown is left out."""
    section = run.config.get
    counts = {key: count for key, count in run.data.items() if count or key != "without_chain"}
    groups = {
        "Data": _named(counts, COUNTS) + _named(section("data", {}), DATA),
        "Prompt": _named(_asked(run), PROMPT),
        "Model": _named(section("model", {}), MODEL),
    }
    if count := _parameters(run):
        groups["Model"].append(("parameters", f"{count / 1e6:,.3g} million"))
    if (lora := section("lora", {})).get("rank"):
        groups["Model"] += _named(lora, LORA)
    for stage, title in stage_titles(run).items():
        groups[title] = _named(run.results[stage] | section(stage, {}), STAGE)
    if rerankers := _reranker_stages(run):
        groups["Rerankers"] = _named(run.results[rerankers[0]] | section("reranker", {}), STAGE)
        for stage in rerankers:
            order = {"best_validation_auc": f"AUC, {label_of(stage.partition('/')[2])}"}
            groups["Rerankers"] += _named(run.results[stage], order)
    versions = run.info.get("versions", {})
    groups["Run"] = _named(run.info, RUN) + _named(versions, {name: name for name in versions})
    return {title: rows for title, rows in groups.items() if rows}


def stage_states(run: Run) -> list[dict[str, str]]:
    """Return name, state (done, unfinished, not started) and detail of all that the run asks for."""
    data = run.data
    sizes = f"{data.get('train')} training, {data.get('validation')} validation, {data.get('test')} test"
    states = [_state("Data", bool(data), False, f"{sizes} questions" if data else "")]
    states += [_training(run, stage, title) for stage, title in stage_titles(run).items()]
    if rerankers := _reranker_stages(run):
        states.append(_rerankers(run, rerankers))
    return [*states, _evaluation(run)]


def _asked(run: Run) -> Row:
    """Return the settings of the prompt: as saved with a model, where nothing is left open."""
    places = [run.directory / directory_of(name) / "model" for name in METHODS]
    saved = next((place for place in places if (place / SETTINGS_FILE).exists()), None)
    asked: Row = run.config.get("prompt", {})
    return asked if saved is None else asked | saved_settings(str(saved))["prompt"]


def _parameters(run: Run) -> int:
    """Return how many numbers the weights of a model of this run have, 0 as long as none is there."""
    for name in METHODS:
        files = sorted((run.directory / directory_of(name) / "model").glob("*.safetensors"))
        if name != BASE and files:
            return sum(map(_size, files))
    return 0


def _size(path: Path) -> int:
    """Return how many numbers a file of weights has, by its header; 0 where that is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError:
        return 0


def stage_titles(run: Run) -> dict[str, str]:
    """Return the titles of the run's stages, those of the rerankers and the evaluation aside."""
    titles = {stage: method.title for stage, method in methods_by_stage().items()}
    titles["warmup_samples"] = f"{label_of(run.lineup.start)} samples"
    return {stage: titles[stage] for stage in run.lineup.stages if stage in titles}


def _reranker_stages(run: Run) -> list[str]:
    return [stage for stage in run.lineup.stages if stage.startswith("reranker/")]


def _state(name: str, done: bool, begun: bool, detail: str) -> dict[str, str]:
    state = "done" if done else "unfinished" if begun else "not started"
    return {"name": name, "state": state, "detail": detail}


def _training(run: Run, stage: str, title: str) -> dict[str, str]:
    """Return the state of a method's stage, or of the one that draws the warm-up samples."""
    method, rows, result = methods_by_stage().get(stage), run.metrics[stage], run.results[stage]
    detail = ""
    if method is None:
        detail = f"{result['accuracy']:.1%} of {result['samples']} right" if result else ""
    elif result:
        accuracy = f"{result['best_validation_accuracy']:.1%} on validation"
        detail = f"best {method.unit} {result[f'best_{method.unit}']}: {accuracy}"
    elif rows:
        done = rows[-1].get(method.unit, "?")
        shown = f"{done:.1f}" if isinstance(done, float) else done  # epochs are counted in steps
        detail = f"{method.unit} {shown} of {run.config.get(stage, {}).get(f'{method.unit}s')}"
    return _state(method.label if method else title, bool(result), bool(rows), detail)


def _rerankers(run: Run, stages: list[str]) -> dict[str, str]:
    done = sum(bool(run.results[stage]) for stage in stages)
    begun = any(run.metrics[stage] for stage in stages)
    return _state("Rerankers", done == len(stages), begun, f"{done} of {len(stages)}" if begun else "")


def _evaluation(run: Run) -> dict[str, str]:
    found = run.evaluation
    missing = [label_of(model) for model in run.lineup.models if model not in found.get("models", {})]
    detail = f"{found['n']} unseen questions" if found else ""
    if found and missing:  # methods were added since
        detail = f"without {', '.join(missing)}"
    return _state("Evaluation", not missing, bool(found), detail)


def _named(values: Row, names: Mapping[str, str]) -> list[tuple[str, str]]:
    found = [(name, values[key]) for key, name in names.items() if values.get(key) is not None]
    return [(name, f"{value:g}" if isinstance(value, float) else str(value)) for name, value in found]
