"""Run a model over prompts and given responses, and return its states at the response positions.

Where responses share prompts and the model lets us (see `packing.take_over`), all tokens stand end
to end in one row without padding. A question's prompt is read once per batch, however many responses
it has, and so is what responses begin with alike: in the demo, with eight samples per question, less
than a quarter of the tokens is left. Otherwise rows are padded, which costs little because
micro-batches are sorted by length.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from reftune.model.batch import Sequences, collate, gather_rows
from reftune.model.packing import pack, take_over, window
from reftune.problem import UserError

# Read at load to see what a model can do: prompts of different lengths, responses that begin alike.
TRIAL = (
    [[3, 4], [3, 4], [5, 6, 7, 8], [3, 4], [9]],
    [[10, 3, 5], [5], [4, 6], [10, 4], [8, 8]],
)
LONGEST_GIST = 300  # characters
Head = Callable[[Tensor], Tensor]  # from the states of a body to logits
EXACT, HALF = 1e-3, 5e-2  # what rounding makes of float32 and of 16 bits, as a share of the largest


class PackedForward:
    """Run a causal language model over prompts and given responses, packed where it allows that.

    Args:
        model: the language model; its attention function may be replaced by an equal one.
        float32_head: whether `head` computes in float32, whatever the weights and the states are in.

    Raises UserError for a model that says of a text in a batch, or of its beginning, something else than
    of it alone: numbers that are wrong without a word are worse than none. And for one with
    `float32_head` whose logits are not just `head`.

    `lm_head_is_linear` tells whether its logits are just `head` of the backbone's last hidden states.
    Then the states are read, else the logits themselves.
    """

    def __init__(self, model: PreTrainedModel, *, float32_head: bool = False) -> None:
        takes_structure = take_over(model)
        tolerance = EXACT if model.dtype.itemsize >= 4 else HALF
        try:
            self.lm_head_is_linear = _lm_head_is_linear(model)
            with evaluating(model):
                expected = _read_alone(model, trial_batch(model))
                right = agrees(read_rows(model, trial_batch(model)), expected, tolerance)
        except Exception as error:  # whatever a model of another kind may raise
            reason = first_line(error)
            raise UserError(f"{kind_of(model)} cannot read a few tokens: {reason}") from error
        if not right:
            raise UserError(
                f"{kind_of(model)} cannot be used: what it says of a text in a batch is not what it says"
                " of it alone (it sees what follows, or counts positions in a way of its own)"
            )
        self.float32_head = float32_head
        if float32_head and not (
            self.lm_head_is_linear and isinstance(model.get_output_embeddings(), nn.Linear)
        ):
            raise UserError(
                f"model.float32_head: the logits of {kind_of(model)} come not from a linear head alone;"
                " leave it out"
            )
        self.supports_packing = takes_structure and _packs_right(model, expected, tolerance)

    def body(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return what is run of a language model: its backbone where the head is linear, else all."""
        return backbone_of(model) if self.lm_head_is_linear else model

    def head(self, model: PreTrainedModel) -> Head:
        """Return what turns the states of `body` into logits."""
        if self.float32_head:
            return partial(_in_float32, model.get_output_embeddings())
        return model.get_output_embeddings() if self.lm_head_is_linear else nn.Identity()

    def __call__(self, model: PreTrainedModel, sequences: Sequences) -> Tensor:
        """Return what the model says at the positions that predict each distinct response token.

        Args:
            model: a backbone, whose last hidden states are returned, or a language model, whose logits
                are; of the same kind as the one that this packed_forward was made for.
            sequences: prompts and responses.

        Returns:
            (distinct, features); `batch.gather_nodes` tells what that is for every response token.
        """
        longest = sequences.prompts.shape[1] + sequences.responses.shape[1]
        shared = len(sequences.prompts) < len(sequences.responses)
        if shared and self.supports_packing and longest <= window(model):
            return _read_packed(model, sequences)
        return read_rows(model, sequences)


def _in_float32(head: nn.Linear, states: Tensor) -> Tensor:
    """Return the logits of a linear head in float32: no product or sum is rounded to 16 bits."""
    bias = None if head.bias is None else head.bias.float()
    with torch.autocast(states.device.type, enabled=False):
        return functional.linear(states.float(), head.weight.float(), bias)


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a language model without its head."""
    backbone = model.base_model
    if backbone is model:  # it calls its backbone otherwise than its class says (Llama 4's text model)
        backbone = next((x for x in model.children() if isinstance(x, PreTrainedModel)), model)
    assert isinstance(backbone, PreTrainedModel)
    return backbone


def state_width(model: PreTrainedModel) -> int:
    """Return how many numbers a backbone says of each token; not every model tells."""
    with evaluating(model):
        ids = torch.tensor([[1, 2, 3]], device=model.device)
        return _states(backbone_of(model)(input_ids=ids)).shape[-1]


def _read_packed(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Read everything as one row; attention keeps the responses apart."""
    packed = pack(sequences)
    finished_mask = packed.ids.new_ones(1, 1, 1, 1)  # of four dimensions: transformers makes no other
    output = model(
        input_ids=packed.ids, attention_mask=finished_mask, position_ids=packed.positions,
        use_cache=False, within=packed,
    )  # fmt: skip
    return gather_rows(_states(output)[0], packed.logit_index)


def read_rows(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Read prompt and response as one right-padded row each.

    Attention is causal, so no real token ever sees the padding, and no mask is needed.
    """
    width, time = sequences.prompts.shape[1], sequences.responses.shape[1]
    joined = torch.cat((sequences.prompts[sequences.prompt_index], sequences.responses), dim=1)
    lengths = sequences.prompt_lengths[sequences.prompt_index].unsqueeze(1)
    columns = torch.arange(width + time, device=joined.device)
    ids = joined.gather(1, (columns + width - lengths).clamp(max=width + time - 1))
    longest = int((lengths.squeeze(1) + sequences.response_lengths).max())
    index = (lengths - 1 + columns[:time]).clamp(max=longest - 1)
    positions = columns[:longest].expand(len(ids), -1)
    states = _states(model(input_ids=ids[:, :longest], position_ids=positions, use_cache=False))
    where = torch.arange(len(ids), device=ids.device).unsqueeze(1) * longest + index
    return gather_rows(states.flatten(0, 1), where.flatten()[sequences.first_occurrence])


def _states(output: object) -> Tensor:
    states = getattr(output, "last_hidden_state", None)
    if states is None:
        states = output.logits  # type: ignore[attr-defined]
    assert isinstance(states, Tensor)
    return states


def kind_of(model: PreTrainedModel) -> str:
    """Return how error messages call a model."""
    return f"a model of type {model.config.model_type}"


def first_line(error: Exception) -> str:
    """Return the gist of an error from elsewhere: its first line, or two if that announces the next."""
    lines = [line.strip() for line in str(error).strip().split("\n")]
    gist = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    gist = gist if " " in gist else f"{type(error).__name__}: {gist}".rstrip(": ")
    return gist if len(gist) <= LONGEST_GIST else f"{gist[:LONGEST_GIST]} ..."


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off for a while."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def agrees(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Tell whether numbers are equal but for rounding; the tolerance is a share of the largest one."""
    error = (actual - expected).float().abs().max()
    return bool(error <= tolerance * expected.float().abs().max())


def trial_batch(model: PreTrainedModel) -> Sequences:
    """Return the batch that is read to see what a model can do."""
    return collate(*TRIAL).to(model.device)


def _read_alone(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Read what precedes each distinct response token by itself, as whoever made the model would."""
    time = sequences.responses.shape[1]
    said: dict[tuple[int, ...], Tensor] = {}
    texts = []
    for first in sequences.first_occurrence.tolist():
        row, step = first // time, first % time
        prompt = int(sequences.prompt_index[row])
        tokens = sequences.prompts[prompt, -int(sequences.prompt_lengths[prompt]) :]
        text = torch.cat((tokens, sequences.responses[row, :step]))
        texts.append(tuple(text.tolist()))
        if texts[-1] not in said:
            said[texts[-1]] = _states(model(input_ids=text.unsqueeze(0)))[0, -1]
    return torch.stack([said[text] for text in texts])


def _lm_head_is_linear(model: PreTrainedModel) -> bool:
    """Tell whether logits are just the output embedding of the backbone's last hidden state.

    Most models, but not all (soft-capped or scaled logits): ask the model itself rather than a list of
    names. Only bit for bit the same will do, for a soft cap hardly shows while the logits are small.
    """
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    with evaluating(model):
        expected = model(input_ids=ids).logits
        try:
            actual = model.get_output_embeddings()(backbone_of(model)(input_ids=ids).last_hidden_state)
        except (AttributeError, RuntimeError, TypeError):
            return False
    return torch.equal(actual.float(), expected.float())


def _packs_right(model: PreTrainedModel, expected: Tensor, tolerance: float) -> bool:
    """Tell whether a packed batch gives what each row gives alone, by trying one."""
    try:
        with evaluating(model):
            return agrees(_read_packed(model, trial_batch(model)), expected, tolerance)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
