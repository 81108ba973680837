"""ReFT's stage: online PPO whose reward is the checked answer.

Read `run_ppo` from top to bottom: problems -> samples -> verdicts -> rewards -> advantages -> loss ->
update -> evaluation. What problems are made of, and how answers are checked, this module does not know.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reftune.config import Config, Ppo
from reftune.files import write_json
from reftune.model.batch import collate
from reftune.model.loading import reference_of
from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.progress import counting, seconds_spent
from reftune.runs.run_dir import complete_checkpoints
from reftune.stages.run import Run
from reftune.stages.stage import Stage
from reftune.stages.traces import traced
from reftune.training.advantages import (
    ADVANTAGES,
    explained_variance,
    importance_weights,
    token_rewards,
    whiten,
)
from reftune.training.learner import Learner, LossFn, non_finite
from reftune.training.losses import policy_loss, ratio_statistics, value_loss
from reftune.training.microbatches import minibatches, shuffled
from reftune.training.rollouts import accuracies, collect, graded_rows, group_shares, mean_parts
from reftune.training.types import AdvantagesAndReturns, GradedSample, Rollouts

# Rounding in float32 makes a thousandth of it; beyond, the sampler speaks of another policy.
MAX_LOGPROB_GAP = 0.02
ROUNDING = 1e-3  # of a mean over a question's samples; what tells them apart is larger


def start(run: Run) -> None:
    """Run the stage from the warm-up or the given model, which is the frozen reference, too."""
    critic = ADVANTAGES[run.config.ppo.advantage].critic
    policy, prompter = run.first_policy(critic=critic, trainable=True)
    run_ppo(run.stage("ppo", prompter), policy, _reference(run, policy))


def _reference(run: Run, policy: PolicyWithValue) -> PolicyWithValue | None:
    """Return the reference; without a KL penalty its memory and its pass over all samples are saved."""
    if not run.config.ppo.kl_coef:
        return None
    if run.config.lora.rank:  # both are the same weights: one with the adapter, one without
        return reference_of(policy).to(run.accelerator.device)
    reference = run.load_policy(run.config.lineup.start)
    return reference.to("cpu") if run.config.compute.offload_reference else reference


def run_ppo(stage: Stage, policy: PolicyWithValue, reference: PolicyWithValue | None) -> dict[str, Any]:
    """Improve `policy` with PPO; write the model of its best step.

    Goes on from the newest checkpoint if there is one. `reference` is a frozen copy of the policy as it
    starts, for the KL penalty. Returns what it also writes to `ppo/result.json`. Raises UserError on a
    non-finite loss, with the step's samples saved.
    """
    config, ppo = stage.config, stage.config.ppo
    learner = stage.learner(policy, ppo, ppo.value_head_learning_rate)
    learner.model.eval()  # no dropout: the ratio compares the same network at two times
    generator = stage.generator(policy)

    def take_step(step: int) -> tuple[dict[str, Any], Sequence[GradedSample]]:
        seconds_spent()  # on what was before
        started = time.perf_counter()
        questions = stage.questions(step, ppo.questions_per_step)
        rollouts = collect(
            generator, policy, reference, questions,
            samples=ppo.samples_per_question, temperature=ppo.temperature,
            token_budget=stage.token_budget, key=(config.seed, stage.name, step),
        )  # fmt: skip
        sampled = time.perf_counter()
        estimates = compute_advantages(rollouts, ppo)
        factor = stage.rate_factor(ppo, step, ppo.critic_warmup_steps)
        learner.set_learning_rates(factor, 1.0)
        losses = update(learner, rollouts, estimates, config, step)
        if generator.sampler.exact and losses.get("logprob_gap", 0.0) > MAX_LOGPROB_GAP:
            _stop_on_gap(losses["logprob_gap"], step)
        metrics = describe(rollouts, estimates, ppo) | losses | _timings(rollouts, started, sampled)
        logged = traced(stage.prompter, rollouts, estimates, ppo.samples_logged_per_step)
        return metrics | {"learning_rate": ppo.learning_rate * factor}, logged

    return stage.run_online(ppo, policy, generator, take_step)


def compute_advantages(rollouts: Rollouts, ppo: Ppo) -> AdvantagesAndReturns:
    """Turn rewards into token rewards, advantages and returns (Luong et al. 2024, section 3.2).

    Returns are raw advantage + value; only the policy's advantages are whitened, and weighed where the
    sampler's probabilities are not the trainer's.
    """
    reference = rollouts.logprobs if rollouts.ref_logprobs is None else rollouts.ref_logprobs
    per_token = token_rewards(rollouts.rewards, rollouts.logprobs, reference, rollouts.mask, ppo.kl_coef)
    estimator = ADVANTAGES[ppo.advantage]
    advantages = estimator.estimate(per_token, rollouts, ppo)
    returns = (advantages + rollouts.values) * rollouts.mask
    if ppo.whiten and estimator.critic:  # a group baseline has centred them already, per question
        advantages = whiten(advantages, rollouts.mask)
    if ppo.importance_sampling_cap:
        advantages = advantages * importance_weights(
            rollouts.logprobs, rollouts.sampler_logprobs, rollouts.mask, ppo.importance_sampling_cap
        )
    return AdvantagesAndReturns(per_token, advantages, returns)


def update(
    learner: Learner, rollouts: Rollouts, estimates: AdvantagesAndReturns, config: Config, step: int
) -> dict[str, float]:
    """Pass over the batch `ppo_epochs` times in minibatches; return the mean statistics.

    But `logprob_gap`, the mean difference between the sampler's and the trainer's log-probabilities, is
    that of the first minibatch: its weights are those that sampled.
    """
    ppo = config.ppo
    lengths = [len(a.sample.prompt) + len(a.sample.tokens) for a in rollouts.samples]
    groups, judged = rollouts.groups.tolist(), rollouts.mask.any(dim=1).tolist()
    history, batches = [], []
    for epoch in range(ppo.ppo_epochs):
        # Questions are shuffled, not samples: those of one question share their prompt in a minibatch.
        place = shuffled(max(groups) + 1, config.seed, "update", step, epoch)
        order = sorted((i for i in range(len(groups)) if judged[i]), key=lambda i: place[groups[i]])
        batches += list(minibatches(order, ppo.minibatch_size or max(1, len(order))))
    taught, device = _taught(estimates, ppo), learner.accelerator.device
    with counting("update", len(batches)) as count:
        for rows in batches:
            teaching = [i for i in rows if taught[i]]
            if not teaching:
                continue
            loss_fn = _make_loss(rollouts, estimates, teaching, len(rows), ppo, device)
            sums = learner.step(teaching, lengths, loss_fn, groups)
            if what := non_finite(sums):
                _stop_on_non_finite(config, rollouts, rows, step, what, learner.accelerator)
            history.append(sums)
            count.advance()
    if not history:
        return {}
    means = {key: sum(h[key] for h in history) / len(history) for key in history[0]}
    return means | {"logprob_gap": history[0]["logprob_gap"]}


def _taught(estimates: AdvantagesAndReturns, ppo: Ppo) -> list[bool]:
    """Tell which samples have a gradient: without a critic those have none whose advantages are all 0.

    Such are the samples of a question that were all right, or all wrong, unless a KL penalty tells them
    apart. They count in what the loss is divided by.
    """
    if ADVANTAGES[ppo.advantage].critic:
        return [True] * len(estimates.advantages)
    return (estimates.advantages.abs() > ROUNDING).any(dim=1).tolist()


def _make_loss(
    rollouts: Rollouts,
    estimates: AdvantagesAndReturns,
    rows: Sequence[int],
    divisor: int,
    ppo: Ppo,
    device: torch.device,
) -> LossFn:
    """Return the loss of some of `rows`, out of a minibatch of `divisor`, for `Learner.step`."""
    tokens = float(rollouts.mask[list(rows)].sum())
    value_coef = ppo.value_coef if ADVANTAGES[ppo.advantage].critic else 0.0

    def loss_fn(model: nn.Module, mine: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        samples = [rollouts.samples[i].sample for i in mine]
        batch = collate([s.prompt for s in samples], [s.tokens for s in samples])
        stats = model(batch.to(device), ppo.temperature)
        time = stats.logprobs.shape[1]

        def pick(tensor: Tensor) -> Tensor:
            return tensor[mine, :time].to(device)

        mask, old_logprobs = pick(rollouts.mask) * weights.unsqueeze(1), pick(rollouts.logprobs)
        policy = (
            policy_loss(
                stats.logprobs, old_logprobs, pick(estimates.advantages), mask, ppo.clip_range
            ).sum()
            / divisor
        )
        value = (
            value_loss(
                stats.values, pick(rollouts.values), pick(estimates.returns), mask, ppo.value_clip_range
            ).sum()
            / divisor
        )
        statistics = ratio_statistics(stats.logprobs, old_logprobs, mask, ppo.clip_range)
        statistics["entropy"] = (stats.entropies * mask).sum()
        gap = stats.logprobs.detach() - pick(rollouts.sampler_logprobs)
        statistics["logprob_gap"] = (gap.abs() * mask).sum()
        statistics = {name: total / tokens for name, total in statistics.items()}
        return policy + value_coef * value, {"policy_loss": policy, "value_loss": value, **statistics}

    return loss_fn


def describe(rollouts: Rollouts, estimates: AdvantagesAndReturns, ppo: Ppo) -> dict[str, Any]:
    """Return the metrics of one batch under the field's names, before the update.

    `kl`, where there is a reference, is the mean over samples of the summed log-ratio to it;
    `sampler_weight` the mean of the weights that correct for the sampler, `sampler_truncated` the share
    of tokens at their cap. What the sandbox failed on counts in `statuses`, `response_length` and
    `truncated` alone.
    """
    mask, graded = rollouts.mask, rollouts.samples
    judged = mask.any(dim=1)
    cap = ppo.importance_sampling_cap or math.inf
    weights = importance_weights(rollouts.logprobs, rollouts.sampler_logprobs, mask, cap)[mask.bool()]
    kl = {}
    if rollouts.ref_logprobs is not None:
        log_ratios = ((rollouts.logprobs - rollouts.ref_logprobs) * mask).sum(1)
        kl["kl"] = float(log_ratios[judged].mean().nan_to_num(0.0))
    return {
        "reward": float(rollouts.rewards[judged].mean().nan_to_num(0.0)),
        **mean_parts(graded),
        **accuracies(graded),
        **group_shares(graded),
        **kl,
        "response_length": sum(len(a.sample.tokens) for a in graded) / len(graded),
        "truncated": sum(not a.sample.finished for a in graded) / len(graded),
        "explained_variance": explained_variance(rollouts.values, estimates.returns, mask),
        "sampler_weight": float(weights.mean().nan_to_num(1.0)),
        "sampler_truncated": float((weights == cap).float().mean().nan_to_num(0.0)),
        "statuses": dict(Counter(a.verdict.status for a in graded)),
    }


def _timings(rollouts: Rollouts, started: float, sampled: float) -> dict[str, float]:
    tokens = sum(len(a.sample.prompt) + len(a.sample.tokens) for a in rollouts.samples)
    now, spent = time.perf_counter(), seconds_spent()
    parts = {f"seconds_{name}": spent.get(name, 0.0) for name in ("sampling", "judging", "reading")}
    return {
        "seconds_rollouts": sampled - started,
        **parts,
        "seconds_update": now - sampled,
        "tokens_per_second": tokens / (now - started),
    }


def _stop_on_gap(gap: float, step: int) -> None:
    raise UserError(
        f"ppo: at step {step} sampler and trainer differ by {gap:.3g} in the log-probability of a token,"
        " which is no rounding; report this model, whose samples cannot be trusted"
    )


def _stop_on_non_finite(
    config: Config,
    rollouts: Rollouts,
    rows: Sequence[int],
    step: int,
    what: str,
    accelerator: Accelerator,
) -> None:
    path = config.run_dir / "ppo" / f"non_finite_step_{step}.json"
    if accelerator.is_main_process:
        write_json(path, graded_rows([rollouts.samples[i] for i in rows]))
    before = complete_checkpoints(config.run_dir / "ppo")
    kept = f" (the weights of the last checkpoint are in {before[-1]})" if before else ""
    raise UserError(
        f"ppo: {what} at step {step}; its samples are in {path}. Lower ppo.learning_rate or raise"
        f" ppo.kl_coef under a new --name{kept}"
    )
