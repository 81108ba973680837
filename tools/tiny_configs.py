"""Configurations that make a tiny model of any causal architecture of transformers.

Sizes are the same for all: whatever of `SIZES` a configuration class knows is set. `SPECIAL` has what
one architecture needs beyond that, mostly a layer that attends to everything, or sizes that must agree.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCABULARY = 60
OMIT = object()  # in SPECIAL: leave this one as it is
WINDOW = 6  # of whatever attends to the last tokens alone

SIZES: dict[str, Any] = {
    **dict.fromkeys((
        "hidden_size", "d_model", "n_embd", "embed_dim", "dim", "embedding_size", "word_embed_proj_dim",
        "input_embedding_size", "lru_width", "emb_dim", "dim_model",
    ), 32),
    **dict.fromkeys((
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
        "num_decoder_layers", "num_encoder_layers",
    ), 2),
    **dict.fromkeys((
        "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
        "encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads",
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "mamba_n_heads",
        "mamba_num_heads", "time_step_rank",
    ), 4),
    **dict.fromkeys((
        "num_key_value_heads", "num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token",
        "linear_num_key_heads", "linear_num_value_heads",
    ), 2),
    **dict.fromkeys((
        "head_dim", "d_kv", "attention_head_dim", "kv_channels", "q_lora_rank", "kv_lora_rank",
        "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "linear_key_head_dim",
        "linear_value_head_dim", "mamba_d_state", "state_size", "ssm_state_size",
        "hidden_size_per_layer_input",
    ), 8),
    **dict.fromkeys((
        "moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size", "mamba_d_head", "mamba_head_dim", "qk_head_dim",
    ), 16),
    **dict.fromkeys((
        "intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_ff",
        "d_inner", "ffn_hidden_size", "hidden_dim", "dff", "dim_ff",
    ), 48),
    **dict.fromkeys((
        "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length",
        "max_target_positions",
    ), 128),
    **dict.fromkeys((
        "sliding_window", "attention_window", "window_size", "attention_chunk_size",
        "attention_window_size",
    ), WINDOW),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
    # With the usual deviation, 0.02, every layer adds little and all faults are small.
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "pad_token_id": None,
    "mamba_d_ssm": 64, "rotary_dim": 4, "num_kv_shared_layers": 0, "is_decoder": True,
    "experts_implementation": "eager",
}  # fmt: skip
PADDING = {"pad_token_id": 0}  # some need the number
TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
HYBRID = {
    "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4,
    "layer_types": OMIT, "head_dim": OMIT, "attention_head_dim": OMIT,
}  # fmt: skip
INDEXED = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
    "indexer_compress_ratio": 2, "hc_lowrank": 8, "hc_count": 2,
}  # fmt: skip
SHARED = {  # the last two layers attend to what the first two have cached
    "num_kv_shared_layers": 2, "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "layer_types": OMIT},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3": {"outer": {"vision_config": TOWER, "mm_tokens_per_image": 4}},
    "git": {"vision_config": TOWER},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "layer_types": OMIT, "expert_layer_offset": 0,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4},
    "mamba2": {"head_dim": 16, "n_groups": 1},
    "nemotron_h": {"n_groups": 1},
    "prophetnet": {"num_hidden_layers": OMIT},
    "phi4_multimodal": {
        "outer": {
            "vision_config": TOWER,
            "audio_config": {
                "hidden_size": 32, "intermediate_size": 48, "num_blocks": 1, "num_attention_heads": 4,
                "ext_pw_out_channel": 32, "nemo_conv_channels": 32,
            },
        },
    },
    "qwen4_exp": INDEXED,
    "qwen4_exp_text": INDEXED,
    "reformer": {"axial_pos_shape": (8, 16), "axial_pos_embds_dim": (16, 16), "num_hidden_layers": OMIT},
    "roc_bert": {
        "shape_embed_dim": 8, "shape_vocab_size": 60, "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 60,
    },
    "xmod": PADDING | {"default_language": "en_XX"},
    "recurrent_gemma": {"layer_types": OMIT, "num_hidden_layers": 3},
    "xlstm": {"v_head_dim": OMIT},
    "zamba": HYBRID,
    "zamba2": HYBRID,
    "zaya": {"num_experts_per_tok": 1},
    # The same architectures in another way.
    "bert+encoder": {"is_decoder": False},
    "falcon+alibi": {"alibi": True},
    "falcon+groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma3n_text+shared": SHARED,
    "gemma4_text+shared": SHARED | {"global_head_dim": 16} | PADDING,
    "qwen2+window": {
        "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"],
    },
    **dict.fromkeys((
        "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
        "emu3", "modernbert-decoder",
    ), PADDING),
    **dict.fromkeys(
        ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
        {"global_head_dim": 16} | PADDING,
    ),
}  # fmt: skip


VARIANTS = [kind for kind in SPECIAL if "+" in kind]


def tiny_config(kind: str) -> PreTrainedConfig:
    """Return a tiny configuration of one model type, or of a variant in `SPECIAL` as `type+variant`."""
    plain = CONFIG_MAPPING[kind.split("+")[0]]()
    text = plain.get_text_config(decoder=True)
    settings = {k: v for k, v in SIZES.items() if _takes(text, k)}
    kinds = list(dict.fromkeys(getattr(text, "layer_types", None) or []))
    if len(kinds) > 1:  # one layer of each kind, the last of which attends to everything
        kinds.sort(key=lambda name: name == "full_attention")
        settings |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    if _takes(text, "kv_lora_rank"):  # latent attention has as many heads of keys as of queries
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    settings |= SPECIAL.get(kind, {})
    settings = {k: v for k, v in settings.items() if v is not OMIT}
    outer = settings.pop("outer", {})
    if type(text) is type(plain):
        return type(plain)(**settings, **outer)
    name = next(k for k in ("decoder", "generator", "text_config") if vars(plain).get(k) is text)
    return type(plain)(**{name: type(text)(**settings)}, **outer)


def _takes(config: PreTrainedConfig, name: str) -> bool:
    """Tell whether a setting exists and may be set."""
    found = getattr(type(config), name, None)
    if isinstance(found, property) and found.fset is None:
        return False
    try:
        return hasattr(config, name)
    except Exception:  # of a setting that differs from layer to layer
        return True
