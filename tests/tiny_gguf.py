"""A tiny Llama as llama.cpp's converter writes it: one GGUF file with the weights and the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from reftune.config import Model
from reftune.model.scratch import new_model

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
CHAT = (
    "{% for message in messages %}<eos>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
NAMES = {  # of transformers' weights in a layer, as GGUF calls them
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "post_attention_layernorm": "ffn_norm", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def tiny_llama() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return a Llama with random weights, none of them near what they are initialised to."""
    settings = Model(scratch="tiny", scratch_overrides=SIZES, vocab_size=300)
    model, tokenizer = new_model(settings, ["She has 3 apples. So it is 5."], 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    assert isinstance(model, LlamaForCausalLM)
    return model.eval(), tokenizer


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    quantised: bool = False,
    **extra: Any,
) -> Path:
    """Write a model, in blocks of 8 bits if `quantised`.

    `extra` are further settings (numbers and texts), tensors, or an `architecture`.
    """
    config, kind = model.config, extra.pop("architecture", "llama")
    writer = GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer)
    tensors = {_name(name): _turned(name, w, config) for name, w in model.named_parameters()}
    for name, value in extra.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_float32(name, value)
    for name, tensor in tensors.items():
        numbers, blocks = tensor.detach().numpy(), GGMLQuantizationType.Q8_0
        if quantised and tensor.dim() == 2:
            writer.add_tensor(name, quantize(numbers, blocks), raw_dtype=blocks)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    spelled = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(spelled["vocab"], key=spelled["vocab"].get))
    writer.add_token_types([3 if i == 0 else 1 for i in range(len(spelled["vocab"]))])  # 3: control
    writer.add_token_merges([" ".join(pair) for pair in spelled["merges"]])
    for add in (writer.add_eos_token_id, writer.add_bos_token_id, writer.add_pad_token_id):
        add(tokenizer.eos_token_id)
    writer.add_chat_template(CHAT)


def _name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, number, part = name.removesuffix(".weight").split(".", 3)
        return f"blk.{number}.{NAMES[part]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[
        name
    ]


def _turned(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """Order a head's rows as llama.cpp rotates them: neighbours in pairs, not the halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            return weight.reshape(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    return weight
