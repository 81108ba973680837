"""Prompts and responses as the tensors that models read, padded or numbered as a prefix tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Sequences:
    """Prompts and responses as a model reads them; lengths, never ids, tell what is padding.

    Responses to one prompt often begin alike. Tokens that follow the same prompt and the same response
    so far, and are equal, are one *distinct* token: whatever a model says of them is said once.
    """

    prompts: Int[Tensor, "prompts width"]  # distinct, left-padded
    prompt_lengths: Int[Tensor, " prompts"]
    prompt_index: Int[Tensor, " batch"]  # which prompt each response belongs to
    responses: Int[Tensor, "batch time"]  # right-padded
    response_lengths: Int[Tensor, " batch"]
    node_index: Int[Tensor, "batch time"]  # which distinct token each is; 0 on padding
    first_occurrence: Int[Tensor, " distinct"]  # its first place in the flattened responses

    def to(self, device: torch.device) -> Sequences:
        """Return the same on `device`."""
        return Sequences(*(getattr(self, field.name).to(device) for field in fields(self)))


def pad(rows: Sequence[Sequence[float]], width: int | None = None) -> Float[Tensor, "batch time"]:
    """Stack rows of numbers, right-padded with 0.0 to the longest (or to `width`)."""
    width = max((len(row) for row in rows), default=0) if width is None else width
    padded = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.float32)
    return padded


def length_mask(lengths: Sequence[int], width: int | None = None) -> Float[Tensor, "batch time"]:
    """Return 1.0 on the first `lengths[i]` columns of row i, 0.0 beyond."""
    width = max(lengths, default=0) if width is None else width
    return (torch.arange(width) < torch.tensor(list(lengths)).unsqueeze(1)).float()


def collate(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Sequences:
    """Stack ids: equal prompts once and left-padded, responses right-padded.

    The padding id is 0 whatever the tokenizer says.
    """
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    prompt_index = [place[tuple(prompt)] for prompt in prompts]
    width, time = max(map(len, distinct)), max(map(len, responses))
    places, firsts = _number(prompt_index, responses, time)
    return Sequences(
        prompts=torch.tensor([[0] * (width - len(p)) + list(p) for p in distinct]),
        prompt_lengths=torch.tensor([len(p) for p in distinct]),
        prompt_index=torch.tensor(prompt_index),
        responses=torch.tensor([list(r) + [0] * (time - len(r)) for r in responses]),
        response_lengths=torch.tensor([len(r) for r in responses]),
        node_index=torch.tensor([row + [0] * (time - len(row)) for row in places]),
        first_occurrence=torch.tensor(firsts),
    )


def _number(
    prompt_index: Sequence[int], responses: Sequence[Sequence[int]], time: int
) -> tuple[list[list[int]], list[int]]:
    """Number the distinct tokens (see `Sequences`): the nodes of a tree whose roots are the prompts.

    Returns the number of each token of each response, and where the first of each number stands in rows
    of `time` tokens.
    """
    children: dict[tuple[int, int], int] = {}  # (number before, or -1 - prompt; token) -> number
    firsts: list[int] = []
    places: list[list[int]] = []
    for row, (parent, response) in enumerate(zip(prompt_index, responses, strict=True)):
        places.append([])
        before = -1 - parent
        for column, token in enumerate(response):
            before = children.setdefault((before, token), len(firsts))
            if before == len(firsts):
                firsts.append(row * time + column)
            places[-1].append(before)
    return places, firsts


def gather_nodes(sequences: Sequences, distinct: Tensor) -> Tensor:
    """Return what is said of each distinct token, (distinct,), for every response token, (batch, time).

    It means nothing on padding.
    """
    return gather_rows(distinct.unsqueeze(1), sequences.node_index).squeeze(2)


def gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """Return the rows of (rows, features) that an index of any shape names."""
    # An embedding, because its gradient is faster than that of indexing.
    picked: Tensor = functional.embedding(index, table)
    return picked
