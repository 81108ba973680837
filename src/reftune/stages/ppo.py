"""ReFT's stage: online PPO whose reward is the checked answer.

Read `run_ppo` from top to bottom: problems -> samples -> verdicts -> rewards -> advantages -> loss ->
update -> evaluation. What problems are made of, and how answers are checked, this module does not know.
"""

import time
from collections.abc import Sequence
from typing import Any

from reftune.model.loading import reference_of
from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.progress import seconds_spent
from reftune.stages.ppo_metrics import describe, timings
from reftune.stages.ppo_targets import compute_advantages
from reftune.stages.ppo_update import update
from reftune.stages.run import Run
from reftune.stages.stage import Stage
from reftune.stages.traces import traced
from reftune.training.advantages import ADVANTAGES
from reftune.training.rollouts import collect
from reftune.training.types import GradedSample

# Rounding in float32 makes a thousandth of it; beyond, the sampler speaks of another policy.
MAX_LOGPROB_GAP = 0.02


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

    def take_step(step: int, memory: dict[str, Any]) -> tuple[dict[str, Any], Sequence[GradedSample]]:
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
        metrics = (
            describe(rollouts, estimates, ppo)
            | losses
            | timings(rollouts, started, sampled, time.perf_counter())
        )
        logged = traced(stage.prompter, rollouts, estimates, ppo.samples_logged_per_step)
        return metrics | {"learning_rate": ppo.learning_rate * factor}, logged

    return stage.run_online(ppo, policy, generator, take_step)


def _stop_on_gap(gap: float, step: int) -> None:
    raise UserError(
        f"ppo: at step {step} sampler and trainer differ by {gap:.3g} in the log-probability of a token,"
        " which is no rounding; report this model, whose samples cannot be trusted"
    )
