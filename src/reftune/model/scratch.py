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
MOST_WEIGHTS = 10**9
# Numbers go digit by digit, a word or a line's indentation is one piece: arithmetic stays learnable.
PIECES = r" ?\d|\n *| ?[\p{L}_]+| ?[^\s\p{L}\d_]+|\s+"


def new_model(
    settings: Model, texts: Iterable[str], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return a new model, and its tokenizer trained on `texts`.

    Raises UserError for an unknown size, or sizes that do not go together.
    """
    sizes: dict[str, Any] = _sizes(settings)
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    eos = tokenizer.eos_token_id
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), eos_token_id=eos, bos_token_id=eos,
        max_position_embeddings=2048, tie_word_embeddings=True,
        initializer_range=settings.init_std, **sizes,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # Not in the model's own config: there it would switch off the gradient of the EOS embedding.
    model.generation_config.pad_token_id = eos
    return model, tokenizer


def _sizes(settings: Model) -> dict[str, int]:
    """Return the sizes of a new model, which must go together and fit into memory."""
    if settings.scratch not in SCRATCH:
        raise UserError(f"model.scratch: unknown size {settings.scratch}; choose {' or '.join(SCRATCH)}")
    place, base = "model.scratch_overrides", SCRATCH[settings.scratch]
    if unknown := settings.scratch_overrides.keys() - base.keys() - {"head_dim"}:
        raise UserError(f"{place}: unknown key {min(unknown)}; known keys: {', '.join(base)}, head_dim")
    sizes = {**base, **settings.scratch_overrides}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if "head_dim" not in sizes and hidden % heads:
        raise UserError(
            f"{place}: hidden_size = {hidden} is no multiple of num_attention_heads = {heads}"
        )
    if heads % (groups := sizes["num_key_value_heads"]):
        told = f"num_attention_heads = {heads} is no multiple of num_key_value_heads = {groups}"
        raise UserError(f"{place}: {told}")
    if (width := sizes.get("head_dim", hidden // heads)) % 2:
        raise UserError(f"{place}: heads are {width} wide; rotary embeddings need an even width")
    layer = hidden * (2 * width * (heads + groups) + 3 * sizes["intermediate_size"])
    if (weights := sizes["num_hidden_layers"] * layer + settings.vocab_size * hidden) > MOST_WEIGHTS:
        raise UserError(
            f"{place}: {weights:.1e} weights, {MOST_WEIGHTS:.0e} are allowed; lower the sizes"
        )
    return sizes


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
