"""See on a run's own first prompts that sampler and trainer say what the model says by itself.

The trials at load read a few made-up tokens. These prompts have the lengths that the run will have:
where a model's window ends, or a position beyond the usual ones begins, is seen here.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reftune.model.batch import collate
from reftune.model.forward import EXACT, HALF, evaluating, kind_of
from reftune.model.policy import PolicyWithValue
from reftune.model.sharding import sharded
from reftune.problem import Problem, UserError
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.rng import sample_tokens
from reftune.sampling.sampler import Sample, Sampler
from reftune.training.rollouts import Generator, sequence_seed
from reftune.training.samplers import computing, computing_dtype

PROMPTS, SAMPLES, TOKENS = 4, 2, 8  # distinct prompts, responses to each, and tokens of a response
SPREAD = 20.0  # of logits around their mean, where no whole model is at hand to say it


def check_first_prompts(
    generator: Generator, policy: PolicyWithValue, problems: Sequence[Problem]
) -> None:
    """Raise UserError where sampler or trainer differ from the model's own forward pass.

    The first prompts are sampled with the run's own budgets, a few tokens each. What is compared are the
    log-probabilities of these tokens; the tolerance is that of the trials (`forward.agrees`).

    Args:
        generator: whose sampler is looked at.
        policy: which reads and trains; a module that no launcher has wrapped.
        problems: of the run, in its order.
    """
    texts = [generator.prompter.encode_prompt(problem) for problem in problems[: 2 * PROMPTS]]
    prompts = [list(text) for text in dict.fromkeys(map(tuple, texts))][:PROMPTS]
    sampler, model = generator.sampler, policy.policy
    if not prompts:
        return
    whole = _whole(sampler, policy)
    with evaluating(policy), computing(generator.accelerator)():
        if whole and not _logits(whole, policy, prompts[0], 1).isfinite().all():
            return  # nothing can be drawn; the first step says that its loss is not finite
        samples = _draw(sampler, prompts, generator.prompter.settings.max_new_tokens)
        batch = collate([s.prompt for s in samples], [s.tokens for s in samples])
        stats = policy(batch.to(generator.accelerator.device)).logprobs.cpu()
        said = [_alone(whole, policy, sample) for sample in samples] if whole else []
    read = torch.cat([row[: len(s.tokens)] for row, s in zip(stats, samples, strict=True)])
    expected = torch.cat([logprobs for logprobs, _ in said]) if whole else read
    scale = max(float(spread) for _, spread in said) if whole else SPREAD
    exact = computing_dtype(policy, generator.accelerator) == torch.float32
    tolerance = (EXACT if exact else HALF) * scale
    found = {
        "the sampler": torch.cat([torch.tensor(s.logprobs) for s in samples]),
        "the trainer": read,
    }
    for who, logprobs in found.items():
        gap = float((logprobs.to(expected) - expected).abs().max())
        if not gap <= tolerance:  # nor is nan
            longest = max(map(len, prompts))
            raise UserError(
                f"{kind_of(model)} cannot be used: on the first prompts of this run (of up to {longest}"
                f" tokens) {who} and the model's own forward pass differ by {gap:.2g} in the"
                f" log-probability of a token, {tolerance:.2g} is what rounding explains"
            )


def _whole(sampler: Sampler, policy: PolicyWithValue) -> PreTrainedModel | None:
    """Return the policy's model, or the sampler's whole copy of one that lies on several processes.

    None where it is in parts and the sampler has no copy here: then it is compared with the trainer.
    """
    if isinstance(sampler, BuiltinSampler):
        return sampler.model
    return policy.policy if sharded(policy) is None else None


def _draw(sampler: Sampler, prompts: Sequence[Sequence[int]], most: int) -> list[Sample]:
    """Sample as for responses of up to `most` tokens, which decides how they are decoded; end early."""
    repeated = [prompt for prompt in prompts for _ in range(SAMPLES)]
    seeds = [sequence_seed("first prompts", i) for i in range(len(repeated))]
    if isinstance(sampler, BuiltinSampler):
        sampler = _ending_early(sampler)
    else:
        most = min(most, TOKENS)
    return sampler.sample(repeated, seeds, max_new_tokens=most, temperature=1.0)


def _ending_early(sampler: BuiltinSampler) -> BuiltinSampler:
    """Return a sampler whose responses end after `TOKENS` tokens, whatever they may have."""
    trial, end = copy.copy(sampler), sampler.eos[0]

    def choose(
        logits: Tensor, seeds: Tensor, t: Tensor | int, temperature: float, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        chosen, logprobs = sample_tokens(logits, seeds, t, temperature, rows)
        ends = logits.log_softmax(-1)[:, end]
        late = torch.as_tensor(t, device=chosen.device) >= TOKENS - 1
        ends = ends if rows is None else ends[rows]
        return torch.where(late, end, chosen), torch.where(late, ends.to(logprobs), logprobs)

    trial.choose, trial.value_head = choose, None
    return trial


def _alone(model: PreTrainedModel, policy: PolicyWithValue, sample: Sample) -> tuple[Tensor, Tensor]:
    """Read one sample by itself: the log-probabilities of its tokens, and how widely logits spread."""
    logits = _logits(model, policy, sample.prompt + sample.tokens[:-1], len(sample.tokens))
    tokens = torch.tensor(sample.tokens, device=logits.device)
    picked = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1).cpu()
    return picked, (logits - logits.mean(1, keepdim=True)).abs().max()


def _logits(model: PreTrainedModel, policy: PolicyWithValue, text: list[int], last: int) -> Tensor:
    """Return the logits at the `last` positions of a text that is read alone, as anybody would."""
    forward = policy.packed_forward
    output = forward.body(model)(input_ids=torch.tensor([text], device=model.device), use_cache=False)
    states = output.last_hidden_state if forward.lm_head_is_linear else output.logits
    logits: Tensor = forward.head(model)(states[0, -last:])
    return logits.float()
