"""A question as a turn of a chat, in the words of the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reftune.config import Prompt
from reftune.problem import UserError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED, _SAID = "What is 48 + 24?", "It is 72"  # no template changes or knows them


@dataclass(frozen=True)
class Chat:
    """Renders questions with a tokenizer's chat template, the settings' system message and arguments."""

    tokenizer: PreTrainedTokenizerBase
    settings: Prompt
    shots: Sequence[tuple[str, str]] = ()  # earlier turns: examples with their answers

    @property
    def name(self) -> str:
        """Return what sentences call the template."""
        return f"the chat template of {self.tokenizer.name_or_path or 'the tokenizer'}"

    def ids(self, question: str) -> list[int]:
        """Return the ids of a chat up to where the assistant's answer begins.

        The template says what begins a text, BOS included: nothing is added to it.
        """
        return self._ids(question)

    def check(self) -> None:
        """Raise UserError where the template fails, or leaves out what it is given."""
        for name in self.settings.template_args:
            if name not in str(self.tokenizer.chat_template):
                raise UserError(f"prompt.template_args: {self.name} knows no {name}; leave it out")
        text = self._text(_ASKED)
        if _ASKED not in text:
            raise UserError(f'{self.name} leaves out what the user says; set prompt.style = "plain"')
        if self.settings.system.strip() not in text:
            raise UserError(f"prompt.system: {self.name} leaves it out; write it into prompt.template")

    def turn_end(self) -> str:
        """Return the token that the template writes behind an assistant's answer.

        Raises UserError where there is none.
        """
        behind: str = self._text(_ASKED, _SAID).rpartition(_SAID)[2].lstrip()
        tokens = {*self.tokenizer.get_added_vocab(), *self.tokenizer.all_special_tokens}
        found = [token for token in tokens if token and behind.startswith(token)]
        if not found:
            raise UserError(
                f"{self.name} ends an answer with {behind[:40]!r}, which begins with no special token;"
                ' set model.eos_token, or prompt.style = "plain"'
            )
        return str(max(found, key=len))

    def rewriting(
        self, question: str, answer: str, prompt: Sequence[int], response: Sequence[int]
    ) -> str | None:
        """Say how the template would write an answer into a chat, if not as prompt and response do.

        Sampling gives the ids of prompt and response, so they are trained on, whatever a later turn of
        a chat would make of them.
        """
        try:
            whole = self._ids(question, answer)
        except UserError:
            return None
        trained = [*prompt, *response]
        pairs = enumerate(zip(whole, trained, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(whole), len(trained)))
        if first == len(trained):
            return None
        there, here = (self._excerpt(ids[first:]) for ids in (whole, trained))
        return (
            f"{self.name} would write an answer into a chat as {there} where it is trained as {here};"
            " trained on is what sampling gives: the template's text up to the answer, the answer, and"
            f" {self.tokenizer.eos_token}"
        )

    def _excerpt(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids[:20]), clean_up_tokenization_spaces=False)
        return repr(f"{str(text)[:40]} ...")

    def _text(self, question: str, answer: str | None = None) -> str:
        return str(self._apply(question, answer, tokenize=False))

    def _ids(self, question: str, answer: str | None = None) -> list[int]:
        return list(self._apply(question, answer, tokenize=True, return_dict=False))

    def _apply(self, question: str, answer: str | None, **how: Any) -> Any:
        """Apply the template: to a question that waits for its answer, or to a chat that has it."""
        system = self.settings.system
        messages = [{"role": "system", "content": system}] if system else []
        for asked, said in (*self.shots, (question, answer)):
            messages.append({"role": "user", "content": asked})
            messages += [] if said is None else [{"role": "assistant", "content": said}]
        how |= {**self.settings.template_args, "add_generation_prompt": answer is None}
        try:
            return self.tokenizer.apply_chat_template(messages, **how)
        except Exception as error:  # templates are programs, and fail in all ways
            reason = shortened(" ".join(f"{error}".split())) or type(error).__name__
            if system and self._works_without_system():
                raise UserError(
                    f"prompt.system: {self.name} takes no system message ({reason}); leave it out, or"
                    " write it into prompt.template"
                ) from error
            raise UserError(
                f'{self.name} fails ({reason}); mend it, or set prompt.style = "plain"'
            ) from error

    def _works_without_system(self) -> bool:
        try:
            Chat(self.tokenizer, self.settings.model_copy(update={"system": ""}))._text(_ASKED)
        except UserError:
            return False
        return True
