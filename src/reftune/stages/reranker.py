"""A classifier of right and wrong chains, to choose among a model's samples.

It is a finished model with a two-class head, trained on the warm-up samples (Luong et al. 2024,
section 4.4).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from reftune.evaluation.statistics import area_under_curve
from reftune.files import atomic_directory
from reftune.methods import label_of
from reftune.model.batch import Sequences, collate
from reftune.model.forward import PackedForward, backbone_of, state_width
from reftune.model.loading import load_model, set_trainable, training_dtype
from reftune.model.prompts import Prompter
from reftune.problem import AnsweredQuestion, CountedRow, Problem, SampledAnswer, UserError
from reftune.runs.checkpoints import load_trained, trained_weights
from reftune.stages.run import Run
from reftune.stages.stage import Stage
from reftune.stages.steps import State
from reftune.stages.supervised import Example, stop_on_non_finite, train_epochs
from reftune.stages.warmup_samples import read_warmup_samples
from reftune.training.learner import Learner
from reftune.training.sharded_map import sharded_map

WEIGHTS_FILE = "reranker.safetensors"


class Reranker(nn.Module):
    """The backbone of a language model with a two-class head (wrong, right).

    The head reads the state before the response's last token, which has seen all but its EOS.

    Args:
        model: the language model; its backbone is trained with the head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.packed_forward = PackedForward(model)
        self.backbone = backbone_of(model)
        width = state_width(model)
        self.class_head = nn.Linear(width, 2, device=model.device, dtype=torch.float32)
        nn.init.zeros_(self.class_head.weight)  # an untrained head calls it even
        nn.init.zeros_(self.class_head.bias)

    def forward(self, sequences: Sequences) -> Float[Tensor, "batch classes"]:
        """Return the log-probabilities of wrong and right for every response."""
        states = self.packed_forward(self.backbone, sequences)
        ends = sequences.response_lengths.unsqueeze(1) - 1
        last = states[sequences.node_index.gather(1, ends).squeeze(1)]
        with torch.autocast(states.device.type, enabled=False):
            return torch.log_softmax(self.class_head(last.float()), dim=-1)

    def save(self, directory: Path, *, main: bool = True) -> None:
        """Write the weights that are trained, whole or not at all: the main process does.

        Of a sharded one all processes give their parts.
        """
        found = trained_weights(self, keep=main)
        if main:
            with atomic_directory(directory) as temporary:
                weights = {key: value.contiguous() for key, value in found.items()}
                save_file(weights, temporary / WEIGHTS_FILE)

    def load(self, directory: Path) -> None:
        """Read weights that `save` wrote; raise UserError where they are damaged."""
        path = directory / WEIGHTS_FILE
        try:
            load_trained(self, path)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            fix = f"delete {directory.parent}, and the reranker is trained again"
            raise UserError(f"{path}: cannot be loaded ({reason}); {fix}") from None


def start(run: Run, model: str) -> None:
    """Run the stage on one of the run's models."""
    stage = run.stage(f"reranker/{model}", run.prompter(model))
    run_reranker(stage, _new_reranker(run, model), read_warmup_samples(run.config.run_dir))


def load_reranker(run: Run, model: str) -> Reranker:
    """Load the finished reranker of one of the run's models, to the device."""
    reranker = _new_reranker(run, model)
    reranker.load(run.config.run_dir / "reranker" / model / "model")
    return reranker.to(run.accelerator.device).eval()


def _new_reranker(run: Run, model: str) -> Reranker:
    base = load_model(run.directory(model), training_dtype(run.config.model.dtype))
    set_trainable(base, True, run.config.lora)
    return Reranker(base)


def run_reranker(
    stage: Stage, reranker: Reranker, samples: Mapping[str, Sequence[CountedRow]]
) -> dict[str, Any]:
    """Train on the different samples of the training questions; keep the epoch that ranks best.

    Args:
        samples: the warm-up samples, by the question's id.

    Returns what it also writes to `result.json`. Raises UserError where all samples are right, or all
    wrong.
    """
    settings, accelerator = stage.config.reranker, stage.accelerator
    train = labelled(stage.prompter, stage.train, samples, settings.max_tokens)
    validation = labelled(stage.prompter, stage.validation, samples, settings.max_tokens)
    _require_classes(stage, train, validation)
    learner = stage.learner(reranker, settings, settings.head_learning_rate)
    budget = stage.token_budget

    def take_step(rows: list[int]) -> dict[str, float]:
        sums = _train_on(learner, [train[i] for i in rows])
        stop_on_non_finite(stage, sums, settings.learning_rate)
        return sums

    def end_epoch(epoch: int, state: State) -> dict[str, float]:
        probabilities = classify(reranker, [example for example, _ in validation], accelerator, budget)
        found = _measure(probabilities, [label for _, label in validation])
        # It will rank rather than classify: the loss only decides between equals.
        if _merit(found, "") > _merit(state, "best_"):
            state |= {"best_epoch": epoch} | {f"best_{key}": x for key, x in found.items()}
            reranker.save(stage.directory / "model", main=accelerator.is_main_process)
            accelerator.wait_for_everyone()
        return found

    start: State = {"best_validation_auc": -1.0, "best_validation_loss": math.inf}
    lengths = [len(prompt) + len(response) for (prompt, response), _ in train]
    state = train_epochs(stage, learner, settings, lengths, take_step, end_epoch, start)
    result = {key: x for key, x in state.items() if key.startswith("best_")}
    counts = {"examples": len(train), "right_examples": sum(label for _, label in train)}
    return stage.finish(result | counts | {"seconds": state["seconds"]})


def labelled(
    prompter: Prompter,
    problems: Sequence[Problem],
    samples: Mapping[str, Sequence[CountedRow]],
    max_tokens: int,
) -> list[tuple[Example, bool]]:
    """Return the whole samples of `problems` that are short enough, each with whether it is right."""
    pairs = [
        (prompter.encode_example(problem, row["completion"]), bool(row["correct"]))
        for problem in problems
        for row in samples.get(problem.id, ())
        if row["status"] != "truncated"
    ]
    return [pair for pair in pairs if len(pair[0][0]) + len(pair[0][1]) <= max_tokens]


def classify(
    reranker: Reranker, examples: Sequence[Example], accelerator: Accelerator, token_budget: int
) -> list[float]:
    """Return the probability that each response is right, each process reading a share."""
    lengths = [len(prompt) + len(response) for prompt, response in examples]
    found = torch.zeros(len(examples), device=accelerator.device)

    def read(rows: list[int]) -> None:
        found[rows] = reranker(_collate([examples[i] for i in rows], found.device))[:, 1].exp()

    whole: list[float] = sharded_map(found, read, lengths, token_budget, accelerator).tolist()
    return whole


def rank(
    reranker: Reranker,
    prompter: Prompter,
    problems: Sequence[Problem],
    rows: Sequence[AnsweredQuestion],
    accelerator: Accelerator,
    token_budget: int,
) -> None:
    """Write into every sample of `rows`, one row per problem, how probably it is right (`rerank`).

    A sample without an answer is not a choice: it gets None.
    """
    places: dict[tuple[int, str], list[SampledAnswer]] = {}
    for i, row in enumerate(rows):
        for sample in row.get("samples", ()):
            sample["rerank"] = None
            if sample["value"] is not None:
                places.setdefault((i, sample["completion"]), []).append(sample)
    examples = [prompter.encode_example(problems[i], completion) for i, completion in places]
    probabilities = classify(reranker, examples, accelerator, token_budget)
    for found, p in zip(places.values(), probabilities, strict=True):
        for sample in found:
            sample["rerank"] = p  # unrounded: near 1 many would tie


def _train_on(learner: Learner, batch: Sequence[tuple[Example, bool]]) -> dict[str, float]:
    """Take one optimizer step on the mean cross-entropy of a batch's labels."""
    device = learner.accelerator.device

    def loss_fn(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs = model(_collate([batch[i][0] for i in mine], device))
        labels = torch.tensor([int(batch[i][1]) for i in mine], device=device)
        losses = functional.nll_loss(logprobs, labels, reduction="none") * weights
        return losses.sum() / len(batch), {}

    lengths = [len(prompt) + len(response) for (prompt, response), _ in batch]
    return learner.step(range(len(batch)), lengths, loss_fn)


def _collate(examples: Sequence[Example], device: torch.device) -> Sequences:
    return collate([prompt for prompt, _ in examples], [ids for _, ids in examples]).to(device)


def _measure(probabilities: Sequence[float], labels: Sequence[bool]) -> dict[str, float]:
    """Return the loss on the labels and the share of pairs, a right and a wrong one, in right order."""
    chances = [p if label else 1 - p for p, label in zip(probabilities, labels, strict=True)]
    loss = -sum(math.log(max(p, 1e-12)) for p in chances) / len(chances)
    return {"validation_loss": loss, "validation_auc": area_under_curve(probabilities, labels)}


def _merit(found: Mapping[str, float], prefix: str) -> tuple[float, float]:
    return found[f"{prefix}validation_auc"], -found[f"{prefix}validation_loss"]


def _require_classes(
    stage: Stage, train: Sequence[tuple[Example, bool]], validation: Sequence[tuple[Example, bool]]
) -> None:
    right = sum(label for _, label in train)
    if 0 < right < len(train) and validation:
        return
    kind = "right" if right else "wrong"
    model = label_of(stage.config.lineup.start).lower()
    missing = f"all {len(train)} samples of the {model} model are {kind}" if train else "there are none"
    if train and not validation:
        missing = "no sample of a validation question is whole"
    raise UserError(
        f"{stage.name}: nothing to tell right from wrong chains by, {missing}; raise"
        " warmup_samples.per_question or change sft.warmup_epochs under a new --name"
    )
