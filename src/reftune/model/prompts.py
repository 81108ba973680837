"""Text to token ids and back: the question's prompt, the annotated response, the sampled completion.

An SFT example is encoded in the same three pieces that RL works with - prompt, forced opening, rest -
so the boundary at which sampling starts is a token boundary the model was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from reftune.config import Model, Prompt
from reftune.files import read_object, require_object
from reftune.model.chat_template import chat_template
from reftune.problem import Cot, Problem, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROGRAM_HEAD = "def solution():\n"
SETTINGS_FILE = "reftune_prompt.json"


@dataclass(frozen=True)
class Wording:
    """The strings around a question and its chain (Luong et al. 2024), before any tokenizer."""

    settings: Prompt
    cot: Cot

    def question(self, problem: Problem) -> str:
        """Return the prompt."""
        return self.settings.template.replace("{question}", problem.question)

    def opening(self, problem: Problem) -> str:
        """Return the start of the response that RL and evaluation give away (programs only)."""
        if self.cot == "natural":
            return ""
        # Whatever the question holds, it must not end its own docstring.
        text = problem.question.replace("\\", "\\\\").replace('"""', "'''")
        if text.endswith('"'):
            text = text[:-1] + '\\"'
        return PROGRAM_HEAD + (f'    """{text}"""\n' if self.settings.repeat_question else "")

    def rest(self, problem: Problem) -> str:
        """Return what the annotated response says after the opening.

        Raises UserError if there is no chain, or a program does not define solution().
        """
        if problem.chain is None:
            raise UserError(f"problem {problem.id} has no chain; SFT needs annotated problems")
        if self.cot == "natural":
            return f"{problem.chain}{self.settings.trigger}{problem.answer}"
        if not problem.chain.startswith(PROGRAM_HEAD):
            raise UserError(f'problem {problem.id}: a program chain must start with "def solution():"')
        return problem.chain.removeprefix(PROGRAM_HEAD).rstrip()

    def pieces(self, problem: Problem) -> list[str]:
        """Return an annotated problem as the texts that are encoded one by one."""
        return [self.question(problem), self.opening(problem), self.rest(problem)]


@dataclass(frozen=True)
class Prompter:
    """Turns problems into token ids, and sampled ids into completions."""

    tokenizer: PreTrainedTokenizerBase
    settings: Prompt
    cot: Cot

    @property
    def wording(self) -> Wording:
        """Return the strings that this prompter encodes."""
        return Wording(self.settings, self.cot)

    @property
    def eos(self) -> int:
        """Return the id that ends a response."""
        eos = self.tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise UserError("the tokenizer has no EOS token; set model.eos_token")
        return eos

    def encode_prompt(self, problem: Problem) -> list[int]:
        """Return the ids that a response is sampled from (for programs the opening included)."""
        return self._question(problem) + self._opening(problem)

    def encode_example(
        self, problem: Problem, completion: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Return (prompt, response) ids as SFT trains on them, of the annotated or a given completion.

        The response is all that follows the question, the opening of a program included.
        """
        if completion is None:
            rest = self.wording.rest(problem)
        else:
            rest = completion.removeprefix(PROGRAM_HEAD) if self.cot == "program" else completion
        return self._question(problem), [*self._opening(problem), *self._continuation(rest), self.eos]

    def decode(self, problem: Problem, tokens: Sequence[int], finished: bool) -> str:
        """Return the completion that sampled tokens spell: a whole program, or reasoning with an answer.

        The docstring is left out of a program: it is the question's text, and computes nothing.
        """
        ids = list(tokens[:-1] if finished else tokens)
        if self.cot == "natural":
            return self._text(ids)
        # Some tokenizers drop the first token's space: decode together with what precedes it.
        opening = self._opening(problem)
        return PROGRAM_HEAD + self._text(opening + ids)[len(self._text(opening)) :]

    def save(
        self, directory: Path, trained: Mapping[str, Any] | None = None, dtype: str = "float32"
    ) -> None:
        """Write the tokenizer, with the prompt as its chat template, and the settings of both.

        Args:
            trained: which stage and step the model comes from, and how good it was there.
            dtype: the precision in which the model is asked.
        """
        tokenizer = copy(self.tokenizer)
        tokenizer.chat_template = chat_template(self.settings, self.cot, self._begin())
        tokenizer.save_pretrained(directory)
        settings = {
            "cot": self.cot,
            "prompt": self.settings.model_dump(),
            "dtype": dtype,
            "trained": dict(trained or {}),
        }
        (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _begin(self) -> str:
        """Return what stands before a prompt's text where nothing is added to it: BOS, or nothing."""
        problem = Problem("", "?", "")
        text, ids, bos = (
            self.wording.question(problem),
            self._question(problem),
            self.tokenizer.bos_token,
        )
        if ids == self._plain(text):
            return ""
        # Some tokenizers put a space before what begins a text, but not before what follows the BOS.
        return f"{bos} " if ids != self._plain(f"{bos}{text}") else str(bos)

    def _question(self, problem: Problem) -> list[int]:
        text = self.wording.question(problem)
        ids, bos = self._plain(text), self.tokenizer.bos_token_id
        # See what the tokenizer does: the attribute add_bos_token is often missing, or lost on saving.
        starts_with_bos = self.tokenizer(text).input_ids[: len(ids) + 1] == [bos, *ids]
        return [bos, *ids] if starts_with_bos else ids

    def _opening(self, problem: Problem) -> list[int]:
        return self._continuation(self.wording.opening(problem))

    def _continuation(self, text: str) -> list[int]:
        """Encode text that continues other text.

        Tokenizers of the SentencePiece kind put a space before whatever they encode, which would
        indent a program's first line wrongly: encode behind a newline then, and drop the newline.
        """
        ids = self._plain(text)
        anchor = self._plain("\n")
        if self._text(anchor + ids) == "\n" + text:
            return ids
        anchored = self._plain("\n" + text)
        return anchored[len(anchor) :] if anchored[: len(anchor)] == anchor else ids

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _text(self, ids: list[int]) -> str:
        return str(
            self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


def trained_at(directory: Path) -> dict[str, Any]:
    """Return what `Prompter.save` was told of where a model comes from; nothing where there is none.

    Raises UserError where that cannot be read.
    """
    saved = _saved(directory, "delete that directory, and its model is trained again")
    return dict(saved.get("trained", {}))


def saved_settings(model: str) -> dict[str, Any]:
    """Return the config values that a model was trained with, none where reftune did not train it.

    Raises UserError where they cannot be read.
    """
    saved = _saved(Path(model), "give a directory that reftune has written")
    if not saved:
        return {}
    return {
        "data": {"cot": saved["cot"]}, "prompt": saved["prompt"], "model": {"dtype": saved["dtype"]}
    }  # fmt: skip


def _saved(directory: Path, fix: str) -> dict[str, Any]:
    """Read what `Prompter.save` wrote; nothing where it has written nothing."""
    path = directory / SETTINGS_FILE
    if not path.exists():
        return {}
    saved = read_object(path, fix)
    trained = require_object(saved.get("trained", {}), f"{path}: trained", fix)
    try:
        cot = TypeAdapter(Cot).validate_python(saved["cot"])
        prompt = Prompt.model_validate(saved["prompt"]).model_dump()
        dtype = Model(name="m", dtype=saved.get("dtype", "float32")).dtype  # older ones have none
    except (ValueError, KeyError) as error:
        reason = f"{error}".partition("\n")[0]
        raise UserError(f"{path}: not the settings that reftune wrote: {reason}; {fix}") from None
    return {"cot": cot, "prompt": prompt, "dtype": dtype, "trained": trained}
