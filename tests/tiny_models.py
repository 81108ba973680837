"""Tiny random language models of families that differ in positions, attention windows and heads."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    CodeGenConfig,
    DeepseekV3Config,
    DiffLlamaConfig,
    Gemma2Config,
    Gemma3Config,
    GemmaConfig,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MoshiConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RemBertConfig,
    RobertaConfig,
)

VOCAB = 60
EOS = 1
WINDOW = 6  # shorter than the sequences in the tests

# A large initialisation: with the usual one, greedy decoding of a random model repeats one token.
_ROTARY: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "initializer_range": 0.3, "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": None,
}  # fmt: skip
_GPT: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
    "initializer_range": 0.3, "bos_token_id": EOS, "eos_token_id": EOS,
}  # fmt: skip


def _configs() -> dict[str, PreTrainedConfig]:
    return {
        "llama": LlamaConfig(**_ROTARY),
        "qwen2": Qwen2Config(**_ROTARY),
        "qwen3": Qwen3Config(**_ROTARY, head_dim=8),
        "gemma": GemmaConfig(**_ROTARY, head_dim=8, tie_word_embeddings=False),
        "gemma2": Gemma2Config(
            **_ROTARY, head_dim=8, sliding_window=WINDOW, final_logit_softcapping=3.0,
            tie_word_embeddings=False,
        ),
        "gpt2": GPT2Config(**_GPT),
        "opt": OPTConfig(
            vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            word_embed_proj_dim=16, max_position_embeddings=128, init_std=0.3,
            bos_token_id=EOS, eos_token_id=EOS, pad_token_id=None,
        ),
        "deepseek_v3": DeepseekV3Config(  # latent attention: keys are longer than values
            **_ROTARY | {"num_key_value_heads": 4}, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
            topk_group=1, moe_intermediate_size=16, first_k_dense_replace=1,
            experts_implementation="eager",
        ),
        "diffllama": DiffLlamaConfig(**_ROTARY),  # attends twice in a layer, to what it caches once
        "gemma3": Gemma3Config(  # its text settings are nested, beside those of a vision tower
            text_config=_ROTARY | {
                "head_dim": 8, "sliding_window": WINDOW,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            vision_config={
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
            },
            mm_tokens_per_image=4, tie_word_embeddings=False,
        ),
        "qwen3_moe": Qwen3MoeConfig(
            **_ROTARY, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
            experts_implementation="eager",
        ),
        "codegen": CodeGenConfig(**_GPT, rotary_dim=4),
        "mistral": MistralConfig(**_ROTARY, sliding_window=WINDOW),
        "qwen3_next": Qwen3NextConfig(  # every other layer keeps a recurrent state, not keys and values
            **_ROTARY, head_dim=8, layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=16, shared_expert_intermediate_size=16,
            experts_implementation="eager",  # the usual one knows no float64
        ),
    }  # fmt: skip


def _odd() -> dict[str, PreTrainedConfig]:
    """Return configurations that one test or another needs: most of them cannot be used."""
    bart = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    encoder = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return {
        "bart": BartConfig(  # counts positions from the left, padding included
            vocab_size=VOCAB, d_model=32, decoder_layers=2, decoder_attention_heads=4,
            decoder_ffn_dim=48, max_position_embeddings=128, init_std=0.3, **bart,
        ),
        "bert": BertConfig(  # sees what follows
            vocab_size=VOCAB, num_attention_heads=4, max_position_embeddings=128,
            initializer_range=0.3, **encoder,
        ),
        "llama4": Llama4TextConfig(  # its class calls its backbone by a name that it has not
            **_ROTARY, head_dim=8, intermediate_size_mlp=48, num_local_experts=2,
            attention_chunk_size=WINDOW, layer_types=["chunked_attention", "full_attention"],
        ),
        "rembert": RemBertConfig(  # its output embeddings are wider than its states
            vocab_size=VOCAB, hidden_size=32, input_embedding_size=16, output_embedding_size=48,
            num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, initializer_range=0.3,
            max_position_embeddings=128, is_decoder=True, pad_token_id=None,
        ),
        "moshi": MoshiConfig(  # has a window in its settings, and sees everything
            **_ROTARY, head_dim=8, ffn_dim=48, sliding_window=WINDOW, audio_vocab_size=None
        ),
        "mpt": MptConfig(vocab_size=VOCAB, d_model=32, n_heads=4, n_layers=2),  # weighs distances
        "roberta": RobertaConfig(  # counts positions from 2
            vocab_size=VOCAB, num_attention_heads=4, max_position_embeddings=128,
            initializer_range=0.3, is_decoder=True, **encoder,
        ),
    }  # fmt: skip


FAMILIES = sorted(_configs())


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a model in eval mode, the same for the same arguments; `changes` are config fields."""
    config = (_configs() | _odd())[family]
    config.update(changes)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


def random_model(family: str, **changes: Any) -> PreTrainedModel:
    """Return a model in which no weight or bias is what it is initialised to, 0 or 1."""
    model = tiny_model(family, **changes)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model
