"""Models in one GGUF file, llama.cpp's format, opened as ordinary ones: every weight dequantised.

transformers reads such files, but not all that may stand in them: what it leaves out is refused here.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    modeling_gguf_pytorch_utils,
)

from reftune.model.packing import text_config
from reftune.problem import UserError

NEEDED = "GGUF files need one more package: pip install 'reftune[gguf]'"
ROPE_FACTORS = ("rope_freqs", "rope_factors")  # beginnings of the tensors that scale rotary angles


def is_gguf(name: str | Path) -> bool:
    """Tell whether a model's name is that of a GGUF file."""
    return str(name).lower().endswith(".gguf")


def load_gguf(name: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the model of a GGUF file with dense weights, so that it trains and is saved as any other.

    Args:
        name: the file's path.
        options: as of `from_pretrained`.

    Returns also what transformers says of the loading. Raises what transformers raises, and UserError
    for a file that is damaged, or holds what transformers does not read.
    """
    _check(Path(name))
    reader = _open(name)
    with _silent():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **_place_of(name), quantization_config=GgufConfig(dequantize=True), **options
        )
    model, loading = loaded
    _refuse_unread(reader, model)
    model.config.name_or_path = model.name_or_path = name
    vars(model.config).pop("_model_name_or_path", None)  # what the file calls itself
    return model, loading


def gguf_architecture(name: str) -> PreTrainedConfig:
    """Load what the model of a GGUF file is made like; raise UserError where there is no such file."""
    _check(Path(name))
    with _silent():
        config: PreTrainedConfig = AutoConfig.from_pretrained(**_place_of(name))
    return config


def load_gguf_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a GGUF file, without tokens that the file does not have.

    transformers gives it GPT-2's end of text as one token more, which the model has no embedding for.
    """
    _check(Path(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(**_place_of(name), trust_remote_code=False)
    except Exception:
        _open(name)  # which says more of a damaged file
        raise
    spelled = json.loads(tokenizer.backend_tokenizer.to_str())
    own = [token for token in spelled["added_tokens"] if token["id"] < tokenizer.vocab_size]
    if len(own) < len(spelled["added_tokens"]):
        backend = Tokenizer.from_str(json.dumps(spelled | {"added_tokens": own}))
        kept = {key: text for key, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
        chat = tokenizer.chat_template
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat, **kept)
    return tokenizer


def _place_of(name: str) -> dict[str, str]:
    """Return where transformers finds a file, as arguments of its `from_pretrained`."""
    return {"pretrained_model_name_or_path": str(Path(name).parent), "gguf_file": Path(name).name}


def _check(path: Path) -> None:
    """Raise UserError where there is no such file, or nothing to read it with."""
    if not path.is_file():
        raise UserError("no such file")
    if find_spec("gguf") is None:
        raise UserError(NEEDED)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError("it is no GGUF file: those begin with GGUF")


def _open(path: str) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # whatever reading past the end raises
        raise UserError(f"it is cut off or damaged ({error}); fetch it again") from error


def _refuse_unread(reader: Any, model: PreTrainedModel) -> None:
    """Refuse a file of which transformers leaves out tensors, or how rotary angles are scaled."""

    def said(key: str, default: Any) -> Any:
        field = reader.fields.get(f"{architecture}.rope.{key}")
        return default if field is None else field.contents()

    architecture = reader.fields["general.architecture"].contents()
    scaled = said("scaling.type", "") != "none" and said("scaling.factor", said("scale_linear", 1)) != 1
    rotary: dict[str, Any] = getattr(text_config(model), "rope_parameters", None) or {}
    kinds = {x.get("rope_type") for x in (rotary, *rotary.values()) if isinstance(x, dict)}
    factors = any(tensor.name.startswith(ROPE_FACTORS) for tensor in reader.tensors)
    if (scaled or factors) and kinds <= {None, "default"}:
        raise UserError("it scales rotary positions, which transformers does not read of GGUF files")
    tied = ("output.weight",) if model.config.tie_word_embeddings else ()
    held = sum(int(x.n_elements) for x in reader.tensors if not x.name.startswith(ROPE_FACTORS + tied))
    weights = {x.data_ptr(): x.numel() for x in model.state_dict().values()}
    if held > (known := sum(weights.values())):
        told = f"it holds {held:,} weights, of which transformers takes {known:,}"
        raise UserError(f"{told}: its {model.config.model_type} models have no others")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from showing how far it is with a file: our own progress is on the screen."""
    module: Any = modeling_gguf_pytorch_utils
    shown = module.tqdm
    module.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        module.tqdm = shown
