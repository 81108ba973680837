"""Try a sampler before it is used: do its samples carry what the model says without a cache?

Some models attend to something else than what they cache, and decode wrong without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reftune.model.batch import collate, pad
from reftune.model.forward import EXACT, HALF, agrees, evaluating, first_line, read_rows
from reftune.sampling.sampler import Sample

if TYPE_CHECKING:
    from reftune.sampling.engine import BuiltinSampler

# Different lengths; several samples of each, which begin as one row where the decoder shares prompts.
PROMPTS = [[3, 4, 5]] * 4 + [[6]] * 3 + [[7, 8]] * 3
MAX_NEW_TOKENS = 3
ROWS = 7  # fewer than prompts, so that some enter when others have left


def find_fault(sampler: BuiltinSampler) -> str:
    """Return what is wrong with the samples of a model, as the end of a sentence; "" if nothing is."""
    trial = copy.copy(sampler)
    model, trial.max_rows, trial.value_head = sampler.model, ROWS, None
    vocabulary = model.get_output_embeddings().weight.shape[0]
    # A third of all tokens end a response: samples leave at different times.
    trial.eos = torch.arange(0, vocabulary, 3, device=model.device)
    try:
        with evaluating(model):
            samples = trial.sample(
                PROMPTS, range(len(PROMPTS)), max_new_tokens=MAX_NEW_TOKENS, temperature=1.0
            )
            told, read = _logprobs(trial, samples)
    except Exception as error:  # whatever a model of another kind may raise
        return f"with a key-value cache it fails: {first_line(error)}"
    if agrees(told, read, EXACT if sampler.exact else HALF):
        return ""
    return "with a key-value cache it says something else than without"


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
