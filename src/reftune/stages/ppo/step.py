"""ReFT's stage: online PPO whose reward is the checked answer.

Read `PpoStep` from top to bottom: problems -> samples -> verdicts -> rewards -> advantages -> loss ->
update. What problems are made of, and how answers are checked, this module does not know.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.progress import seconds_spent
from reftune.stages.ppo.ahead import Ahead
from reftune.stages.ppo.batch import Agenda, draw_batch, shape
from reftune.stages.ppo.critic import Beside, Memory, learns_alone, note_pretraining, set_units
from reftune.stages.ppo.metrics import describe, explained, timings
from reftune.stages.ppo.reference import ReferenceReset, make_reference
from reftune.stages.ppo.targets import compute_advantages
from reftune.stages.ppo.update import update, value_passes
from reftune.stages.run import Run
from reftune.stages.stage import Stage
from reftune.stages.traces import traced
from reftune.training.advantages import ADVANTAGES
from reftune.training.learner import Learner
from reftune.training.rollouts import Generator, read_batch
from reftune.training.types import AdvantagesAndReturns, GradedSample, Rollouts

# Rounding in float32 makes a thousandth of it; beyond, the sampler speaks of another policy.
MAX_LOGPROB_GAP = 0.02


def start(run: Run) -> None:
    """Run the stage from the warm-up or the given model, which is the frozen reference, too."""
    critic = ADVANTAGES[run.config.ppo.advantage].critic
    policy, prompter = run.first_policy(critic=critic, trainable=True)
    run_ppo(run.stage("ppo", prompter), policy, make_reference(run, policy))


def run_ppo(stage: Stage, policy: PolicyWithValue, reference: PolicyWithValue | None) -> dict[str, Any]:
    """Improve `policy` with PPO; write the model of its best step.

    Goes on from the newest checkpoint if there is one. `reference` is a frozen copy of the policy as it
    starts, for the KL penalty. Returns what it also writes to `ppo/result.json`. Raises UserError on a
    non-finite loss, with the step's samples saved.
    """
    ppo = stage.config.ppo
    learner = stage.learner(policy, ppo, ppo.value_head_learning_rate)
    learner.model.eval()  # no dropout: the ratio compares the same network at two times
    generator = stage.generator(policy)
    reset = ReferenceReset(ppo.reference_reset_steps, reference, policy, learner)
    ahead = Ahead(stage, policy, generator) if ppo.async_rollouts else None
    one = PpoStep(stage, policy, reference, learner, generator, reset, ahead)
    with reset.kept(stage.accelerator):
        return stage.run_online(ppo, policy, generator, one.take)


@dataclass(frozen=True)
class PpoStep:
    """One step of PPO, and what it works with; what it remembers from step to step is handed to it."""

    stage: Stage
    policy: PolicyWithValue
    reference: PolicyWithValue | None
    learner: Learner
    generator: Generator
    reset: ReferenceReset
    ahead: Ahead | None  # draws the next step's samples while this one's are learnt from

    def take(self, step: int, memory: Memory) -> tuple[dict[str, Any], Sequence[GradedSample]]:
        """Take a step; return its metrics, and the samples that are logged with them."""
        ppo = self.stage.config.ppo
        seconds_spent()  # on what was before
        started = time.perf_counter()
        agenda = Agenda.of(self.stage, memory, step)
        rollouts, told = self.sample(agenda, step, memory)
        sampled = time.perf_counter()
        with self.ahead.meanwhile(step, memory) if self.ahead else nullcontext():
            estimates, losses = self.learn(rollouts, step, memory)
        spent = timings(rollouts, started, sampled, time.perf_counter())
        agenda.keep(memory)
        logged = traced(self.stage.prompter, rollouts, estimates, ppo.samples_logged_per_step)
        return describe(rollouts, estimates, ppo) | told | losses | spent, logged

    def sample(self, agenda: Agenda, step: int, memory: Memory) -> tuple[Rollouts, dict[str, Any]]:
        """Return judged samples as the policy and the reference read them, and figures on them."""
        ppo, moved = self.stage.config.ppo, self.reset.before(step)
        if self.ahead:
            batch = self.ahead.take(agenda, step, memory)
        else:
            batch = draw_batch(agenda, self.generator, step)
        rollouts = read_batch(
            self.generator, self.policy, self.reference, batch.samples, temperature=ppo.temperature,
            token_budget=self.stage.token_budget, moved=ppo.async_rollouts,
        )  # fmt: skip
        return shape(rollouts, batch, self.stage), batch.told | moved

    def learn(
        self, rollouts: Rollouts, step: int, memory: Memory
    ) -> tuple[AdvantagesAndReturns, dict[str, float]]:
        """Take the optimizer steps of a batch, of the critic alone while it is pretrained."""
        config, ppo = self.stage.config, self.stage.config.ppo
        alone, beside = learns_alone(step, ppo, memory), Beside(rollouts, ppo, memory)
        estimates = compute_advantages(rollouts, ppo, beside.values, 1.0 if alone else ppo.value_lambda)
        set_units(self.policy.value_head, estimates.returns, rollouts.mask, memory)
        factor = 0.0 if alone else self.stage.rate_factor(ppo, step, memory.get("pretrained", 0))
        self.learner.set_learning_rates(factor, 1.0)
        adapting = None if alone else memory  # entropy says nothing while the policy rests
        losses = update(self.learner, rollouts, estimates, config, step, adapting)
        value_passes(self.learner, rollouts, estimates, config, step)
        beside.learn(rollouts, estimates, memory)
        if alone:
            note_pretraining(step, explained(rollouts, estimates), ppo, memory)
        if self.generator.sampler.exact and not ppo.async_rollouts:
            _stop_on_gap(losses.get("logprob_gap", 0.0), step)
        return estimates, losses | {"learning_rate": ppo.learning_rate * factor}


def _stop_on_gap(gap: float, step: int) -> None:
    """Raise UserError where samples are not those of the policy that learns from them."""
    if gap <= MAX_LOGPROB_GAP:
        return
    raise UserError(
        f"ppo: at step {step} sampler and trainer differ by {gap:.3g} in the log-probability of a token,"
        " which is no rounding; report this model, whose samples cannot be trusted"
    )
