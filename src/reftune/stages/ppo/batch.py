"""What PPO learns from in one step: which questions are asked, which samples are kept, what is cut.

All of it is off by default: then a batch is what `Stage.questions` says, whole and as it was judged.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reftune.config import Ppo
from reftune.problem import Problem
from reftune.stages.stage import Stage
from reftune.training.rollouts import Generator, accuracy
from reftune.training.types import GradedSample, Rollouts

PATIENCE = 4  # passes that leave out a question whose rate is out of the range; then it is asked again
NEWEST = 0.5  # weight of a question's newest success rate in the running one
Group = Sequence[GradedSample]  # the samples of a question that was asked


@dataclass
class Agenda:
    """Which questions come next, and how hard they were so far.

    Args:
        stage: its questions come in endless shuffled passes.
        position: how many questions of the passes have come.
        rates: by the question's id, its running success rate, and how often it was left out since it
            was asked.
    """

    stage: Stage
    position: int
    rates: dict[str, list[float]]
    left_out: int = 0

    @classmethod
    def of(cls, stage: Stage, memory: dict[str, Any], step: int) -> "Agenda":
        """Return the agenda of a step, from what the steps before left in the stage's memory."""
        position = memory.get("position", (step - 1) * stage.config.ppo.questions_per_step)
        return cls(stage, position, copy.deepcopy(memory.get("rates", {})))

    def keep(self, memory: dict[str, Any]) -> None:
        """Leave in the stage's memory what the next step goes on from; only a whole step may do it.

        Where nothing is filtered, the number of the step says it all.
        """
        ppo = self.stage.config.ppo
        if ppo.dynamic_sampling or ppo.difficulty_range:
            memory["position"] = self.position
        if self._keeps_rates:
            memory["rates"] = self.rates

    @property
    def _keeps_rates(self) -> bool:
        ppo = self.stage.config.ppo
        return bool(ppo.difficulty_range) or "success_rate" in ppo.value_features

    def take(self, count: int) -> list[Problem]:
        """Return the next questions to ask.

        One without a rate is asked, and so is one that was left out `PATIENCE` times: none is lost for
        ever, and a question that was too hard comes back when the policy has learnt more. Where a whole
        pass has too few others, it is filled with those that would be left out.
        """
        spare = len(self.stage.train) - count  # what a pass can do without
        found: list[Problem] = []
        while len(found) < count:
            for problem in self.stage.questions_from(self.position, count - len(found)):
                self.position += 1
                if spare > 0 and self._leaves_out(problem.id):
                    self.left_out, spare = self.left_out + 1, spare - 1
                else:
                    found.append(problem)
        return found

    def _leaves_out(self, question: str) -> bool:
        bounds = self.stage.config.ppo.difficulty_range
        if not bounds or question not in self.rates:
            return False
        rate, times = self.rates[question]
        out = not bounds[0] <= rate <= bounds[1] and times < PATIENCE
        self.rates[question] = [rate, times + 1 if out else 0]
        return out

    def note(self, group: Group) -> None:
        """Let a question's samples count in its success rate."""
        judged = [g.verdict.correct for g in group if g.verdict.judged]
        if not self._keeps_rates or not judged:
            return
        question, rate = group[0].problem.id, sum(judged) / len(judged)
        if question in self.rates:
            rate = NEWEST * rate + (1 - NEWEST) * self.rates[question][0]
        self.rates[question] = [rate, 0]


class Batch(NamedTuple):
    """The samples of a step, whether there is something to learn from them, and the figures on them."""

    samples: list[GradedSample]
    teaches: bool
    told: dict[str, Any]


def draw_batch(agenda: Agenda, generator: Generator, step: int) -> Batch:
    """Ask questions until a batch is full, or `ppo.dynamic_sampling` says that it is enough.

    With dynamic sampling only questions are kept that some samples get right and some wrong (Yu et al.
    2025, arXiv:2503.14476, equation 11). The first draw asks a whole batch, each other one as many
    questions as fill it at the rate at which they were kept so far. What is kept beyond a full batch is
    thrown away; where nothing was kept the last draw is returned, which teaches nothing. The random
    numbers of a sample depend on the seed, the step, and how many questions the step asked before.
    """
    ppo = agenda.stage.config.ppo
    drawn: list[Group] = []
    kept: list[Group] = []
    last: list[Group] = []
    draws = 0
    while len(kept) < ppo.questions_per_step and draws < max(1, ppo.dynamic_sampling):
        last = _draw(agenda, generator, step, _missing(ppo, len(drawn), len(kept)), len(drawn))
        drawn += last
        kept += [group for group in last if not ppo.dynamic_sampling or _tells_apart(group, ppo)]
        draws += 1
    kept = kept[: ppo.questions_per_step]
    told: dict[str, Any] = {"questions_left_out": agenda.left_out} if ppo.difficulty_range else {}
    if ppo.dynamic_sampling:
        dropped, everything = len(drawn) - len(kept), [sample for group in drawn for sample in group]
        told |= {"draws": draws, "questions_kept": len(kept), "questions_dropped": dropped}
        told["accuracy_drawn"] = accuracy(everything)
    return Batch([sample for group in kept or last for sample in group], bool(kept), told)


def _missing(ppo: Ppo, drawn: int, kept: int) -> int:
    """Return how many questions the next draw asks; the first one none was drawn before."""
    wanted = ppo.questions_per_step
    if not drawn:
        return wanted
    return min(wanted, math.ceil((wanted - kept) * drawn / max(1, kept)))


def _draw(agenda: Agenda, generator: Generator, step: int, count: int, first: int) -> list[Group]:
    """Ask the next questions, and let the agenda know how hard they were.

    Args:
        first: how many questions of this step were asked before.
    """
    stage, ppo = agenda.stage, agenda.stage.config.ppo
    size, key = ppo.samples_per_question, (stage.config.seed, stage.name, step)
    graded = generator.generate(agenda.take(count), size, ppo.temperature, key=key, first=first)
    groups: list[Group] = [graded[start : start + size] for start in range(0, len(graded), size)]
    for group in groups:
        agenda.note(group)
    return groups


def _tells_apart(group: Group, ppo: Ppo) -> bool:
    """Tell whether of a question's samples that may teach some are right, and some are wrong."""
    right = [g.verdict.correct for g in group if g.verdict.judged and not _masked(g, ppo)]
    return 0 < sum(right) < len(right)


def _masked(graded: GradedSample, ppo: Ppo) -> bool:
    """Tell whether a sample is left out of the loss because it was cut off."""
    return ppo.mask_truncated and not graded.sample.finished


def shape(rollouts: Rollouts, batch: Batch, stage: Stage) -> Rollouts:
    """Let long samples cost reward, and empty the masks of samples that are left out of the loss."""
    ppo, limit = stage.config.ppo, stage.prompter.settings.max_new_tokens
    if ppo.overlong_buffer:
        lengths = [len(g.sample.tokens) if g.sample.finished else limit + 1 for g in rollouts.samples]
        penalty = overlong_penalty(torch.tensor(lengths), limit, ppo.overlong_buffer)
        rollouts = replace(rollouts, rewards=rollouts.rewards + penalty)
    teaches = torch.tensor([batch.teaches and not _masked(g, ppo) for g in rollouts.samples])
    if not teaches.all():
        rollouts = replace(rollouts, mask=rollouts.mask * teaches.unsqueeze(1))
    return rollouts


def overlong_penalty(lengths: Int[Tensor, " batch"], limit: int, buffer: int) -> Float[Tensor, " batch"]:
    """Return what is added to the rewards of samples that come near the limit, or pass it.

    0 up to limit - buffer tokens, (limit - buffer - length) / buffer up to the limit, -1 beyond
    (Yu et al. 2025, arXiv:2503.14476, equation 13).
    """
    return ((limit - buffer - lengths) / buffer).clamp(min=-1, max=0)
