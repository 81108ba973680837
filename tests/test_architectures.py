"""What docs/architectures.md says of thirty architectures that people use, tried again.

The tool of which this page comes compares trainer and sampler with each model's own reading of single
texts, and needs minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/architectures.md"
PADDED_DECODER = "packed in training, padded in sampling"
# How they are used, and why it is not otherwise; "refused: " is followed by a sentence.
KNOWN = {
    "llama": "packed",
    "qwen3": "packed",
    "gemma3": "packed",  # up to its window; its text settings are nested
    "gemma4_text+shared": PADDED_DECODER,  # layers that cache nothing
    "qwen3_moe": "packed",  # a mixture of experts
    "gpt2": "packed",
    "deepseek_v3": PADDED_DECODER,  # values have another size than keys
    "diffllama": PADDED_DECODER,  # attends to more than what it caches
    "gemma2": "padded",  # a soft cap in attention
    "gpt_oss": "padded",  # attention sinks
    "bloom": "padded",  # weighs distances
    "qwen3_next": "padded",  # recurrent states
    "moshi": "packed",  # within a window that it does not have
    "mamba": "refused",  # no key-value cache
    "bart": "refused",  # counts padding as positions
    "roberta": "refused",  # counts positions from 2
    "bert+encoder": "refused",  # sees what follows
}
OTHERS = [
    "qwen2", "qwen3_5", "mistral", "ministral", "mixtral", "phi3", "olmo2", "olmo3", "olmoe", "granite",
    "gpt_neox", "gptj", "gpt_neo", "opt", "falcon", "glm4", "smollm3", "cohere2", "jamba", "llama4",
    "gemma", "starcoder2",
]  # fmt: skip


def rows_of(table: str) -> dict[str, str]:
    """Return how each model type of a Markdown table is used."""
    return {kind: use for kind, (use, _) in columns_of(table).items()}


def columns_of(table: str) -> dict[str, tuple[str, str]]:
    """Return how each model type is used, and the largest gap of a log-probability; "": refused."""
    rows = re.findall(r"^\| (\S+) \| (.*) \| (.*) \|$", table, flags=re.MULTILINE)
    return {kind: (use, gap.strip()) for kind, use, gap in rows if kind not in ("model", "---")}


def test_the_page_knows_what_is_known_here() -> None:
    page = rows_of(PAGE.read_text(encoding="utf-8"))
    for kind, use in KNOWN.items():
        assert page[kind].split(":")[0] == use
    assert set(OTHERS) <= page.keys()
    assert not any("WRONG" in use for use in page.values())


def test_log_probabilities_are_those_of_the_model_to_1e_4_or_to_what_its_own_cache_is_off() -> None:
    found = columns_of(PAGE.read_text(encoding="utf-8"))
    far = {kind for kind, (use, gap) in found.items() if gap and float(gap) > 1e-4}
    assert far == {kind for kind, (use, _) in found.items() if "its own cache says" in use}
    assert sum(bool(gap) for _, gap in found.values()) == 151


@pytest.mark.slow
def test_trainer_and_sampler_say_what_models_say() -> None:
    command = [sys.executable, ROOT / "tools/architectures.py", *KNOWN, *OTHERS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = rows_of(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    page = rows_of(PAGE.read_text(encoding="utf-8"))
    assert found == {kind: page[kind] for kind in (*KNOWN, *OTHERS)}
