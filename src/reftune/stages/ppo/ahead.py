"""Asynchronous rollouts: the next step's samples are drawn while the policy learns from this one's.

What a step learns from was then sampled by the policy of one update before (one step off-policy, as in
Noukhovitch et al. 2024, "Asynchronous RLHF", arXiv:2410.18252). PPO's ratio starts at the policy as it
is now, and `ppo.importance_sampling` makes up for what lies between the two (decoupled PPO, Hilton et
al. 2021, arXiv:2110.00641).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from threading import Thread
from typing import Any

import torch

from reftune.interrupts import aside
from reftune.model.policy import PolicyWithValue
from reftune.problem import Problem, UserError, Verdict
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.sampler import Sample
from reftune.stages.ppo.batch import Agenda, Batch, draw_batch
from reftune.stages.stage import Stage
from reftune.training.rollouts import Generator
from reftune.training.types import GradedSample

KEPT = "ahead"  # in the stage's memory: the samples of the step to come


class Ahead:
    """Draws batches, each while the policy learns from the one before.

    Args:
        stage: whose questions are asked.
        policy: what learns. The built-in engine reads a copy of it, which costs its weights once more;
            any other engine has weights of its own.
        generator: of the policy.

    Raises UserError in several processes, which would wait for each other in two places at once.
    """

    def __init__(self, stage: Stage, policy: PolicyWithValue, generator: Generator) -> None:
        if stage.accelerator.num_processes > 1:
            raise UserError(
                "ppo.async_rollouts works in one process; leave it out, or start a single one"
            )
        self.stage, self.policy, self.generator = stage, policy, generator
        self.questions = stage.config.ppo.questions_per_step
        self.copy: PolicyWithValue | None = None
        if isinstance(generator.sampler, BuiltinSampler):
            self.copy = copy.deepcopy(policy).requires_grad_(False)
            self.generator = stage.generator(self.copy)

    def take(self, agenda: Agenda, step: int, memory: dict[str, Any]) -> Batch:
        """Return the batch of a step: the one that was drawn ahead, or a new one before the first."""
        if KEPT not in memory:
            self._follow()
            return draw_batch(agenda, self.generator, step)
        problems, size = agenda.take(self.questions), len(memory[KEPT]) // self.questions
        samples = self._read(memory[KEPT], [problem for problem in problems for _ in range(size)])
        for start in range(0, len(samples), size):
            agenda.note(samples[start : start + size])
        return Batch(samples, True, {})

    def meanwhile(self, step: int, memory: dict[str, Any]) -> AbstractContextManager[None]:
        """Draw the next step's batch while a block runs, with the weights from before it."""
        if step < self.stage.config.ppo.steps:
            return self._drawing(step + 1, memory)
        memory.pop(KEPT, None)
        return nullcontext()

    @contextmanager
    def _drawing(self, step: int, memory: dict[str, Any]) -> Iterator[None]:
        self._follow()
        agenda = Agenda.of(self.stage, {}, step)
        drawn: list[Batch | Exception] = []
        threads = torch.get_num_threads()

        def work() -> None:
            torch.set_num_threads(threads)  # a new thread would take torch's default
            with aside():
                try:
                    drawn.append(draw_batch(agenda, self.generator, step))
                except Exception as error:
                    drawn.append(error)

        thread = Thread(target=work, name="ahead", daemon=True)
        thread.start()
        try:
            yield
        except Exception:  # what follows closes the engine that the thread works with
            thread.join()
            raise
        thread.join()
        [found] = drawn
        if isinstance(found, Exception):
            raise found
        memory[KEPT] = [_row(graded) for graded in found.samples]

    def _follow(self) -> None:
        """Let the copy have the policy's weights; another engine got them before the step."""
        if self.copy is not None:
            self.copy.load_state_dict(self.policy.state_dict())

    def _read(self, rows: Sequence[dict[str, Any]], problems: Sequence[Problem]) -> list[GradedSample]:
        """Return samples from the rows of a checkpoint, or of this process."""
        prompts = {problem: self.generator.prompter.encode_prompt(problem) for problem in problems}
        return [
            GradedSample(
                problem,
                Sample(prompts[problem], row["tokens"], row["logprobs"], row["finished"]),
                row["completion"],
                Verdict(**row["verdict"]),
            )
            for problem, row in zip(problems, rows, strict=True)
        ]


def _row(graded: GradedSample) -> dict[str, Any]:
    """Return a sample as JSON; its question is known, and the critic reads it anew."""
    sample = graded.sample
    return {
        "tokens": sample.tokens, "logprobs": sample.logprobs, "finished": sample.finished,
        "completion": graded.completion, "verdict": asdict(graded.verdict),
    }  # fmt: skip
