"""The card of a model that is handed over: what it is, how it was trained and how good it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reftune.methods import METHODS, directory_of, label_of
from reftune.problem import Row
from reftune.reporting.pages import render
from reftune.reporting.run.metadata import facts
from reftune.reporting.run.run_files import Run, read_run
from reftune.reporting.run.summary import comparisons

NAMES = ("train", "test")  # of the sections' data sets


@dataclass(frozen=True)
class Asked:
    """How others ask a model.

    Attributes:
        name: under which they open it.
        example: a question.
        prompt: what its chat template makes of it; "" where there is none.
        program: whether it answers with programs.
        max_new_tokens: that an answer may have.
        trained: whether reftune trained it, and knows how to ask it.
        adapter: folder with the adapter that is part of its weights; "" where there is none.
    """

    name: str
    example: str
    prompt: str
    program: bool
    max_new_tokens: int
    trained: bool
    adapter: str = ""


def model_card(
    directory: str, model: str | None, asked: Asked, license: str | None, origin: str | None
) -> str:
    """Return the text of a model card, as the hub understands it.

    Args:
        directory: of the model, or its GGUF file or Hugging Face name.
        model: its name in its run; None where it was given without one.
        asked: how it is asked.
        license: as the hub calls it; None: the user's to choose.
        origin: where it comes from, in the user's words.
    """
    model, run = _run_of(Path(directory), model)
    base = _base(run, directory)
    found = _evaluated(run, model) if run else {}
    label = label_of(model) if model else base
    title = Path(asked.name).name
    context: Row = {
        "title": title, "label": label, "base": base, "run": run, "license": license or "other",
        "origin": origin, "gguf": directory.lower().endswith(".gguf"), "asked_as_trained": asked.trained,
        "facts": _facts(run, model), "accuracies": [], "comparisons": [], "n": 0,
        **asdict(asked), **found,
    }  # fmt: skip
    context["front_matter"] = _front_matter(title, base, model, context, run)
    return render("model_card.md", context)


def _run_of(directory: Path, model: str | None) -> tuple[str | None, Run | None]:
    """Return a model's name in the run that it lies in, and the run; None where it is alone."""
    parent = directory.absolute().parent
    if directory.name != "model" or not (parent.parent / "config.toml").exists():
        return model, None
    names = {directory_of(name): name for name in METHODS}
    return model or names.get(parent.name), read_run(parent.parent)


def _base(run: Run | None, directory: str) -> str:
    if run is None:
        return _public(directory)
    settings = run.config.get("model", {})
    return _public(str(settings.get("name") or f"a new Llama ({settings.get('scratch')})"))


def _public(name: str) -> str:
    """Return a name without the folders of this machine, which are nobody's business."""
    local = name.startswith(("/", ".", "~")) or Path(name).exists()
    return Path(name).name if local else name


def _facts(run: Run | None, model: str | None) -> dict[str, list[tuple[str, str]]]:
    """Return what the report says of data, base, the model's own stages and versions."""
    if run is None:
        return {}
    titles = {METHODS[x].stage: METHODS[x].title for x in METHODS}
    kept = {"Data", "Prompt", "Model", "Run"}
    if model in METHODS:
        stage = METHODS[model].stage
        stages = (*run.lineup.needs(stage), stage) if stage else ()
        kept |= {titles[stage] for stage in stages if stage in titles}
    return {
        title: [(key, _public(value)) for key, value in rows]
        for title, rows in facts(run).items()
        if title in kept
    }


def _evaluated(run: Run, model: str | None) -> Row:
    models = run.evaluation.get("models", {})
    if model not in models:
        return {}
    rows = [{"label": label_of(key), **found["greedy"]} for key, found in models.items()]
    shown = comparisons(run)
    pairs = [
        row for row in (*shown["shown"], *shown["folded"])
        if model in (row["a"], row["b"]) and row["aggregation"] == "greedy"
    ]  # fmt: skip
    return {"n": run.evaluation["n"], "accuracies": rows, "comparisons": pairs}


def _front_matter(title: str, base: str, model: str | None, found: Row, run: Run | None) -> str:
    """Return the YAML that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    data = run.config.get("data", {}) if run else {}
    mine = next((row for row in found["accuracies"] if row["label"] == found["label"]), None)
    name = Path(str(data.get("test", "test questions"))).name
    results = [
        EvalResult(
            task_type="text-generation", dataset_type=name, dataset_name=name,
            metric_type="accuracy", metric_value=round(mine["accuracy"], 4),
        )
    ] if mine else None  # fmt: skip
    trained = [
        "reftune",
        "reinforced-fine-tuning",
        *([METHODS[model].stage] if model in METHODS else []),
    ]
    values: dict[str, Any] = {
        "library_name": "transformers", "pipeline_tag": "text-generation", "license": found["license"],
        "base_model": base if _on_hub(base) else None, "model_name": title if mine else None,
        "tags": trained if run else ["reftune"], "metrics": ["accuracy"] if mine else None,
        "datasets": [data[x] for x in NAMES if _on_hub(str(data.get(x, "")))][:1] or None,
        "eval_results": results,
    }  # fmt: skip
    return ModelCardData(**values).to_yaml().strip()


def _on_hub(name: str) -> bool:
    """Tell whether a name may be one of the hub's, owner/name, and is no file here."""
    return name.count("/") == 1 and _public(name) == name
