"""Try a sampler before it is used: do its samples carry what the model says without a cache?

Some models attend to something else than what they cache, and decode wrong without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reftune.model.batch import collate, pad
from reftune.model.forward import EXACT, HALF, agrees, evaluating, first_line, read_rows
from reftune.model.packing import text_config
from reftune.sampling.sampler import Sample

if TYPE_CHECKING:
    from reftune.sampling.engine import BuiltinSampler

END = 1
# Where in the vocabulary ids are counted from, as shares: among ordinary tokens. Those at the beginning
# a model may never have seen, and in 16 bits what it says of them is mostly rounding: 4.8 in a
# log-probability of SmolLM2-135M, where it is 0.4 for others.
PLACES = (0.25, 0.5, 0.75)
# Prompts of different lengths, and what is sampled after each, whatever the model. Samples begin as one
# row where prompts are shared, fork at once or later, and end while others go on: the first row of a
# prompt, and all of one. All are short: any window is wider.
SAMPLES = [
    ([6], [[9, END], [9, END], [4, END]]),
    ([7, 8], [[END], [3, 5, END], [3, 6, 2]]),
    ([2, 9, 4], [[8, 5, END], [8, 6, 2], [7, END]]),
    ([3, 4, 5], [[3, 5, END], [3, 8, 4], [6, 4, 3], [6, END]]),
]
RESPONSES = [response for _, responses in SAMPLES for response in responses]
MAX_NEW_TOKENS = max(map(len, RESPONSES))
ROWS = 7  # fewer than samples, so that some take the places of others


def find_fault(sampler: BuiltinSampler, *, shares_prompts: bool) -> str:
    """Return what is wrong with the samples of a model, as the end of a sentence; "" if nothing is.

    In 16 bits a deep model may round what it says of a token to anything: then one of a few trials with
    other tokens has to be right.

    Args:
        sampler: that of the model.
        shares_prompts: which of its decoders is tried.
    """
    fault = ""
    for place in PLACES[:1] if sampler.exact else PLACES:
        if not (fault := _fault_at(place, sampler, shares_prompts)):
            break
    return fault


def _fault_at(place: float, sampler: BuiltinSampler, shares_prompts: bool) -> str:
    trial, model = copy.copy(sampler), sampler.model
    vocabulary = text_config(model).vocab_size
    first = max(0, min(int(place * vocabulary), vocabulary - 10))  # whose tokens are up to 9
    trial.max_rows, trial.value_head, trial.choose = ROWS, None, partial(_follow, first)
    trial.shares_prompts, trial.enough = shares_prompts, None
    trial.eos = torch.tensor([first + END], device=model.device)
    prompts = [[first + token for token in prompt] for prompt, responses in SAMPLES for _ in responses]
    try:
        with evaluating(model):
            samples = trial.sample(
                prompts, range(len(prompts)), max_new_tokens=MAX_NEW_TOKENS, temperature=1.0
            )
            told, read = _logprobs(trial, samples)
    except Exception as error:  # whatever a model of another kind may raise
        return f"with a key-value cache it fails: {first_line(error)}"
    if agrees(told, read, EXACT if sampler.exact else HALF):
        return ""
    return "with a key-value cache it says something else than without"


def _follow(
    first: int,
    logits: Tensor,
    seeds: Tensor,
    t: Tensor | int,
    temperature: float,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose the tokens of RESPONSES; seeds are their numbers (see `rng.sample_tokens`)."""
    script = torch.tensor([[*row, *[END] * (MAX_NEW_TOKENS + 1 - len(row))] for row in RESPONSES])
    chosen = (first + script).to(seeds.device)[seeds, t]
    logprobs = logits.log_softmax(-1)
    return chosen, logprobs[torch.arange(len(seeds)) if rows is None else rows, chosen]


def _logprobs(sampler: BuiltinSampler, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities that samples carry, and those that the model gives them.

    Both are counted from the mean over the vocabulary: of a new model all tokens are about as likely.
    """
    batch = collate([s.prompt for s in samples], [s.tokens for s in samples]).to(sampler.model.device)
    with sampler.context():
        states = read_rows(sampler.packed_forward.body(sampler.model), batch)
        logprobs = sampler.logits(states).log_softmax(-1)
    tokens = batch.responses.flatten()[batch.first_occurrence]
    read = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)
    told = pad([s.logprobs for s in samples]).to(read).flatten()[batch.first_occurrence]
    return told - logprobs.mean(1), read - logprobs.mean(1)
