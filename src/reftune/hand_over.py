"""Hand a model over: a whole directory that any engine opens, with a card that says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reftune.files import atomic_directory, check_writable
from reftune.model.gguf import is_gguf
from reftune.model.loading import load_both, saved_dtype
from reftune.model.prompts import SETTINGS_FILE, saved_settings
from reftune.model.saving import ADAPTER_FOLDER
from reftune.problem import UserError
from reftune.reporting.run.model_card import Asked, model_card
from reftune.runs.run_dir import choose_model

EXAMPLE = "Ann has 3 coins and finds 4. How many?"


def export(
    source: str, out: Path, *, model: str | None = None, dtype: str | None = None,
    license: str | None = None, origin: str | None = None, name: str | None = None,
) -> Path:  # fmt: skip
    """Write a model as a directory with weights, tokenizer, settings and card; return the directory.

    Args:
        source: directory of a run or of a model, GGUF file, or Hugging Face name.
        out: where it goes, as a whole or not at all.
        model: which one of a run; default: the last finished one.
        dtype: of the weights; default: as they are.
        license: for the card, as the hub calls it, such as "apache-2.0"; default: the GGUF file's own.
        origin: where the model comes from, for the card.
        name: under which others will open it; default: `out`.

    Raises UserError where there is no such model, or something in `out` already.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: holds something already; give another --out, or remove it")
    check_writable(out.parent, is_directory=True)
    chosen, directory = choose_model(source, model)
    loaded, tokenizer = load_both(directory, dtype=_dtype(directory, dtype))
    asked = _asked(directory, loaded, tokenizer, name or str(out))
    card = model_card(directory, chosen, asked, license or _own_license(directory), origin)
    with atomic_directory(out) as temporary:
        loaded.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if (Path(directory) / SETTINGS_FILE).exists():
            _copy_settings(Path(directory), temporary, dtype)
        if (adapter := Path(directory) / ADAPTER_FOLDER).is_dir():
            shutil.copytree(adapter, temporary / ADAPTER_FOLDER)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return out


def upload(directory: Path, name: str, *, public: bool = False) -> str:
    """Upload a directory to the Hugging Face hub as the model `name`; return its address.

    Raises UserError, the directory being there, where the hub cannot be reached or does not let us.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        created = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory, commit_message="Upload with reftune")
    except Exception as error:  # of the connection, the token or the name: all of many types
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{name}: cannot be pushed to the hub ({reason}); the model is in {directory}: log in with"
            f" `hf auth login`, then `hf upload {name} {directory}`"
        ) from error
    return str(created)


def _dtype(directory: str, dtype: str | None) -> torch.dtype:
    found: torch.dtype = getattr(
        torch, dtype or ("float32" if is_gguf(directory) else saved_dtype(directory))
    )
    return found


def _asked(
    directory: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> Asked:
    """Return how others ask the model."""
    settings, prompt = saved_settings(directory), ""
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": EXAMPLE}]
        prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    most = model.generation_config.max_new_tokens if model.generation_config else None
    program = settings.get("data", {}).get("cot") == "program"
    adapter = ADAPTER_FOLDER if (Path(directory) / ADAPTER_FOLDER).is_dir() else ""
    return Asked(name, EXAMPLE, prompt, program, most or 300, bool(settings), adapter)


def _own_license(directory: str) -> str | None:
    if not is_gguf(directory):
        return None
    from gguf import GGUFReader

    field = GGUFReader(directory).fields.get("general.license")
    return None if field is None else str(field.contents())


def _copy_settings(source: Path, target: Path, dtype: str | None) -> None:
    """Copy what reftune asks the model with; the precision is that of the weights."""
    shutil.copyfile(source / SETTINGS_FILE, target / SETTINGS_FILE)
    if dtype is not None:
        settings = json.loads((target / SETTINGS_FILE).read_text(encoding="utf-8")) | {"dtype": dtype}
        (target / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
