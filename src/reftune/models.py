"""What `import reftune` does with single models: ask them, let them go on, hand them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reftune.problem import Completion, Cot, EvaluationResult, UserError

if TYPE_CHECKING:
    from reftune.data.sources import Source
    from reftune.training.types import GradedSample


def evaluate(
    model: str | Path,
    data: Source,
    *,
    cot: Cot | None = None,
    samples: int = 0,
    shots: int = 0,
    shots_from: Source | None = None,
    stop: str | Sequence[str] = (),
    split: str | None = None,
    subset: str | None = None,
    overrides: Sequence[str] = (),
) -> EvaluationResult:
    """Measure how many questions a model answers.

    Args:
        model: directory, GGUF file or Hugging Face name of a causal language model.
        data: a file, a data set's name, "synthetic", a `datasets.Dataset`, or mappings with the keys
            "question" and "answer".
        cot: kind of chain that the model writes, "program" (executed) or "natural" (text); default: as
            it was trained by reftune.
        samples: per question, for voting and pass@k; 0 answers greedily only.
        shots: solved examples before each question.
        shots_from: where they are; default: the train split of `data`.
        stop: text, or several, at which an answer is cut before it is judged.
        split: of a data set on the hub; default: "test".
        subset: its configuration.
        overrides: other settings, as "section.key=value", such as "prompt.max_new_tokens=200".

    Raises:
        UserError: the model cannot be loaded, a question cannot be used, or nothing says which kind of
            chain the model writes.
    """
    from reftune.evaluation.inference import evaluate_on

    found = evaluate_on(
        model, data, cot, samples, split, subset, overrides,
        shots=shots, shots_from=shots_from, stop=[stop] if isinstance(stop, str) else stop,
    )  # fmt: skip
    return EvaluationResult(*found)


def sample(
    model: str | Path,
    questions: str | Sequence[str],
    *,
    cot: Cot | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> list[GradedSample]:
    """Ask a model questions whose answer nobody knows; return what it wrote, one sample per question.

    Each has the `completion` and, in `verdict`, the `status` and the extracted `answer`.

    Args:
        model: directory, GGUF file or Hugging Face name of a causal language model.
        questions: plain texts; one that is given twice is answered twice.
        cot: kind of chain that the model writes; default: as it was trained by reftune.
        temperature: 0 takes the most likely token each time.
        seed: another one gives other samples.
        overrides: other settings, as "section.key=value".

    Raises:
        UserError: the model cannot be loaded, a question is too long, or nothing says which kind of
            chain the model writes.
    """
    from reftune.evaluation.inference import ask, model_config

    config = model_config(str(model), overrides, cot=cot)
    return ask(config, [questions] if isinstance(questions, str) else questions, temperature, seed)


def generate(
    model: str | Path,
    prompts: str | Sequence[str | Sequence[Mapping[str, Any]]] | Sequence[Mapping[str, Any]],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: str | Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> list[list[Completion]]:
    """Let a model go on with prompts as they are; return a list of `n` completions for each, in order.

    Nothing is put around a prompt and nothing is judged: for questions see `sample`. What comes of a
    prompt depends on its place in the list and on the seed, not on the other prompts.

    Args:
        model: directory of a model or of a run (whose last finished model it is), GGUF file or Hugging
            Face name.
        prompts: a text that the model goes on with, or a chat as a list of messages with "role" and
            "content", which its chat template writes; or a list of either.
        n: completions of each prompt.
        temperature: 0 takes the most likely token each time.
        top_p: share of the probability from which tokens are drawn, the most likely ones. It is for
            texts that are read, not for samples to train on: log-probabilities stay those of the whole
            distribution.
        stop: text, or several, at which a completion ends; it is left out of the completion's.
        max_new_tokens: default: as the model was trained by reftune, else 400.
        seed: another one gives other completions.
        overrides: other settings, as "section.key=value", such as "model.dtype=bfloat16".

    Raises:
        UserError: the model cannot be loaded, a prompt cannot be read or is too long, or a number is out
            of its range.
    """
    from reftune.evaluation.generation import generate

    return generate(
        model, prompts, n=n, temperature=temperature, top_p=top_p, stop=stop,
        max_new_tokens=max_new_tokens, seed=seed, overrides=overrides,
    )  # fmt: skip


def export(
    source: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    license: str | None = None,
    origin: str | None = None,
    push: str | None = None,
    public: bool = False,
) -> Path | str:
    """Write a model as a directory for anybody: weights, tokenizer, chat template, model card.

    Returns the directory or, with `push`, the address on the hub.

    Args:
        source: directory of a run or of a model, GGUF file or Hugging Face name.
        out: the new directory, which is there as a whole or not at all.
        model: which one of a run, such as "reft" or "sft"; default: the last finished one.
        dtype: precision of the weights; default: as it is.
        license: for the model card, as the hub calls it; default: left to you.
        origin: for the model card, where the model comes from.
        push: name on the Hugging Face hub, "owner/name", where it is uploaded, too.
        public: whether everybody may see what is pushed.

    Raises:
        UserError: there is no such model, `out` holds something, or the hub refuses.
    """
    from reftune.hand_over import export, upload

    if public and push is None:
        raise UserError("--public: has no effect without --push")
    card = {"license": license, "origin": origin, "name": push}
    directory = export(str(source), Path(out), model=model, dtype=dtype, **card)
    return directory if push is None else upload(directory, push, public=public)
