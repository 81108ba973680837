"""Self-training: supervised learning on the model's own right chains (Luong et al. 2024, section 4.2).

Offline they are drawn once from the model that the methods start from, online in every step from the
current policy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.problem import CountedRow, Problem, UserError
from reftune.progress import counting
from reftune.stages.run import Run
from reftune.stages.stage import RESULT_KEYS, Stage
from reftune.stages.supervised import Example, fit, stop_on_non_finite, train_on
from reftune.stages.warmup_samples import read_warmup_samples
from reftune.training.rollouts import accuracies, mean_parts
from reftune.training.types import GradedSample


def start_offline(run: Run) -> None:
    """Run the offline stage from the base model, on the warm-up samples."""
    policy, prompter = run.base_policy()
    run_offline_st(run.stage("offline_st", prompter), policy, read_warmup_samples(run.config.run_dir))


def start_online(run: Run) -> None:
    """Run the online stage from the warm-up or the given model."""
    policy, prompter = run.first_policy(trainable=True)
    run_online_st(run.stage("online_st", prompter), policy)


def run_offline_st(
    stage: Stage, policy: PolicyWithValue, samples: Mapping[str, Sequence[CountedRow]]
) -> dict[str, Any]:
    """Train `policy`, the base model, on annotated and sampled chains; write its best epoch's model.

    Args:
        policy: the model that SFT started from, too.
        samples: the warm-up samples, by the question's id.

    Returns what it also writes to `offline_st/result.json`. Raises UserError where there is nothing to
    learn from: no annotated chain, and no right sample.
    """
    settings = stage.config.offline_st
    gold = [stage.prompter.encode_example(problem) for problem in stage.train if problem.chain]
    own = own_examples(stage.prompter, stage.train, samples, settings.keep)
    if not gold + own:
        raise UserError(
            "offline_st: nothing to learn from: no question has a chain, and no warm-up sample of a"
            " training question is right; raise warmup_samples.per_question under a new --name"
        )
    state = fit(stage, policy, settings, gold + own)
    counts = {"annotated_examples": len(gold), "sampled_examples": len(own)}
    return stage.finish({key: state[key] for key in ("best_epoch", *RESULT_KEYS)} | counts)


def own_examples(
    prompter: Prompter, train: Sequence[Problem], samples: Mapping[str, Sequence[CountedRow]], keep: int
) -> list[Example]:
    """Encode the first `keep` different right samples of each question, its annotation aside."""
    examples = []
    for problem in train:
        seen = [prompter.encode_example(problem)] if problem.chain else []
        gold = len(seen)
        for row in samples.get(problem.id, ()):
            if not row["correct"] or len(seen) == gold + keep:
                continue
            example = prompter.encode_example(problem, row["completion"])
            if example not in seen:
                seen.append(example)
        examples += seen[gold:]
    return examples


def run_online_st(stage: Stage, policy: PolicyWithValue) -> dict[str, Any]:
    """Train `policy` on its own right samples; write the model of its best step.

    The loss of a step is half the cross-entropy of the policy's right samples and half that of the
    same questions' annotated chains, each a mean over tokens; nothing holds the policy near its start.
    Returns what it also writes to `online_st/result.json`.
    """
    settings = stage.config.online_st
    learner = stage.learner(policy, settings)
    learner.model.eval()  # no dropout, as in PPO
    generator = stage.generator(policy)

    def take_step(step: int, memory: dict[str, Any]) -> tuple[dict[str, Any], Sequence[GradedSample]]:
        questions = stage.questions(step, settings.questions_per_step)
        key = (stage.config.seed, stage.name, step)
        graded = generator.generate(
            questions, settings.samples_per_question, settings.temperature, key=key
        )
        batch, weights = half_and_half(stage.prompter, questions, graded)
        factor = stage.rate_factor(settings, step)
        learner.set_learning_rates(factor, factor)
        with counting("update", settings.update_epochs) as count:
            for _ in range(settings.update_epochs if batch else 0):
                sums = train_on(learner, batch, weights)
                stop_on_non_finite(stage, sums, settings.learning_rate)
                count.advance()
        told = describe(graded) | {"learning_rate": settings.learning_rate * factor}
        return told | (sums if batch else {}), graded

    return stage.run_online(settings, policy, generator, take_step)


def half_and_half(
    prompter: Prompter, questions: Sequence[Problem], graded: Sequence[GradedSample]
) -> tuple[list[Example], list[float]]:
    """Return right samples and annotated chains, and the weight of each one's tokens.

    Either half has the weight 1/2, however many tokens the other has; without any right sample the
    annotated half stands alone, still with 1/2, and so do right samples where no question has a chain.
    """
    own = [(g.sample.prompt, g.sample.tokens) for g in graded if g.verdict.correct]
    gold = [prompter.encode_example(problem) for problem in questions if problem.chain]
    halves = [half for half in (own, gold) if half]
    weights = [[0.5 / sum(len(response) for _, response in half)] * len(half) for half in halves]
    return own + gold, [weight for half in weights for weight in half]


def describe(graded: Sequence[GradedSample]) -> dict[str, Any]:
    """Return the statistics of one batch of samples under the names that PPO uses."""
    samples = [g.sample for g in graded]
    return {
        **mean_parts(graded),
        **accuracies(graded),
        "response_length": sum(len(sample.tokens) for sample in samples) / len(samples),
        "truncated": sum(not sample.finished for sample in samples) / len(samples),
        "statuses": dict(Counter(g.verdict.status for g in graded)),
    }
