"""(c) A whole RL step: reftune, TRL's GRPOTrainer (its PPO is gone), and the official code's loop.

    python -m benchmarks.rl_step [--model-size 135m]

One step is: sample 8 responses to each of the same 64 questions (one with the real model) at temperature
1, judge them by a trivial reward, score them with policy and frozen reference, update twice on all rows.
All start from the same model with the same limits. Learning rates are so small that the lengths stay the
warm-up's in all rounds. Micro-batches are of 64 rows, with the real model of 4 as in the official code,
reftune's by its token budget.

What differs:

- reftune: what `run_ppo` does in a step, without its files. The value head is on the policy's backbone.
- TRL GRPO: no critic. A pass for the old log-probabilities and one for the reference; logits for
  response positions only.
- official loop: what the paper's code does, stated plainly here: padded `generate`; a forward pass of
  the policy with its value head and one of the reference over all positions of the padded batch; padded
  updates.

With bfloat16 reftune trains weights in bfloat16 with float32 masters, as in its runs, and the others
float32 weights under autocast.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks.contest import (
    REAL,
    Contestant,
    Options,
    Turns,
    compete,
    parse_options,
    phases,
    table,
)
from benchmarks.padded import PaddedBatch, PaddedPolicy, PaddedTargets, padded_update
from benchmarks.update import LEARNING_RATE, budget_of, make_accelerator, make_learner
from benchmarks.workload import Workload, described, open_workload, repeated
from reftune.heap import keep_freed_memory
from reftune.model.policy import PolicyWithValue
from reftune.problem import Problem, Verdict
from reftune.stages.ppo.targets import compute_advantages
from reftune.stages.ppo.update import update
from reftune.training.advantages import whiten
from reftune.training.rollouts import make_generator, read_batch

MICRO_BATCH, REAL_MICRO_BATCH = 64, 4  # rows
FOREVER = 10**6  # steps; the harness ends the training


def main(arguments: Sequence[str] | None = None) -> None:
    """Hold the contest; print its table and the phases of our step."""
    options = parse_options(__doc__ or "", arguments, real_questions=1)
    contestants = [
        Contestant("reftune", reftune), Contestant("TRL GRPO", trl_grpo),
        Contestant("official loop", official_loop),
    ]  # fmt: skip
    print(f"{described(options)}\n", flush=True)
    turns = compete(contestants, options)
    print(table(turns, "") + "\n")
    print(f"Of reftune's step: {phases(turns['reftune'])}.\n", flush=True)


def trivial_reward(completion: str) -> float:
    """Return 1 for a completion of an odd number of characters, else 0."""
    return float(len(completion) % 2)


def reftune(turns: Turns, options: Options) -> None:
    """Do what `run_ppo` does in one step."""
    keep_freed_memory()  # as in reftune's runs
    workload = open_workload(options, options.questions)
    config, accelerator = workload.config, make_accelerator(options)
    reference = PolicyWithValue(copy.deepcopy(workload.model).requires_grad_(False))
    policy = PolicyWithValue(workload.model, "shared")
    learner = make_learner(policy, config, accelerator)
    generator = make_generator(policy, workload.prompter, _judge, accelerator, config.compute)
    while True:
        turn, begin = turns.wait(), time.perf_counter()
        temperature, key = config.ppo.temperature, (config.seed, "benchmark", turn)
        graded = generator.generate(workload.problems, options.samples, temperature, key=key)
        rollouts = read_batch(
            generator, policy, reference, graded,
            temperature=temperature, token_budget=budget_of(config),
        )  # fmt: skip
        middle = time.perf_counter()
        estimates = compute_advantages(rollouts, config.ppo)
        update(learner, rollouts, estimates, config, turn)
        turns.done(1, sampling_and_scoring=middle - begin, updates=time.perf_counter() - middle)


def trl_grpo(turns: Turns, options: Options) -> None:
    """Let TRL's GRPOTrainer train, one generation batch per turn."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    workload = _open(options)
    rows = options.questions * options.samples
    updates = workload.config.ppo.ppo_epochs
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder, num_generations=options.samples, max_completion_length=workload.limit,
            gradient_accumulation_steps=max(1, rows // _micro_batch(options)), num_iterations=updates,
            beta=workload.config.ppo.kl_coef, max_steps=FOREVER,
            temperature=workload.config.ppo.temperature, **_trainer_settings(rows, options),
        )  # fmt: skip
        trainer = GRPOTrainer(
            _on_disk(workload, Path(folder)), _reward, settings, processing_class=_tokenizer(workload),
            train_dataset=Dataset.from_list([{"prompt": text} for text in _texts(workload)]),
            callbacks=[_StepByStep(turns, updates)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def official_loop(turns: Turns, options: Options) -> None:
    """Do what the paper's code does in one step."""
    workload = _open(options)
    reference = PaddedPolicy(copy.deepcopy(workload.model)).requires_grad_(False)
    policy = PaddedPolicy(workload.model)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    ppo, autocast = workload.config.ppo, make_accelerator(options, mixed=True).autocast
    rows_at_once = _micro_batch(options)
    prompts = repeated(workload.prompts, options.samples)

    def act(_: int) -> float:
        batch, scores = _generate(workload, prompts)
        with autocast():
            logprobs, values = _read(policy, batch, ppo.temperature, rows_at_once)
            ref_logprobs, _values = _read(reference, batch, ppo.temperature, rows_at_once)
        rewards = -ppo.kl_coef * (logprobs - ref_logprobs) * batch.mask
        last = (batch.mask * torch.arange(batch.mask.shape[1], device=batch.mask.device)).argmax(dim=1)
        rewards[torch.arange(len(rewards)), last] += scores.to(rewards.device)
        advantages = _gae(rewards, values * batch.mask, ppo.gamma, ppo.gae_lambda) * batch.mask
        returns = advantages + values
        targets = PaddedTargets(logprobs, values, whiten(advantages, batch.mask), returns)
        padded_update(policy, optimizer, batch, targets, ppo, rows_at_once, autocast)
        return 1

    turns.serve(act)


def _open(options: Options) -> Workload:
    workload = open_workload(options, options.questions)
    workload.model.float()  # bfloat16 is for autocast here
    return workload


def _micro_batch(options: Options) -> int:
    return REAL_MICRO_BATCH if options.model_size == REAL else MICRO_BATCH


def _judge(problems: Sequence[Problem], texts: Sequence[str], *_: object) -> list[Verdict]:
    return [Verdict("ok", None, True, trivial_reward(text)) for text in texts]


class _StepByStep(TrainerCallback):  # type: ignore[misc]
    """Hold a trainer until its turn, and report after `updates` optimizer steps."""

    def __init__(self, turns: Turns, updates: int) -> None:
        self._turns, self._updates = turns, updates

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._turns.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._updates == 0:
            self._turns.done(1)
            self._turns.wait()


def _trainer_settings(rows: int, options: Options) -> dict[str, Any]:
    """Return what the trainer is told: the batch, and to write nothing."""
    return {
        "per_device_train_batch_size": min(_micro_batch(options), rows), "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant", "gradient_checkpointing": False,
        "bf16": options.dtype == "bfloat16", "use_cpu": options.device == "cpu",
        "logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


def _reward(completions: list[str], **_: Any) -> list[float]:
    return [trivial_reward(text) for text in completions]


def _texts(workload: Workload) -> list[str]:
    """Return the prompts as text, which the tokenizer turns into the same ids again."""
    return [workload.prompter.tokenizer.decode(prompt) for prompt in workload.prompts]


def _tokenizer(workload: Workload) -> Any:
    tokenizer = workload.prompter.tokenizer
    tokenizer.padding_side = "left"
    return tokenizer


def _on_disk(workload: Workload, folder: Path) -> str:
    """Save the model, so that GRPOTrainer can load it twice, once as the reference."""
    workload.model.save_pretrained(folder / "model")
    return str(folder / "model")


def _generate(workload: Workload, prompts: list[list[int]]) -> tuple[PaddedBatch, Tensor]:
    """Sample with `generate`; return the batch as it comes out, and the scores."""
    device, end = workload.model.device, workload.prompter.eos
    width = max(map(len, prompts))
    ids = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    settings = GenerationConfig(
        do_sample=True, temperature=workload.config.ppo.temperature, top_k=0, top_p=1.0,
        eos_token_id=end, pad_token_id=end, max_new_tokens=workload.limit,
    )  # fmt: skip
    call: Any = workload.model.generate
    whole = call(ids, attention_mask=attention, generation_config=settings)
    responses = whole[:, width:]
    ended_before = (responses == end).cumsum(dim=1) - (responses == end).long() > 0
    inside = (~ended_before).long()
    attention = torch.cat((attention, inside), dim=1)
    before = torch.zeros(len(prompts), width - 1, device=device)
    texts = workload.prompter.tokenizer.batch_decode(responses, skip_special_tokens=True)
    scores = torch.tensor([trivial_reward(text) for text in texts])
    return PaddedBatch(whole, attention, torch.cat((before, inside.float()), dim=1)), scores


@torch.no_grad()
def _read(
    policy: PaddedPolicy, batch: PaddedBatch, temperature: float, rows: int
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and values of the whole batch."""
    pieces = [
        policy(ids, attention, temperature)
        for ids, attention in zip(batch.ids.split(rows), batch.attention.split(rows), strict=True)
    ]
    logprobs, values = zip(*pieces, strict=True)
    return torch.cat(logprobs) * batch.mask, torch.cat(values) * batch.mask


def _gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Return generalised advantages; values are 0 behind the responses."""
    ahead = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
    deltas = rewards + gamma * ahead - values
    advantages, carried = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        carried = advantages[:, t] = deltas[:, t] + gamma * lam * carried
    return advantages


if __name__ == "__main__":
    main()
