"""Decode with fixed shapes and without a look at any number: on a GPU a step is one replayed CUDA graph.

There a step is bound by what launches it, some ten kernels for each layer, not by what it computes. So
all state is tensors that are written in place, and only every few steps does the host look which samples
have ended. Each sample has a row of its own from the start, with a copy of its prompt's keys and values:
at 135 million to 1.5 billion parameters 512 rows of 250 tokens take 3 to 4 GB, which an H100 reads in
little more than a millisecond, and sharing would need shapes that change. Keys and values of a row stand
at its tokens' positions, so that a row sees the columns up to its own position, whenever it entered.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel

from reftune.launcher import tell_once
from reftune.model.forward import first_line, kind_of
from reftune.sampling.decoders import PREFILL_TOKENS, last, prefill, repeat_index
from reftune.sampling.drawn import Drawn, Finish
from reftune.sampling.rng import sample_tokens

LOOK_EVERY = 8  # steps between two looks at which samples have ended
ADMIT_BELOW = 0.75  # share of running rows: reading new prompts takes as long as some ten steps
SHRINK_BELOW = 0.25  # where nobody waits: copying the cache and another graph pay only then
SMALLEST = 32  # rows; fewer are no faster
WIDTH_STEP = 128  # columns that attention reads are a multiple: each width takes a graph of its own
MEMORY_SHARE = 0.6  # of what is free, for the cache and what sampling takes for each row
BYTES_PER_LOGIT = 24  # logits, probabilities and their sums in float64, some of them twice

Entering = list[tuple[tuple[int, ...], list[int]]]  # prompts, and which rows their samples take


class CacheLayer(NamedTuple):
    """Keys or values of one layer."""

    heads: int
    features: int
    dtype: torch.dtype


def pays_on(device: torch.device) -> bool:
    """Tell whether steps are bound by their launches: elsewhere decoders that share prompts do less."""
    return device.type == "cuda"


def cache_layers(model: PreTrainedModel) -> list[tuple[CacheLayer, CacheLayer]]:
    """Return what each layer of a model keeps of a token, by reading one; mixed precision rounds it."""
    _, cache, _ = prefill(model, [[1]], DynamicCache())
    return [(_layer_of(layer.keys), _layer_of(layer.values)) for layer in cast(Any, cache.layers)]


class StaticBatch:
    """The samples of one call in rows of fixed shapes (see `engine._Batch`).

    The model must call `packing.attend`. Graphs read the weights where they are while they are captured;
    they and the cache live no longer than the call, so nothing of them is left when weights change.

    Args:
        drawn: the samples, none of them drawn.
    """

    def __init__(self, drawn: Drawn) -> None:
        self.drawn, self.sampler = drawn, drawn.sampler
        self.model = self.sampler.packed_forward.body(self.sampler.model)
        self.device = device = self.sampler.model.device
        if not self.sampler.cache_layers:
            self.sampler.cache_layers = cache_layers(self.model)
        self.captures = self.sampler.captures and self.sampler.choose is sample_tokens
        self.capacity = round_up(drawn.longest + drawn.max_new_tokens)
        self.rows = min(self.sampler.max_rows, len(drawn.indices), self._fitting())
        # Zeros, not just room: what is masked has the weight 0, and 0 * nan is nan.
        self.layers = [
            [
                torch.zeros(self.rows, x.heads, self.capacity, x.features, dtype=x.dtype, device=device)
                for x in layer
            ]
            for layer in self.sampler.cache_layers
        ]
        self.each = torch.arange(self.rows, device=device)
        self.columns = torch.arange(self.capacity, device=device)
        # Of each row: its sample, that one's prompt and response so far, and the last token of it.
        self.numbers = torch.zeros_like(self.each)
        self.prompt_lengths = torch.zeros_like(self.each)
        self.lengths = torch.zeros_like(self.each)
        self.tokens = torch.zeros_like(self.each)
        self.running = torch.zeros_like(self.each, dtype=torch.bool)
        self.finished = torch.zeros_like(self.running)
        self.taken = [False] * self.rows  # which rows have a sample that was not handed over
        self.admitted = 0
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.tried: set[tuple[int, int]] = set()

    def run(self, finish: Finish) -> None:
        """Decode everything; hand over samples soon after they end."""
        # Not cuDNN's kernels, which are young, and no other takes a mask.
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            while width := self._look(finish):
                for _ in range(LOOK_EVERY):
                    self._advance(self.rows, width)
        if self.captures:
            self.graphs.clear()
            self.layers.clear()
            self.positions = self.hidden = self.each  # the last ones lie in the graphs' memory
            torch.cuda.empty_cache()  # training has no use for blocks of such sizes

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Let each row's token see what stands up to its position (see `packing.Structure`)."""
        rows, heads = key.shape[:2]
        keys, values = (states[:rows] for states in self.layers[layer])
        keys[self.each[:rows], :, self.positions] = key[:, :, 0].to(keys.dtype)
        values[self.each[:rows], :, self.positions] = value[:, :, 0].to(values.dtype)
        # The queries of a group stand where several tokens of one head would: keys are read once.
        queries = query.unflatten(1, (heads, -1)).squeeze(3)
        width = self.hidden.shape[-1]
        output: Tensor = functional.scaled_dot_product_attention(
            queries, keys[:, :, :width], values[:, :, :width], attn_mask=self.hidden.to(query.dtype),
            scale=scaling,
        )  # fmt: skip
        return output.flatten(1, 2).unsqueeze(1)

    def _look(self, finish: Finish) -> int:
        """Let samples leave and enter; return the columns that the next steps need, or 0."""
        runs = self._leave(finish)
        while self.drawn.waiting and len(runs) <= ADMIT_BELOW * self.rows:
            self._admit()
            runs = self._leave(finish)
        if runs and not self.drawn.waiting and self.rows > max(SMALLEST, len(runs) / SHRINK_BELOW):
            self._shrink(list(runs))
        return min(self.capacity, round_up(max(runs.values()) + LOOK_EVERY)) if runs else 0

    def _leave(self, finish: Finish) -> dict[int, int]:
        """Hand over samples that have ended; return which rows run, and how long their texts are."""
        rows = slice(self.rows)
        enough = self.drawn.enough(self.numbers[rows], self.lengths[rows], self.running[rows])
        self.finished[rows] |= enough
        self.running[rows] &= ~enough
        length = (self.prompt_lengths + self.lengths) * self.running  # 0 where nothing runs
        lengths = length[: self.rows].tolist()
        ended = [row for row in range(self.rows) if self.taken[row] and not lengths[row]]
        if ended:
            out = torch.tensor(ended, device=self.device)
            self.drawn.report(self.numbers[out], self.lengths[out], self.finished[out], finish)
            for row in ended:
                self.taken[row] = False
        return {row: n for row, n in enumerate(lengths) if n}

    def _admit(self) -> None:
        """Let waiting samples take all free rows."""
        waiting, entering = self.drawn.waiting, Entering()
        free = [row for row in range(self.rows) if not self.taken[row]]
        while waiting and free:
            prompt, members = waiting.popleft()
            entering.append((prompt, free[: len(members)]))
            if len(members) > len(free):
                waiting.appendleft((prompt, members[len(free) :]))
            free = free[len(members) :]
        size = max(1, PREFILL_TOKENS // max(len(prompt) for prompt, _ in entering))
        for start in range(0, len(entering), size):
            self._enter(entering[start : start + size])

    def _enter(self, entering: Entering) -> None:
        """Read prompts, copy what is kept of each to its rows, and draw the first tokens there."""
        states, cache, lengths = prefill(self.model, [prompt for prompt, _ in entering], DynamicCache())
        taken = [row for _, rows in entering for row in rows]
        rows = torch.tensor(taken, device=self.device)
        parents = repeat_index([len(rows) for _, rows in entering], self.device)
        width = cast(Any, cache.layers)[0].keys.shape[2]
        turned = (self.columns[:width] - lengths.unsqueeze(1)) % width  # they come left-padded
        for room, read in zip(self.layers, cast(Any, cache.layers), strict=True):
            for states_of_rows, given in zip(room, (read.keys, read.values), strict=True):
                aligned = given.gather(2, turned[:, None, :, None].expand_as(given))
                states_of_rows[rows, :, :width] = aligned[parents].to(states_of_rows.dtype)
        self.numbers[rows] = torch.arange(self.admitted, self.admitted + len(taken), device=self.device)
        self.prompt_lengths[rows] = lengths[parents]
        self.lengths[rows], self.finished[rows], self.running[rows] = 0, False, True
        self.admitted += len(taken)
        for row in taken:
            self.taken[row] = True
        self._draw(states[parents], rows)

    def _advance(self, rows: int, width: int) -> None:
        """Decode one token in every row: the first time of a shape as it is, then as a graph."""
        shape = (rows, width)
        if shape in self.tried and shape not in self.graphs and self.captures:
            self._capture(*shape)
        if shape in self.graphs:
            self.graphs[shape].replay()
        else:  # which also loads whatever kernels it needs: while capturing nothing may be loaded
            self.tried.add(shape)
            self._step(*shape)

    def _capture(self, rows: int, width: int) -> None:
        """Capture a step, which does not execute it; tell of a model that cannot be captured."""
        try:
            graph = torch.cuda.CUDAGraph()
            pool = next((x.pool() for x in self.graphs.values()), torch.cuda.graph_pool_handle())
            torch.cuda.synchronize()
            # Not `torch.cuda.graph`, which gives all free memory back before each capture.
            with torch.cuda.stream(torch.cuda.Stream()):
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    self._step(rows, width)
                finally:
                    graph.capture_end()
            self.graphs[rows, width] = graph
        except RuntimeError as error:
            self.captures = self.sampler.captures = False
            context = error.__context__  # the end of a capture that failed fails, too
            reason = context if isinstance(context, RuntimeError) else error
            tell_once(
                f"{kind_of(self.model)} samples slowly: its steps cannot be captured as a CUDA graph"
                f" ({first_line(reason)})"
            )

    def _step(self, rows: int, width: int) -> None:
        """Read each row's last token and draw the next; nothing here may wait for the device."""
        # Rows that have ended stay where they are.
        self.positions = (self.prompt_lengths[:rows] + self.lengths[:rows] - 1).clamp(min=0)
        unseen = self.columns[:width] > self.positions.unsqueeze(1)
        hidden = torch.zeros_like(unseen, dtype=self.model.dtype).masked_fill_(unseen, -torch.inf)
        self.hidden = hidden[:, None, None]
        output = self.model(
            input_ids=self.tokens[:rows].unsqueeze(1),
            attention_mask=self.tokens.new_ones(1, 1, 1, 1),  # `attend` needs none
            position_ids=self.positions.unsqueeze(1),
            use_cache=False,
            within=self,
        )
        self._draw(last(output), slice(rows))

    def _draw(self, states: Tensor, rows: Tensor | slice) -> None:
        """Choose the next token of some rows."""
        lengths, running = self.lengths[rows], self.running[rows]
        chosen = self.drawn.draw(states, self.numbers[rows], lengths, running, None)
        ended = (chosen.unsqueeze(1) == self.sampler.eos).any(1)
        lengths = lengths + running
        self.tokens[rows] = chosen
        self.finished[rows] = self.finished[rows] | (running & ended)
        self.running[rows] = running & ~ended & (lengths < self.drawn.max_new_tokens)
        self.lengths[rows] = lengths

    def _shrink(self, kept: list[int]) -> None:
        """Let these rows be the first and only ones."""
        rows, self.rows = torch.tensor(kept, device=self.device), len(kept)
        for states in (x for layer in self.layers for x in layer):
            states[: self.rows] = states[rows]
        for state in (self.numbers, self.prompt_lengths, self.lengths, self.tokens, self.finished):
            state[: self.rows] = state[rows]
        self.running[: self.rows] = True
        self.taken = [True] * self.rows

    def _fitting(self) -> int:
        """Return for how many rows there is memory."""
        if self.device.type != "cuda":
            return self.sampler.max_rows
        free = torch.cuda.mem_get_info(self.device)[0]
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        vocabulary = self.sampler.model.get_output_embeddings().weight.shape[0]
        return rows_within(free, self.sampler.cache_layers, self.capacity, vocabulary)


def rows_within(
    free: int, layers: list[tuple[CacheLayer, CacheLayer]], capacity: int, vocabulary: int
) -> int:
    """Return how many rows of `capacity` tokens are decoded where so many bytes are free."""
    token = sum(x.heads * x.features * x.dtype.itemsize for layer in layers for x in layer)
    return max(1, int(MEMORY_SHARE * free / (capacity * token + BYTES_PER_LOGIT * vocabulary)))


def _layer_of(states: Tensor) -> CacheLayer:
    kind = states.device.type
    mixed = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if mixed else states.dtype
    return CacheLayer(states.shape[1], states.shape[3], dtype)


def round_up(columns: int) -> int:
    """Return for how many columns there is room where so many are needed."""
    return -(-columns // WIDTH_STEP) * WIDTH_STEP
