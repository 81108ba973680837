"""The strings around a question, its chain and its answer, before any tokenizer."""

from dataclasses import dataclass
from functools import cached_property

from reftune.config import Prompt
from reftune.config.data import AUTO_ANSWERS, PAPERS_TEMPLATE
from reftune.problem import AnswerStyle, Cot, Problem, UserError

PROGRAM_HEAD = "def solution():\n"

_STEPS = "Please reason step by step, and"
# What a chat asks for, by the style of the answer; the second is what Qwen and DeepSeek recommend.
INSTRUCTIONS: dict[AnswerStyle, str] = {
    "trigger": _STEPS + ' write your final answer behind "{trigger}" at the end.',
    "boxed": _STEPS + r" put your final answer within \boxed{}.",
    "hashes": _STEPS + ' write your final answer behind "####" in the last line.',
    "answer_is": _STEPS + ' end with the sentence "The answer is ...", with your final answer in it.',
    "function": "Write a Python function solution() without arguments that returns the answer.",
    "fenced": "Write a Python function solution() without arguments that returns the answer."
    " Put it in a ```python block.",
}
# What follows an annotated chain; the trigger is the user's.
_ENDINGS = {
    "boxed": "\nThe answer is \\boxed{%s}.",
    "hashes": "\n#### %s",
    "answer_is": "\nThe answer is %s.",
}


def answer_style(settings: Prompt, cot: Cot) -> AnswerStyle:
    """Return how responses give their answers."""
    if settings.answer_style != "auto":
        return settings.answer_style
    return AUTO_ANSWERS["chat" if settings.style == "chat" else "plain", cot]


def resolved(settings: Prompt, cot: Cot) -> Prompt:
    """Return settings that leave nothing open: an open style is plain, other defaults follow from it."""
    style = "plain" if settings.style == "auto" else settings.style
    answers = answer_style(settings, cot)
    template = settings.template
    if template is None:
        asked = INSTRUCTIONS[answers].replace("{trigger}", settings.trigger.strip())
        template = PAPERS_TEMPLATE if style == "plain" else f"{{question}}\n\n{asked}"
    return settings.model_copy(update={"style": style, "answer_style": answers, "template": template})


@dataclass(frozen=True)
class Wording:
    """The strings around a question and its chain."""

    settings: Prompt
    cot: Cot

    @cached_property
    def asked(self) -> Prompt:
        """Return the settings with nothing left open."""
        return resolved(self.settings, self.cot)

    def question(self, problem: Problem) -> str:
        """Return the prompt; in a chat it is what the user says."""
        return str(self.asked.template).replace("{question}", problem.question)

    def opening(self, problem: Problem) -> str:
        """Return the start of the response that RL and evaluation give away (style "function" only)."""
        if self.asked.answer_style != "function":
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
        chain, style = problem.chain, self.asked.answer_style
        if chain is None:
            raise UserError(f"problem {problem.id} has no chain; SFT needs annotated problems")
        if style == "trigger":
            return f"{chain}{self.settings.trigger}{problem.answer}"
        if style in _ENDINGS:
            return (chain + _ENDINGS[style] % problem.answer).lstrip("\n")
        if not chain.startswith(PROGRAM_HEAD):
            raise UserError(f'problem {problem.id}: a program chain must start with "def solution():"')
        if style == "fenced":
            return f"```python\n{chain.rstrip()}\n```"
        return chain.removeprefix(PROGRAM_HEAD).rstrip()

    def given(self, completion: str) -> str:
        """Return what a completion, as `Prompter.decode` spells it, says after the opening."""
        is_function = self.asked.answer_style == "function"
        return completion.removeprefix(PROGRAM_HEAD) if is_function else completion

    def pieces(self, problem: Problem) -> list[str]:
        """Return an annotated problem as the texts that are encoded one by one."""
        return [self.question(problem), self.opening(problem), self.rest(problem)]
