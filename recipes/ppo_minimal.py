"""ReFT's PPO (Luong et al. 2024) in one file: sample, judge, KL penalty, GAE, clipped losses, AdamW.

    reftune sft configs/demo.toml                          # makes the warm-up model
    python recipes/ppo_minimal.py runs/demo/warmup/model   # or --help

All of the algorithm is here, in plain torch and transformers; reftune is imported for its grader alone,
which runs model-written programs in a sandbox. On the same samples the loss, the gradient and the new
weights are those of `reftune run` (tests/test_recipes.py), which is faster, can be interrupted,
and keeps the model of its best step. docs/algorithm.md has the equations.

Shapes: B samples of P prompt tokens, padded on the left, and T response tokens, padded on the right.
What is said per token is (B, T): column t speaks of response token t; mask is 1 on real ones, else 0.
"""

import argparse
import copy
import json
import random
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from reftune import grade

PROMPT = "Question:\n{question}\nAnswer reasoning:\n"
OPENING = {"program": "def solution():\n", "natural": ""}  # of the response, given away with the prompt


@dataclass
class Args:
    """The demo's settings, for a tiny model made from scratch; a pretrained one wants lower rates."""

    model: str  # directory of the warm-up model
    questions: str = ""  # JSONL of "question", "answer"; default: data/train.jsonl of the model's run
    cot: str = "program"  # kind of chain that the model writes; or "natural": text
    seed: int = 1
    steps: int = 20
    questions_per_step: int = 32
    samples_per_question: int = 8
    max_new_tokens: int = 80
    temperature: float = 1.0
    ppo_epochs: int = 2  # optimizer steps per batch, each on all of it
    learning_rate: float = 2e-4
    value_head_learning_rate: float = 1e-2
    max_grad_norm: float = 1.0
    kl_coef: float = 0.01
    gamma: float = 1.0
    gae_lambda: float = 1.0
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coef: float = 0.1


class Batch(NamedTuple):
    input_ids: Tensor  # (B, P + T)
    attention_mask: Tensor  # (B, P + T)
    mask: Tensor
    logprobs: Tensor  # of the policy that sampled
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def pad(prompts: list[list[int]], responses: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return input_ids, attention_mask and mask."""
    P, T = max(map(len, prompts)), max(map(len, responses))
    input_ids, attention_mask = torch.zeros(2, len(prompts), P + T, dtype=torch.long)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        real = slice(P - len(prompt), P + len(response))
        input_ids[i, real] = torch.tensor(prompt + response)
        attention_mask[i, real] = 1
    return input_ids, attention_mask, attention_mask[:, P:].float()


@torch.no_grad()
def sample(policy, prompts: list[list[int]], eos: int, args: Args) -> list[list[int]]:
    """Return a response per prompt: up to its EOS, which is an action like any other, or cut off."""
    input_ids, attention_mask, _ = pad(prompts, [[]] * len(prompts))
    policy.generation_config = GenerationConfig(  # in place of the model's own, which may have a top_k
        do_sample=True, temperature=args.temperature, top_k=0, max_new_tokens=args.max_new_tokens,
        eos_token_id=eos, pad_token_id=eos,
    )  # fmt: skip
    sampled = policy.generate(input_ids=input_ids, attention_mask=attention_mask)
    rows = sampled[:, input_ids.shape[1] :].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def forward(policy, value_head, input_ids, attention_mask, mask, args: Args) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each response token, and the value of the state before it."""
    T = mask.shape[1]
    output = policy(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, output_hidden_states=True,
        position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0), logits_to_keep=T + 1,
    )  # fmt: skip
    before = slice(-T - 1, -1)  # position i predicts token i + 1
    logprobs = (output.logits[:, before] / args.temperature).log_softmax(-1)
    logprobs = logprobs.gather(-1, input_ids[:, -T:, None]).squeeze(-1)
    values = value_head(output.hidden_states[-1][:, before]).squeeze(-1)
    return logprobs * mask, values * mask


@torch.no_grad()
def make_batch(policy, reference, value_head, prompts, responses, rewards: Tensor, args: Args) -> Batch:
    """Return the samples with advantages and returns; `rewards` are the verdicts, (B,)."""
    *_, mask = padded = pad(prompts, responses)
    logprobs, values = forward(policy, value_head, *padded, args)
    ref_logprobs, _ = forward(reference, value_head, *padded, args)

    token_rewards = -args.kl_coef * (logprobs - ref_logprobs)
    token_rewards[range(len(rewards)), mask.sum(1).long() - 1] += rewards  # at the last real token

    advantages = torch.zeros_like(values)
    next_value = next_advantage = 0.0  # nothing follows the last token, even where it was cut off
    for t in reversed(range(mask.shape[1])):
        delta = token_rewards[:, t] + args.gamma * next_value - values[:, t]
        next_advantage = delta + args.gamma * args.gae_lambda * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    returns = advantages + values  # of the advantages as they are, before whitening

    mean = (advantages * mask).sum() / mask.sum()  # whitening, over all tokens of the batch
    variance = ((advantages - mean) ** 2 * mask).sum() / mask.sum()
    advantages = (advantages - mean) / torch.sqrt(variance + 1e-8)
    return Batch(*padded, logprobs, ref_logprobs, values, advantages, returns)


def compute_loss(logprobs: Tensor, values: Tensor, batch: Batch, args: Args) -> Tensor:
    ratio = (logprobs - batch.logprobs).exp()
    clipped_ratio = ratio.clamp(1 - args.clip_range, 1 + args.clip_range)
    policy_loss = torch.maximum(-batch.advantages * ratio, -batch.advantages * clipped_ratio)

    changes = (values - batch.values).clamp(-args.value_clip_range, args.value_clip_range)
    clipped_values = batch.values + changes
    value_loss = torch.maximum((values - batch.returns) ** 2, (clipped_values - batch.returns) ** 2) / 2

    loss = (policy_loss + args.value_coef * value_loss) * batch.mask
    return (loss.sum(1) / batch.mask.sum(1)).mean()  # over the tokens of a sequence, then over sequences


def make_optimizer(policy, value_head, args: Args) -> torch.optim.Optimizer:
    head = {"params": value_head.parameters(), "lr": args.value_head_learning_rate}
    return torch.optim.AdamW([{"params": policy.parameters()}, head], args.learning_rate, weight_decay=0)


def update(policy, value_head, optimizer, batch: Batch, args: Args) -> list[float]:
    """Take the optimizer steps of one batch; return the loss before each."""
    losses = []
    for _ in range(args.ppo_epochs):
        loss = compute_loss(*forward(policy, value_head, *batch[:3], args), batch, args)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*policy.parameters(), *value_head.parameters()], args.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(args: Args) -> None:
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    eos, opening = tokenizer.eos_token_id, OPENING[args.cot]
    policy = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()  # no dropout
    reference = copy.deepcopy(policy).requires_grad_(False)
    value_head = nn.Linear(policy.get_output_embeddings().in_features, 1)
    nn.init.zeros_(value_head.weight)  # an untrained critic says 0, not noise
    nn.init.zeros_(value_head.bias)
    optimizer = make_optimizer(policy, value_head, args)
    path = Path(args.questions or Path(args.model).parents[1] / "data/train.jsonl")
    problems = [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")]

    for step in range(1, args.steps + 1):
        started = time.perf_counter()
        drawn = random.sample(problems, args.questions_per_step)
        asked = [problem for problem in drawn for _ in range(args.samples_per_question)]
        prompts = [
            tokenizer(PROMPT.format(question=problem["question"])).input_ids
            + tokenizer(opening, add_special_tokens=False).input_ids
            for problem in asked
        ]
        responses = sample(policy, prompts, eos, args)
        texts = [opening + text for text in tokenizer.batch_decode(responses, skip_special_tokens=True)]
        # 1 for the right answer, 0.1 for another number, 0 for anything else and for what was cut off
        verdicts = grade(texts, [problem["answer"] for problem in asked], cot=args.cot)
        whole = [response[-1] == eos for response in responses]
        rewards = torch.tensor([v.reward * w for v, w in zip(verdicts, whole, strict=True)])
        batch = make_batch(policy, reference, value_head, prompts, responses, rewards, args)
        losses = update(policy, value_head, optimizer, batch, args)
        kl = (batch.logprobs - batch.ref_logprobs).sum(1).mean()
        right, seconds = (rewards == 1).float().mean(), time.perf_counter() - started
        print(
            f"step {step}  reward {rewards.mean():.3f}  right {right:.1%}  KL {kl:.3f}"
            f"  loss {losses[0]:.3f}  {seconds:.1f} s", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="directory of the warm-up model")
    for field in fields(Args)[1:]:
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    main(Args(**vars(parser.parse_args())))
