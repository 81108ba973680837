"""(b) The update: `stages.ppo.update.update` against a plainly padded loop (`padded.py`).

    python -m benchmarks.update [--model-size 135m | --device cuda --dtype bfloat16 --model-size 0.5b]

Both take the same two optimizer steps on the same 512 rows, with the same losses, AdamW and (up to
rounding) the same number of rows per micro-batch. Counted are the real tokens of prompt and response,
once per sample and step.

- demo: responses that the demo's trained model samples, 8 for each of 64 questions.
- svamp x 8: prompts of SVAMP in reftune's template, with a byte-level BPE of 4096 pieces and the model
  of configs/svamp_program.toml (random weights; the tokenizer is trained on SVAMP). The lengths of the 8
  responses are those of programs of the data set, drawn at random.
- svamp x 1: 512 different questions with one response each, as in the paper: no prompt is shared.

With the real model the workload demo is left out, and the others have its chat template and tokenizer.
With bfloat16 reftune trains weights in bfloat16 with float32 masters, as in its runs, and the padded
loop float32 weights under autocast.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.contest import REAL, Contestant, LeftOut, Options, Turns, compete, parse_options, table
from benchmarks.padded import PaddedPolicy, PaddedTargets, pad_batch, padded_update
from benchmarks.workload import Workload, described, open_config, open_workload, repeated, sample
from reftune.config import Config
from reftune.heap import keep_freed_memory
from reftune.model.batch import length_mask
from reftune.model.policy import PolicyWithValue
from reftune.problem import Verdict
from reftune.sampling.sampler import Sample
from reftune.stages.ppo.update import update
from reftune.training.learner import Learner
from reftune.training.microbatches import make_microbatches
from reftune.training.optimizer import make_optimizer
from reftune.training.token_budget import token_budget
from reftune.training.types import AdvantagesAndReturns, GradedSample, Rollouts

WORKLOADS = ("demo", "svamp x 8", "svamp x 1")
LEARNING_RATE = 1e-9  # the same work, but the model stays as it is through all rounds


@dataclass(frozen=True)
class Experience:
    """Rows to learn from; the tensors are response-only and right-padded, (rows, time)."""

    workload: Workload
    samples: list[Sample]
    groups: list[int]  # the question of each row
    mask: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def lengths(self) -> list[int]:
        """Return the tokens of each row, prompt included."""
        return [len(s.prompt) + len(s.tokens) for s in self.samples]

    @property
    def tokens(self) -> int:
        """Return the tokens that all optimizer steps together learn from."""
        return sum(self.lengths) * self.workload.config.ppo.ppo_epochs


def main(arguments: Sequence[str] | None = None) -> None:
    """Hold the contest on each workload and print its table."""
    options = parse_options(__doc__ or "", arguments)
    contestants = [Contestant("reftune", reftune), Contestant("padded loop", padded)]
    print(f"{described(options)}\n", flush=True)
    for name in WORKLOADS[1:] if options.model_size == REAL else WORKLOADS:
        options.workload = name
        print(f"Workload {name}:\n", flush=True)
        try:
            open_config(options, name.partition(" ")[0])
        except LeftOut as reason:
            print(f"left out: {reason}\n", flush=True)
            continue
        print(table(compete(contestants, options), "tokens") + "\n", flush=True)


def reftune(turns: Turns, options: Options) -> None:
    """Update with `stages.ppo.update.update`."""
    keep_freed_memory()  # as in reftune's runs
    turns.serve(reftune_update(make_experience(options), options))


def padded(turns: Turns, options: Options) -> None:
    """Update with the padded loop."""
    turns.serve(plain_update(make_experience(options), options))


def reftune_update(experience: Experience, options: Options) -> Callable[[int], float]:
    """Return the function that does one update and says how many tokens it learned from."""
    config = experience.workload.config
    policy = PolicyWithValue(experience.workload.model, "shared")
    learner = make_learner(policy, config, make_accelerator(options))
    learner.model.eval()  # as in `run_ppo`
    rollouts, targets = _rollouts(experience), _targets(experience)

    def act(turn: int) -> float:
        update(learner, rollouts, targets, config, turn)
        return experience.tokens

    return act


def plain_update(experience: Experience, options: Options) -> Callable[[int], float]:
    """Return the padded loop's function for the same."""
    config, samples = experience.workload.config, experience.samples
    policy = PaddedPolicy(experience.workload.model.float())
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    batch = pad_batch([s.prompt for s in samples], [s.tokens for s in samples], options.device)
    targets = _padded_targets(experience, batch.mask)
    rows = _rows_at_once(experience, config)
    autocast = make_accelerator(options, mixed=True).autocast

    def act(_: int) -> float:
        padded_update(policy, optimizer, batch, targets, config.ppo, rows, autocast)
        return experience.tokens

    return act


def make_experience(options: Options) -> Experience:
    """Return the rows of a workload with made-up advantages and returns, the same in each process."""
    name, _, copies = options.workload.partition(" x ")
    rows = options.questions * options.samples
    each = 1 if copies == "1" else options.samples
    workload = open_workload(options, rows // each, name)
    prompts = repeated(workload.prompts, each)
    samples = _sampled(workload, prompts) if name == "demo" else _drawn(workload, prompts)
    mask = length_mask([len(s.tokens) for s in samples])
    noise = torch.randn(3, *mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    old = torch.zeros_like(mask)
    for i, s in enumerate(samples):
        old[i, : len(s.tokens)] = torch.tensor(s.logprobs)
    groups = [i // each for i in range(len(samples))]
    return Experience(workload, samples, groups, mask, old, noise[0] * 0.1, noise[1], noise[2])


def make_accelerator(options: Options, mixed: bool = False) -> Accelerator:
    """Return accelerate's handle on the device; `mixed`: with autocast where bfloat16 is asked for."""
    precision = "bf16" if mixed and options.dtype == "bfloat16" else "no"
    return Accelerator(cpu=options.device == "cpu", mixed_precision=precision)


def make_learner(policy: PolicyWithValue, config: Config, accelerator: Accelerator) -> Learner:
    """Return what `run_ppo` updates with, at the benchmark's learning rate."""
    budget, norm = budget_of(config), config.ppo.max_grad_norm
    return Learner(policy, make_optimizer(policy, LEARNING_RATE, 0.0), accelerator, budget, norm)


def budget_of(config: Config) -> int:
    """Return the padded tokens of a micro-batch."""
    return token_budget(config.compute.tokens_per_microbatch)


def _sampled(workload: Workload, prompts: list[list[int]]) -> list[Sample]:
    return sample(workload, prompts, workload.eos, turn=1, limit=workload.limit)


def _drawn(workload: Workload, prompts: list[list[int]]) -> list[Sample]:
    """Return responses of random ids whose lengths are those of programs of the data set."""
    encode, draw = workload.prompter.encode_example, random.Random(0)
    opening = len(workload.prompter.encode_prompt(workload.problems[0])) - len(
        encode(workload.problems[0])[0]
    )
    lengths = [len(encode(problem)[1]) - opening for problem in workload.problems]
    vocabulary = workload.model.get_output_embeddings().weight.shape[0]
    return [
        Sample(prompt, draw.choices(range(vocabulary), k=n), [-math.log(vocabulary)] * n, True)
        for prompt, n in zip(prompts, draw.choices(lengths, k=len(prompts)), strict=True)
    ]


def _rows_at_once(experience: Experience, config: Config) -> int:
    """Return how many rows reftune's micro-batches have on average."""
    lengths = experience.lengths
    pieces = make_microbatches(range(len(lengths)), lengths, budget_of(config), 1, experience.groups)
    return math.ceil(len(lengths) / len(pieces))


def _rollouts(experience: Experience) -> Rollouts:
    verdict = Verdict("ok", None, True, 1.0)
    graded = [
        GradedSample(experience.workload.problems[group], sample, "", verdict)
        for group, sample in zip(experience.groups, experience.samples, strict=True)
    ]
    return Rollouts(
        samples=graded, groups=torch.tensor(experience.groups), rewards=torch.ones(len(graded)),
        mask=experience.mask, sampler_logprobs=experience.logprobs, logprobs=experience.logprobs,
        ref_logprobs=experience.logprobs, values=experience.values,
    )  # fmt: skip


def _targets(experience: Experience) -> AdvantagesAndReturns:
    rewards = torch.zeros_like(experience.mask)
    return AdvantagesAndReturns(
        rewards, experience.advantages, experience.returns, experience.values, experience.returns
    )


def _padded_targets(experience: Experience, padded_mask: Tensor) -> PaddedTargets:
    """Move the response-only tensors to where the responses are in the padded rows."""
    real = experience.mask.bool()

    def move(tensor: Tensor) -> Tensor:
        moved = torch.zeros_like(padded_mask)
        moved[padded_mask.bool()] = tensor[real].to(moved.device)
        return moved

    fields = (experience.logprobs, experience.values, experience.advantages, experience.returns)
    return PaddedTargets(*map(move, fields))


if __name__ == "__main__":
    main()
