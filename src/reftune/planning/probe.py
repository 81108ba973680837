"""Try a run's own model on its own first problems for a moment, to know this machine's pace."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from reftune.model.batch import collate
from reftune.model.policy import PolicyWithValue
from reftune.planning.pace import Pace
from reftune.problem import Problem
from reftune.stages.stage import Stage
from reftune.stages.supervised import Example, train_on
from reftune.training.learner import Learner


class Sizes(NamedTuple):
    """How much is tried."""

    few: int  # examples in the smaller of two steps; the larger has twice as many
    rows: tuple[int, int]  # responses drawn at once, fewer and more
    steps: tuple[int, int]  # tokens of each of them, fewer and more


ON_CPU = Sizes(few=4, rows=(8, 64), steps=(3, 9))
ON_GPU = Sizes(few=32, rows=(64, 512), steps=(16, 64))  # less only shows what starting work takes
LITTLE = 1e-6  # of the learning rate: at 0 the optimizer would rest


def probe(stage: Stage, policy: PolicyWithValue, problems: Sequence[Problem], response: int) -> Pace:
    """Return the pace of this machine; the policy's weights hardly move.

    Args:
        stage: whose settings hold.
        policy: to train.
        problems: some of the run's, with or without chains.
        response: tokens of a response where a problem has no chain.
    """
    sizes = ON_GPU if stage.accelerator.device.type == "cuda" else ON_CPU
    counts = (sizes.few, 2 * sizes.few)
    examples = [_example(stage, problem, response) for problem in problems[: counts[1]]]
    examples = (examples * counts[1])[: counts[1]]
    learner = stage.learner(policy, stage.config.sft)
    learner.set_learning_rates(LITTLE, LITTLE)
    _learn(learner, examples[: sizes.few])  # the first step makes the moments, and wakes the threads
    few, many = (_seconds(partial(_learn, learner, examples[:n])) for n in counts)
    tokens = [_tokens(examples[:n]) for n in counts]
    learn_token = max(0.0, many - few) / (tokens[1] - tokens[0])
    reading = _seconds(lambda: _read(policy, examples, stage.accelerator.device))
    draw_step, draw_token = _drawing(stage, policy, problems, sizes)
    optimizer_step = max(0.0, few - learn_token * tokens[0])
    return Pace(learn_token, optimizer_step, reading / tokens[1], draw_step, draw_token)


def _example(stage: Stage, problem: Problem, response: int) -> Example:
    if problem.chain:
        return stage.prompter.encode_example(problem)
    prompt = stage.prompter.encode_prompt(problem)
    return prompt, (prompt * response)[:response]  # which tokens they are does not matter


def _learn(learner: Learner, examples: Sequence[Example]) -> None:
    learner.model.train()
    train_on(learner, examples, [1 / _tokens(examples)] * len(examples))
    learner.model.eval()


@torch.no_grad()
def _read(policy: PolicyWithValue, examples: Sequence[Example], device: torch.device) -> None:
    policy(collate([p for p, _ in examples], [r for _, r in examples]).to(device))


def _drawing(
    stage: Stage, policy: PolicyWithValue, problems: Sequence[Problem], sizes: Sizes
) -> tuple[float, float]:
    """Return the seconds of a decoding step, and those that each row adds."""
    sampler = stage.generator(policy).sampler
    prompts = [stage.prompter.encode_prompt(problem) for problem in problems[: sizes.rows[0]]]

    def draw(rows: int, steps: int) -> float:
        asked = (prompts * rows)[:rows]
        return _seconds(
            lambda: sampler.sample(asked, range(rows), max_new_tokens=steps, temperature=1.0)
        )

    (less, more), (short, long) = sizes.rows, sizes.steps
    draw(less, short)
    each = [(draw(rows, long) - draw(rows, short)) / (long - short) for rows in sizes.rows]
    of_a_row = max(0.0, each[1] - each[0]) / (more - less)
    return max(0.0, each[0] - of_a_row * less), of_a_row


def _seconds(act: Callable[[], object]) -> float:
    """Return how long something takes; on a GPU the second time, until it has done its work."""
    if torch.cuda.is_available():  # kernels are loaded when they are first used
        act()
        torch.cuda.synchronize()
    started = time.perf_counter()
    act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _tokens(examples: Sequence[Example]) -> int:
    return sum(len(prompt) + len(response) for prompt, response in examples)
