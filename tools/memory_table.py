"""Print docs/memory.md's table: what PPO takes for models of four sizes, in each mode, by calculation.

    python tools/memory_table.py

The shapes are those of Qwen2.5 0.5B, 1.5B and 3B and of Llama 3.1 8B; no weights are loaded.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from reftune.config import Config
from reftune.planning.machine import Machine
from reftune.planning.memory import gib, memory, total
from reftune.planning.shapes import shape_of
from reftune.planning.workload import Lengths, works

MODELS: dict[str, PreTrainedConfig] = {
    "0.5B": Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
    ),
    "1.5B": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
    ),
    "3B": Qwen2Config(
        hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
        num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
    ),
    "8B": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False,
    ),
}  # fmt: skip
HALF: dict[str, Any] = {"model": {"dtype": "bfloat16"}}
LESS: dict[str, Any] = {"compute": {"gradient_checkpointing": True, "offload_reference": True}}
MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": HALF,
    "bfloat16, gradient checkpointing, reference on the CPU": HALF | LESS,
    "the same, 8-bit moments": {"model": {"dtype": "bfloat16", "optimizer": "adamw_8bit"}} | LESS,
    "LoRA of rank 16, bfloat16": HALF | {"lora": {"rank": 16}},
    "LoRA of rank 16, bfloat16, gradient checkpointing": HALF | LESS | {"lora": {"rank": 16}},
}
CARD = Machine("a card", 0.0, 0.0, gpu=True)
LENGTHS = Lengths(
    prompt=150.0, longest_prompt=250, response=150.0, longest_response=300, example=300.0,
    longest_example=550,
)  # fmt: skip
COUNTS = {"train": 7000, "annotated": 7000, "validation": 200, "test": 1000, "models": 3}


def peak(architecture: PreTrainedConfig, mode: dict[str, Any]) -> float:
    """Return the bytes of PPO's fullest moment, the program itself aside."""
    sections = mode | {"model": {"name": "any", **mode.get("model", {})}}
    sections["ppo"] = {"questions_per_step": 32, "samples_per_question": 8}
    config = Config.model_validate(sections)
    [work] = [work for work in works(config, LENGTHS, COUNTS) if work.name == "ppo"]
    moments = memory(work, shape_of(architecture, config), config, CARD)
    return max(map(total, moments.values()))


def main() -> None:
    """Print the table in Markdown."""
    print("| PPO, GiB | " + " | ".join(MODELS) + " |\n|---|" + "---:|" * len(MODELS))
    for name, mode in MODES.items():
        cells = [gib(peak(architecture, mode)) for architecture in MODELS.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
