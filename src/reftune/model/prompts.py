"""Text to token ids and back: the question's prompt, the annotated response, the sampled completion.

An SFT example is encoded in the same three pieces that RL works with - prompt, forced opening, rest -
so the boundary at which sampling starts is a token boundary the model was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from reftune.config import Model, Prompt
from reftune.files import read_object, require_object
from reftune.model.chat import Chat
from reftune.model.chat_template import chat_template
from reftune.model.wording import PROGRAM_HEAD, Wording, resolved
from reftune.problem import Cot, Problem, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTINGS_FILE = "reftune_prompt.json"
SHOT_END = "\n\n"  # in plain text, between an example and what follows


def make_prompter(
    tokenizer: PreTrainedTokenizerBase, settings: Prompt, cot: Cot, eos_token: str | None = None
) -> Prompter:
    """Return the prompter of a model, whose style is found out where the settings leave it open.

    A model that reftune has trained is asked as it was trained. In a chat the tokenizer's EOS becomes
    what the chat template writes behind an answer.

    Args:
        tokenizer: of the model, from its own directory.
        settings, cot: how it is asked, and the kind of chain.
        eos_token: what the user has said of it (`model.eos_token`), which the tokenizer knows already.

    Raises UserError where the chat template does not fit the settings, or nothing ends an answer.
    """
    place = tokenizer.name_or_path
    saved = saved_settings(place).get("prompt") if place else None
    style = _style(tokenizer, settings, saved)
    settings = resolved(settings.model_copy(update={"style": style}), cot)
    if style == "chat":
        chat = Chat(tokenizer, settings)
        chat.check()
        if saved is None and eos_token is None:
            tokenizer.eos_token = chat.turn_end()
    return Prompter(tokenizer, settings, cot)


def _style(tokenizer: PreTrainedTokenizerBase, settings: Prompt, saved: Mapping[str, Any] | None) -> str:
    """Return the style that the settings say, or else the tokenizer."""
    name = tokenizer.name_or_path or "the tokenizer"
    known = "chat" if tokenizer.chat_template else "plain"
    if saved is not None:  # a model trained on plain text carries its prompt as a chat template
        known = saved["style"]
    if settings.style == "chat" and known == "plain":
        why = "has no chat template" if saved is None else "was trained by reftune on plain text"
        raise UserError(f'prompt.style = "chat": {name} {why}; set prompt.style = "plain"')
    style = known if settings.style == "auto" else settings.style
    if style == "plain" and settings.style == "auto":
        for key in ("system", "template_args"):
            if getattr(settings, key):
                raise UserError(
                    f"prompt.{key} has no effect: {name} is asked in plain text; leave it out"
                )
    return style


@dataclass(frozen=True)
class Prompter:
    """Turns problems into token ids, and sampled ids into completions.

    `shots` are solved examples that stand before each question: in plain text one after the other, in a
    chat as its earlier turns.
    """

    tokenizer: PreTrainedTokenizerBase
    settings: Prompt
    cot: Cot
    shots: tuple[Problem, ...] = ()

    @cached_property
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
        words = self.wording
        rest = words.rest(problem) if completion is None else words.given(completion)
        return self._question(problem), [*self._opening(problem), *self._continuation(rest), self.eos]

    def decode(self, problem: Problem, tokens: Sequence[int], finished: bool) -> str:
        """Return the completion that sampled tokens spell: a whole program, or reasoning with an answer.

        The docstring is left out of a program: it is the question's text, and computes nothing.
        """
        ids = list(tokens[:-1] if finished else tokens)
        if self.wording.asked.answer_style != "function":
            return self._text(ids)
        # Some tokenizers drop the first token's space: decode together with what precedes it.
        opening = self._opening(problem)
        return PROGRAM_HEAD + self._text(opening + ids)[len(self._text(opening)) :]

    def prompt_text(self, problem: Problem) -> str:
        """Return the prompt as the model gets it, special tokens included."""
        return self._text(self.encode_prompt(problem), special=True)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text that tokens spell by themselves, special tokens left out."""
        return self._text(list(tokens))

    def spell(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token; one that only begins a letter has none, the next the whole."""
        if not self.tokenizer.is_fast:
            return [self._text([token], special=True) for token in tokens]
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(self.tokenizer._tokenizer, token) or "" for token in tokens]

    def save(
        self, directory: Path, trained: Mapping[str, Any] | None = None, dtype: str = "float32"
    ) -> None:
        """Write the tokenizer, with a plain prompt as its chat template, and the settings of both.

        Args:
            trained: which stage and step the model comes from, and how good it was there.
            dtype: the precision in which the model is asked.
        """
        tokenizer = copy(self.tokenizer)
        asked = self.wording.asked
        if asked.style == "plain":
            tokenizer.chat_template = chat_template(asked, self._begin())
        tokenizer.save_pretrained(directory)
        settings = {
            "cot": self.cot,
            "prompt": asked.model_dump(),
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

    def rewriting(self, problem: Problem) -> str | None:
        """Say how a chat template would write an annotated response, if not as it is trained."""
        if self.wording.asked.style == "plain":
            return None
        question, *answer = self.wording.pieces(problem)
        chat = Chat(self.tokenizer, self.wording.asked)
        return chat.rewriting(question, "".join(answer), *self.encode_example(problem))

    def _question(self, problem: Problem) -> list[int]:
        text, shots = self.wording.question(problem), map(self.wording.pieces, self.shots)
        if self.wording.asked.style == "chat":
            turns = [(asked, "".join(said)) for asked, *said in shots]
            return Chat(self.tokenizer, self.wording.asked, turns).ids(text)
        # Examples in the pieces of what is asked: as one text a program's opening would be other tokens.
        pieces = [piece for asked, *said in shots for piece in (asked, *said[:-1], said[-1] + SHOT_END)]
        first, *others = [*pieces, text]
        ids, bos = self._plain(first), self.tokenizer.bos_token_id
        # See what the tokenizer does: the attribute add_bos_token is often missing, or lost on saving.
        starts_with_bos = self.tokenizer(first).input_ids[: len(ids) + 1] == [bos, *ids]
        begin = [bos, *ids] if starts_with_bos else ids
        return begin + [token for piece in others if piece for token in self._continuation(piece)]

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

    def _text(self, ids: list[int], *, special: bool = False) -> str:
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        )


def trained_at(directory: Path) -> dict[str, Any]:
    """Return what `Prompter.save` was told of where a model comes from; nothing where there is none.

    Raises UserError where that cannot be read.
    """
    saved = _saved(directory, "delete that directory, and its model is trained again")
    return dict(saved.get("trained", {}))


def saved_settings(model: str, cot: str | None = None) -> dict[str, Any]:
    """Return the config values that a model was trained with, none where reftune did not train it.

    Args:
        model: its directory.
        cot: the kind of chain that is asked for; what only fits the model's own kind is left out for
            another, which is how it writes answers, and what a chat asks for.

    Raises UserError where they cannot be read.
    """
    saved = _saved(Path(model), "give a directory that reftune has written")
    if not saved:
        return {}
    prompt = dict(saved["prompt"])
    if cot not in (None, saved["cot"]):
        del prompt["answer_style"]
        if prompt["style"] == "chat":
            del prompt["template"]
    return {"data": {"cot": saved["cot"]}, "prompt": prompt, "model": {"dtype": saved["dtype"]}}


def _saved(directory: Path, fix: str) -> dict[str, Any]:
    """Read what `Prompter.save` wrote; nothing where it has written nothing."""
    path = directory / SETTINGS_FILE
    if not path.exists():
        return {}
    saved = read_object(path, fix)
    trained = require_object(saved.get("trained", {}), f"{path}: trained", fix)
    try:
        cot = TypeAdapter(Cot).validate_python(saved["cot"])
        prompt = require_object(saved["prompt"], f"{path}: prompt", fix)
        prompt = Prompt.model_validate({"style": "plain"} | prompt).model_dump()  # older ones have none
        dtype = Model(name="m", dtype=saved.get("dtype", "float32")).dtype  # older ones have none
    except (ValueError, KeyError) as error:
        reason = f"{error}".partition("\n")[0]
        raise UserError(f"{path}: not the settings that reftune wrote: {reason}; {fix}") from None
    return {"cot": cot, "prompt": prompt, "dtype": dtype, "trained": trained}
