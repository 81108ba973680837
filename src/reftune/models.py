"""Language models: loading, a small Llama from scratch, and the policy with its value head."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from reftune.batches import spread
from reftune.config import Model
from reftune.reading import Reader, trunk_of
from reftune.types import Sequences, UserError

logging.disable_progress_bar()  # our own progress is on the screen

SCRATCH: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
# Numbers go digit by digit, a word or a line's indentation is one piece: arithmetic stays learnable.
PIECES = r" ?\d|\n *| ?[\p{L}_]+| ?[^\s\p{L}\d_]+|\s+"
LOGITS_PER_CHUNK = 2**24  # 64 MiB of float32
VALUE_HEAD_FILE = "value_head.safetensors"


class TokenScores(NamedTuple):
    """What the policy says of given responses, (batch, time) each; beyond a row's length they are 0."""

    logprobs: Float[Tensor, "batch time"]
    entropies: Float[Tensor, "batch time"]
    values: Float[Tensor, "batch time"]


class PolicyWithValue(nn.Module):
    """A causal language model, and optionally a critic that reads the state before each token.

    Args:
        policy: any AutoModelForCausalLM.
        critic: "none", "shared" (a linear head on the policy's last hidden state) or "separate"
            (the head on a trunk of its own, which starts as a copy of the policy's).
    """

    def __init__(self, policy: PreTrainedModel, critic: str = "none") -> None:
        super().__init__()
        self.policy = policy
        self.reader = Reader(policy)  # may change the policy: before it is copied
        self.value_trunk = copy.deepcopy(trunk_of(policy)) if critic == "separate" else None
        self.value_head: nn.Linear | None = None
        if critic != "none":
            width = policy.get_output_embeddings().weight.shape[1]
            self.value_head = nn.Linear(width, 1, device=policy.device, dtype=torch.float32)
            nn.init.zeros_(self.value_head.weight)  # an untrained critic says 0, not noise
            nn.init.zeros_(self.value_head.bias)

    def forward(self, sequences: Sequences, temperature: float = 1.0) -> TokenScores:
        """Score the given responses: log-probability, entropy and value at every response token.

        The value of token t is read at the position that predicts it, before it is emitted.
        """
        offsets = torch.arange(sequences.responses.shape[1], device=sequences.responses.device)
        mask = offsets < sequences.response_lengths.unsqueeze(1)
        states = self.reader(trunk_of(self.policy) if self.reader.plain_head else self.policy, sequences)
        targets = sequences.responses.flatten()[sequences.firsts]
        scores = (*self._score(states, targets, temperature), self._values(states, sequences))
        return TokenScores(*(torch.where(mask, spread(sequences, x), 0.0) for x in scores))

    def _score(self, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
        head = self.policy.get_output_embeddings() if self.reader.plain_head else nn.Identity()
        rows = max(1, LOGITS_PER_CHUNK // self.policy.get_output_embeddings().weight.shape[0])
        if len(states) <= rows:
            return _score_chunk(head, states, targets, temperature)
        # Logits of one chunk at a time, recomputed in backward: never (distinct, vocab).
        chunks = [
            checkpoint(_score_chunk, head, x, y, temperature, use_reentrant=False)
            for x, y in zip(states.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat(chunks, dim=1)

    def _values(self, states: Tensor, sequences: Sequences) -> Tensor:
        if self.value_head is None:
            return torch.zeros(len(states), device=states.device)
        if self.value_trunk is not None or not self.reader.plain_head:
            states = self.reader(self.value_trunk or trunk_of(self.policy), sequences)
        with torch.autocast(states.device.type, enabled=False):
            return torch.as_tensor(self.value_head(states.float())).squeeze(-1)

    def save(self, directory: Path) -> None:
        """Write a Hugging Face model directory, the critic beside it in a file of its own."""
        self.policy.save_pretrained(directory)
        critic = {k: v.contiguous() for k, v in self.state_dict().items() if k.startswith("value_")}
        if critic:
            save_file(critic, directory / VALUE_HEAD_FILE)

    def load_critic(self, directory: Path) -> None:
        """Read the critic back from a directory that `save` wrote."""
        self.load_state_dict(load_file(directory / VALUE_HEAD_FILE), strict=False)


def load_model(name: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model by Hugging Face name or from a directory.

    Raises UserError where there is none, or weights are missing, damaged or of another shape.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(name), dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = _reason(name, error)
        raise UserError(f"{name}: cannot load a causal language model: {reason}") from None
    model, loading = loaded
    if loading["missing_keys"]:  # transformers starts them at random
        first, *others = sorted(loading["missing_keys"])
        raise UserError(f"{name}: the weights of {first} and {len(others)} others are missing")
    assert isinstance(model, PreTrainedModel)
    return model


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; it must have an EOS token.

    Raises UserError where it is missing or cannot end a response.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{name}: cannot load a tokenizer: {_reason(name, error)}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{name}: the tokenizer has no EOS token; set eos_token in tokenizer_config.json"
        )
    return tokenizer


def build_model(
    settings: Model, texts: Iterable[str], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and tokenizer that a run starts from: loaded, or new and trained on `texts`.

    Raises UserError for an unknown scratch size or a model that cannot be loaded.
    """
    if settings.name is not None:
        return load_model(settings.name), load_tokenizer(settings.name)
    if settings.scratch not in SCRATCH:
        raise UserError(f"model.scratch: unknown size {settings.scratch}; choose {' or '.join(SCRATCH)}")
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    sizes: dict[str, Any] = {**SCRATCH[settings.scratch], **settings.scratch_overrides}
    eos = tokenizer.eos_token_id
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), eos_token_id=eos, bos_token_id=eos,
        max_position_embeddings=2048, tie_word_embeddings=True, **sizes,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # Not in the model's own config: there it would switch off the gradient of the EOS embedding.
    model.generation_config.pad_token_id = eos
    return model, tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer in which every digit is a token; its pad token is its EOS."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def _score_chunk(head: nn.Module, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities of the targets and (without gradient) entropies, stacked: (2, rows)."""
    logprobs = torch.log_softmax(head(states).float() / temperature, dim=-1)
    with torch.no_grad():
        entropies = -(logprobs.exp() * logprobs).sum(-1)
    return torch.stack((logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropies))


def _reason(name: str | Path, error: Exception) -> str:
    """Return the first line of a loading error, in words that fit a path, too."""
    if len(Path(name).parts) > 2 and not Path(name).exists():  # the hub's names have one slash at most
        return "no such directory"
    return str(error).strip().split("\n")[0]
