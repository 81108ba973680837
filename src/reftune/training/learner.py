"""What all training stages do the same way: learning rates, one exact optimizer step."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from reftune.model.gradient_checkpointing import checkpointed_layers, checkpointing
from reftune.model.sharding import gathered, is_part, sharded
from reftune.progress import counting
from reftune.training.cpu_threads import make_cpu_threads, replicas
from reftune.training.microbatches import make_microbatches, shard
from reftune.training.optimizer import keep_whole_state, optimized

# model, rows of one micro-batch and their weights -> (loss summed over the rows, sums of statistics)
LossFn = Callable[[nn.Module, list[int], Tensor], tuple[Tensor, dict[str, Tensor]]]


def linear_schedule(step: int, total: int, warmup_share: float) -> float:
    """Return the factor of optimizer step `step` (from 0): up in the warm-up, then down towards 0."""
    warmup = max(1, round(total * warmup_share)) if warmup_share else 0
    if step < warmup:
        return (step + 1) / warmup
    return (total - step) / max(1, total - warmup)


def online_schedule(step: int, total: int, warmup: int, *, falling: bool) -> float:
    """Return the factor of the learning rate in step `step` (from 1) of an online stage.

    Args:
        total: steps of the stage.
        warmup: steps in which it rises; the last of them has the whole rate.
        falling: whether it then falls in equal amounts, to the last one in step `total`.
    """
    if step < warmup:
        return step / warmup
    return (total - step + 1) / (total - max(1, warmup) + 1) if falling else 1.0


def non_finite(sums: Mapping[str, float]) -> str:
    """Say what of a step is not finite, its loss or the norm of its gradient; nothing if both are."""
    for key, words in (("loss", "the loss"), ("grad_norm", "the norm of the gradient")):
        if not math.isfinite(sums[key]):
            return f"{words} is not finite ({sums[key]})"
    return ""


class Learner:
    """A model with its optimizer, and how the work of one step is shared out.

    Args:
        model: the model to train.
        optimizer: from `make_optimizer`; where it moves masters, gradients are added up in these.
        accelerator: its processes share every micro-batch.
        token_budget: tokens in a micro-batch of one CPU thread of one process.
        max_grad_norm: the gradient is scaled down to this norm.
        gradient_checkpointing: whether layers keep their inputs alone, and backward computes the rest.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        token_budget: int,
        max_grad_norm: float,
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self._sharded = sharded(model) is not None
        if self._sharded:  # its processes know of each other already
            self.model = accelerator.prepare_model(model, evaluation_mode=True)
            self.optimizer = accelerator.prepare_optimizer(optimizer)
            keep_whole_state(optimizer, model)
        else:
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.token_budget = token_budget
        self.max_grad_norm = max_grad_norm
        self._cpu_threads = make_cpu_threads(model, accelerator)
        self._models = replicas(self.model, self._cpu_threads.count)
        self._dropout = _has_dropout(model)
        checkpointed = self._models if gradient_checkpointing else []
        self._layers = [layer for one in checkpointed for layer in checkpointed_layers(one)]
        weights = set(map(id, model.parameters()))
        self._has_masters = any(id(parameter) not in weights for parameter in optimized(optimizer))

    def set_learning_rates(self, policy: float, critic: float) -> None:
        """Set each group's rate to its peak times a factor; at 0 it rests, and AdamW's moments too."""
        for group, factor in zip(self.optimizer.param_groups, (policy, critic), strict=False):
            group["lr"] = group["peak"] * factor

    def step(
        self,
        rows: Sequence[int],
        lengths: Sequence[int],
        loss_fn: LossFn,
        groups: Sequence[int] | None = None,
    ) -> dict[str, float]:
        """Take one exact optimizer step on `rows`, however they are cut and dealt.

        Args:
            rows: indices of the global minibatch, the same on every process.
            lengths: tokens per row, prompt included.
            loss_fn: gives the loss of some rows, already divided by what the whole minibatch is divided
                by; it runs in several threads at once.
            groups: which rows share their prompt (see `make_microbatches`).

        Returns:
            Sums of the loss and the statistics over all rows and processes, and `grad_norm` before
            clipping. Where the norm is not finite the step is not taken. In float16 accelerate scales
            the loss up, for small gradients vanish there; where large ones become infinite by that, it
            lowers the scale, and they are computed once more.
        """
        scaler = self.accelerator.scaler  # of the loss; in float16 alone there is one
        while True:
            totals, norm = self._gradients(rows, lengths, loss_fn, groups)
            finite = bool(torch.isfinite(norm))
            if finite or scaler is not None:
                self.optimizer.step()  # a scaler leaves a gradient that is not finite out
            self.drop_gradients()  # sampling and saving have more memory without them
            if finite or scaler is None or scaler.get_scale() < 1:
                return {**self._sum(totals), "grad_norm": float(norm)}

    def _gradients(
        self,
        rows: Sequence[int],
        lengths: Sequence[int],
        loss_fn: LossFn,
        groups: Sequence[int] | None,
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Compute the gradient of `step`, clipped; return the workers' sums and the norm before."""
        alone = self._dropout and self.model.training
        models = self._models[:1] if alone else self._models
        for model in models:
            model.train(self.model.training)
        workers = self.accelerator.num_processes * len(models)
        pieces = make_microbatches(rows, lengths, self.token_budget, workers, groups)
        # Some layers drop out by their own mode: where that is off, they must stay as they are.
        layers = [] if self._dropout and not self.model.training else self._layers
        with checkpointing(layers), counting("rows", len(rows)) as self._count:
            totals = self._cpu_threads.map(
                lambda i: self._accumulate(models[i], pieces, i, workers, loss_fn),
                range(len(models)),
            )
        _add_gradients(models)
        if (self._has_masters or self._sharded) and self.accelerator.num_processes > 1:
            self._average_gradients()
        self._let_rest()
        trained = optimized(self.optimizer)
        norm = self.accelerator.clip_grad_norm_(trained, self.max_grad_norm)
        assert isinstance(norm, Tensor)
        return totals, gathered(norm)

    def forget(self) -> None:
        """Begin the optimizer anew, as if it had never taken a step."""
        self.optimizer.state.clear()

    def drop_gradients(self) -> None:
        """Free the gradients of the step before."""
        for model in self._models:
            model.zero_grad()
        for parameter in optimized(self.optimizer):
            parameter.grad = None

    def _average_gradients(self) -> None:
        """Do for masters what DDP does for weights, and for what stays whole beside sharded weights."""
        for parameter in optimized(self.optimizer):
            if parameter.grad is not None and not is_part(parameter.grad):
                reduced = self.accelerator.reduce(parameter.grad, reduction="mean")
                parameter.grad = torch.as_tensor(reduced)

    def _let_rest(self) -> None:
        """Drop the gradients of groups whose rate is 0: they must move no moment and scale no norm."""
        for group in self.optimizer.param_groups:
            if group["lr"] == 0:
                for parameter in group["params"]:
                    parameter.grad = None

    def _accumulate(
        self, model: nn.Module, pieces: list[list[int]], thread: int, workers: int, loss_fn: LossFn
    ) -> dict[str, Tensor]:
        """Add up the gradients of this worker's rows of all micro-batches; return the sums."""
        accelerator = self.accelerator
        rank, processes = accelerator.process_index + thread, accelerator.num_processes
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        for i, piece in enumerate(pieces):
            mine, weights = shard(piece, rank, workers)
            apart = self._has_masters or i < len(pieces) - 1  # DDP does not know masters
            # Sharded weights have their gradients added up at once: a whole one would not fit.
            with accelerator.no_sync(model) if apart else nullcontext():
                loss, statistics = loss_fn(model, mine, torch.tensor(weights, device=accelerator.device))
                accelerator.backward(loss * processes)  # undo the average over processes
            for name, value in {"loss": loss, **statistics}.items():
                sums[name] = sums[name] + value.detach()
            if thread == 0:  # all go through all pieces
                self._count.advance(len(piece))
        return sums

    def _sum(self, totals: list[dict[str, Tensor]]) -> dict[str, float]:
        names = sorted(totals[0])
        stacked = torch.stack([torch.stack([total[name].float() for name in names]) for total in totals])
        summed = stacked.sum(0)
        if self.accelerator.num_processes > 1:
            summed = self.accelerator.reduce(summed, reduction="sum")
        return dict(zip(names, summed.tolist(), strict=True))


def _add_gradients(models: Sequence[nn.Module]) -> None:
    """Add the replicas' gradients to the model's, always in the same order."""
    for first, *others in zip(*(model.parameters() for model in models), strict=True):
        for other in others:
            if first.grad is None:
                first.grad = other.grad
            elif other.grad is not None:
                first.grad.add_(other.grad)


def _has_dropout(model: nn.Module) -> bool:
    """Tell whether a model has dropout: threads would draw from torch's one generator in any order."""
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    settings = [item for config in configs for item in config.to_dict().items()]
    rates += [value for key, value in settings if "drop" in key and isinstance(value, float)]
    return any(rates)
