"""Small Llamas and their tokenizers, made from scratch."""

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from reftune.config import Model
from reftune.problem import UserError

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


def new_model(
    settings: Model, texts: Iterable[str], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return a new model, and its tokenizer trained on `texts`.

    Raises UserError for an unknown size.
    """
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
