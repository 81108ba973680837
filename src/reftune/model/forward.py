"""Run a model over prompts and given responses, and return its states at the response positions.

Where responses share prompts and the model lets us (see `packing.take_over`), all tokens stand end
to end in one row without padding. A question's prompt is read once per batch, however many responses
it has, and so is what responses begin with alike: in the demo, with eight samples per question, less
than a quarter of the tokens is left. Otherwise rows are padded, which costs little because
micro-batches are sorted by length.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reftune.model.batch import Sequences, collate, gather_rows
from reftune.model.packing import pack, take_over, window


class PackedForward:
    """Run a causal language model over prompts and given responses, packed where it allows that.

    Args:
        model: the language model; its attention function may be replaced by an equal one.

    `lm_head_is_linear` tells whether its logits are just `head` of the backbone's last hidden states.
    Then the states are read, else the logits themselves.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.lm_head_is_linear = _lm_head_is_linear(model)
        self.supports_packing = take_over(model) and _packs_right(model)

    def body(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return what is run of a language model: its backbone where the head is linear, else all."""
        return backbone_of(model) if self.lm_head_is_linear else model

    def head(self, model: PreTrainedModel) -> nn.Module:
        """Return what turns the states of `body` into logits."""
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
        if shared and self.supports_packing and longest <= window(model.config):
            return _read_packed(model, sequences)
        return _read_rows(model, sequences)


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a language model without its head."""
    backbone = model.base_model
    assert isinstance(backbone, PreTrainedModel)
    return backbone


def _read_packed(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Read everything as one row; attention keeps the responses apart."""
    packed = pack(sequences)
    finished_mask = packed.ids.new_ones(1, 1, 1, 1)  # of four dimensions: transformers makes no other
    output = model(
        input_ids=packed.ids, attention_mask=finished_mask, position_ids=packed.positions,
        use_cache=False, within=packed,
    )  # fmt: skip
    return gather_rows(_states(output)[0], packed.logit_index)


def _read_rows(model: PreTrainedModel, sequences: Sequences) -> Tensor:
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


@torch.no_grad()
def _lm_head_is_linear(model: PreTrainedModel) -> bool:
    """Tell whether logits are just the output embedding of the backbone's last hidden state.

    Most models, but not all (soft-capped or scaled logits): ask the model itself rather than a list of
    names. Only bit for bit the same will do, for a soft cap hardly shows while the logits are small.
    """
    was_training = model.training
    model.eval()
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    expected = model(input_ids=ids).logits
    try:
        actual = model.get_output_embeddings()(backbone_of(model)(input_ids=ids).last_hidden_state)
    except (AttributeError, RuntimeError, TypeError):
        return False
    finally:
        model.train(was_training)
    return torch.equal(actual.float(), expected.float())


@torch.no_grad()
def _packs_right(model: PreTrainedModel) -> bool:
    """Tell whether a packed batch gives what padded rows give, by trying one."""
    was_training = model.training
    model.eval()
    trial = collate([[3, 1], [3, 1], [2, 4, 3], [3, 1]], [[4, 1, 2], [2], [1, 3], [4, 3]]).to(
        model.device
    )
    expected = _read_rows(model, trial).float()
    try:
        actual = _read_packed(model, trial).float()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train(was_training)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max())
