"""(c) A whole RL step: reftune, TRL's GRPOTrainer and PPOTrainer, and the official code's loop.

    python -m benchmarks.rl_step

One step is: sample 8 responses to each of the same 64 questions at temperature 1, judge them by a
trivial reward, score them with policy and frozen reference, update twice on all 512 rows. All start from
the same model with the same limits. Learning rates are so small that the lengths stay the warm-up's in
all rounds. Micro-batches are of 64 rows, reftune's by its token budget.

What differs:

- reftune: what `run_ppo` does in a step, without its files. The value head is on the policy's backbone.
- TRL GRPO: no critic. A pass for the old log-probabilities and one for the reference; logits for
  response positions only.
- TRL PPO: the critic is a second model of the same size. Generation and scoring take all 512 rows at
  once. It left TRL with version 1.13 and is skipped from there on.
- official loop: what the paper's code does, stated plainly here: padded `generate`; a forward pass of
  the policy with its value head and one of the reference over all positions of the padded batch; padded
  updates. (It takes 4 rows per GPU there; here micro-batches of 64.)
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, GenerationConfig, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks.contest import Contestant, Options, Turns, compete, parse_options, phases, table
from benchmarks.padded import PaddedBatch, PaddedPolicy, PaddedTargets, padded_update
from benchmarks.update import LEARNING_RATE, make_accelerator, make_learner
from benchmarks.workload import Workload, open_workload, repeated
from reftune.model.policy import PolicyWithValue
from reftune.problem import Problem, Verdict
from reftune.runs.setup import keep_freed_memory
from reftune.stages.ppo import compute_advantages, update
from reftune.training.advantages import whiten
from reftune.training.rollouts import collect, make_generator

MICRO_BATCH = 64
FOREVER = 10**6  # steps; the harness ends the training


def main(arguments: Sequence[str] | None = None) -> None:
    """Hold the contest; print its table and the phases of our step."""
    options = parse_options(__doc__ or "", arguments)
    contestants = [
        Contestant("reftune", reftune), Contestant("TRL GRPO", trl_grpo),
        Contestant("TRL PPO", trl_ppo), Contestant("official loop", official_loop),
    ]  # fmt: skip
    turns = compete(contestants, options)
    print(table(turns, "") + "\n")
    print(f"Of reftune's step: {phases(turns['reftune'])}.\n", flush=True)


def trivial_reward(completion: str) -> float:
    """Return 1 for a completion of an odd number of characters, else 0."""
    return float(len(completion) % 2)


def reftune(turns: Turns, options: Options) -> None:
    """Do what `run_ppo` does in one step."""
    keep_freed_memory()  # as in reftune's runs
    workload = _open(options)
    config, accelerator = workload.config, make_accelerator(options)
    reference = PolicyWithValue(copy.deepcopy(workload.model).requires_grad_(False))
    policy = PolicyWithValue(workload.model, "shared")
    learner = make_learner(policy, config, accelerator)
    generator = make_generator(
        policy, workload.prompter, _judge, accelerator, config.compute.sampler_rows
    )
    while True:
        turn, begin = turns.wait(), time.perf_counter()
        rollouts = collect(
            generator, policy, reference, workload.problems,
            samples=options.samples, temperature=config.ppo.temperature,
            token_budget=config.compute.tokens_per_microbatch, key=(config.seed, "benchmark", turn),
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
            gradient_accumulation_steps=max(1, rows // MICRO_BATCH), num_iterations=updates,
            beta=workload.config.ppo.kl_coef, max_steps=FOREVER,
            temperature=workload.config.ppo.temperature, **_trainer_settings(rows, options),
        )  # fmt: skip
        trainer = GRPOTrainer(
            _on_disk(workload, Path(folder)), _reward, settings, processing_class=_tokenizer(workload),
            train_dataset=Dataset.from_list([{"prompt": _text(workload, p)} for p in workload.problems]),
            callbacks=[_StepByStep(turns, updates)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def trl_ppo(turns: Turns, options: Options) -> None:
    """Let TRL's PPOTrainer train, one batch per turn."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    workload = _open(options)
    rows = options.questions * options.samples
    ppo = workload.config.ppo
    prompts = repeated(workload.prompts, options.samples)
    with tempfile.TemporaryDirectory() as folder:
        settings = PPOConfig(
            output_dir=folder, gradient_accumulation_steps=max(1, rows // MICRO_BATCH),
            num_ppo_epochs=ppo.ppo_epochs, num_mini_batches=1, total_episodes=FOREVER * rows,
            local_rollout_forward_batch_size=rows, response_length=workload.limit, stop_token="eos",
            temperature=ppo.temperature, num_sample_generations=0, kl_coef=ppo.kl_coef,
            **_trainer_settings(rows, options),
        )  # fmt: skip
        trainer = PPOTrainer(
            settings, _tokenizer(workload), model=workload.model,
            ref_model=copy.deepcopy(workload.model), reward_model=_TrivialRewardModel(),
            value_model=_critic(workload), callbacks=[_StepByStep(turns, 1)],
            train_dataset=Dataset.from_list([{"input_ids": prompt} for prompt in prompts]),
            eval_dataset=Dataset.from_list([{"input_ids": prompts[0]}]),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.accelerator.print = lambda *_: None
        trainer.train()


def official_loop(turns: Turns, options: Options) -> None:
    """Do what the paper's code does in one step."""
    workload = _open(options)
    reference = PaddedPolicy(copy.deepcopy(workload.model)).requires_grad_(False)
    policy = PaddedPolicy(workload.model)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    ppo, autocast = workload.config.ppo, make_accelerator(options).autocast
    prompts = repeated(workload.prompts, options.samples)

    def act(_: int) -> float:
        batch, scores = _generate(workload, prompts)
        with autocast():
            logprobs, values = _read(policy, batch, ppo.temperature)
            ref_logprobs, _values = _read(reference, batch, ppo.temperature)
        rewards = -ppo.kl_coef * (logprobs - ref_logprobs) * batch.mask
        last = (batch.mask * torch.arange(batch.mask.shape[1], device=batch.mask.device)).argmax(dim=1)
        rewards[torch.arange(len(rewards)), last] += scores.to(rewards.device)
        advantages = _gae(rewards, values * batch.mask, ppo.gamma, ppo.gae_lambda) * batch.mask
        returns = advantages + values
        targets = PaddedTargets(logprobs, values, whiten(advantages, batch.mask), returns)
        padded_update(policy, optimizer, batch, targets, ppo, MICRO_BATCH, autocast)
        return 1

    turns.serve(act)


def _open(options: Options) -> Workload:
    workload = open_workload(options, options.questions)
    workload.model.float()  # bfloat16 is for autocast here, as in reftune's own runs
    return workload


def _judge(problems: Sequence[Problem], texts: Sequence[str], _: Sequence[bool]) -> list[Verdict]:
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


class _TrivialRewardModel(nn.Module):
    """What PPOTrainer asks for the reward: 1 where the last id of the response is odd, else 0."""

    base_model_prefix = "backbone"

    def backbone(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[input_ids.unsqueeze(-1)])

    def score(self, states: Tensor) -> Tensor:
        return (states % 2).float()


def _trainer_settings(rows: int, options: Options) -> dict[str, Any]:
    """Return what both trainers are told: the batch, and to write nothing."""
    return {
        "per_device_train_batch_size": min(MICRO_BATCH, rows), "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant", "gradient_checkpointing": False,
        "bf16": options.dtype == "bfloat16", "use_cpu": options.device == "cpu",
        "logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


def _reward(completions: list[str], **_: Any) -> list[float]:
    return [trivial_reward(text) for text in completions]


def _text(workload: Workload, problem: Problem) -> str:
    wording = workload.prompter.wording
    return wording.question(problem) + wording.opening(problem)


def _tokenizer(workload: Workload) -> Any:
    tokenizer = workload.prompter.tokenizer
    tokenizer.padding_side = "left"
    return tokenizer


def _on_disk(workload: Workload, folder: Path) -> str:
    """Save the model, so that GRPOTrainer can load it twice, once as the reference."""
    workload.model.save_pretrained(folder / "model")
    return str(folder / "model")


def _critic(workload: Workload) -> nn.Module:
    """Return a value model whose backbone is a copy of the policy's."""
    config = copy.deepcopy(workload.model.config)
    config.num_labels = 1
    critic = AutoModelForSequenceClassification.from_config(config).to(workload.model.device)
    critic.base_model.load_state_dict(workload.model.base_model.state_dict())
    return critic


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
def _read(policy: PaddedPolicy, batch: PaddedBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and values of the whole batch."""
    pieces = [
        policy(ids, attention, temperature)
        for ids, attention in zip(
            batch.ids.split(MICRO_BATCH), batch.attention.split(MICRO_BATCH), strict=True
        )
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
