"""How much of the returns any critic could explain: responses are continued from some token on.

    python -m reproduction.ceiling RUN_DIR [--model reft] [--questions 64] [--continuations 16]

What follows a token is drawn, so even a critic that knows everything explains a part of the returns
only: of a question 8 responses are drawn and judged, and of each 16 continuations of its first tokens.
Their mean reward is what a perfect critic would say; the variance of the means, less that of the
drawing, over the variance of rewards is the ceiling.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from reftune.config.files import load_config
from reftune.problem import UserError
from reftune.stages.run import Run
from reftune.training.rollouts import Generator, make_generator, sequence_seed
from reftune.training.types import GradedSample

RESPONSES = 8  # of each question
PLACES = (0.0, 0.125, 0.375, 0.625, 0.875)  # the beginning, and the middles of the four quarters


def main() -> None:
    """Print the ceiling at each place."""
    parser = argparse.ArgumentParser(prog="reproduction.ceiling", description=__doc__.partition("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--model", default="reft", help="of the run, such as warmup; default: reft")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--continuations", type=int, default=16)
    options = parser.parse_args()
    try:
        run = Run(load_config(options.run_dir / "config.toml"), Accelerator())
        policy, prompter = run.load_policy(options.model), run.prompter(options.model)
        compute = run.config.compute
        generator = make_generator(policy, prompter, run.judge, run.accelerator, compute)
        problems = run.splits.train[: options.questions]
        graded = generator.generate(problems, RESPONSES, run.config.ppo.temperature, key=("ceiling",))
    except UserError as error:
        sys.exit(f"reproduction: {error}")
    rewards = torch.tensor([one.verdict.reward for one in graded])
    print(f"{len(graded)} responses, mean reward {rewards.mean():.3f}, variance {rewards.var():.3f}")
    for place in PLACES:
        found = continued(generator, graded, place, options.continuations, run.config.ppo.temperature)
        print(
            f"behind {place:5.1%} of a response: {ceiling(found, rewards):.2f} can be explained",
            flush=True,
        )


def continued(
    generator: Generator, graded: Sequence[GradedSample], place: float, count: int, temperature: float
) -> Tensor:
    """Return the rewards of `count` continuations of each response from a share of its tokens on."""
    given = [one.sample.tokens[: int(place * len(one.sample.tokens))] for one in graded]
    rows = [i for i in range(len(graded)) for _ in range(count)]
    limit = generator.prompter.settings.max_new_tokens
    samples = generator.sampler.sample(
        [graded[i].sample.prompt + given[i] for i in rows],
        [sequence_seed("continued", place, number) for number in range(len(rows))],
        max_new_tokens=limit, temperature=temperature,
    )  # fmt: skip
    tokens = [given[i] + sample.tokens for i, sample in zip(rows, samples, strict=True)]
    finished = [sample.finished and len(t) <= limit for sample, t in zip(samples, tokens, strict=True)]
    problems = [graded[i].problem for i in rows]
    texts = [
        generator.prompter.decode(p, t, end)
        for p, t, end in zip(problems, tokens, finished, strict=True)
    ]
    verdicts = generator.judge(problems, texts, finished, [len(t) for t in tokens])
    return torch.tensor([verdict.reward for verdict in verdicts]).view(len(graded), count)


def ceiling(continuations: Tensor, rewards: Tensor) -> float:
    """Return the share of the rewards' variance that the expected reward of a beginning makes up.

    Args:
        continuations: rewards of continuations of each beginning, (beginnings, count).
        rewards: of the responses themselves, (beginnings,).
    """
    drawing = continuations.var(dim=1).mean() / continuations.shape[1]
    return float((continuations.mean(dim=1).var() - drawing) / rewards.var())


if __name__ == "__main__":
    main()
